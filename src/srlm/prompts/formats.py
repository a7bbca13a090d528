"""Files of other tools, known by their columns: TRL, Alpaca, ShareGPT, OpenAI messages, and a run's own responses. A
reading is said in one line; where two are possible and differ, neither is taken."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srlm.errors import UserError

Row = Mapping[str, Any]
_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True)
class Format:
    """columns: all of which a row has. prompt: of a row, None if its columns hold something else. says: what is read as
    the prompt."""

    name: str
    columns: tuple[str, ...]
    prompt: Callable[[str, Row], Any]
    says: str


def _own(where: str, row: Row) -> Any:
    return row["prompt"]


def _alpaca(where: str, row: Row) -> Any:
    """With a blank line between, as in its training prompt."""
    parts = [row["instruction"], row.get("input")]
    if not all(isinstance(part, str) for part in parts if part is not None):
        return None
    return "\n\n".join(part for part in parts if part and part.strip())


def _sharegpt(where: str, row: Row) -> Any:
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) and "from" in turn for turn in turns):
        return None
    if odd := [turn["from"] for turn in turns if turn["from"] not in _ROLES]:
        raise UserError(f"{where} has a turn from {odd[0]!r}, expected {', '.join(_ROLES)}; leave the row out")
    return _before_the_reply([{"role": _ROLES[turn["from"]], "content": turn.get("value")} for turn in turns])


def _messages(where: str, row: Row) -> Any:
    turns = row["messages"]
    return _before_the_reply(turns) if isinstance(turns, list) else None


def _preferences(where: str, row: Row) -> Any:
    """Of TRL's preferences with an implicit prompt."""
    chosen, rejected = row["chosen"], row["rejected"]
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        return None
    pairs = zip(chosen, rejected, strict=False)
    return [one for one, other in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)] or None


def _before_the_reply(turns: Sequence[Any]) -> list[Any]:
    end = len(turns)
    while end and isinstance(turns[end - 1], Mapping) and turns[end - 1].get("role") == "assistant":
        end -= 1
    return list(turns[: end or len(turns)])  # one that is nothing but reply is no prompt, which is said of it whole


OWN = Format("prompts", ("prompt",), _own, "")
FORMATS = (
    OWN,
    Format("OpenAI messages", ("messages",), _messages, "what stands before the last reply is the prompt"),
    Format("ShareGPT", ("conversations",), _sharegpt, "what stands before the last reply is the prompt"),
    Format("Alpaca", ("instruction", "output"), _alpaca, "instruction and input are the prompt"),
    Format(
        *("TRL preferences", ("chosen", "rejected"), _preferences),
        "what chosen and rejected begin with in common is the prompt",
    ),
)
RESPONSES = ("prompt_index", "sample_index")
BESIDE = ("input", *RESPONSES, "table")
REPLIES = (  # columns that hold a reply or a solution, which nobody who learns without labels is to see
    *("output", "solution", "completion", "response", "conversations", "messages", "chosen", "rejected"),
)


def readable(prompt_column: str) -> tuple[Format, ...]:
    """The formats that a file may be of: all, or the one whose only column is named."""
    return FORMATS if prompt_column == "prompt" else tuple(one for one in FORMATS if one.columns == (prompt_column,))


def translated(
    rows: Iterator[tuple[str, Any]], source: str, known: Sequence[Format] = FORMATS
) -> tuple[Iterator[tuple[str, Any]], str | None]:
    """Rows with a column "prompt", and what to say of how they were read; None where they had one, or are no objects.

    Raises:
        UserError: the columns of the first row fit two formats that read different prompts.
    """
    first = next(rows, None)
    if first is None:
        return rows, None
    where, row = first
    rows = itertools.chain([first], rows)
    if not isinstance(row, Mapping):
        return rows, None
    if OWN in known and all(name in row for name in RESPONSES):
        return _once_each(rows), f"{source} holds the responses of a run: each of its prompts is read once"
    found = [(one, one.prompt(where, row)) for one in known if all(row.get(name) is not None for name in one.columns)]
    found = [(one, prompt) for one, prompt in found if prompt is not None]
    if len({_canonical(prompt) for _, prompt in found}) > 1:
        names = " and as ".join(f"{one.name} ({', '.join(one.columns)})" for one, _ in found)
        raise UserError(
            f"{where} can be read as {names}, which are different prompts; name the column of the one you mean with "
            "--prompt-column, or, if that is prompt, leave the other columns out"
        )
    if not found or found[0][0] is OWN:
        return rows, None
    chosen, prompt = found[0]
    if prompt == row.get("messages"):  # nothing was cut off: as they always were read
        return _read(rows, chosen), None
    return _read(rows, chosen), f"{source} is read as {chosen.name}: {chosen.says}"


def _read(rows: Iterator[tuple[str, Any]], chosen: Format) -> Iterator[tuple[str, Any]]:
    for where, row in rows:
        if isinstance(row, Mapping) and all(row.get(name) is not None for name in chosen.columns):
            prompt = chosen.prompt(where, row)
            if prompt is not None:
                own = {chosen.columns[0]: prompt} if len(chosen.columns) == 1 else {}
                row = {**row, "prompt": prompt, **own}
        yield where, row


def _once_each(rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Prompts of responses; of a table of all rounds, those that were trained on."""
    seen: set[str] = set()
    for where, row in rows:
        if not isinstance(row, Mapping):
            yield where, row
        elif row.get("table", "rollouts") == "rollouts" and (key := _canonical(row.get("prompt"))) not in seen:
            seen.add(key)
            yield where, row


def _canonical(prompt: Any) -> str:
    """A string is one user turn."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return json.dumps(turns, sort_keys=True, default=str)
