"""What can be read of a file that may be half-written, damaged, or not what its name says: the rest is left out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pyarrow import RecordBatch, binary, compute, parquet, types
from pyarrow import Table as ArrowTable

from srlm.bounded import batches

MOST_RESPONSES, MOST_BYTES = 20_000, 2**25  # of a table of responses
MOST_TOKENS = 200_000  # of a table, and of a page: those that are shaded


def bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def json_of(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(bytes_of(file).decode(errors="replace"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def columns_of(file: Path, every: int = 1) -> dict[str, list[Any]]:
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


def one_of_row_groups(file: Path) -> int:
    """Of how many row groups of a table a page can show one."""
    try:
        about = parquet.read_metadata(file)
        first = next(batches(file, _names(file), MOST_BYTES))
    except Exception:  # as in `columns_of`, which will leave it out
        return 1
    size = float(first.nbytes * about.num_rows / max(first.num_rows, 1))
    return max(1, math.ceil(size / MOST_BYTES), -(-int(about.num_rows) // MOST_RESPONSES))


def _names(file: Path) -> list[str]:
    return [name for name in parquet.read_schema(file).names if name != "tokens"]
