"""The run folder. Every file appears whole or not at all, so that a killed run goes on from its first unfinished stage.

manifest.json                resolved config, sources and fingerprints, versions, state
records.jsonl                one line a round, t = 0..T
prompts/                     every prompt as the model reads it: its token ids, made once a run
round-00t/                   what pi_t did
    adapter/ or weights/     pi_t itself (t >= 1)
    rollouts.parquet         training responses, with all that was found out about them
    held_out.parquet, greedy.parquet
    rollouts/, ...           the same tables while the round goes on: a file for every stage that added columns
    stages.json              seconds and tokens of each finished stage; losses of the update
    update.safetensors       the last step checkpoint of an update that is under way
    optimizer.safetensors    of the newest round, where the next update goes on from it: masters and moments
model/, adapter/             the result
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from srlm.errors import UserError
from srlm.prompts.presets import PRESETS
from srlm.run.files import OPTIMIZER, PROMPTS, RECORDS, ROUND, SCRATCH, damaged, dump, remove, write_atomically
from srlm.run.tables import Table, read_columns, verify_columns, whole_files, write_columns
from srlm.types import Record

LOCK = ".lock"


class RunFolder:
    """One run on disk, held by one run at a time."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._lock: IO[str] | None = None

    @staticmethod
    def refuse_used(path: Path) -> None:
        """
        Raises:
            UserError: something is there already. What a run leaves that was killed before its manifest is nothing.
        """
        if str(path) in PRESETS:
            raise UserError(
                f"--output is {path}, which is what a benchmark is called: prompts of that name would be read from the "
                "run, expected another one: choose another --output"
            )
        try:
            names = [p.name for p in path.iterdir()]
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(
                f"output {path} is not a folder that can be used ({error.strerror}): choose another --output"
            ) from error
        if "manifest.json" in names:
            advice = "continue it with --resume, or choose another --output"
            raise UserError(f"output {path} holds a run already, which is never overwritten: {advice}")
        if any(not name.startswith((SCRATCH, LOCK)) for name in names):
            raise UserError(f"output {path} is not an empty folder: choose another --output")

    def begin(self, **changes: Any) -> None:
        """Start a run in a new or empty folder, and hold it.

        Raises:
            UserError: something is there already, or the folder cannot be written.
        """
        self.refuse_used(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.hold()
            self.save_manifest(**changes)
        except OSError as error:
            self.release()
            raise UserError(
                f"output {self.path} cannot be written ({error.strerror}): choose another --output"
            ) from error

    def take_up(self) -> None:
        """Hold a run where it stopped; leftovers of interrupted writes are removed."""
        self.hold()
        for leftover in list(self.path.rglob(f"{SCRATCH}-*")):
            remove(leftover)

    def hold(self) -> None:
        """
        Raises:
            UserError: another process does.
        """
        try:  # without emptying what is there, and not through a link that somebody has planted
            number = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise UserError(f"{self.path / LOCK} is a link, expected a file of srlm's own: remove it") from error
        lock = os.fdopen(number, "r+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise UserError(
                    f"run {self.path} cannot be kept from other processes, since its file system locks no files "
                    f"({error.strerror}), expected one that does: mount it with flock, or choose another --output"
                ) from error
            raise UserError(f"run {self.path} is in use by another process: wait for it or stop it") from error
        self._lock = lock

    @property
    def locked(self) -> bool:
        """A process holds it, or was killed while it did."""
        return (self.path / LOCK).exists()

    def release(self) -> None:
        if self._lock is not None:
            (self.path / LOCK).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def save_manifest(self, **changes: Any) -> None:
        self.manifest |= changes
        write_atomically(self.path / "manifest.json", lambda p: p.write_text(dump(self.manifest), encoding="utf-8"))

    def records(self, most: int | None = None) -> list[Record]:
        """One a round; of the first `most` rounds, whatever comes after.

        Raises:
            UserError: one cannot be read.
        """
        file = self.path / RECORDS
        try:
            lines = file.read_bytes().splitlines()[:most] if file.exists() else []
        except OSError as error:
            raise damaged(file, "it is no file", 0) from error
        records: list[Record] = []
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise damaged(file, f"line {number + 1} is not JSON", number) from error
            if not isinstance(record, dict) or record.get("round") != number:
                raise damaged(file, f"line {number + 1} is not the record of round {number}", number)
            if odd := [key for key, value in record.items() if not (value is None or _is_number(value))]:
                raise damaged(file, f"{odd[0]!r} on line {number + 1} is no number", number)
            records.append(record)
        return records

    def append_record(self, record: Record) -> None:
        self.save_records([*self.records(), record])

    def save_records(self, records: Sequence[Record]) -> None:
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_atomically(self.path / RECORDS, lambda p: p.write_text(text))

    def rounds(self) -> dict[int, Path]:
        """Folders of rounds so far."""
        found = sorted(path for path in self.path.iterdir() if path.is_dir() and ROUND.fullmatch(path.name))
        return {int(path.name.removeprefix("round-")): path for path in found}

    def verify(self) -> None:
        """
        Raises:
            UserError: a table of the run is damaged.
        """
        for table in (table for number in self.rounds() for table in self.tables(number)):
            rows = {file: verify_columns(file) for file in table.files()}
            if len({*rows.values()}) > 1:
                raise damaged(min(rows, key=rows.__getitem__), "it has fewer rows than its table")
        for file in whole_files(self.prompts):
            verify_columns(file)

    def round(self, number: int) -> Path:
        folder = self.path / f"round-{number:03d}"
        folder.mkdir(exist_ok=True)
        return folder

    def table(self, round: int, name: str) -> Table:
        return Table(self.round(round) / f"{name}.parquet")

    def tables(self, round: int) -> list[Table]:
        """Those that have columns already."""
        folder = self.round(round)
        begun = [part for part in folder.iterdir() if part.is_dir() and whole_files(part)]
        names = {file.stem for file in whole_files(folder)} | {part.name for part in begun}
        return [self.table(round, name) for name in sorted(names)]

    @property
    def prompts(self) -> Path:
        return self.path / PROMPTS

    def prompt_ids(self, table: str) -> pa.Table | None:
        """The prompts of a table and their token ids, once they are kept."""
        file = self.prompts / f"{table}.parquet"
        return read_columns(file) if file.exists() else None

    def save_prompt_ids(self, table: str, columns: pa.Table) -> None:
        self.prompts.mkdir(exist_ok=True)
        write_atomically(self.prompts / f"{table}.parquet", partial(write_columns, columns))

    def stages(self, round: int) -> dict[str, Any]:
        """
        Raises:
            UserError: they cannot be read.
        """
        file = self.round(round) / "stages.json"
        if not file.exists():
            return {}
        try:
            stages = dict(json.loads(file.read_bytes()))
            for facts in stages.values():
                if isinstance(facts, dict) and not {"seconds", "tokens"} <= facts.keys():
                    raise ValueError
                if not all(map(_is_number, facts.values() if isinstance(facts, dict) else facts)):
                    raise ValueError
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise damaged(file, "it is not what a stage leaves") from error
        return stages

    def save_stages(self, round: int, stages: Mapping[str, Any]) -> None:
        text = dump(stages)
        write_atomically(self.round(round) / "stages.json", lambda p: p.write_text(text))

    def checkpoint(self, round: int, *, carry: bool = False) -> StepCheckpoint:
        """Of the update of a round. carry: it begins with what the last one ended with."""
        path = self.round(round) / "update.safetensors"
        if not carry:
            return StepCheckpoint(path)
        before, after = (self.path / f"round-{t:03d}" / f"{OPTIMIZER}.safetensors" for t in (round, round + 1))
        return StepCheckpoint(path, before, after)

    def forget_optimizer(self) -> None:
        """No update will go on from it."""
        for folder in self.rounds().values():
            remove(folder / f"{OPTIMIZER}.safetensors")


def _is_number(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


class StepCheckpoint:
    """The state of an unfinished update, replaced as it goes on. before: where the last update left its own, for this
    one to begin with; after: where this one is to leave it; None where each begins anew."""

    def __init__(self, path: Path, before: Path | None = None, after: Path | None = None) -> None:
        self.path, self.before, self.after = path, before, after

    def load(self) -> dict[str, Tensor] | None:
        return _state(self.path)

    def carried(self) -> dict[str, Tensor] | None:
        return None if self.before is None else _state(self.before)

    def save(self, state: Mapping[str, Tensor]) -> None:
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        said = {"sha256": _digest(tensors)}
        write_atomically(self.path, lambda p: safetensors.torch.save_file(tensors, p, metadata=said))

    def settle(self) -> None:
        """The update is over, and what it made is kept. Killed in between, it can be done again."""
        if self.after is not None and self.path.exists():
            self.path.rename(self.after)
        for path in (self.path, self.before):
            if path is not None:
                remove(path)


def _state(path: Path) -> dict[str, Tensor] | None:
    """
    Raises:
        UserError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, "pt") as opened:
            said = (opened.metadata() or {}).get("sha256")
        state = safetensors.torch.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise damaged(path, str(error)) from error
    if said not in (None, _digest(state)):
        raise damaged(path, "its checksum differs")
    return state


def _digest(state: Mapping[str, Tensor]) -> str:
    """Of names and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
