"""One row of a source -> a prompt and its answers."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from srlm.errors import UserError
from srlm.types import PromptItem

WRITTEN = 13  # digits, with the point, of a number that somebody wrote; one that was float32 has more


def prompt(where: str, row: Mapping[str, Any], columns: Sequence[str]) -> PromptItem:
    name = next((column for column in columns if row.get(column) is not None), None)
    if name is None:
        found = f"columns found: {', '.join(map(repr, row)) or 'none'}"
        raise UserError(
            f"{where} has no {' or '.join(map(repr, columns))} ({found}); rename one, or name the right one with "
            "--prompt-column"
        )
    value = row[name]
    if isinstance(value, str) and name != "messages":
        return _words(f"the prompt on {where}", value)
    if not isinstance(value, list | tuple):
        expected = 'a list of {"role", "content"} turns' if name == "messages" else "a string"
        raise UserError(f"{name!r} on {where} is {kind(value)}, expected {expected}; correct it")
    turns = tuple(_turn(f"turn {number} on {where}", turn) for number, turn in enumerate(value, 1))
    if not turns or turns[-1]["role"] == "assistant":
        given = f"the conversation on {where} {'ends with an assistant turn' if turns else 'is empty'}"
        raise UserError(f"{given}, but a prompt must end with a user (or system) turn; correct its end")
    return turns


def dressed(where: str, item: PromptItem, system: str | None, instruction: str | None) -> PromptItem:
    """With a system turn before it, and an instruction on a line of its own at its end.

    Raises:
        UserError: it has a system turn already.
    """
    if instruction:
        if isinstance(item, str):
            item = f"{item}\n{instruction}"
        else:
            item = (*item[:-1], {**item[-1], "content": f"{item[-1]['content']}\n{instruction}"})
    if system is None:
        return item
    turns = ({"role": "user", "content": item},) if isinstance(item, str) else item
    if turns[0]["role"] == "system":
        raise UserError(
            f"the conversation on {where} has a system turn already, expected none; leave out --system-prompt"
        )
    return ({"role": "system", "content": system}, *turns)


def _turn(where: str, turn: Any) -> dict[str, str]:
    match turn:
        case {"role": "system" | "user" | "assistant" as role, "content": str(content)}:
            return {"role": role, "content": _words(where, content)}
        case {
            "role": "system" | "user" | "assistant" as role,
            "content": [{"type": "text", "text": str()}, *_] as parts,
        }:
            if all(isinstance(part, Mapping) and part.get("type") == "text" for part in parts):
                return {"role": role, "content": _words(where, "".join(str(part.get("text")) for part in parts))}
            raise UserError(f"{where} holds something else than text, expected text alone; leave it out")
        case _:
            expected = 'expected {"role": "user" (or system, assistant), "content": "..."}'
            raise UserError(f"{where} is not a turn of a conversation, {expected}; correct it")


def blank(text: str) -> bool:
    """Is there nothing to be seen?"""
    return all(unicodedata.category(c) in ("Cf", "Zs", "Cc") for c in text)


def _words(what: str, text: str) -> str:
    if blank(text):
        raise UserError(f"{what} is empty, expected some text; fill it in or remove the row")
    if text.encode(errors="ignore").decode() != text:
        raise UserError(f"{what} has half of a surrogate pair, expected Unicode text; correct the escape")
    return text


def answers(where: str, value: Any) -> tuple[str, ...]:
    given = value if isinstance(value, list) else [value]
    return tuple(_answer(f"an answer on {where}", one) for one in given if one not in (None, ""))


def _answer(what: str, value: Any) -> str:
    if isinstance(value, str):
        return _words(what, value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # of any size: a float could not hold it
    if not isinstance(value, (float, Decimal)) or not math.isfinite(value):
        raise UserError(f"{what} is {kind(value)}, expected a string or a finite number; correct it")
    if value == int(value):
        return str(int(value))
    if isinstance(value, float) and len(repr(value).partition("e")[0].strip("-0.")) > WRITTEN:
        with np.errstate(over="ignore"):
            single = np.float32(value)
        if float(single) == value:  # of a column of float32: .1 and not .10000000149011612
            return str(single)
    return str(value)


def kind(value: Any) -> str:
    """In the words of JSON."""
    name = type(value).__name__
    words = {"dict": "an object", "list": "a list", "str": "a string", "int": "a number", "NoneType": "null"}
    return words.get(name, f"a {name}")
