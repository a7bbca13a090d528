"""Options of earlier versions that have another name now, or none: for one minor version they work, and say so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

from srlm.errors import UserError

RETIRED = (  # thresholds that no guard asks any more
    *("guard_mode_fidelity", "guard_displacement", "guard_leak", "guard_kappa", "guard_entropy", "guard_kendall"),
    *("guard_log_ratio", "guard_distinct_2"),
)


@dataclass(frozen=True)
class Old:
    """new: what the option is called now; None: nothing heeds it. gone: the version that refuses it. beside: an option
    of the commands that knew it."""

    new: str | None
    gone: str
    beside: str


OPTIONS: dict[str, Old] = {name: Old(None, "0.2", "guard") for name in RETIRED}
"""Old name -> what became of it. It comes with the version that deprecates it, and goes with the next minor one."""


def old_option(name: str, known: Container[str]) -> Old | None:
    """What became of the option `name` of a command, if it is not one of those that are `known` to it any more."""
    old = OPTIONS.get(name)
    return old if old is not None and name not in known and old.beside in known else None


def sentence(name: str, old: Old, spelled: Callable[[str], str] = str) -> str:
    """What to say of it. spelled: a name as the user writes it."""
    if old.new is None:
        return f"{spelled(name)} has no effect any more, and srlm {old.gone} will refuse it: leave it out"
    return f"{spelled(name)} is called {spelled(old.new)} now, and srlm {old.gone} will refuse it: use the new name"


def renamed(given: Mapping[str, Any], known: Container[str]) -> dict[str, Any]:
    """Options by the names that they have now, without those that nothing heeds; warns of each.

    Raises:
        UserError: one is given by both of its names.
    """
    now: dict[str, Any] = {}
    for name, value in given.items():
        old = old_option(name, known)
        if old is not None:
            warnings.warn(sentence(name, old), DeprecationWarning, stacklevel=3)
        new = name if old is None else old.new
        if new is None:
            continue
        if new != name and new in given:
            raise UserError(f"{new} is given twice, once by its old name {name}, expected once: leave one out")
        now[new] = value
    return now


class Renaming(type):
    """Of a dataclass of settings: takes the old names of its fields."""

    def __call__(cls, *values: Any, **given: Any) -> Any:
        fields = set(getattr(cls, "__dataclass_fields__", ()))
        if any(name in OPTIONS and name not in fields for name in given):
            given = renamed(given, fields)
        return super().__call__(*values, **given)
