"""Prompts that a program hands over: a `datasets.Dataset`, or a list of strings, conversations or rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from srlm.errors import UserError
from srlm.handed import HANDED

Given: TypeAlias = Iterable[Any]


def name_of(given: Given) -> str:
    """What a run calls them: no other process can read them again by that name."""
    return f"{HANDED}:{type(given).__name__}"


def rows_of(given: Given, name: str) -> Iterator[tuple[str, Any]]:
    """
    Raises:
        UserError: splits of a dataset instead of one, or nothing that has rows.
    """
    if hasattr(given, "keys"):  # a DatasetDict, or columns
        raise UserError(
            f"a {type(given).__name__} with the keys {', '.join(map(repr, list(given.keys())[:5]))} was handed over as "
            "prompts, expected rows: take one of its splits, or give a list of them"
        )
    if hasattr(given, "with_format"):
        given = given.with_format(None)
    elif not isinstance(given, Sequence):
        raise UserError(
            f"a {type(given).__name__} was handed over as prompts, expected a datasets.Dataset or a list of strings, "
            "conversations or rows: make a list of it"
        )
    for number, row in enumerate(given, 1):
        yield f"row {number} of {name}", {"prompt": row} if isinstance(row, list | tuple) else row


def is_handed(source: str) -> bool:
    """Is it a name that `name_of` gave?"""
    return source.startswith(f"{HANDED}:")


def refuse_name(source: str) -> None:
    """
    Raises:
        UserError: a name that `name_of` gave, whose prompts are not at hand any more.
    """
    if is_handed(source):
        raise gone(source)


def gone(source: str) -> UserError:
    """To be raised: prompts that only the program which handed them over has."""
    return UserError(
        f"the prompts {source} are objects that a Python program handed over, expected a file or dataset: go on "
        "from that program (SelfRewardTrainer(..., resume=True)), or give the same prompts as a file"
    )
