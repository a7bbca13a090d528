"""Is a response right? Match rules between a response and its acceptable answers; evaluation only, never training."""

from __future__ import annotations

import importlib
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import TypeAlias

from srlm.errors import UserError

Match: TypeAlias = Callable[[str, Sequence[str]], bool]
"""(response text, acceptable answers) -> right?"""

# Combining classes of accents and points (Latin, Greek, Cyrillic, Hebrew, Arabic). Other marks, such as Indic vowel
# signs and Japanese voicing, tell words apart as letters do, and stay.
_ACCENTS = frozenset((1, *range(10, 37), *range(200, 256)))
_UNSPACED = re.compile(  # scripts without spaces between words (Thai to Khmer, kana, Han): every character is a word
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)
_NUMBER = re.compile(
    r"(?:(?<![\w)])(?P<minus>[-\u2212])[$€£¥]?)?"  # not the hyphen of "3-5" or "COVID-19"
    r"(?P<value>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
    r"(?P<exponent>e[-+]?\d{1,3}(?!\w))?(?:/(?P<below>\d+))?",
    re.IGNORECASE,
)


def match_rule(name: str) -> Match:
    """The rule called contains, exact, number or regex, or the function `module:function`."""
    if name in _RULES:
        return _RULES[name]
    module, _, function = name.partition(":")
    if module and function:
        return _imported(module, function)
    raise UserError(
        f"there is no match rule {name!r}, expected {', '.join(_RULES)} or module:function; choose one of these"
    )


def normalise(text: str) -> str:
    """Words without case, accents or punctuation, one space apart."""
    letters: list[str] = []
    for c in unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold()):
        category = unicodedata.category(c)
        if unicodedata.combining(c) in _ACCENTS or category == "Cf" or "\ufe00" <= c <= "\ufe0f":
            continue
        letters.append(c if c.isalnum() or category in ("Mn", "Mc") else " ")
    return " ".join(_UNSPACED.sub(r" \1 ", unicodedata.normalize("NFC", "".join(letters))).split())


def contains(response: str, answers: Sequence[str]) -> bool:
    """The words of an acceptable answer stand in the response, whole and in a row."""
    words = f" {normalise(response)} "
    return any(answer and f" {answer} " in words for answer in map(normalise, answers))


def exact(response: str, answers: Sequence[str]) -> bool:
    """The response is an acceptable answer, up to `normalise`."""
    words = normalise(response)
    return words != "" and words in map(normalise, answers)


def number(response: str, answers: Sequence[str]) -> bool:
    """The last number in the response equals that of an acceptable answer, exactly; 50% is read as 50, 3/4 as 0.75."""
    value = _last_number(response)
    return value is not None and value in map(_last_number, answers)


def regex(response: str, answers: Sequence[str]) -> bool:
    """An acceptable answer, as a pattern, is found in the response as it stands."""
    patterns = [_pattern(answer) for answer in answers]  # all, so that a broken one shows whatever matches first
    return any(pattern.search(response) for pattern in patterns)


_RULES: dict[str, Match] = {"contains": contains, "exact": exact, "number": number, "regex": regex}


def _last_number(text: str) -> Fraction | None:
    every = list(_NUMBER.finditer(text))
    if not every:
        return None
    found = every[-1]
    # Through Decimal: int() refuses more than a few thousand digits, and a response may hold them.
    value = Fraction(Decimal(found["value"].replace(",", "") + (found["exponent"] or "")))
    below = Fraction(Decimal(found["below"] or "1")) or Fraction(1)
    return (-value if found["minus"] else value) / below


def _pattern(answer: str) -> re.Pattern[str]:
    try:
        return re.compile(answer)
    except re.error as error:
        raise UserError(
            f"the answer {answer!r} is not a regular expression ({error}), as the match rule regex expects; "
            "correct it or choose another rule"
        ) from None


def _imported(module: str, function: str) -> Match:
    name = f"{module}:{function}"
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        chosen = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise UserError(
            f"the match rule {name} cannot be imported ({type(error).__name__}: {error}), expected a function of "
            "(response, answers) in a module here or installed; check its name"
        ) from error
    if not callable(chosen):
        raise UserError(f"the match rule {name} is not a function; name a function of (response, answers)")

    def match(response: str, answers: Sequence[str]) -> bool:
        right = chosen(response, tuple(answers))
        if right not in (True, False):
            raise UserError(f"the match rule {name} returned {right!r}, expected True or False; return one of these")
        return bool(right)

    return match
