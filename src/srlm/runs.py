"""The run folder. Every file appears whole or not at all, so that a killed run goes on from its first unfinished stage.

manifest.json                resolved config, sources and fingerprints, versions, state
records.jsonl                one line a round, t = 0..T
round-00t/                   what pi_t did
    adapter/ or weights/     pi_t itself (t >= 1)
    rollouts.parquet         training responses; a column is added when its stage is done
    held_out.parquet, greedy.parquet
    stages.json              seconds and tokens of each finished stage; losses of the update
    update.safetensors       the last step checkpoint of an update that is under way
model/, adapter/             the result
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import safetensors.torch
from pyarrow import parquet
from torch import Tensor

from srlm.errors import UserError
from srlm.types import Record

SCRATCH = ".partial"
LOCK = ".lock"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers, written in Rust, pass on an errno


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`write` a file or folder under another name, sync it, and only then give it its own.

    Raises:
        OSError: with its errno and `path`, whatever library met a full disk.
    """
    scratch = path.with_name(f"{SCRATCH}-{path.name}")
    try:
        remove(scratch)
        write(scratch)
        files = [f for f in scratch.rglob("*") if f.is_file()] if scratch.is_dir() else [scratch]
        for file in files:
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if path.is_dir():
            remove(path)
        os.replace(scratch, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except Exception as error:
        remove(scratch)
        rust = _OS_ERROR.search(str(error))
        number = int(rust[1]) if rust else getattr(error, "errno", None)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def check_new_file(path: Path, option: str = "--output") -> None:
    """Before the work, not after it.

    Raises:
        UserError: `path` exists or cannot be written.
    """
    try:
        path.touch(exist_ok=False)
        path.unlink()
    except FileExistsError as error:
        raise UserError(f"output {path} exists and is never overwritten: choose another {option}") from error
    except OSError as error:
        raise UserError(f"output {path} cannot be written ({error.strerror}): choose another {option}") from error


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


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

    @classmethod
    def create(cls, path: Path, manifest: dict[str, Any]) -> RunFolder:
        """Start a run in a new or empty folder.

        Raises:
            UserError: something is there already, or the folder cannot be written.
        """
        cls.refuse_used(path)
        run = cls(path, manifest)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.hold()
            run.save_manifest()
        except OSError as error:
            run.release()
            raise UserError(f"output {path} cannot be written ({error.strerror}): choose another --output") from error
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Take up a run where it stopped; leftovers of interrupted writes are removed."""
        run = cls(path, read_manifest(path))
        run.hold()
        for leftover in list(path.rglob(f"{SCRATCH}-*")):
            remove(leftover)
        return run

    def hold(self) -> None:
        """
        Raises:
            UserError: another process does.
        """
        lock = (self.path / LOCK).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
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

    def save_manifest(self, **changes: Any) -> None:
        self.manifest |= changes
        write_atomically(self.path / "manifest.json", lambda p: p.write_text(_dump(self.manifest), encoding="utf-8"))

    def records(self) -> list[Record]:
        file = self.path / "records.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def append_record(self, record: Record) -> None:
        lines = [json.dumps(r, allow_nan=False) for r in [*self.records(), record]]
        text = "\n".join(lines) + "\n"
        write_atomically(self.path / "records.jsonl", lambda p: p.write_text(text))

    def round(self, number: int) -> Path:
        folder = self.path / f"round-{number:03d}"
        folder.mkdir(exist_ok=True)
        return folder

    def table(self, round: int, name: str) -> dict[str, list[Any]]:
        """Columns written so far; empty before the first stage."""
        file = self.round(round) / f"{name}.parquet"
        return parquet.read_table(file).to_pydict() if file.exists() else {}

    def save_table(self, round: int, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        types = {"tokens": pa.list_(pa.int32()), "finished": pa.bool_(), "prompt_index": pa.int32()}
        types |= {"token_log_prob": pa.list_(pa.float32()), "token_end": pa.list_(pa.int32())}
        arrays = {key: pa.array(values, types.get(key)) for key, values in columns.items()}
        write_atomically(self.round(round) / f"{name}.parquet", lambda p: parquet.write_table(pa.table(arrays), p))

    def adopt_start(self, others: Sequence[Path]) -> None:
        """Before round 0 is over, take over what pi_0 said in another run of the same model, prompts and seed, and how
        likely it found it; not what was made of that. Of `others` the first that is through with round 0, if any is.
        What is here already stays, so that an interrupted one is finished by another call."""
        source = next((run for run in (RunFolder(path, {}) for path in others) if run.records()), None)
        if source is None or self.records():
            return
        theirs = {
            name: facts
            for name, facts in source.stages(0).items()
            if name.startswith(("sample ", "score ")) and not name.endswith(" again")
        }
        self._save_stages(0, theirs | self.stages(0))
        for file in sorted(source.round(0).glob("*.parquet")):
            if self.table(0, file.stem):
                continue
            columns = source.table(0, file.stem)
            own = {name: values for name, values in columns.items() if name not in ("reward", "log_prob_next")}
            self.save_table(0, file.stem, own)

    def stages(self, round: int) -> dict[str, Any]:
        file = self.round(round) / "stages.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def save_stage(self, round: int, name: str, facts: Any) -> None:
        self._save_stages(round, self.stages(round) | {name: facts})

    def _save_stages(self, round: int, stages: Mapping[str, Any]) -> None:
        text = _dump(stages)
        write_atomically(self.round(round) / "stages.json", lambda p: p.write_text(text))

    def checkpoint(self, round: int) -> StepCheckpoint:
        return StepCheckpoint(self.round(round) / "update.safetensors")


class StepCheckpoint:
    """The state of an unfinished update, replaced as it goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, Tensor] | None:
        return safetensors.torch.load_file(self.path) if self.path.exists() else None

    def save(self, state: Mapping[str, Tensor]) -> None:
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        write_atomically(self.path, lambda p: safetensors.torch.save_file(tensors, p))

    def remove(self) -> None:
        remove(self.path)


def read_manifest(path: Path, option: str = "--resume") -> dict[str, Any]:
    try:
        return dict(json.loads((path / "manifest.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not a run folder (no readable manifest.json): give {option} the folder of a run"
        ) from error
