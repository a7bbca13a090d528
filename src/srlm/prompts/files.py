"""Which files a path stands for, and what is in them: compressed ones, folders of several."""

from __future__ import annotations

import gzip
import re
from collections.abc import Collection
from pathlib import Path

from srlm.errors import UserError

MOST_BYTES = 2**31  # of a file whose few bytes may stand for more than a machine holds
_MEASURED_ON = re.compile(
    r"(?:^|[^a-z])(?:tests?|testing|val|valid|validation|dev|eval|evaluation|held|held[_-]?out|hold[_-]?out)(?:[^a-z]|$)"
)
_DICT, _SAVED = "dataset_dict.json", ("dataset_info.json", "state.json")  # of save_to_disk: several splits, one
_ABOUT = (".", "README", "LICENSE", "dataset_infos.json")  # files of a folder that hold no prompts


def is_saved(folder: Path) -> bool:
    """By `save_to_disk`."""
    return any((folder / name).exists() for name in (_DICT, *_SAVED))


def is_run(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() and (folder / "prompts" / "rollouts.parquet").is_file()


def is_whole(path: Path) -> bool:
    """Is there nothing to choose from: a file, a run, or one dataset that was saved?"""
    return path.is_file() or is_run(path) or (is_saved(path) and not (path / _DICT).exists())


def kind_of(path: Path) -> str:
    """.jsonl of prompts.jsonl and of prompts.jsonl.gz"""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def content(path: Path) -> bytes:
    """
    Raises:
        OSError: it cannot be read. UserError: it is no gzip file, or one of more than 2 GB.
    """
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            found = file.read(MOST_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise UserError(f"{path} is not a readable gzip file ({error}); compress it again") from error
    if len(found) > MOST_BYTES:
        raise UserError(f"{path} holds more than {MOST_BYTES / 1e9:.1f} GB, expected less: split it")
    return found


def files_in(folder: Path, kinds: Collection[str]) -> list[Path]:
    """The prompt files of a folder, by name; none where it is something else: a dataset that was saved, or a run.

    Raises:
        UserError: some of them look as if they were to be measured on, and others do not.
    """
    if is_saved(folder):
        return []
    found = [path for path in sorted(folder.iterdir()) if kind_of(path) in kinds and path.is_file()]
    found = [path for path in found if not path.name.startswith(_ABOUT)]
    held = [path.name for path in found if _MEASURED_ON.search(path.name.lower())]
    others = [path.name for path in found if path.name not in held]
    if held and others:
        raise UserError(
            f"folder {folder} holds {others[0]} and {held[0]}, of which one looks as if it was to be measured on; name "
            f"a file of it, or a part as in {folder}[train]"
        )
    return found
