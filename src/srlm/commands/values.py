"""One option: what its words, or the value that a file gives it, are read as."""

from __future__ import annotations

import dataclasses
import datetime
import typing
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Literal

from srlm.errors import UserError

NOTHING = "None"  # the word for no value, where there may be none
DASHES = "\ue000"  # stands before a value that is --, which argparse drops


@dataclasses.dataclass(frozen=True)
class Option:
    """One field. kind: what each of its words is; several: it takes words without end, or as many as `number`."""

    name: str
    kind: type
    words: tuple[str, ...]
    several: bool
    number: int | None
    optional: bool
    positional: bool = False

    @classmethod
    def of(cls, field: dataclasses.Field[Any], hint: Any) -> Option:
        kinds = set(typing.get_args(hint)) if typing.get_origin(hint) in (UnionType, typing.Union) else {hint}
        optional = NoneType in kinds
        kinds.discard(NoneType)
        literals = [kind for kind in kinds if typing.get_origin(kind) is Literal]
        words = tuple(word for literal in literals for word in typing.get_args(literal))
        (kind,) = kinds - set(literals) or {str}
        several, number = typing.get_origin(kind) is tuple, None
        if several:
            kind, *more = typing.get_args(kind)
            number = None if more == [...] else 1 + len(more)
        return cls(field.name, kind, words, several, number, optional)

    @property
    def flag(self) -> str:
        return self.name if self.positional else f"--{self.name.replace('_', '-')}"

    def read(self, given: Any) -> Any:
        """
        Raises:
            UserError: what was given is not of this kind.
        """
        if self.optional and given in (None, NOTHING):
            return None
        if isinstance(given, str) and given in self.words:
            return given
        try:
            return _READERS[self.kind](given)
        except (TypeError, ValueError, OverflowError):
            expected = ", or ".join([_EXPECTED[self.kind], *self.words])
            raise UserError(f"{self.flag} is {given!r}, expected {expected}: correct it") from None

    def settled(self, value: Any) -> Any:
        """What was read, as its dataclass holds it; files can say null where the command line cannot."""
        if not self.several:
            return self.read(None) if value is None else value
        values = [] if value is None else list(value)
        if self.optional and values in ([], [None]):
            return None
        if None in values or (self.number is not None and len(values) != self.number):
            expected = f"{self.number} values" if self.number is not None else f"{_EXPECTED[self.kind]} in every place"
            raise UserError(f"{self.flag} is {values!r}, expected {expected}: correct it")
        return tuple(values)


def _text(given: Any) -> str:
    if isinstance(given, bool) or not isinstance(given, str | int | float | datetime.date):
        raise TypeError
    text = str(given).removeprefix(DASHES)
    text.encode()  # a ValueError if it is none: a file name of other bytes, say
    if "\0" in text:
        raise ValueError
    return text


def _whole(given: Any) -> int:
    if isinstance(given, bool) or (isinstance(given, float) and not given.is_integer()):
        raise TypeError
    return int(given)


def _number(given: Any) -> float:
    if isinstance(given, bool):
        raise TypeError
    return float(given)


def _truth(given: Any) -> bool:
    if not isinstance(given, bool):
        raise TypeError
    return given


_READERS: dict[type, Callable[[Any], Any]] = {str: _text, int: _whole, float: _number, bool: _truth}
_EXPECTED = {str: "Unicode text", int: "a whole number", float: "a number", bool: "true or false"}
METAVARS = {str: "TEXT", int: "N", float: "X"}
