"""Have a model write new prompts, from examples drawn among those that there are, and keep those fit to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from srlm.commands.asking import DRESSED, add_asking
from srlm.commands.options import Parser, Shared, taken
from srlm.errors import UserError, expect
from srlm.prompts.settings import PromptSettings
from srlm.writing.settings import WritingSettings


@dataclass(frozen=True)
class Written:
    """What is asked of `srlm prompts`."""

    seeds: str = ""
    """Prompts to draw the examples from, in any form that --prompts of srlm train takes."""
    number: int = 0
    """How many new prompts to keep; fewer are, and it is said, if ten times as many that were written do not hold
    them."""
    output: str = ""
    """New .jsonl file of the prompts, each with the examples, draw and log-prob that it comes from; beside it
    .about.json says from what and what was dropped. Nothing is ever overwritten."""
    held_out: str | None = None
    """Prompts to be measured on: whatever comes near one of them, or quotes it, is dropped."""

    def __post_init__(self) -> None:
        expect(self, "seeds", bool(self.seeds), "a file of prompts to draw examples from")
        expect(self, "number", self.number >= 1, "at least 1")
        expect(self, "output", self.output.endswith(".jsonl"), "the name of a new .jsonl file")


def parser() -> Parser:
    made = Parser("prompts", __doc__ or "", "--seeds FILE --number N --output FILE [options]")
    made.add("What", Shared, ("model",))
    made.add("What", Written)
    made.add("What", PromptSettings, ("prompt_column", "split", "dataset_config", "instruction"))
    names = ("examples", "near", "length", "tokens", "temperature", "top_p")
    made.add("How", WritingSettings, tuple(f"written_{name}" for name in names))
    add_asking(made, DRESSED)
    return made


def run(words: Sequence[str]) -> None:
    first, rest = taken(words, "config")
    chosen = parser().parsed(rest, first["config"])
    if not chosen["seeds"]:
        raise UserError("no prompts to draw examples from were given: name a file or dataset with --seeds")
    if not chosen["output"]:
        raise UserError("no file to write to was given: name a new .jsonl file with --output")
    asked = Written(**{name: chosen.pop(name) for name in ("seeds", "number", "output", "held_out")})
    from srlm.console import Display
    from srlm.harvest import write_prompts

    display = Display(chosen.pop("quiet"))
    write_prompts(**vars(asked), **chosen, display=display)
