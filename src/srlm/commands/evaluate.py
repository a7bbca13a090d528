"""How often a model is right on labelled prompts: sampled and greedy accuracy, pass@k and maj@k with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from srlm.commands.asking import add_asking
from srlm.commands.options import Parser, Shared, taken
from srlm.errors import UserError
from srlm.prompts.settings import PromptSettings
from srlm.rewards.settings import RewardSettings
from srlm.sizes import Sizes


@dataclass(frozen=True)
class Evaluate:
    """What is asked of `srlm evaluate` beside settings of training."""

    output: str | None = None
    """Also write the result to this new JSON file."""


def parser() -> Parser:
    made = Parser("evaluate", __doc__ or "", "--prompts FILE [options]")
    made.add("What", Shared, ("model", "prompts"), aliases={"prompts": "--task"})
    columns = ("max_prompts", "prompt_column", "answer_column", "split", "dataset_config")
    made.add("What", PromptSettings, (*columns, "system_prompt", "instruction", "overlong", "match"))
    made.add("What", RewardSettings, ("answers",))
    made.add("What", Evaluate)
    made.add("How", Sizes, ("num_samples", "max_new_tokens"))
    add_asking(made)
    return made


def run(words: Sequence[str]) -> None:
    first, rest = taken(words, "config")
    chosen = parser().parsed(rest, first["config"])
    if not chosen["prompts"]:
        raise UserError("no prompts were given: name a file or dataset with --prompts")
    from srlm.console import Display
    from srlm.evaluation import evaluate

    display = Display(chosen.pop("quiet"))
    evaluate(**chosen, display=display)
