"""One attempt and its end: right, refused in one sentence, or wrong."""

from __future__ import annotations

import contextlib
import faulthandler
import shutil
import signal
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from support import Outcome, command

from srlm.errors import UserError

ENDS = RIGHT, REFUSED, FAILED = "right", "refused", "failed"
SECONDS = 20.0  # of one attempt; what needs more is a hang
Try = Callable[[Random, Path], str]
"""(dice, an empty folder) -> RIGHT or REFUSED; whatever it raises is a failure."""


class Wrong(AssertionError):
    """An end that is neither right nor one sentence."""


class TooLong(BaseException):
    """Not an Exception, so that nothing swallows it."""


def said(outcome: Outcome) -> str:
    """REFUSED or RIGHT, by exit code; the sentence of a refusal is checked.

    Raises:
        Wrong: another code, or more or less than one sentence.
    """
    if "Traceback" in outcome.err:
        raise Wrong(f"a traceback on stderr: {outcome.err[-500:]}")
    if outcome.code == 130:  # whoever runs the campaign has had enough
        raise KeyboardInterrupt
    if outcome.code == 0:
        return RIGHT
    *before, last = outcome.err.rstrip("\n").split("\n")
    warned = all("Warning:" in line or line.startswith("  ") for line in before)  # of a library's
    if outcome.code != 2 or not last.startswith("srlm: ") or len(last) < 20 or not warned:
        raise Wrong(f"code {outcome.code}, on stderr: {outcome.err[-500:]!r}")
    return REFUSED


def tried(*words: object) -> tuple[str, Outcome]:
    """`srlm WORDS`, and how it ended."""
    outcome = command(*words)
    return said(outcome), outcome


def called(work: Callable[[], Any]) -> tuple[str, Any]:
    """The same of a function: REFUSED and the error, or RIGHT and the value."""
    try:
        return RIGHT, work()
    except UserError as error:
        return REFUSED, error


def expect(ok: bool, what: str) -> None:
    if not ok:
        raise Wrong(what)


@dataclass
class Tally:
    """counts: by (kind, end). failures: in words, the first of each sort; sorts: how often each came."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    sorts: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def table(self) -> str:
        lines = ["| kind | right | refused | failed | seconds |", "|---|---|---|---|---|"]
        for kind in dict.fromkeys(kind for kind, _ in self.counts):
            counts = " | ".join(str(self.counts[kind, end]) for end in ENDS)
            lines.append(f"| {kind} | {counts} | {self.seconds[kind]:.0f} |")
        return "\n".join(lines)


def campaign(
    attempts: Iterable[tuple[str, int, Try]],
    seed: int,
    folder: Path,
    tally: Tally,
    progress: Callable[[str], object] = lambda line: None,
) -> None:
    """Every attempt (kind, number, try) with dice of its own. What failed leaves its folder behind."""
    for done, (kind, number, attempt) in enumerate(attempts, 1):
        here = folder / f"{kind.replace(' ', '-')}-{number}"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        began = time.perf_counter()
        try:
            with contextlib.chdir(here), at_most(SECONDS):  # where words such as --output 0 write
                end = attempt(Random(f"{seed} {kind} {number}"), here)
            shutil.rmtree(here)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of a Rust library is no Exception either
            end = FAILED
            sort = f"{kind}: {_where(error)}"
            tally.sorts[sort] += 1
            if tally.sorts[sort] == 1:
                tally.failures.append(f"--seed {seed} --only {kind!r} --start {number}\n  {sort}\n  {_words(error)}")
                progress(tally.failures[-1])
            else:
                shutil.rmtree(here, ignore_errors=True)
        tally.counts[kind, end] += 1
        tally.seconds[kind] += time.perf_counter() - began
        if done % 250 == 0:
            ends = ", ".join(f"{sum(n for (_, e), n in tally.counts.items() if e == end)} {end}" for end in ENDS)
            progress(f"up to {kind} {number}: {ends}")


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Of this process's time: another's load is no hang. What never comes back ends the process and shows its stack."""

    def give_up(number: int, frame: Any) -> None:
        raise TooLong(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    faulthandler.dump_traceback_later(6 * seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def in_turn(kinds: dict[str, Try], names: Sequence[str], start: int, count: int) -> Iterator[tuple[str, int, Try]]:
    """Numbers start, start + 1, ... with the kinds in turn."""
    for number in range(start, start + count):
        name = names[number % len(names)]
        yield name, number, kinds[name]


def _where(error: BaseException) -> str:
    """Type and innermost line of srlm's, by which failures are told apart."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "srlm" in Path(f.filename).parts]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {last.filename.split('src/')[-1]}:{last.lineno} ({last.name})"


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 600 else f"{text[:300]} ... {text[-300:]}"
