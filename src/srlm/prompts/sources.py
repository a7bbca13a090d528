"""Files, datasets and tasks -> prompts. Whatever is wrong with an input is said here: one sentence, with the line."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os.path
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

from srlm import tasks
from srlm.errors import UserError
from srlm.prompts import columns, formats
from srlm.prompts.columns import kind
from srlm.prompts.files import MOST_BYTES, content, files_in, is_run, is_saved, is_whole, kind_of
from srlm.prompts.given import Given, name_of, refuse_name, rows_of
from srlm.prompts.presets import Source
from srlm.prompts.select import PromptSet, prompt_set
from srlm.prompts.settings import PromptSettings
from srlm.shipped import shipped
from srlm.types import PromptItem


@dataclass(frozen=True)
class Wanted:
    """Columns of a table. prompts: any of these, each whole, makes a prompt. others: read where they are there."""

    prompts: Sequence[Sequence[str]]
    others: Sequence[str]


Rows: TypeAlias = Iterator[tuple[str, Any]]  # where a row stands ("line 3 of x.jsonl"), and the row

SHUFFLE = 0  # seed of a shuffled stream: which rows are read is the source's affair, not a run's
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def load_prompts(
    source: str | Path | Given,
    *,
    split: str | None = None,
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    dataset_config: str | None = None,
    system_prompt: str | None = None,
    instruction: str | None = None,
    keep_columns: bool = False,
    streaming: int | None = None,
    streaming_buffer: int = 0,
) -> PromptSet:
    """Prompts from a .jsonl, .json, .csv, .parquet or .txt file, a folder saved by `datasets` or with the files of a
    dataset, a Hub id, a benchmark (gsm8k, math, math500: `srlm.prompts.presets`), or a task
    (`reasoning-gym:NAME?PARAMETERS`, see srlm.tasks). Datasets may name configuration and split: `name:config[split]`.
    Or what a program has already: a `datasets.Dataset`, or a list of strings, conversations or rows.

    Text files may be compressed (.gz), and a folder of files is all of them. A run folder stands for its prompts; files
    of TRL, Alpaca, ShareGPT and of OpenAI messages are known by their columns (srlm.prompts.formats), and `note` of the
    set says so.

    A prompt is a string or a conversation. Without a column "prompt" the column "messages" is read, unless another
    `prompt_column` is named. `split` and `dataset_config` matter to datasets only, that do not name their own.

    system_prompt: a system turn before every prompt. instruction: what every prompt ends with, on a line of its own;
    None leaves the one that a task or benchmark brings along. keep_columns: what else a row holds is kept as well.
    streaming: of a dataset, read the first so many rows as they come, and no more; with a streaming_buffer in the order
    of a shuffle by SHUFFLE that reads so many ahead.
    """
    given = None if isinstance(source, str | Path) else source
    if given is None:
        refuse_name(str(source))
        asked = Source.of(str(source))
    else:
        source = name_of(given)
        asked = Source(source)
    if (asked.split or asked.config) and is_whole(shipped(Path(asked.name).expanduser())):
        raise UserError(
            f"{source} names a part of {asked.name}, which is one file, run or dataset without parts, expected its "
            "name alone: leave the rest out"
        )
    if asked.preset is not None:
        prompt_column = asked.preset.prompt_column if prompt_column == "prompt" else prompt_column
        answer_column = asked.preset.answer_column if answer_column == "answer" else answer_column
        instruction = asked.preset.instruction if instruction is None else instruction
        dataset_config = dataset_config or asked.preset.config
        split = split or asked.preset.split
    name = asked.name
    if tasks.is_task(name) and instruction is not None:
        name, instruction = tasks.with_instruction(name, instruction), None
    names = ("prompt", "messages") if prompt_column == "prompt" else (prompt_column,)
    known = formats.readable(prompt_column)
    wanted = Wanted([*((one,) for one in names), *(one.columns for one in known)], (answer_column, *formats.BESIDE))
    part = (asked.split or split, asked.config or dataset_config)
    read: Iterator[tuple[str, Any]]
    if given is not None and streaming_buffer:
        raise UserError(
            f"--streaming-buffer is {streaming_buffer} beside prompts that a program hands over, expected a dataset to "
            "stream: shuffle them before"
        )
    if given is not None:
        read = itertools.islice(rows_of(given, str(source)), streaming)
    elif streaming is None:
        read = _rows(name, *part, None if keep_columns else wanted)
    else:
        read = _streamed(name, *part, streaming, streaming_buffer)
    read, note = formats.translated(read, str(source), known)
    if streaming_buffer:
        shuffled = f"{source} is streamed: {streaming} rows, shuffled in a buffer of {streaming_buffer}"
        note = shuffled if note is None else f"{shuffled}; {note}"
    own: list[Mapping[str, Any]] = []
    items: list[PromptItem] = []
    answers: list[tuple[str, ...]] = []
    lacking: str | None = None
    for where, row in read:
        if not isinstance(row, (str, Mapping)):
            raise UserError(f'{where} is {kind(row)}, expected an object such as {{"prompt": "..."}}; correct it')
        fields = {prompt_column: row} if isinstance(row, str) else cast(Mapping[str, Any], row)
        items.append(columns.dressed(where, columns.prompt(where, fields, names), system_prompt, instruction))
        answers.append(columns.answers(where, fields.get(answer_column)))
        if keep_columns:
            hidden = (*names, answer_column, *formats.REPLIES)
            own.append({key: value for key, value in fields.items() if key not in hidden})
        lacking = lacking or (None if answers[-1] else where)
    if not items:
        raise UserError(f"{source} is empty, expected at least one prompt; add prompts or give another source")
    if lacking and any(answers):
        raise UserError(f"{lacking} has no {answer_column!r} though other rows do; give all rows one, or none")
    made = prompt_set(items, None if lacking else tuple(answers), str(source), tuple(own) if keep_columns else None)
    return replace(made, note=note)


def prompts_of(
    source: str | Path | PromptSet | Given, settings: PromptSettings, *, keep_columns: bool = False
) -> PromptSet:
    """A set that is there, or what `load_prompts` makes of a source."""
    if isinstance(source, PromptSet):
        return source
    return load_prompts(
        source,
        split=settings.split,
        prompt_column=settings.prompt_column,
        answer_column=settings.answer_column,
        dataset_config=settings.dataset_config,
        system_prompt=settings.system_prompt,
        instruction=settings.instruction,
        keep_columns=keep_columns,
        streaming=settings.streaming,
        streaming_buffer=settings.streaming_buffer,
    )


def _streamed(source: str, split: str | None, config: str | None, number: int, buffer: int) -> Rows:
    """The first rows of a dataset, or of one that is shuffled in a buffer; no more is fetched than they need."""
    import datasets

    path = shipped(Path(source).expanduser())
    if tasks.is_task(source) or is_whole(path):
        raise UserError(
            f"--streaming is {number}, but {source} is no dataset that could be streamed, expected a Hub id or a "
            "folder of files: leave it out, or take a part with --max-prompts"
        )
    asked = [str(path) if os.path.isdir(path) else source, *([config] if config is not None else [])]
    split = split or "train"
    try:
        data: Any = datasets.load_dataset(*asked, split=split, streaming=True)
        data = data.shuffle(seed=SHUFFLE, buffer_size=buffer) if buffer else data
        yield from _numbered(source, itertools.islice(data, number))  # data.take reads ahead
    except UserError:
        raise
    except Exception as error:  # as of a dataset that is fetched whole
        advice = _advice(split, config, os.path.isdir(path))
        raise UserError(f"{source} is not a dataset that can be streamed ({_first_line(error)}); {advice}") from error


def _rows(source: str, split: str | None, config: str | None, wanted: Wanted | None) -> Rows:
    if tasks.is_task(source):
        return tasks.rows(source)
    path = shipped(Path(source).expanduser())
    suffix = kind_of(path)
    expected = f"expected {', '.join(_TEXT_READERS)} or .parquet"
    if os.path.isfile(path):
        if suffix not in (*_TEXT_READERS, ".parquet"):
            raise UserError(f"{source} has the extension {suffix!r}, {expected}; convert or rename it")
        return _parquet(path, wanted) if suffix == ".parquet" else _TEXT_READERS[suffix](path)
    if os.path.isdir(path):
        if is_run(path):
            return _parquet(path / "prompts" / "rollouts.parquet", wanted)
        plain = split is None and config is None
        if plain and (files := files_in(path, (*_TEXT_READERS, ".parquet"))):
            return (row for file in files for row in _rows(str(file), split, config, wanted))
    if not os.path.isdir(path) and (suffix in (*_TEXT_READERS, ".parquet") or not _HUB_ID.fullmatch(source)):
        raise UserError(f"there is no file {source}, {expected}, a saved dataset or a Hub id; check the path")
    return _dataset(source, path, split or "train", config, wanted)


def _text(path: Path) -> str:
    try:
        text = content(path).decode().removeprefix("\ufeff")
        return text.replace("\r", "\n") if "\n" not in text else text  # as old Macs, and some exports, end lines
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"line {line} of {path} is not UTF-8; save the file as UTF-8") from None


def _parsed(text: str, path: Path, first_line: int) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError(f"{next(key for key, _ in pairs if [k for k, _ in pairs].count(key) > 1)!r} stands twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:  # a plain ValueError: a number of thousands of digits
        where = f"line {first_line + getattr(error, 'lineno', 1) - 1} of {path}"
        expected = (
            "one object a line" if kind_of(path) in (".jsonl", ".ndjson") else "one list (one object a line is .jsonl)"
        )
        raise UserError(f"{where} is not valid JSON ({getattr(error, 'msg', error)}), expected {expected}") from None


def _lines(path: Path) -> Rows:
    for number, line in enumerate(_text(path).split("\n"), 1):  # not splitlines: a JSON string may hold U+2028
        if line.strip():
            row = line.strip() if kind_of(path) == ".txt" else _parsed(line, path, number)
            yield f"line {number} of {path}", row


def _json(path: Path) -> Rows:
    text = _text(path)
    rows: Any = _parsed(text, path, 1) if text.strip() else []
    if not isinstance(rows, list):
        raise UserError(f"{path} holds {kind(rows)}, expected a list of objects or strings; write one list")
    return _numbered(str(path), rows)


def _csv(path: Path) -> Rows:
    csv.field_size_limit(2**31 - 1)  # a prompt may be long
    delimiter = "\t" if kind_of(path) == ".tsv" else ","
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True, skipinitialspace=True, delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader, list[str]())]
        if twice := [name for name in header if name and header.count(name) > 1]:
            raise UserError(f"the header of {path} has the column {twice[0]!r} twice; rename one")
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


def _parquet(path: Path, wanted: Wanted | None) -> Rows:
    import pyarrow
    from pyarrow import parquet

    from srlm.bounded import batches

    number = held = 0
    try:
        needed = _needed(parquet.read_schema(path).names, wanted)
        for batch in batches(path, needed, MOST_BYTES):
            held += batch.nbytes
            if held > MOST_BYTES:
                raise OverflowError(f"more than {MOST_BYTES / 1e9:.1f} GB")
            yield from _numbered(str(path), batch.to_pylist(), number + 1)
            number += batch.num_rows
    except OverflowError as error:
        raise UserError(f"{path} holds {error} of prompts, expected less: split it, or save a part of it") from error
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({_first_line(error)}); write it again") from error


def _dataset(source: str, path: Path, split: str, config: str | None, wanted: Wanted | None) -> Rows:
    import datasets

    here = os.path.isdir(path)
    kinds = (*_TEXT_READERS, ".parquet", ".arrow")
    saved = here and (is_saved(path) or not any(kind_of(child) in kinds for child in path.rglob("*")))
    if saved and config is not None:
        raise UserError(f"{source} was saved by save_to_disk, expected no configuration {config!r}; leave it out")
    asked = [str(path) if here else source, *([config] if config is not None else [])]
    try:
        data: Any = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(*asked, split=split)
    except Exception as error:  # network, name, split, builder, folder: the user's choices are the same
        where = "a folder that save_to_disk wrote" if saved else "a file here, nor could the Hub give it as a dataset"
        if here and not saved:
            where = "a dataset that can be read so"
        advice = "give such a folder or a file" if saved else _advice(split, config, here)
        # What there is instead stands on a second line.
        reason = " ".join(str(error).split("\n")[:2]) if isinstance(error, ValueError) else _first_line(error)
        raise UserError(f"{source} is not {where} ({reason.rstrip('. ')}); {advice}") from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise UserError(f"{source} has no split {split!r}; choose one of {', '.join(map(str, data))}")
        data = data[split]
    return _numbered(source, data.with_format(None).select_columns(_needed(data.column_names, wanted)))


def _advice(split: str, config: str | None, here: bool) -> str:
    asked = f"the split {split!r}" + (f" and the configuration {config!r}" if config is not None else "")
    return f"check {asked}, --split and --dataset-config" if here else f"check the name, {asked} and the network"


def _needed(names: Sequence[str], wanted: Wanted | None) -> list[str]:
    """The wanted columns; when none can be a prompt all, for the error that lists them; all if that is wanted."""
    if wanted is None or not any(all(one in names for one in prompt) for prompt in wanted.prompts):
        return list(names)
    columns = {*(one for prompt in wanted.prompts for one in prompt), *wanted.others}
    return [name for name in names if name in columns]


def _numbered(name: str, rows: Iterable[Any], first: int = 1) -> Rows:
    return ((f"row {number} of {name}", row) for number, row in enumerate(rows, first))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


_TEXT_READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".txt": _lines,
}
