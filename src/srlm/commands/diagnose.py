"""Would self-rewarding help this model on these prompts? kappa and modes by exact search, and a forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from srlm.commands.asking import DRESSED, add_asking
from srlm.commands.options import Parser, Shared, taken
from srlm.errors import UserError
from srlm.objectives.settings import ObjectiveSettings
from srlm.prompts.settings import PromptSettings
from srlm.rewards.settings import RewardSettings
from srlm.sizes import Sizes


@dataclass(frozen=True)
class Diagnose:
    """What is asked of `srlm diagnose` beside settings of training."""

    run: str | None = None
    """Instead of a model: a run folder, with its settings and, unless others are given, its held-out prompts."""
    round: int | None = None
    """Round of the run; by default the one whose model it kept, or its last so far."""
    output: str | None = None
    """New folder for diagnose.json, prompts.parquet and samples.parquet."""
    samples: int = 16
    """K: responses per prompt."""
    search_budget: int = 1024
    """Most prefixes per prompt that the search for the mode evaluates; what it leaves open becomes an interval."""
    search_best: int = 4
    """How many of the most probable responses to certify: 2 are mode and runner-up, more narrow the forecast."""


def parser() -> Parser:
    made = Parser("diagnose", __doc__ or "", "--prompts FILE | --run DIR [options]")
    made.add("What", Shared, ("model", "prompts"), aliases={"prompts": "--task"}, model=None, prompts=None)
    made.add("What", Diagnose, ("run", "round", "output"))
    columns = (
        "max_prompts",
        "prompt_column",
        "answer_column",
        "split",
        "dataset_config",
        "system_prompt",
        "instruction",
    )
    made.add("What", PromptSettings, columns, prompt_column=None, answer_column=None)
    made.add("How", Diagnose, ("samples", "search_budget", "search_best"))
    made.add("How", RewardSettings, ("answers",))
    made.add("How", PromptSettings, ("match",), match=None)
    made.add("How", Sizes, ("max_new_tokens",), max_new_tokens=None)
    made.add("How", ObjectiveSettings, ("clip",), clip=None)
    unsaid = ("stop", *DRESSED, "adapter", "dtype", "quantize", "token_budget", "trust_remote_code")
    add_asking(made, ("stop", *DRESSED), **dict.fromkeys(unsaid))
    return made


def run(words: Sequence[str]) -> None:
    first, rest = taken(words, "config")
    chosen = parser().parsed(rest, first["config"])
    if chosen["prompts"] is None and chosen["run"] is None:
        raise UserError("no prompts were given: name a file or dataset with --prompts, or a run folder with --run")
    from srlm.console import Display
    from srlm.diagnosis import diagnose

    display = Display(chosen.pop("quiet"))
    diagnose(num_samples=chosen.pop("samples"), display=display, **chosen)
    if chosen["output"] is not None:
        from srlm.report import report_or_reason

        display.say(report_or_reason(Path(chosen["output"])))
