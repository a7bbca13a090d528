"""Folders of runs, diagnoses and experiments, read as they are: half-written, killed or damaged files leave a part out,
never raise. Nothing here imports torch unless answers have to be looked up."""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pyarrow import RecordBatch, binary, compute, parquet, types
from pyarrow import Table as ArrowTable

from srlm.bounded import batches
from srlm.errors import UserError
from srlm.prompts.settings import PromptSettings
from srlm.report.text import number
from srlm.run.tables import Table

Record = dict[str, Any]
HELD_OUT, TRAINING, DIAGNOSED = "held out", "training", "diagnosed"
MOST_ROWS = 200  # of a table of numbers
MOST_RESPONSES, MOST_BYTES = 20_000, 2**25  # of a table of responses
MOST_TOKENS = 200_000  # of a table, and of a page: those that are shaded
_ROUND = re.compile(r"round-(\d{3,6})")
# A user's own function is code, which looking at a run must not run.
_RULES = ("auto", "contains", "exact", "number", "math", "regex")


@dataclass(frozen=True)
class Sample:
    """One response. part: held out, training or diagnosed. right: None where no answers are known. tokens: where each
    ends in the response, and its log-prob."""

    part: str
    round: int
    prompt_index: int
    prompt: str
    response: str
    log_prob: float | None
    reward: float | None
    right: bool | None
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    tokens: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Experiment:
    """A figure as a data URI, and the first rows of its table. holds: None where no verdict was kept."""

    name: str
    holds: bool | None
    findings: list[str]
    figure: str | None
    heading: list[str]
    rows: list[list[str]]
    total: int


