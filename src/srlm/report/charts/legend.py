"""How lines of one run, and of several, are told apart."""

from __future__ import annotations

from collections.abc import Sequence

from srlm.report.charts.chart import Style
from srlm.report.folders import Folder


def named(runs: Sequence[Folder], run: Folder, name: str) -> str:
    return name if len(runs) == 1 else f"{run.name}: {name}"


def colour_of(runs: Sequence[Folder], run: int, line: int) -> Style:
    """One run: a colour a line. Several: a colour a run, a dash a line."""
    return {"colour": line, "dash": 0} if len(runs) == 1 else {"colour": run, "dash": line}


def solid(runs: Sequence[Folder], run: int, line: int) -> Style:
    return {"colour": colour_of(runs, run, line)["colour"], "dash": 0}
