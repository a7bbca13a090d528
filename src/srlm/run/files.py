"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srlm.errors import UserError

SCRATCH = ".partial"
MANIFEST, RECORDS = "manifest.json", "records.jsonl"
PROMPTS, WEIGHTS = "prompts", ("adapter", "weights")  # folders of a run, and of a round
OPTIMIZER = "optimizer"
ROUND = re.compile(r"round-\d{3,6}")
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
        mode = scratch.stat().st_mode & 0o666  # safetensors writes for the owner alone, whoever may open the folder
        for file in files:
            with contextlib.suppress(OSError):  # a file system without modes
                file.chmod(mode)
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
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def with_checksums(folder: Path, save: Callable[[Path], object], scratch: Path) -> None:
    """`save` to the scratch folder, and keep beside `folder` what was written: a flipped bit must not pass for it."""
    save(scratch)
    write_atomically(_sums(folder), lambda path: path.write_text(dump(_checksums(scratch))))


def verify(folder: Path) -> None:
    """
    Raises:
        UserError: what is in a folder is not what was kept of it by `with_checksums`, if anything was.
    """
    if not _sums(folder).exists():
        return
    try:
        said = dict(json.loads(_sums(folder).read_text()))
    except (ValueError, TypeError) as error:
        raise damaged(_sums(folder), str(error)) from error
    found = _checksums(folder)
    for name in sorted(said | found):
        if said.get(name) != found.get(name):
            raise damaged(folder / name, "its checksum differs" if name in found else "it is missing")


def _sums(folder: Path) -> Path:
    return folder.with_suffix(".sha256")


def _checksums(folder: Path) -> dict[str, str]:
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as handle:
            found[str(file.relative_to(folder))] = hashlib.file_digest(handle, "sha256").hexdigest()
    return found


def damaged(file: Path, what: str, round: int | None = None) -> UserError:
    """To be raised: a file of a run is not what the run wrote. round: the one that has to be done again, if its folder
    does not tell."""
    if file.parent.name == PROMPTS:
        run, round = file.parent.parent, 0
    elif file.name in (RECORDS, MANIFEST):
        run = file.parent
    else:
        names = list(file.parts)
        inside = max((i for i, name in enumerate(names) if ROUND.fullmatch(name)), default=len(names) - 1)
        run = Path(*names[:inside])
        if inside + 1 < len(names):
            made_before = names[inside + 1].partition(".")[0] in (
                *WEIGHTS,
                OPTIMIZER,
            )  # by the update of the round before
            round = max(int(names[inside].removeprefix("round-")) - made_before, 0)
    back = f", or go back with --resume {run} --from-round {round}, which sets aside what came after"
    return UserError(
        f"{file} is damaged ({what}), expected what the run wrote: restore it from a copy"
        + (back if round is not None else "")
    )
