"""Parquet files of others, whose few bytes may stand for more than a machine holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

ROWS = 1024


def batches(file: Path, names: Sequence[str] | None, most: int, every: int = 1) -> Iterator[pa.RecordBatch]:
    """Columns of a file, of all without `names`, a few rows at a time: no batch is larger than `most` bytes, though one
    value that stands in the file once may fill any number of rows; not so where one list repeats a value any number of
    times, of which the file does not say how large it is. every: of so many row groups one is read.

    Raises:
        OverflowError: one row may be larger.
        OSError, pa.ArrowException: not a Parquet file, or a damaged one.
    """
    with parquet.ParquetFile(file, page_checksum_verification=True) as opened:
        about = opened.metadata
        paths = [about.schema.column(i).path for i in range(about.num_columns)]
        chosen = [i for i, path in enumerate(paths) if names is None or path.split(".")[0] in names]
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        # No value is larger than its column's part of a row group, as it is written but uncompressed.
        largest = max((sum(g.column(i).total_uncompressed_size for i in chosen) for g in groups), default=0)
        if largest > most:
            raise OverflowError(f"a row group of {largest / 1e9:.1f} GB")
        rows = max(1, min(ROWS, most // max(largest, 1)))
        chosen_groups = list(range(0, about.num_row_groups, every))
        yield from opened.iter_batches(rows, chosen_groups, None if names is None else list(names))
