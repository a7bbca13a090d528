"""What a policy is asked: from files, datasets and tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from srlm.lazy import exports

if TYPE_CHECKING:
    from srlm.prompts.select import PromptSet
    from srlm.prompts.sources import load_prompts

__getattr__ = exports(__name__, {"PromptSet": "srlm.prompts.select", "load_prompts": "srlm.prompts.sources"})
__all__ = ["PromptSet", "load_prompts"]
