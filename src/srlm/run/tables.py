"""A table of one round: Arrow columns on disk.

While its round goes on a table is a folder of parts, a Parquet file for each stage that added columns, so that adding
a column costs that column. When the round is over the parts become one file, which `datasets` opens. All files hold
the same rows in the same order, in row groups of ROW_GROUP rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from srlm.run.files import remove, write_atomically

ROW_GROUP = 1024


class Table:
    """`file`, and beside it, while the round goes on, a folder of the same name with the parts."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.parts = file.with_suffix("")

    def files(self) -> list[Path]:
        """What holds columns so far."""
        return [file for file in (self.file, *sorted(self.parts.glob("*.parquet"))) if file.is_file()]

    def names(self) -> list[str]:
        """Columns so far; none before the first stage."""
        return list(dict.fromkeys(name for file in self.files() for name in parquet.read_schema(file).names))

    def read(self, names: Iterable[str] | None = None) -> pa.Table:
        """Some columns or all, from the files that hold them.

        Raises:
            KeyError: there is no such column.
        """
        wanted = list(self.names() if names is None else names)
        columns: dict[str, pa.ChunkedArray] = {}
        for file in self.files():
            here = [n for n in parquet.read_schema(file).names if n in wanted and n not in columns]
            if here:
                found = parquet.read_table(file, columns=here, partitioning=None)
                columns |= {name: found[name] for name in here}
        return pa.table({name: columns[name] for name in wanted})

    def head(self) -> pa.Table:
        """All columns of the first row group."""
        columns: dict[str, pa.ChunkedArray] = {}
        for file in self.files():
            with parquet.ParquetFile(file) as opened:
                first = opened.read_row_group(0)
            columns = {name: first[name] for name in first.column_names} | columns
        return pa.table(columns)

    def add(self, part: str, columns: Mapping[str, pa.Array]) -> None:
        """The columns of one stage, as a file of their own; a part that is there is written again."""
        write_atomically(self._part(part), partial(write_columns, pa.table(dict(columns))))

    def take(self, part: str, other: Table, leave_out: Iterable[str]) -> None:
        """The columns of another table of as many rows, as a part of this one."""
        write_atomically(self._part(part), partial(_merge, other.files(), leave_out))

    def _part(self, name: str) -> Path:
        """Its file, numbered so that columns keep the order in which they came."""
        self.parts.mkdir(exist_ok=True)
        there = sorted(self.parts.glob("*.parquet"))
        again = [file for file in there if file.stem.partition("-")[2] == name]
        return again[0] if again else self.parts / f"{len(there):02d}-{name}.parquet"

    def close(self) -> None:
        """Make one file of the parts, a row group at a time. Killed in between, it can be done again."""
        if not self.parts.exists():
            return
        there = parquet.read_schema(self.file).names if self.file.is_file() else []
        if self.names() != there:
            write_atomically(self.file, partial(_merge, self.files(), ()))
        remove(self.parts)


def write_columns(columns: pa.Table, file: Path) -> None:
    parquet.write_table(columns, file, row_group_size=ROW_GROUP)


def _merge(files: Sequence[Path], leave_out: Iterable[str], target: Path) -> None:
    seen, own = set(leave_out), list[list[str]]()
    for file in files:  # of a column in two files the first counts, as in `Table.read`
        own.append([name for name in parquet.read_schema(file).names if name not in seen])
        seen.update(own[-1])
    sources = [(file, names) for file, names in zip(files, own, strict=True) if names]
    writer: parquet.ParquetWriter | None = None
    try:
        for pieces in zip(*(_row_groups(*source) for source in sources), strict=True):
            merged = pa.table({name: piece[name] for piece in pieces for name in piece.column_names})
            writer = writer or parquet.ParquetWriter(target, merged.schema)
            writer.write_table(merged)
    finally:
        if writer is not None:
            writer.close()


def _row_groups(file: Path, names: list[str]) -> Iterator[pa.Table]:
    """Pieces of ROW_GROUP rows, whatever the row groups of the file: earlier versions wrote one for all."""
    with parquet.ParquetFile(file) as opened:
        held: list[pa.Table] = []
        for number in range(opened.num_row_groups):
            held = [pa.concat_tables([*held, opened.read_row_group(number, names)])]
            while held[0].num_rows >= ROW_GROUP:
                yield held[0].slice(0, ROW_GROUP)
                held = [held[0].slice(ROW_GROUP)]
        if held and held[0].num_rows:
            yield held[0]
