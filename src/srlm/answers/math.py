"""Mathematics as a person reads it: LaTeX, boxes, fractions, sets, intervals, units, percentages.

math-verify reads it, in a child process that is killed when it takes too long: some expressions keep sympy busy for
ever, in code that no signal interrupts. What is plainly a number, or word for word the same, needs no child.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Hashable, Sequence
from typing import IO, Any

from srlm.answers.final import boxes, final
from srlm.answers.math_worker import number_word
from srlm.answers.number import only_number
from srlm.answers.text import normalise
from srlm.errors import UserError
from srlm.thinking import spoken

PATIENCE = 5.0  # seconds for one answer, after which it is taken for none
BEGINS = 60.0  # seconds for a child to begin
LONGEST = 2000  # characters of an answer
_SHORT = 6  # words of an answer that is no mathematics
_KNOWN = 4096  # answers that are remembered
_AND = re.compile(  # between two boxes of one answer
    r"\}(?:\\[()\[\],; ]|\\q?quad|\\text\s?\{\s*(?:and|or)\s*\}|and\b|or\b|[\s$,])*"
    r"\\f?box(?:ed)?\s{0,3}\{"
)
# Times, which would be ratios, and days, of which only the number would be read.
_CALENDAR = re.compile(
    r"\d{1,2}:\d{2}\b|\b(?:january|february|march|april|may|june|july|august|september|october|november|december)\b",
    re.IGNORECASE,
)
_PROSE = re.compile(r"(?!.*\b(?:and|or)\b)(?=.*[^\W\d_]{3})[^\W\d_]+(?:[\s.,'’-]+[^\W\d_]+)+[\s.!]*")
_DRESS = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf|operatorname)\s?\{([^{}]*)\}|\\[()\[\],;:! ]|\$")


class Child:
    """The process that reads; begun when it is needed, and again after it had to be killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self.given_up = 0
        """Questions that took longer than PATIENCE, or more memory than there is, so far."""

    def ask(self, *question: str) -> Any:
        """What `math_worker.answer` says; None if it takes too long, or fails."""
        process = self._process if self._owner == os.getpid() else None
        if process is None or process.poll() is not None:
            process = self._begun()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            line = _line(process.stdout, PATIENCE)
        except BrokenPipeError:
            line = ""
        if not line:
            self.given_up += 1
            self._end()
            return None
        return json.loads(line)

    def _begun(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "srlm.answers.math_worker", str(PATIENCE + 1)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent to hear
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._owner = os.getpid()
        assert self._process.stdout is not None
        if _line(self._process.stdout, BEGINS) != "ready\n":
            self._end()
            raise UserError(
                "the process in which math-verify reads answers did not begin, expected that `python -c 'import "
                "math_verify'` works here: run `pip install 'srlm[math]'` again"
            )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what was left to write has no reader any more
                        pipe.close()
            self._process = None


def _line(pipe: IO[str], seconds: float) -> str:
    """A line that is written within `seconds`; what comes is whole, since the child flushes it at once. Else ""."""
    ready, _, _ = select.select([pipe], [], [], seconds)
    return pipe.readline() if ready else ""


CHILD = Child()


def math(response: str, answers: Sequence[str]) -> bool:
    """math-verify takes the final answer of the response for an acceptable one: the same value, set, interval or
    expression, however it is written; 50% is both 50 and 0.5, a unit is no part of an answer. Words are the same up to
    `normalise`. What cannot be read in 5 s is wrong."""
    said = _answer(response)
    return any(_same(said, _answer(answer)) for answer in answers)


def math_class(response: str) -> Hashable | None:
    """One word for all ways of writing the final answer, 50% being 50; None if there is none, or it cannot be read
    in 5 s."""
    return _class(_answer(response))


def _answer(text: str) -> str:
    """Where several boxes stand in a row, "\\boxed{1} and \\boxed{2}", all of them."""
    said = spoken(text)
    found = boxes(said)
    row = found[-1:]
    for one in reversed(found[:-1]):
        between = said[one[1] : row[0][0]]
        if len(between) > 80 or not _AND.fullmatch(between):
            break
        row.insert(0, one)
    answer = ", ".join(said[slice(*one)] for one in row) if len(row) > 1 else final(said)
    return answer[-LONGEST:].strip()


@functools.lru_cache(_KNOWN)
def _same(said: str, wanted: str) -> bool:
    value, other = only_number(said), only_number(wanted)
    if value is not None and other is not None and value.same(other):
        return True
    words = _plain(wanted)
    if words.replace(" ", "").isalpha() and words == _plain(said):
        return True
    if _calendar(said) or _calendar(wanted):
        return _day(said) == _day(wanted)
    return bool(CHILD.ask("same", said, wanted))


@functools.lru_cache(_KNOWN)
def _class(said: str) -> str | None:
    if not said:
        return None
    if (value := only_number(said)) is not None:
        return number_word(value.value.numerator, value.value.denominator)
    if _calendar(said):
        return _day(said)
    plain = _plain(said)
    if not _PROSE.fullmatch(_undressed(said)) and (word := CHILD.ask("class", said)) is not None:
        return str(word)
    return plain if plain and len(plain.split()) <= _SHORT else None


def _calendar(text: str) -> bool:
    """Is it a time or a day? A sentence that mentions one is not."""
    return len(text.split()) <= _SHORT and _CALENDAR.search(text) is not None


def _plain(text: str) -> str:
    return normalise(_undressed(text))


def _undressed(text: str) -> str:
    return _DRESS.sub(r" \1 ", text).strip()


def _day(text: str) -> str:
    """A time, or a day with its words in any order."""
    plain = _plain(text)
    return plain if ":" in text else " ".join(sorted(plain.split()))


def given_up() -> str | None:
    """What a person should know of answers that could not be read, if there were any since this was asked last."""
    number, CHILD.given_up = CHILD.given_up, 0
    if not number:
        return None
    return f"{number} answers took math-verify more than {PATIENCE:g} s, or its memory: they count as none"


def refuse_missing(what: str) -> None:
    """
    Raises:
        UserError: math-verify is not installed. what: needs it.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise UserError(f"the {what} math needs the package math-verify: run `pip install 'srlm[math]'`")
