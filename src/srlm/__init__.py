"""srlm: self-rewarding language models, with guarantees (arXiv 2601.22513)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from srlm.lazy import exports

__version__ = "0.1.0"

if TYPE_CHECKING:
    from srlm.config import SelfRewardConfig
    from srlm.diagnosis import Diagnosis, diagnose
    from srlm.errors import UserError
    from srlm.evaluation import evaluate
    from srlm.handed import named
    from srlm.harvest import write_prompts
    from srlm.planning import plan
    from srlm.prompts.sources import load_prompts
    from srlm.training.trainer import SelfRewardTrainer

__getattr__ = exports(
    __name__,
    {
        "Diagnosis": "srlm.diagnosis",
        "SelfRewardConfig": "srlm.config",
        "SelfRewardTrainer": "srlm.training.trainer",
        "UserError": "srlm.errors",
        "diagnose": "srlm.diagnosis",
        "evaluate": "srlm.evaluation",
        "load_prompts": "srlm.prompts.sources",
        "named": "srlm.handed",
        "plan": "srlm.planning",
        "write_prompts": "srlm.harvest",
    },
)
__all__ = [
    "Diagnosis",
    "SelfRewardConfig",
    "SelfRewardTrainer",
    "UserError",
    "diagnose",
    "evaluate",
    "load_prompts",
    "named",
    "plan",
    "write_prompts",
]
