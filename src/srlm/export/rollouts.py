"""All that a run sampled, as one tidy table: a row a response."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from srlm.errors import UserError
from srlm.run.folder import RunFolder
from srlm.run.tables import ROW_GROUP

TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def write_rollouts(run: RunFolder, file: Path) -> int:
    """Every table of responses of every round, behind its `round` and the name of its `table`: rollouts (which were
    trained on), held_out, greedy, and votes (which were drawn to vote alone). A column that a table lacks is null. No
    more than a row group is held at a time.

    Returns:
        The number of rows.

    Raises:
        UserError: the run has no responses yet, or a table is damaged.
    """
    every = ((number, table) for number in run.rounds() for table in run.tables(number))
    tables = [(number, table) for number, table in every if "response" in table.names()]  # the others hold prompts
    schemas = [table.head().schema for _, table in tables]
    if not schemas:
        raise UserError(f"{run.path} has no responses yet, expected a round of them: let the run go on")
    schema = _joined(schemas)
    rows = 0
    with parquet.ParquetWriter(file, schema, write_page_checksum=True) as writer:
        for number, table in tables:
            for piece in table.pieces():
                writer.write_table(_widened(piece, number, table.file.stem, schema), ROW_GROUP)
                rows += piece.num_rows
    return rows


def _joined(schemas: list[pa.Schema]) -> pa.Schema:
    """Prompts that are strings in one table and conversations in another are conversations."""
    own = pa.schema([("round", pa.int32()), ("table", pa.string())])
    kinds = {str(schema.field("prompt").type) for schema in schemas}
    if len(kinds) > 1:
        schemas = [_with(schema, "prompt", TURNS) for schema in schemas]
    return pa.unify_schemas([own, *schemas], promote_options="permissive")


def _with(schema: pa.Schema, name: str, kind: pa.DataType) -> pa.Schema:
    return schema.set(schema.get_field_index(name), pa.field(name, kind))


def _widened(piece: pa.Table, round: int, table: str, schema: pa.Schema) -> pa.Table:
    said = {"round": pa.array([round] * piece.num_rows, pa.int32()), "table": pa.array([table] * piece.num_rows)}
    return pa.table({f.name: said.get(f.name) or _column(piece, f) for f in schema}, schema=schema)


def _column(piece: pa.Table, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    if field.name not in piece.column_names:
        return pa.nulls(piece.num_rows, field.type)
    values = piece[field.name]
    if values.type == field.type:
        return values
    if field.type == TURNS:
        return pa.array(list(_turns(values)), TURNS)
    return values.cast(field.type)


def _turns(values: pa.ChunkedArray) -> Iterator[list[dict[str, str]]]:
    for value in values.to_pylist():
        yield [{"role": "user", "content": value}] if isinstance(value, str) else value
