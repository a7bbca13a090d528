"""A table of one round: Arrow columns on disk.

While its round goes on a table is a folder of parts, a Parquet file for each stage that added columns, so that adding
a column costs that column. When the round is over the parts become one file, which `datasets` opens. All files hold
the same rows in the same order. Of a column in two files the newer counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
from pyarrow import parquet

from srlm.errors import UserError
from srlm.run.files import SCRATCH, damaged, remove, write_atomically

ROW_GROUP = 1024  # rows; earlier versions wrote one group for all
Columns: TypeAlias = Mapping[str, pa.Array]


class Table:
    """`file`, and beside it, while the round goes on, a folder of the same name with the parts."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.parts = file.with_suffix("")

    def files(self) -> list[Path]:
        """What holds columns so far, oldest first."""
        return [file for file in (self.file, *whole_files(self.parts)) if file.is_file()]

    def names(self) -> list[str]:
        """Columns so far; none before the first stage."""
        return list(dict.fromkeys(name for file in self.files() for name in _columns(file)))

    def read(self, names: Sequence[str] | None = None) -> pa.Table:
        """Some columns or all, from the files that hold them.

        Raises:
            UserError: there is no such column, or a file is damaged.
        """
        columns: dict[str, pa.ChunkedArray] = {}
        for file, own in self._sources():
            here = own if names is None else [name for name in own if name in names]
            if here:
                found = read_columns(file, here)
                columns |= {name: found[name] for name in here}
        wanted = self.names() if names is None else names
        if lacking := [name for name in wanted if name not in columns]:
            raise damaged(self.file, f"its column {lacking[0]} is missing")
        return pa.table({name: columns[name] for name in wanted})

    def pieces(self, names: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Some columns or all, ROW_GROUP rows at a time."""
        sources = [(file, own if names is None else [n for n in own if n in names]) for file, own in self._sources()]
        return _pieces([(file, own) for file, own in sources if own])

    def head(self) -> pa.Table:
        """All columns of the first rows, ROW_GROUP at most."""
        return next(self.pieces(), pa.table({}))

    def add(self, part: str, columns: Columns | Iterable[Columns]) -> None:
        """The columns of one stage, whole or some rows after others, as a file of their own; a part that is there is
        written again."""
        pieces = [columns] if isinstance(columns, Mapping) else columns
        write_atomically(self._part(part), partial(_write, (pa.table(dict(piece)) for piece in pieces)))

    def take(self, part: str, other: Table, leave_out: Iterable[str]) -> None:
        """The columns of another table of as many rows, as a part of this one."""
        write_atomically(self._part(part), partial(_write, _pieces(_sources(other.files(), leave_out))))

    def close(self) -> None:
        """Make one file of the parts, a row group at a time. Killed in between, it can be done again."""
        if not self.parts.exists():
            return
        if whole_files(self.parts):
            write_atomically(self.file, partial(_write, self.pieces()))
        remove(self.parts)

    def _sources(self) -> list[tuple[Path, list[str]]]:
        return _sources(self.files())

    def _part(self, name: str) -> Path:
        """Its file, numbered so that columns keep the order in which they came."""
        self.parts.mkdir(exist_ok=True)
        there = whole_files(self.parts)
        again = [file for file in there if file.stem.partition("-")[2] == name]
        return again[0] if again else self.parts / f"{len(there):02d}-{name}.parquet"


def whole_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder, by name; not what a kill left half-written."""
    return [file for file in sorted(folder.glob("*.parquet")) if not file.name.startswith(SCRATCH)]


def read_columns(file: Path, names: Sequence[str] | None = None) -> pa.Table:
    """
    Raises:
        UserError: the file is damaged.
    """
    with _readable(file):
        if not file.is_file():
            raise ValueError("it is no file")
        found = parquet.read_table(file, columns=names, partitioning=None, page_checksum_verification=True)
        if lacking := set(names or ()) - set(found.column_names):
            raise ValueError(f"its column {min(lacking)} is missing")
        return found


def verify_columns(file: Path) -> int:
    """Read all of it, a row group at a time, and keep nothing but the number of its rows.

    Raises:
        UserError: the file is damaged.
    """
    with _readable(file), parquet.ParquetFile(file, page_checksum_verification=True) as opened:
        for number in range(opened.num_row_groups):
            opened.read_row_group(number).validate(full=True)
        return int(opened.metadata.num_rows)


def write_columns(columns: pa.Table, file: Path) -> None:
    _write([columns], file)


def _columns(file: Path) -> list[str]:
    with _readable(file):
        return list(parquet.read_schema(file).names)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """
    Raises:
        UserError: the file is damaged, which Arrow finds out in many ways.
    """
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        if isinstance(error, UserError):
            raise
        raise damaged(file, (str(error).split("\n")[0] or type(error).__name__)[:200]) from error


def _sources(files: Sequence[Path], leave_out: Iterable[str] = ()) -> list[tuple[Path, list[str]]]:
    """Each file with the columns that are taken from it."""
    newest = {name: file for file in files for name in _columns(file) if name not in set(leave_out)}
    own = [(file, [n for n in _columns(file) if newest.get(n) == file]) for file in files]
    return [(file, names) for file, names in own if names]


def _write(pieces: Iterable[pa.Table], target: Path) -> None:
    writer: parquet.ParquetWriter | None = None
    try:
        for piece in pieces:
            writer = writer or parquet.ParquetWriter(target, piece.schema, write_page_checksum=True)
            writer.write_table(piece, ROW_GROUP)
    finally:
        if writer is not None:
            writer.close()


def _pieces(sources: Sequence[tuple[Path, list[str]]]) -> Iterator[pa.Table]:
    """ROW_GROUP rows at a time, all columns side by side."""
    if sources:
        for parts in zip(*(_row_groups(*source) for source in sources), strict=True):
            yield pa.table({name: part[name] for part in parts for name in part.column_names})


def _row_groups(file: Path, names: list[str]) -> Iterator[pa.Table]:
    """Pieces of ROW_GROUP rows, whatever the row groups of the file.

    Raises:
        UserError: the file is damaged.
    """
    held: list[pa.Table] = []
    with _readable(file), parquet.ParquetFile(file, page_checksum_verification=True) as opened:
        for number in range(opened.num_row_groups):
            held = [pa.concat_tables([*held, opened.read_row_group(number, names)])]
            while held[0].num_rows >= ROW_GROUP:
                yield held[0].slice(0, ROW_GROUP)
                held = [held[0].slice(ROW_GROUP)]
        if not opened.metadata.num_rows:  # a stage that made nothing has columns all the same
            yield opened.schema_arrow.empty_table().select(names)
    if held and held[0].num_rows:
        yield held[0]