@dataclass(frozen=True)
class Folder:
    """kind: run, diagnosis, experiments or waiting (nothing to see yet). notes: what was left out and why."""

    path: Path
    name: str
    kind: str
    manifest: dict[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    stages: dict[int, dict[str, Any]] = field(default_factory=dict)
    diagnosis: dict[str, Any] = field(default_factory=dict)
    prompts: list[dict[str, Any]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    experiments: list[Experiment] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_folder(path: Path, name: str | None = None, *, patient: bool = False, forecast: Path | None = None) -> Folder:
    """
    Args:
        patient: a folder that is absent or holds nothing yet is waited for.
        forecast: a diagnose.json whose forecast goes with a run.

    Raises:
        UserError: `path` holds nothing to report, or `forecast` is no diagnosis.
    """
    name = name or path.resolve().name or str(path)
    if (path / "manifest.json").exists() or (path / "records.jsonl").exists():
        return _run(path, name, forecast)
    if (path / "diagnose.json").exists():
        return _diagnosis(path, name)
    if experiments := _experiments(path):
        return Folder(path, name, "experiments", experiments=experiments)
    if patient:
        return Folder(path, name, "waiting")
    raise UserError(
        f"{path} holds no run (manifest.json), no diagnosis (diagnose.json) and no experiments (.svg with .csv): "
        "give the folder that srlm train, diagnose or verify wrote"
    )


def watched(path: Path) -> list[tuple[str, int, int]]:
    """What a report of `path` is made of, so that a change shows."""
    names = ["manifest.json", "records.jsonl", "diagnose.json", "round-*/stages.json", "*.parquet"]
    names += ["round-*/*.parquet", "round-*/*/*.parquet"]
    found = []
    for file in sorted(file for name in names for file in path.glob(name)):
        try:
            about = file.stat()
        except OSError:  # replaced this very moment
            continue
        found.append((str(file), about.st_mtime_ns, about.st_size))
    return found


# Runs


def _run(path: Path, name: str, forecast: Path | None) -> Folder:
    manifest = _json(path / "manifest.json")
    records = read_records(path / "records.jsonl")
    rounds = {int(found[1]): file for file in sorted(path.glob("round-*")) if (found := _ROUND.fullmatch(file.name))}
    stages = {t: _json(file / "stages.json") for t, file in rounds.items()}
    notes = _unread(path, rounds)
    samples: list[Sample] = []
    for table_name, part in (("held_out", HELD_OUT), ("rollouts", TRAINING)):
        for t, file in rounds.items():
            responses = _samples(table := Table(file / f"{table_name}.parquet"), part, t)
            samples += responses
            notes += _left_out(table.file, len(responses), path)
    if samples and not any(sample.tokens for sample in samples):
        notes.append("Log-probabilities of single tokens were not stored, so responses are not shaded by token.")
    if manifest.get("labels_used") is True:
        notes.append("The reward of this run saw the answers: a control, not self-rewarding.")
    labelled = any(number(record.get("accuracy_sampled")) is not None for record in records)
    if labelled and not any(sample.right is not None for sample in samples):
        samples, note = _judged(samples, manifest)
        notes += [note] if note else []
    return Folder(
        path, name, "run", manifest, records, stages, _forecast_of(path, forecast), samples=samples, notes=notes
    )


def _unread(path: Path, rounds: Mapping[int, Path]) -> list[str]:
    """What there is of a run but cannot be read, or not whole."""
    notes = [
        f"{file.relative_to(path)} could not be read; what it holds is left out."
        for file in (path / "manifest.json", *(folder / "stages.json" for folder in rounds.values()))
        if file.exists() and not _json(file)
    ]
    file = path / "records.jsonl"
    if (lines := len(_bytes(file).splitlines())) > (whole := len(read_records(file))):
        notes.append(f"{lines - whole} of {lines} lines of records.jsonl could not be read and are left out.")
    return notes


def _left_out(file: Path, read: int, path: Path) -> list[str]:
    """Of a table that is over, `read` rows of which could be read."""
    if not file.is_file():
        return []
    try:
        about = parquet.read_metadata(file)
    except Exception:  # as in `_columns`
        return [f"{file.relative_to(path)} could not be read; its responses are left out."]
    count, name = about.num_rows, file.relative_to(path)
    if not read and count:
        return [f"{name} could not be read; its responses are left out."]
    if read >= count:
        return []
    if about.num_row_groups == 1:
        return [f"Of {name} the first {read:,} of {count:,} responses are shown."]
    return [f"Of {name} {read:,} of {count:,} responses are shown, from places spread evenly over it."]


def read_records(file: Path) -> list[Record]:
    """The records that are whole, one a round."""
    every: dict[int, Record] = {}
    for line in _bytes(file).decode(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and (t := number(record.get("round"))) is not None and t >= 0:
            every[int(t)] = record
    return [every[t] for t in sorted(every)]


def measured_at(records: Sequence[Record], kind: str) -> list[int]:
    """The k for which some record has pass@k or maj@k (kind: pass or maj), in order."""
    keys = {key for record in records for key in record}
    return sorted(int(found[1]) for key in keys if (found := re.fullmatch(rf"{kind}_at_(\d{{1,6}})", key)))


def _samples(table: Table, part: str, round: int) -> list[Sample]:
    try:
        return _read_samples(tuple((file, file.stat().st_mtime_ns) for file in table.files()), part, round)
    except OSError:
        return []


@functools.lru_cache(maxsize=512)
def _read_samples(files: tuple[tuple[Path, int], ...], part: str, round: int) -> list[Sample]:
    """Read once while a run is watched; the times of the files keep the cache honest."""
    columns: dict[str, list[Any]] = {}
    every = max((_every(file) for file, _ in files), default=1)
    for file, _ in files:  # of a column in two files the newer counts
        columns |= _columns(file, every)
    if not {"prompt_index", "response"} <= columns.keys():
        return []
    count = len(columns["response"])
    columns = {name: values[:count] for name, values in columns.items() if len(values) >= count}
    if "prompt_index" not in columns:
        return []
    nothing: list[Any] = [None] * count
    rewards = {key: values for key, values in columns.items() if key.startswith("reward_")}
    rights = columns.get("right", nothing)
    return [
        Sample(
            part,
            round,
            int(number(columns["prompt_index"][i]) or 0),
            words(columns.get("prompt", nothing)[i]),
            words(columns["response"][i]),
            number(columns.get("log_prob", nothing)[i]),
            number(columns.get("reward", nothing)[i]),
            rights[i] if isinstance(rights[i], bool) else None,
            {key.removeprefix("reward_"): number(values[i]) for key, values in rewards.items()},
            _tokens(columns.get("token_end", nothing)[i], columns.get("token_log_prob", nothing)[i]),
        )
        for i in range(count)
    ]


def _tokens(ends: Any, log_probs: Any) -> list[tuple[int, float]]:
    """Nothing, unless both are lists of as many numbers, and the ends never fall."""
    if not isinstance(ends, list) or not isinstance(log_probs, list) or len(ends) != len(log_probs):
        return []
    pairs = [(number(end), number(value)) for end, value in zip(ends, log_probs, strict=True)]
    found = [(int(end), value) for end, value in pairs if end is not None and value is not None and end >= 0]
    return found if len(found) == len(ends) and found == sorted(found, key=lambda pair: pair[0]) else []


def _judged(samples: list[Sample], manifest: dict[str, Any]) -> tuple[list[Sample], str | None]:
    """Right or wrong for held-out samples. The run keeps accuracies only, so the answers are read again from where the
    run had them, and believed if they are the same."""
    rule = _at(manifest, "config", "match")
    if rule not in _RULES:
        return samples, f"Which samples are right is not shown: the match rule {rule} is not one of srlm's own."
    source = "held_out" if manifest.get("held_out_given") else "prompts"
    given = _at(manifest, "data", source, "source")
    prompts = {s.prompt_index: s.prompt for s in samples if s.part == HELD_OUT}
    from srlm.answers import match_rule

    try:
        config = manifest.get("config") or {}
        asked = PromptSettings(**{f.name: config[f.name] for f in fields(PromptSettings) if f.name in config})
        known = _answers(str(given), Path(str(given)).stat().st_mtime_ns, asked)
        answers = {i: known[prompt] for i, prompt in sorted(prompts.items())}
        fingerprint = hashlib.sha256(repr(tuple(answers.values())).encode()).hexdigest()
        if fingerprint != _at(manifest, "data", "held_out_answers", "fingerprint"):
            raise ValueError
        right = match_rule(rule)
        return [
            Sample(**vars(s) | {"right": bool(right(s.response, answers[s.prompt_index]))}) if s.part == HELD_OUT else s
            for s in samples
        ], None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, UserError, RecursionError):
        return samples, (
            "Which samples are right is not shown: the run keeps accuracies only, and the answers it was measured "
            f"with are no longer in {given} (seen from this folder)."
        )


@functools.lru_cache(maxsize=8)
def _answers(source: str, changed: int, asked: PromptSettings) -> dict[str, tuple[str, ...]]:
    """Answers by prompt; `changed` keeps the cache honest."""
    if not Path(source).is_file():  # never the network
        raise ValueError(f"{source} is not a file")
    from srlm.prompts.sources import prompts_of

    given = prompts_of(source, asked)
    return {words(item): one for item, one in zip(given.prompts.items, given.answers or (), strict=True)}


def _forecast_of(path: Path, given: Path | None) -> dict[str, Any]:
    if given is not None:
        file = given / "diagnose.json" if given.is_dir() else given
        found = _json(file)
        if not isinstance(found.get("forecast"), dict):
            raise UserError(f"{given} holds no forecast: give --forecast the diagnose.json that srlm diagnose wrote")
        return found
    return _json(path / "diagnose.json") or _json(path / "diagnose" / "diagnose.json")


# Diagnoses and experiments


def _diagnosis(path: Path, name: str) -> Folder:
    columns = _columns(path / "prompts.parquet")
    count = len(next(iter(columns.values()), []))
    prompts = [{key: values[i] for key, values in columns.items()} for i in range(count)]
    texts = {row.get("prompt_index"): words(row.get("prompt")) for row in prompts}
    samples = [
        Sample(**vars(s) | {"prompt": texts.get(s.prompt_index, ""), "reward": next(iter(s.rewards.values()), None)})
        for s in _samples(Table(path / "samples.parquet"), DIAGNOSED, 0)
    ]
    return Folder(path, name, "diagnosis", diagnosis=_json(path / "diagnose.json"), prompts=prompts, samples=samples)


def _experiments(path: Path) -> list[Experiment]:
    found = []
    for name in sorted({file.stem for file in path.glob("*.svg")} & {file.stem for file in path.glob("*.csv")}):
        figure = base64.b64encode(_bytes(path / f"{name}.svg")).decode()
        text = _bytes(path / f"{name}.csv").decode(errors="replace")
        try:
            heading, *body = csv.reader(io.StringIO(text, newline=""))
        except (ValueError, csv.Error):  # empty, or not a table
            heading, body = [], []
        said = _json(path / f"{name}.json")
        holds, given = said.get("holds"), said.get("findings")
        holds = holds if isinstance(holds, bool) else None
        findings = [text for text in given if isinstance(text, str)] if isinstance(given, list) else []
        source = f"data:image/svg+xml;base64,{figure}"
        found.append(Experiment(name, holds, findings, source, heading, body[:MOST_ROWS], len(body)))
    return found


# Files


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_bytes(file).decode(errors="replace"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _every(file: Path) -> int:
    """Of how many row groups of a table a page can show one."""
    try:
        about = parquet.read_metadata(file)
        first = next(batches(file, _names(file), MOST_BYTES))
    except Exception:  # as in `_columns`, which will leave it out
        return 1
    size = float(first.nbytes * about.num_rows / max(first.num_rows, 1))
    return max(1, math.ceil(size / MOST_BYTES), -(-int(about.num_rows) // MOST_RESPONSES))


def _names(file: Path) -> list[str]:
    return [name for name in parquet.read_schema(file).names if name != "tokens"]


def _columns(file: Path, every: int = 1) -> dict[str, list[Any]]:
    """Columns that can be read, of as many rows as a page can show, from every so manyth row group; text that is not
    UTF-8 with a mark where it is not; of what is known of single tokens, as much as a page can shade."""
    pieces: list[RecordBatch] = []
    size = 0
    try:
        for batch in batches(file, _names(file), MOST_BYTES, every):
            size += batch.nbytes
            if size > MOST_BYTES or sum(piece.num_rows for piece in pieces) >= MOST_RESPONSES:
                break
            pieces.append(batch)
        table = ArrowTable.from_batches(pieces)
    except Exception:  # half-written, damaged, or not what its name says: Arrow has many words for it
        return {}
    columns: dict[str, list[Any]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            if types.is_string(column.type) or types.is_large_string(column.type):
                raw = column.cast(binary()).to_pylist()
                columns[name] = [None if one is None else one.decode(errors="replace") for one in raw]
            elif name.startswith("token_") and types.is_list(column.type):
                tokens = compute.cumulative_sum(compute.list_value_length(column).fill_null(0))
                few = compute.sum(compute.less_equal(tokens, MOST_TOKENS)).as_py() or 0
                columns[name] = column.slice(0, few).to_pylist() + [None] * (len(column) - few)
            else:
                columns[name] = column.to_pylist()
        except Exception:
            continue
    return columns


def words(prompt: Any) -> str:
    """A prompt or response as text; a conversation of one user turn is its content."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and all(isinstance(turn, Mapping) for turn in prompt):
        if len(prompt) == 1 and prompt[0].get("role") == "user":
            return str(prompt[0].get("content"))
        return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in prompt)
    return "" if prompt is None else str(prompt)


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
