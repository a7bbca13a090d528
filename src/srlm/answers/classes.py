"""Which answer does a response give?"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from fractions import Fraction
from functools import partial
from typing import TypeAlias

from srlm.answers.final import final
from srlm.answers.math import math_class, refuse_missing
from srlm.answers.number import last_number
from srlm.answers.patterns import Pattern
from srlm.answers.text import normalise
from srlm.errors import UserError
from srlm.imports import user_function
from srlm.thinking import spoken

AnswerClass: TypeAlias = Callable[[str], Hashable | None]
"""response text -> the answer it gives; None: it gives no answer."""


def number_class(response: str) -> Fraction | None:
    found = last_number(final(spoken(response)))
    return None if found is None else found.value


def _text_class(response: str, of: Callable[[str], str]) -> str | None:
    """Of a text that says nothing the empty one; of a thought that nothing follows none."""
    said = spoken(response)
    return of(said) if said or said == response else None


_CLASSES: dict[str, AnswerClass] = {
    "exact": partial(_text_class, of=str.strip),
    "normalised": partial(_text_class, of=normalise),
    "number": number_class,
    "math": math_class,
}


def answer_classes(name: str) -> AnswerClass:
    """The function from a response's text to its answer class: two responses agree if theirs are equal.

    exact: the text without the white space around it. normalised: the text after `normalise`.
    number: the last number of its final answer (`srlm.answers.final`), as for the match rule, 50% being 50; None if
    there is none, or it is longer than 10,000 characters. math: what its final answer is worth, LaTeX or not
    (`srlm.answers.math.math_class`).
    regex:PATTERN: the last match of PATTERN, of its first group if it has one; None if there is none or it is empty.
    module:function: the user's function of the text, which returns a hashable value or None. What it raises passes
    through; TypeError if it returns something else.

    All but a user's own function see what stands behind `</think>`, if a response has thought; a thought that is all
    there is, or was cut off, is no answer.

    None stands for no answer. Such responses count among the K drawn, but agree with nothing, not even each other, and
    None is never the modal class. UserError for an unknown name, a broken PATTERN or a function that cannot be
    imported.
    """
    if name == "math":
        refuse_missing("answer classes")
    if name == "auto":
        name = "normalised"  # where no source says more (`srlm.prompts.presets.settled`)
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


def _regex_class(pattern: str) -> AnswerClass:
    compiled = Pattern(pattern, "pattern", "answer class regex:PATTERN")
    group = min(compiled.groups, 1)
    # An empty match, as of \d* at the end of any text, would make all responses agree.
    return lambda response: compiled.last(spoken(response), group) or None


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
