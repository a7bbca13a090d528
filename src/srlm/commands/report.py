"""Look at runs, diagnoses and experiments: one HTML page with figures and samples, live with --watch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from srlm.commands.options import Parser, taken
from srlm.errors import UserError


@dataclass(frozen=True)
class Report:
    """What is asked of `srlm report`."""

    output: str | None = None
    """HTML file; by default report.html in the folder, comparison.html in the first of several. A report that lies
    there is overwritten, since it is only a view."""
    figures: str | None = None
    """Also draw the curves as SVG files into this folder."""
    forecast: str | None = None
    """A diagnose.json of a run's start: its forecast of kappa is drawn beside what happened."""
    watch: bool = False
    """Serve the page on this machine only, refreshed while a run goes on, instead of writing it."""
    port: int = 0
    """For --watch; 0 takes a free one."""


def parser() -> Parser:
    made = Parser("report", __doc__ or "", "FOLDER ... [options]")
    made.positional("folders", "What srlm train, diagnose or verify wrote; several are laid over each other.")
    made.add("What", Report)
    return made


def run(words: Sequence[str]) -> None:
    first, rest = taken(words, "config")
    chosen = parser().parsed(rest, first["config"])
    folders, output, figures, forecast = (chosen[name] for name in ("folders", "output", "figures", "forecast"))
    from srlm import report

    if not folders:
        raise UserError("no folder was given: name the folder that srlm train, diagnose or verify wrote")
    if chosen["watch"]:
        if output is not None or figures is not None:
            raise UserError("--watch writes nothing: leave out --output and --figures, or --watch")
        from srlm.report.watch import watch

        watch(folders, port=chosen["port"], forecast=forecast)
        return
    print(report.report(folders, output, forecast=forecast))
    if figures is not None:
        for file in report.save_figures(folders, figures, forecast=forecast):
            print(file)
