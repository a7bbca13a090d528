"""The configuration of a run: of `srlm train`, of a YAML file, of `SelfRewardTrainer`. Each part lives with what it
configures; a room that is handed the whole sees its own part of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from srlm.deprecated import Renaming
from srlm.errors import UserError, expect
from srlm.guard.settings import GuardSettings
from srlm.objectives.settings import BETA, ObjectiveSettings, ShapingSettings
from srlm.policies.transformer.settings import (
    LEARNING_RATE,
    WHOLE_LEARNING_RATE,
    DecodingSettings,
    EngineSettings,
    ModelSettings,
    OptimisationSettings,
)
from srlm.prompts.settings import PromptSettings
from srlm.rewards.settings import RewardSettings
from srlm.sizes import Sizes
from srlm.writing.settings import WritingSettings


@dataclass(frozen=True)
class RunSettings:
    """Run"""

    output: str = "srlm-run"
    """Run folder; must be new or empty."""
    seed: int = 0
    """Of subsets, adapter, sampling and order."""
    report_to: tuple[str, ...] = ()
    """Also report each round to trackers: tensorboard, wandb, trackio, mlflow; files go to trackers/ in the run."""
    push_to_hub: str | None = None
    """Upload model/ to this Hub repository at the end, which is created private if it is new."""

    def __post_init__(self) -> None:
        expect(self, "output", is_name(self.output), "a name of Unicode text without a NUL")
        expect(self, "seed", 0 <= self.seed < 2**63, "0 or more and below 2^63")


def is_name(text: str) -> bool:
    """Can it name a file, and be written down?"""
    return "\0" not in text and text.encode(errors="ignore").decode() == text


PARTS = (
    *(RunSettings, Sizes, PromptSettings, WritingSettings, DecodingSettings, EngineSettings, RewardSettings),
    *(ObjectiveSettings, ShapingSettings, OptimisationSettings, ModelSettings, GuardSettings),
)
"""In the order in which they are shown."""


@dataclass(frozen=True)
class SelfRewardConfig(
    RunSettings,
    PromptSettings,
    WritingSettings,
    DecodingSettings,
    EngineSettings,
    RewardSettings,
    ObjectiveSettings,
    ShapingSettings,
    OptimisationSettings,
    ModelSettings,
    GuardSettings,
    metaclass=Renaming,
):
    """Every setting of a run. The defaults are the vetted setting of docs/evidence.md; log-probs and rewards are in
    nats, lengths in tokens."""

    @property
    def total_beta(self) -> float | None:
        """Of the KL terms to the last round's policy and to the untouched one together, as the objective sees them;
        None where every round solves its own (`step`)."""
        if self.step is not None:
            return None
        return (BETA if self.beta is None else self.beta) + self.kl_initial

    def with_defaults(self, begun: Mapping[str, Any] | None = None) -> Self:
        """With what depends on other settings, where it is not given: beta 1, or a step of half of log K, and the
        learning rate of what is trained. begun: what a run began with, which stands then."""
        found = {} if self.beta is not None else self._strength(begun)
        if self.learning_rate is None:
            found["learning_rate"] = (begun or {}).get("learning_rate") or self.peak_rate
        return replace(self, **found)

    def _strength(self, begun: Mapping[str, Any] | None) -> dict[str, Any]:
        if self.step is not None:
            return {"beta": BETA}
        if begun is not None:
            return {name: begun.get(name) for name in ("beta", "step")}
        if self.objective != "regression" or self.in_nats:
            return {"beta": BETA}
        return {"beta": BETA, "step": math.log(self.num_samples) / 2}

    @property
    def peak_rate(self) -> float:
        """Peak step size: the one given, or that of what is trained."""
        return self.learning_rate or (LEARNING_RATE if self.lora_rank else WHOLE_LEARNING_RATE)

    @property
    def fresh_prompts(self) -> bool:
        """Has every round prompts of its own?"""
        return self.prompts_per_round is not None or self.written_prompts > 0

    @property
    def weights_folder(self) -> str:
        """Where a round keeps its policy."""
        return "adapter" if self.lora_rank else "weights"

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: a value out of its range.
        """
        for part in PARTS:
            if check := vars(part).get("__post_init__"):
                check(self)
        if self.prompts_per_round == 0 and not self.written_prompts:
            raise UserError(
                "--prompts-per-round is 0, expected at least 1, or --written-prompts beside it, since a round needs "
                "prompts to train on: raise one of them"
            )
        if self.quantize != "none" and self.engine != "builtin":
            raise UserError(
                f"--quantize is {self.quantize!r} beside --engine {self.engine}, expected the builtin engine, which "
                "draws from the packed model that is trained: leave one out"
            )
        if self.system_prompt is not None and self.raw_prompts:
            raise UserError(
                f"--system-prompt {self.system_prompt!r} stands beside --raw-prompts, expected one of them, since a "
                "system turn is the chat template's to write: leave one out"
            )
