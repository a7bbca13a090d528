"""Rubrics: what a judge is asked, and how its verdict is read. A rubric is a YAML file; those of the folder `rubrics`
go by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from srlm.errors import UserError

_HOME = Path(__file__).parent / "rubrics"
_KEYS = {"about", "scale", "opening", "template", "reasons"}
_POINTS, _PAIRS = ("question", "response"), ("question", "first", "second")
_SCALE = "scale: [0, 5] (fewest and most points) or scale: [A, B] (the first response is better, the second is)"


@dataclass(frozen=True)
class Rubric:
    """words: of the grades, lowest first, or those for the first and the second response of a pair. opening: what
    stands before the grade in a verdict. reasons: are they to be written before it? text: of the file."""

    name: str
    template: str
    opening: str
    words: tuple[str, ...]
    pairs: bool
    reasons: bool
    text: str

    @property
    def values(self) -> tuple[float, ...]:
        """Of the words: points, or 1 for the first response of a pair and 0 for the second."""
        return (1.0, 0.0) if self.pairs else tuple(map(float, self.words))

    @property
    def neutral(self) -> float:
        return (min(self.values) + max(self.values)) / 2

    def asks(self, **parts: str) -> str:
        """The question to the judge; whatever else stands in braces is text."""
        places = r"\{(question|response|first|second)\}"
        return re.sub(places, lambda found: parts.get(found[1], found[0]), self.template)

    def read(self, judgement: str) -> float:
        """The grade of a judgement that was written: behind the opening, the last time that stands there if
        reasons come first, else the first time; nan where there is none, or none on the scale."""
        name = re.escape(self.opening.rstrip(": "))
        grade = "|".join(map(re.escape, self.words)) if self.pairs else r"-?\d+(?:\.\d+)?"
        # Of pairs: "Better response: Response A", but not the article in "Better response: a tie".
        before = r"(?:(?:response|judge?ment)\s+)?(?-i:(?!a\s+(?!is\b)))" if self.pairs else ""
        form = rf"(?<!\w){name}\W*?(?<![\w-]){before}({grade})(?![\w.]*\w)(?:\s*(?:/|out of)\s*(\d+))?"
        found = re.findall(form, judgement, re.IGNORECASE)
        if not found:
            return float("nan")
        said, of = found[-1 if self.reasons else 0]
        if self.pairs:
            return self.values[[word.lower() for word in self.words].index(said.lower())]
        points = float(said)
        on_scale = self.values[0] <= points <= self.values[-1] and of in ("", self.words[-1])
        return points if on_scale else float("nan")


@cache
def shipped() -> tuple[str, ...]:
    """Names of the rubrics that come along."""
    return tuple(sorted(file.stem for file in _HOME.glob("*.yaml")))


def read_rubric(name: str) -> Rubric:
    """Of a name or a YAML file.

    Raises:
        UserError: there is none, it has no scale, or it does not say where the response stands.
    """
    import yaml

    file = _HOME / f"{name}.yaml" if name in shipped() and not Path(name).exists() else Path(name).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(
            f"the rubric {name} cannot be read ({reason}), expected a YAML file or one of {', '.join(shipped())}: "
            "correct --rubric"
        ) from error
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"the rubric {name} is not YAML ({str(error).splitlines()[0]}): correct it") from error
    if not isinstance(found, Mapping) or not isinstance(found.get("template"), str):
        raise UserError(
            f"the rubric {name} has no template, expected what the judge is asked as text: add `template: |`"
        )
    if unknown := sorted(map(str, found.keys() - _KEYS)):
        raise UserError(
            f"the rubric {name} has an unknown key {unknown[0]}, expected {', '.join(sorted(_KEYS))}: correct it"
        )
    words, pairs = _scale(name, found)
    placeholders = _PAIRS if pairs else _POINTS
    for place in placeholders:
        if f"{{{place}}}" not in found["template"]:
            needed = ", ".join(f"{{{one}}}" for one in placeholders)
            raise UserError(f"the template of the rubric {name} has no {{{place}}}, expected {needed}: put it in")
    opening = found.get("opening", "Score:")
    if not isinstance(opening, str) or not opening.strip():
        raise UserError(
            f"the opening of the rubric {name} is {opening!r}, expected what stands before a grade: correct it"
        )
    reasons = found.get("reasons", False)
    if not isinstance(reasons, bool):
        raise UserError(f"reasons of the rubric {name} is {reasons!r}, expected true or false: correct it")
    return Rubric(name, found["template"], opening.strip(), words, pairs, reasons, text)


def _scale(name: str, found: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """The words of the grades, and whether they are of pairs."""
    if "scale" not in found:
        raise UserError(f"the rubric {name} has no scale, expected {_SCALE}: add one")
    match found["scale"]:
        case [int(low), int(high)] if not isinstance(low, bool) and 0 <= low < high <= 1000:
            return tuple(map(str, range(low, high + 1))), False
        case [str(first), str(second)] if re.fullmatch(r"\w+", first) and re.fullmatch(r"\w+", second):
            if first.lower() != second.lower():
                return (first, second), True
    raise UserError(f"the scale of the rubric {name} is {found['scale']!r}, expected {_SCALE}: correct it")
