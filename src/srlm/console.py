"""What a person sees while a run goes on: a live bar per stage, a table row per round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from srlm import notebook
from srlm.plain import visible

if TYPE_CHECKING:  # what imports torch is not needed to print
    from srlm.types import Record

# heading, record key, format
COLUMNS = (
    ("round", "round", "{:d}"),
    ("log10 κ ≤", "log10_kappa_upper", "{:.2f}"),
    ("sampled", "accuracy_sampled", "{:.3f}"),
    ("greedy", "accuracy_greedy", "{:.3f}"),
    ("rank", "token_likelihood_rank", "{:.2f}"),
    ("achieved", "achieved", "{:.2f}"),
    ("leak", "leak", "{:+.2f}"),
    ("R²", "fidelity_r2", "{:.2f}"),
    ("J₀ gap", "j0_gap", "{:.2f}"),
    ("length", "mean_length", "{:.1f}"),
    ("EOS", "eos_rate", "{:.2f}"),
    ("loss", "loss", "{:.1f}"),
    ("seconds", "seconds", "{:.0f}"),
    ("stage", "stage", " {}"),
)
PAPER = 140  # columns of what is not a terminal
WIDTH = 2 + max(len(heading) for heading, _, _ in COLUMNS)


def _cell(text: str) -> str:
    return text.rjust(WIDTH)


class Display:
    """`quiet` leaves plain lines for a log."""

    def __init__(self, quiet: bool = False, silent: bool = False) -> None:
        self.console = Console(quiet=silent, highlight=False, soft_wrap=True, emoji=False)
        if not self.console.is_terminal:  # a file has no width
            self.console.width = max(self.console.width, PAPER)
        self.live = not quiet and not silent and self.console.is_terminal
        self.notebook = not quiet and not silent and self.console.is_jupyter
        self._headed = False

    def anew(self) -> Display:
        """For another run: its table gets a heading of its own."""
        self._headed = False
        return self

    def say(self, text: str) -> None:
        self.console.print(visible(text), markup=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for one stage; yields the function that reports (done, total)."""
        if self.notebook:
            with notebook.bar(name) as report:
                yield report
            return
        if not self.live:
            yield lambda done, total: None
            return
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task(name, total=None, rate="")

            def report(done: int, total: int) -> None:
                speed = bars.tasks[0].speed
                bars.update(task, completed=done, total=total, rate=f"{speed:.1f}/s" if speed else "")

            yield report

    def row(self, record: Record) -> None:
        if not self._headed:
            self.say("".join(_cell(heading) for heading, _, _ in COLUMNS))
            self._headed = True
        values = ((record.get(key), form) for _, key, form in COLUMNS)
        self.say("".join(_cell("–" if value is None else form.format(value)) for value, form in values))
