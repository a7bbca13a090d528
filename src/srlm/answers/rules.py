"""Is a response right? Training meets these rules in the control `oracle` alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import TypeAlias

from srlm import tasks
from srlm.answers.classes import answer_classes
from srlm.answers.final import final
from srlm.answers.math import math, refuse_missing
from srlm.answers.number import last_number, numbers, only_number
from srlm.answers.patterns import Pattern
from srlm.answers.text import WITHOUT_SPACES, normalise
from srlm.errors import UserError
from srlm.imports import user_function
from srlm.thinking import spoken

Match: TypeAlias = Callable[[str, Sequence[str]], bool]
"""(response text, acceptable answers) -> right?"""

_SEEN = 10_000  # characters of a response in which a choice is looked for
_CHOICE = re.compile(r"\(?([A-J])\)?[.:]?", re.IGNORECASE)
_LETTER = rf"[^\W{WITHOUT_SPACES}]"  # of a script with spaces between words
# A letter that is chosen: first of all, alone, or in brackets.
_CHOSEN = (
    re.compile(r"\s*[*(]*([A-J])(?:[).:*]|,?\s+(?:[-–—(]|(?:not|since|because|as|for)\b)|\s*$)"),
    re.compile(r"\s*[*(]*([a-j])(?:\)|[.:*]*\s*$)"),
    re.compile(r"(?i:.*\(([A-J])\))", re.DOTALL),
)
_NAMED = "|".join(rf"(?<=\b{word} )" for word in ("Option", "option", "Choice", "choice", "Letter", "letter"))
# The last one by itself, but for the words I and A; A where there is no other.
_BY_ITSELF = (
    re.compile(rf".*(?<!{_LETTER})(?<!['’])([B-HJ]|A(?!\s+[a-z])|(?:{_NAMED})A)(?!{_LETTER}|['’+#])", re.DOTALL),
    re.compile(r"\s*(A)\s+is\b"),
)
_DENIED = re.compile(r"(?:^| )(?:not|n t|\w+n t|never|nor) (?:the |a |an )?$")


def match_rule(name: str) -> Match:
    """The rule called auto, contains, exact, number, math or regex, or the function `module:function`.

    All but a user's own function see what stands behind `</think>`, if a response has thought.
    """
    if name == "math":
        refuse_missing("match rule")
    if name in _RULES:
        return _RULES[name]
    module, _, function = name.partition(":")
    if module and function:
        return _own_rule(module, function)
    raise UserError(
        f"there is no match rule {name!r}, expected {', '.join(_RULES)} or module:function; choose one of these"
    )


def auto(response: str, answers: Sequence[str]) -> bool:
    """As the task judges that the prompt is of (srlm.tasks); for all other prompts `contains`."""
    task = tasks.verifier(answers[0]) if answers else None
    if task is None:
        return contains(response, answers)
    classes, verify = task
    answer = answer_classes(classes)(response)
    return answer is not None and verify(_written(answer))


def contains(response: str, answers: Sequence[str]) -> bool:
    """The words of an acceptable answer stand in the response, whole, in a row and not behind a "not".

    An answer that is a number is right if that number, however it is written, is one of the response's; one that is a
    letter of a choice, (B), if it is the last letter of the final answer. Of a solution that ends in "#### 72" or in a
    box, that is the answer.
    """
    response = spoken(response)
    words = f" {normalise(response)} "
    return any(_holds(response, words, final(answer)) for answer in answers)


def _holds(response: str, words: str, answer: str) -> bool:
    if (value := only_number(answer)) is not None:
        return any(value.same(one) for one in numbers(response))
    if choice := _CHOICE.fullmatch(answer.strip()):
        said, small = final(response)[-_SEEN:], choice[1].islower()
        # By itself a small letter is a word like others: a, or I.
        patterns = _CHOSEN if small else (*_CHOSEN, *_BY_ITSELF)
        chosen = next((found[1] for pattern in patterns if (found := pattern.match(said))), "")
        if chosen or not small:
            return chosen.upper() == choice[1].upper()
    wanted = normalise(answer)
    at = words.find(f" {wanted} ") if wanted else -1
    while at >= 0:
        if not _DENIED.search(words, max(0, at - 16), at + 1):
            return True
        at = words.find(f" {wanted} ", at + 1)
    return False


def exact(response: str, answers: Sequence[str]) -> bool:
    """The response is an acceptable answer, up to `normalise`, or the same number."""
    response = spoken(response)
    words, value = normalise(response), only_number(response)
    if value is not None and any(other is not None and value.same(other) for other in map(only_number, answers)):
        return True
    return words != "" and words in map(normalise, answers)


def number(response: str, answers: Sequence[str]) -> bool:
    """The last number in the final answer of the response (behind "####", in a box, behind "the answer is", or else
    anywhere) equals that of an acceptable answer, exactly; 3/4 is 0.75, and 50% both 50 and 0.5."""
    value = last_number(final(spoken(response)))
    others = (last_number(final(answer)) for answer in answers)
    return value is not None and any(other is not None and value.same(other) for other in others)


def regex(response: str, answers: Sequence[str]) -> bool:
    """An acceptable answer, as a pattern, is found in what the response says, as it stands."""
    response = spoken(response)
    # All, so that a broken one shows whatever matches first.
    patterns = [Pattern(answer, "answer", "match rule regex") for answer in answers]
    return any(pattern.search(response) for pattern in patterns)


_RULES: dict[str, Match] = {
    "auto": auto,
    "contains": contains,
    "exact": exact,
    "number": number,
    "math": math,
    "regex": regex,
}


def _written(answer: Hashable) -> str:
    """A number as a verifier reads it: 5, -0.25."""
    if not isinstance(answer, Fraction):
        return str(answer)
    whole = Decimal(answer.numerator)  # exact, whatever its length; a division would round it
    return f"{whole if answer.denominator == 1 else whole / Decimal(answer.denominator):f}"


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
