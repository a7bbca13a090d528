"""Is a response right, and which answer does it give? Match rules, which training meets in the control `oracle` alone,
and answer classes."""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import TypeAlias

from srlm import tasks
from srlm.errors import UserError
from srlm.imports import user_function

Match: TypeAlias = Callable[[str, Sequence[str]], bool]
"""(response text, acceptable answers) -> right?"""

AnswerClass: TypeAlias = Callable[[str], Hashable | None]
"""response text -> the answer it gives; None: it gives no answer."""

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
_LONGEST_NUMBER = 10_000  # time to convert grows with the square: 4 ms here, half a minute for a million digits


def match_rule(name: str) -> Match:
    """The rule called auto, contains, exact, number or regex, or the function `module:function`."""
    if name in _RULES:
        return _RULES[name]
    module, _, function = name.partition(":")
    if module and function:
        return _own_rule(module, function)
    raise UserError(
        f"there is no match rule {name!r}, expected {', '.join(_RULES)} or module:function; choose one of these"
    )


def answer_classes(name: str) -> AnswerClass:
    """The function from a response's text to its answer class: two responses agree if theirs are equal.

    exact: the text without the white space around it. normalised: the text after `normalise`.
    number: its last number, as for the match rule; None if there is none, or it is longer than 10,000 characters.
    regex:PATTERN: the last match of PATTERN, of its first group if it has one; None if there is none or it is empty.
    module:function: the user's function of the text, which returns a hashable value or None. What it raises passes
    through; TypeError if it returns something else.

    None stands for no answer. Such responses count among the K drawn, but agree with nothing, not even each other, and
    None is never the modal class. UserError for an unknown name, a broken PATTERN or a function that cannot be
    imported.
    """
    if name in _CLASSES:
        return _CLASSES[name]
    before, _, after = name.partition(":")
    if before == "regex" and after:
        return _regex_class(after)
    if before and after:
        return _own_class(before, after)
    raise UserError(
        f"there are no answer classes {name!r}, expected {', '.join(_CLASSES)}, regex:PATTERN or module:function; "
        "choose one of these"
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


def auto(response: str, answers: Sequence[str]) -> bool:
    """As the task judges that the prompt is of (srlm.tasks); for all other prompts `contains`."""
    task = tasks.verifier(answers[0]) if answers else None
    if task is None:
        return contains(response, answers)
    classes, verify = task
    answer = answer_classes(classes)(response)
    return answer is not None and verify(_written(answer))


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
    # All, so that a broken one shows whatever matches first.
    patterns = [_pattern(answer, "answer", "match rule regex") for answer in answers]
    return any(pattern.search(response) for pattern in patterns)


_RULES: dict[str, Match] = {"auto": auto, "contains": contains, "exact": exact, "number": number, "regex": regex}


def _last_number(text: str) -> Fraction | None:
    found = _last(_NUMBER, text)
    if found is None or len(found[0]) > _LONGEST_NUMBER:
        return None
    # Through Decimal: int() refuses more than a few thousand digits, and a response may hold them.
    value = Fraction(Decimal(found["value"].replace(",", "") + (found["exponent"] or "")))
    below = Fraction(Decimal(found["below"] or "1")) or Fraction(1)
    return (-value if found["minus"] else value) / below


def _written(answer: Hashable) -> str:
    """A number as a verifier reads it: 5, -0.25."""
    if not isinstance(answer, Fraction):
        return str(answer)
    whole = Decimal(answer.numerator)  # exact, whatever its length; a division would round it
    return f"{whole if answer.denominator == 1 else whole / Decimal(answer.denominator):f}"


_CLASSES: dict[str, AnswerClass] = {"exact": str.strip, "normalised": normalise, "number": _last_number}


def _regex_class(pattern: str) -> AnswerClass:
    compiled = _pattern(pattern, "pattern", "answer class regex:PATTERN")
    group = min(compiled.groups, 1)

    def answer(response: str) -> str | None:
        found = _last(compiled, response)
        # An empty match, as of \d* at the end of any text, would make all responses agree.
        return (found[group] or None) if found else None

    return answer


def _own_class(module: str, function: str) -> AnswerClass:
    chosen = user_function(module, function, "answer class", "(response)")

    def answer(response: str) -> Hashable | None:
        value = chosen(response)
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"the answer class {module}:{function} returned a {type(value).__name__} that cannot be hashed, "
                "expected a hashable value such as a string, a number or a tuple of these, or None; return one of these"
            ) from None
        return value  # type: ignore[no-any-return]

    return answer


def _own_rule(module: str, function: str) -> Match:
    chosen = user_function(module, function, "match rule", "(response, answers)")

    def match(response: str, answers: Sequence[str]) -> bool:
        try:
            right = chosen(response, tuple(answers))
        except Exception as error:
            raise UserError(
                f"the match rule {module}:{function} failed on {response[:80]!r} ({type(error).__name__}: {error}), "
                "expected True or False; correct it"
            ) from error
        if right not in (True, False):
            raise UserError(
                f"the match rule {module}:{function} returned {right!r}, expected True or False; return one of these"
            )
        return bool(right)

    return match


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _pattern(pattern: str, what: str, user: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"the {what} {pattern!r} is not a regular expression ({error}), as the {user} expects; "
            "correct it or choose another"
        ) from None
