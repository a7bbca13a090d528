"""Check the theory by experiment, on policies where everything can be computed: one script per statement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from srlm.commands.options import Parser, Shared, taken
from srlm.config import RunSettings
from srlm.errors import UserError


@dataclass(frozen=True)
class Verify:
    """What is asked of `srlm verify`."""

    all: bool = False
    """Run every experiment."""
    quick: bool = False
    """Fewer replicas and sizes: seconds instead of minutes."""
    output: str | None = None
    """Folder that keeps each experiment's data (CSV), figure (SVG) and verdict (JSON), and a report of all."""


def parser() -> Parser:
    made = Parser("verify", __doc__ or "", "EXPERIMENT ... | --all [options]")
    made.positional("names", "Experiments, by name; a name that does not exist lists them.")
    made.add("What", Verify)
    made.add("What", RunSettings, ("seed",))
    made.add("What", Shared, ("quiet",))
    return made


def run(words: Sequence[str]) -> None:
    first, rest = taken(words, "config")
    chosen = parser().parsed(rest, first["config"])
    from srlm.console import Display
    from srlm.experiments import EXPERIMENTS
    from srlm.experiments.verify import verify

    if bool(chosen["names"]) == chosen["all"]:
        raise UserError(f"expected either experiments or --all: name some of {', '.join(EXPERIMENTS)}")
    RunSettings(seed=chosen["seed"])  # in range?
    output = Path(chosen["output"]) if chosen["output"] is not None else None
    names = list(chosen["names"] or EXPERIMENTS)
    display = Display(chosen["quiet"])
    good = verify(names, output=output, quick=chosen["quick"], seed=chosen["seed"], display=display)
    if output is not None:
        from srlm.report import report_or_reason

        display.say(report_or_reason(output))
    if not good:
        raise SystemExit(1)
