"""Numbers in a text as a person reads them: signs, separators, fractions, powers, units."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import islice
from math import log10

from srlm.answers.text import BEFORE_A_SIGN

LONGEST = 10_000  # characters of a number: time to convert grows with the square, half a minute for a million digits
_LARGEST_POWER = 5_000  # digits that a power may have
_SEEN = 100_000  # characters of a response
_PRECISE = 15  # significant digits of a decimal of as many places; further ones are what a binary float leaves behind

_VULGAR = {
    "½": "1/2",
    "⅓": "1/3",
    "⅔": "2/3",
    "¼": "1/4",
    "¾": "3/4",
    "⅕": "1/5",
    "⅖": "2/5",
    "⅗": "3/5",
    "⅘": "4/5",
    "⅙": "1/6",
    "⅚": "5/6",
    "⅛": "1/8",
    "⅜": "3/8",
    "⅝": "5/8",
    "⅞": "7/8",
    "⅐": "1/7",
    "⅑": "1/9",
    "⅒": "1/10",
}
_VULGAR_CHARACTER = re.compile(f"[{''.join(_VULGAR)}]")
_RAISED = re.compile("(?<=\\d)\u207b?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_LOWERED = str.maketrans("\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079", "-0123456789")
# Ways of writing the same -> one of them, in this order.
_WRITINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[\u2212\u2013]", "-"),  # minus sign, en dash
        (r"\\(?:left|right|displaystyle|q?quad|(?:begin|end)\s?\{[a-z*]{1,20}\}|[,;!:])(?![a-zA-Z])", ""),
        (r"\\(?:text|mathrm|mathbf|textbf|operatorname)\s?\{([^{}]{0,99})\}", r"\1"),
        (r"(?<=\d)(?:\{,\}|['\u2019\u00a0\u2007\u2009\u202f_])(?=\d{3}(?!\d))", ","),
        (r"\\[dtc]?frac\s?\{\s?(-?)\s?(\d{1,99})\s?\}\s?\{\s?(\d{1,99})\s?\}", r" \1\2/\3 "),
        (r"\\[dtc]?frac\s?(\d)\s?(\d)(?!\d)", r" \1/\2 "),
        (r"[\u00d7\u00b7\u22c5]|\\(?:times|cdot)(?![a-zA-Z])", "*"),
        (r"(?<!\d)\*\*|\*\*(?!\s?-?\d)", ""),  # bold
        (r"\*\*", "^"),
        (r"\^\s?\{\s?(-?\d{1,99})\s?\}", r"^\1"),
        (r"(?<=[^\W\d_])\s?\^\s?-?\d{1,99}", ""),  # of a unit: cm^2
        (r"\\?[$€£¥]|\\[()\[\]]", ""),
        (r"\\%", "%"),
        (r"(?:(?<=^)|(?<=[=(:\[,]))(\s{0,9})-\s{1,3}(?=[\d.])", r"\1-"),  # "- 3", where nothing stands before it
        (r"-\s{1,3}(?=\d{1,99}/\d)(?<!\w\s-\s)(?<!\w-\s)", "-"),  # "-\frac{1}{2}"
    )
]
_PLAIN = r"(?:\d{1,3}(?:\.\d{3})+,\d+|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d++)(?:\.\d++)?|(?<!\d)\.\d++)"
_TERM = rf"{_PLAIN}(?:e[-+]?\d{{1,3}}(?!\w))?(?:(?:\s{{1,3}}\d++)?\s?/\s?\d++)?(?:\s?\^\s?-?\d{{1,4}}(?![\w.]))?"
_DENIED = re.compile(r"(?:\bnot|n't|n\u2019t|\bnever)\s{1,2}$", re.IGNORECASE)
_NUMBER = re.compile(
    rf"(?<!√)(?<!sqrt)(?<!sqrt{{)(?:(?:(?<=[{BEFORE_A_SIGN}])|(?<![\w)\]}}.]))-)?"
    rf"(?>{_TERM}(?:[^\S\n]?\*[^\S\n]?{_TERM})*)(?!\s?(?:\\?pi\b|π|√|\\[a-zA-Z]))",
    re.IGNORECASE,
)
_PARTS = re.compile(
    rf"(?P<value>{_PLAIN})(?P<exponent>e[-+]?\d+)?(?:(?:\s+(?P<top>\d+))?\s?/\s?(?P<below>\d+))?(?:\s?\^\s?(?P<power>-?\d+))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Number:
    """percent: it is written with a per cent sign. 50% is 50, and where the other side has no such sign also 0.5."""

    value: Fraction
    percent: bool = False

    def same(self, other: Number) -> bool:
        if self.value == other.value:
            return True
        mine, theirs = (Fraction(1, 100) if one.percent else Fraction(1) for one in (self, other))
        return mine != theirs and self.value * mine == other.value * theirs


def last_number(text: str) -> Number | None:
    """The last number of a text; None if it has none. 3/4 is 0.75, 1 1/2 and 1½ are 1.5, 10^6 and 3 × 10^5 are what
    they say, 2π and √2 are no numbers."""
    if (whole := only_number(text)) is not None:
        return whole
    written = _written(text[-2 * LONGEST :])
    last = deque(_NUMBER.finditer(written), maxlen=1)
    return _number(written, last[0]) if last else None


def numbers(text: str) -> list[Number]:
    """All numbers of a text but those behind a "not"."""
    written = _written(text[-_SEEN:])
    found = (
        one for one in _NUMBER.finditer(written) if not _DENIED.search(written, max(0, one.start() - 9), one.start())
    )
    return [number for one in found if (number := _number(written, one)) is not None]


def only_number(text: str) -> Number | None:
    """The number that the whole text is, but for currency and full stop; None if it is more than that."""
    if len(text) > 2 * LONGEST:
        return None
    written = _written(re.sub(r"(?<=\d)\s(?=\d{3}(?!\d))", ",", text.strip()))
    found = list(islice(_NUMBER.finditer(written), 2))
    if len(found) != 1 or written[: found[0].start()].strip(" +*"):
        return None
    return _number(written, found[0]) if not written[found[0].end() :].strip(" .%°*") else None


def _denied(written: str, at: int) -> bool:
    return _DENIED.search(written, max(0, at - 9), at) is not None


def _number(written: str, found: re.Match[str]) -> Number | None:
    value = _value(found[0])
    return None if value is None else Number(value, written[found.end() :].lstrip(" ")[:1] == "%")


def _written(text: str) -> str:
    text = _VULGAR_CHARACTER.sub(lambda found: f" {_VULGAR[found[0]]}", text.replace("\u2044", "/"))
    text = _RAISED.sub(lambda found: f"^{found[0].translate(_LOWERED)}", text)
    for pattern, replacement in _WRITINGS:
        text = pattern.sub(replacement, text)
    return text


def _value(found: str) -> Fraction | None:
    if len(found) > LONGEST:
        return None
    whole = Fraction(1)
    for part in _PARTS.finditer(found.lstrip("-")):
        if (term := _term(part)) is None:
            return None
        whole *= term
    return -whole if found.startswith("-") else whole


def _term(part: re.Match[str]) -> Fraction | None:
    digits = part["value"]
    european = re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+", digits)
    digits = digits.replace(".", "").replace(",", ".") if european else digits.replace(",", "")
    try:
        # Through Decimal: int() refuses more than a few thousand digits, and a response may hold them.
        decimal = Decimal(digits + (part["exponent"] or ""))
    except InvalidOperation:
        return None
    if len(digits.partition(".")[2]) >= _PRECISE:
        decimal = Decimal(f"{decimal:.{_PRECISE - 1}e}")
    value = Fraction(decimal)
    below = Fraction(Decimal(part["below"] or "1")) or Fraction(1)
    value = value + Fraction(Decimal(part["top"])) / below if part["top"] else value / below
    if (power := int(part["power"] or "1")) == 1:
        return value
    if not value or abs(power) * (1 + log10(max(abs(value.numerator), value.denominator))) > _LARGEST_POWER:
        return None
    return value**power
