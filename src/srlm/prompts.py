"""Files and datasets -> prompts. Whatever is wrong with an input is said here: one sentence, with the line it is on."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os.path
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from srlm import tasks
from srlm.errors import UserError
from srlm.types import PromptItem, Prompts

Rows: TypeAlias = Iterator[tuple[str, Any]]  # where a row stands ("line 3 of x.jsonl"), and the row

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_TAKE, _SPLIT = 1, 2  # separate random streams, so that a subset says nothing about the split of the same seed


@dataclass(frozen=True)
class PromptSet:
    """Prompts with where they came from, and the acceptable answers that only an evaluation may see.

    answers: per prompt, None where the source has none.
    fingerprint: sha256 of the prompts in order; the answers do not enter it.
    """

    prompts: Prompts
    answers: tuple[tuple[str, ...], ...] | None
    source: str
    fingerprint: str

    def take(self, number: int | None, seed: int) -> PromptSet:
        """A random subset in file order, part of every larger one of the same seed; all when there are no more."""
        if number is not None and number < 1:
            raise UserError(f"{number} prompts of {self.source} were asked for; ask for 1 or more")
        if number is None or number >= len(self.prompts):
            return self
        return self._pick(self._shuffled(seed, _TAKE)[:number])

    def split(self, held_out: int, seed: int) -> tuple[PromptSet, PromptSet]:
        """(train, held out), each in file order. Training loses its copies of a held-out prompt, so that none leaks."""
        key = [_canonical(item) for item in self.prompts.items]
        order = self._shuffled(seed, _SPLIT)
        seen = {key[i] for i in order[: max(held_out, 0)]}
        train = [i for i in order if key[i] not in seen]
        if not seen or not train:
            given = f"{held_out} of {len(key)} prompts ({len(set(key))} distinct) of {self.source} cannot be held out"
            raise UserError(f"{given}; hold out 1 or more and leave 1 or more to train on")
        return self._pick(train), self._pick(order[:held_out])

    def without(self, other: PromptSet) -> PromptSet:
        """The prompts that do not stand in `other`."""
        seen = set(map(_canonical, other.prompts.items))
        rest = [i for i, item in enumerate(self.prompts.items) if _canonical(item) not in seen]
        if not rest:
            given = f"all {len(self.prompts)} prompts of {self.source} are among those of {other.source}"
            raise UserError(f"{given}; take one part from elsewhere")
        return self._pick(rest)

    def without_answers(self) -> Prompts:
        """What training may see."""
        return self.prompts

    def _shuffled(self, seed: int, stream: int) -> list[int]:
        return [int(i) for i in np.random.default_rng([seed, stream]).permutation(len(self.prompts))]

    def _pick(self, rows: Iterable[int]) -> PromptSet:
        rows = sorted(rows)
        answers = None if self.answers is None else tuple(self.answers[i] for i in rows)
        return _prompt_set([self.prompts.items[i] for i in rows], answers, self.source)


def one_kind(items: Sequence[PromptItem]) -> list[PromptItem]:
    """As a column can hold them, strings or conversations: where both occur, a string is one user turn."""
    if all(isinstance(item, str) for item in items):
        return list(items)
    return [({"role": "user", "content": item},) if isinstance(item, str) else item for item in items]


def load_prompts(
    source: str | Path, *, split: str = "train", prompt_column: str = "prompt", answer_column: str = "answer"
) -> PromptSet:
    """Prompts from a .jsonl, .json, .csv, .parquet or .txt file, a folder saved by `datasets`, a Hub id, or a task
    (`reasoning-gym:NAME?PARAMETERS`, see srlm.tasks).

    A prompt is a string or a conversation. Without a column "prompt" the column "messages" is read, unless another
    `prompt_column` is named. `split` matters to datasets only.
    """
    columns = ("prompt", "messages") if prompt_column == "prompt" else (prompt_column,)
    items: list[PromptItem] = []
    answers: list[tuple[str, ...]] = []
    lacking: str | None = None
    for where, row in _rows(str(source), split, (*columns, answer_column)):
        if not isinstance(row, (str, Mapping)):
            raise UserError(f'{where} is {_kind(row)}, expected an object such as {{"prompt": "..."}}; correct it')
        fields = {prompt_column: row} if isinstance(row, str) else cast(Mapping[str, Any], row)
        items.append(_prompt(where, fields, columns))
        answers.append(_answers(where, fields.get(answer_column)))
        lacking = lacking or (None if answers[-1] else where)
    if not items:
        raise UserError(f"{source} is empty, expected at least one prompt; add prompts or give another source")
    if lacking and any(answers):
        raise UserError(f"{lacking} has no {answer_column!r} though other rows do; give all rows one, or none")
    return _prompt_set(items, None if lacking else tuple(answers), str(source))


def _prompt_set(items: Sequence[Any], answers: tuple[tuple[str, ...], ...] | None, source: str) -> PromptSet:
    content = "\n".join(map(_canonical, items))
    return PromptSet(Prompts.uniform(items), answers, source, hashlib.sha256(content.encode()).hexdigest())


def _canonical(item: Any) -> str:
    return json.dumps(item, sort_keys=True)


def _prompt(where: str, row: Mapping[str, Any], columns: Sequence[str]) -> PromptItem:
    name = next((column for column in columns if row.get(column) is not None), None)
    if name is None:
        found = f"columns found: {', '.join(map(repr, row)) or 'none'}"
        raise UserError(f"{where} has no {' or '.join(map(repr, columns))} ({found}); rename one or name the right one")
    value = row[name]
    if isinstance(value, str) and name != "messages":
        return _words(f"the prompt on {where}", value)
    if not isinstance(value, list):
        expected = 'a list of {"role", "content"} turns' if name == "messages" else "a string"
        raise UserError(f"{name!r} on {where} is {_kind(value)}, expected {expected}; correct it")
    turns = tuple(_turn(f"turn {number} on {where}", turn) for number, turn in enumerate(value, 1))
    if not turns or turns[-1]["role"] == "assistant":
        given = f"the conversation on {where} {'ends with an assistant turn' if turns else 'is empty'}"
        raise UserError(f"{given}, but a prompt must end with a user (or system) turn; correct its end")
    return turns


def _turn(where: str, turn: Any) -> dict[str, str]:
    match turn:
        case {"role": "system" | "user" | "assistant" as role, "content": str(content)}:
            return {"role": role, "content": _words(where, content)}
        case _:
            expected = 'expected {"role": "user" (or system, assistant), "content": "..."}'
            raise UserError(f"{where} is not a turn of a conversation, {expected}; correct it")


def _words(what: str, text: str) -> str:
    if not text.strip():
        raise UserError(f"{what} is empty, expected some text; fill it in or remove the row")
    if text.encode(errors="ignore").decode() != text:
        raise UserError(f"{what} has half of a surrogate pair, expected Unicode text; correct the escape")
    return text


def _answers(where: str, value: Any) -> tuple[str, ...]:
    given = value if isinstance(value, list) else [value]
    return tuple(_answer(f"an answer on {where}", one) for one in given if one not in (None, ""))


def _answer(what: str, value: Any) -> str:
    if isinstance(value, str):
        return _words(what, value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)) or not math.isfinite(value):
        raise UserError(f"{what} is {_kind(value)}, expected a string or a finite number; correct it")
    return str(int(value)) if value == int(value) else str(value)


def _kind(value: Any) -> str:
    """In the words of JSON."""
    name = type(value).__name__
    words = {"dict": "an object", "list": "a list", "str": "a string", "int": "a number", "NoneType": "null"}
    return words.get(name, f"a {name}")


def _rows(source: str, split: str, wanted: Sequence[str]) -> Rows:
    if tasks.is_task(source):
        return tasks.rows(source)
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    expected = f"expected {', '.join(_TEXT_READERS)} or .parquet"
    if os.path.isfile(path):
        if suffix not in (*_TEXT_READERS, ".parquet"):
            raise UserError(f"{source} has the extension {suffix!r}, {expected}; convert or rename it")
        return _parquet(path, wanted) if suffix == ".parquet" else _TEXT_READERS[suffix](path)
    if not os.path.isdir(path) and (suffix in (*_TEXT_READERS, ".parquet") or not _HUB_ID.fullmatch(source)):
        raise UserError(f"there is no file {source}, {expected}, a saved dataset or a Hub id; check the path")
    return _dataset(source, path, split, wanted)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode().removeprefix("\ufeff")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"line {line} of {path} is not UTF-8; save the file as UTF-8") from None


def _parsed(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a plain ValueError: a number of thousands of digits
        where = f"line {first_line + getattr(error, 'lineno', 1) - 1} of {path}"
        expected = "one object a line" if path.suffix.lower() == ".jsonl" else "one list (one object a line is .jsonl)"
        raise UserError(f"{where} is not valid JSON ({getattr(error, 'msg', error)}), expected {expected}") from None


def _lines(path: Path) -> Rows:
    for number, line in enumerate(_text(path).split("\n"), 1):  # not splitlines: a JSON string may hold U+2028
        if line.strip():
            row = line.strip() if path.suffix.lower() == ".txt" else _parsed(line, path, number)
            yield f"line {number} of {path}", row


def _json(path: Path) -> Rows:
    text = _text(path)
    rows: Any = _parsed(text, path, 1) if text.strip() else []
    if not isinstance(rows, list):
        raise UserError(f"{path} holds {_kind(rows)}, expected a list of objects or strings; write one list")
    return _numbered(str(path), rows)


def _csv(path: Path) -> Rows:
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = next(reader, list[str]())
        line = reader.line_num + 1
        for fields in reader:
            where, line = f"line {line} of {path}", reader.line_num + 1
            if fields and len(fields) != len(header):
                expected = f"expected {len(header)} as in the header"
                raise UserError(f"{where} has {len(fields)} fields, {expected}; quote a field that holds a comma")
            if fields:
                yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of {path} is not valid CSV ({error}); correct its quotes") from None


def _parquet(path: Path, wanted: Sequence[str]) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            return _numbered(str(path), file.read(_needed(file.schema_arrow.names, wanted)).to_pylist())
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a readable Parquet file ({_first_line(error)}); write it again") from error


def _dataset(source: str, path: Path, split: str, wanted: Sequence[str]) -> Rows:
    import datasets

    saved = os.path.isdir(path)
    try:
        data: Any = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(source, split=split)
    except Exception as error:  # network, name, split, builder, folder: the user's choices are the same
        where = "a folder that save_to_disk wrote" if saved else "a file here, nor could the Hub give it as a dataset"
        advice = "give such a folder or a file" if saved else f"check the name, the split {split!r} and the network"
        raise UserError(f"{source} is not {where} ({_first_line(error)}); {advice}") from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise UserError(f"{source} has no split {split!r}; choose one of {', '.join(map(str, data))}")
        data = data[split]
    return _numbered(source, data.with_format(None).select_columns(_needed(data.column_names, wanted)))


def _needed(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The wanted columns; when there are none, all, for the error that lists what was found."""
    return [name for name in names if name in wanted] or list(names)


def _numbered(name: str, rows: Iterable[Any]) -> Rows:
    return ((f"row {number} of {name}", row) for number, row in enumerate(rows, 1))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


_TEXT_READERS: dict[str, Callable[[Path], Rows]] = {".jsonl": _lines, ".json": _json, ".csv": _csv, ".txt": _lines}
