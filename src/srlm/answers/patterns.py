"""Regular expressions of a user's: read with care, and never waited for."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable
from typing import Any

import regex

from srlm.errors import UserError

PATIENCE = 1.0  # seconds for one text: a pattern that takes longer tries ways without end
LONGEST = 2000  # characters: the search for one letter 10,000 times takes minutes to begin, and heeds no timeout
REPEATED = 100_000  # how often at least, in all: regex writes such repetitions out, some 80 bytes each
_TIMES = re.compile(r"(?<!\\)\{(\d{1,30})(?:,\d*)?\}")


class Pattern:
    """what, user: in words, for whoever has to correct it."""

    def __init__(self, pattern: str, what: str, user: str) -> None:
        self._what = f"the {what} {pattern!r}"
        if len(pattern) > LONGEST:
            raise UserError(
                f"the {what} {pattern[:40]!r}... has {len(pattern)} characters, but the {user} expects at most "
                f"{LONGEST}: shorten it"
            )
        if (times := math.prod(max(int(number), 1) for number in _TIMES.findall(pattern))) > REPEATED:
            raise UserError(
                f"{self._what} repeats something {times} times, but the {user} expects at most {REPEATED} in all: "
                "lower the numbers in its braces"
            )
        try:
            self._compiled = regex.compile(pattern)
        except (regex.error, OverflowError, RecursionError, ValueError) as error:
            raise UserError(
                f"{self._what} is not a regular expression ({error}), as the {user} expects; correct it or choose "
                "another"
            ) from None

    @property
    def groups(self) -> int:
        count: int = self._compiled.groups
        return count

    def search(self, text: str) -> bool:
        """
        Raises:
            UserError: the pattern takes too long.
        """
        return self._patiently(lambda: self._compiled.search(text, timeout=PATIENCE)) is not None

    def last(self, text: str, group: int) -> str | None:
        """The last match, or a group of it.

        Raises:
            UserError: the pattern takes too long.
        """

        last = self._patiently(lambda: deque(self._compiled.finditer(text, timeout=PATIENCE), maxlen=1))
        return last[0][group] if last else None

    def _patiently(self, find: Callable[[], Any]) -> Any:
        try:
            return find()
        except TimeoutError:
            raise UserError(
                f"{self._what} took more than {PATIENCE:g} s on one response, expected far less: simplify it, nested "
                "repetitions such as (a+)+ above all"
            ) from None
