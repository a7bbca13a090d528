"""Tables of a round: columns come one stage at a time, each costs itself, and one file is left of them."""

import os
import shutil

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from support import tree

from srlm.errors import UserError
from srlm.policies.transformer.responses import cut
from srlm.run.columns import column, grid, numbered, padded, ragged, rows
from srlm.run.files import SCRATCH
from srlm.run.folder import RunFolder
from srlm.run.tables import ROW_GROUP, Table

shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6))


@given(shapes, st.randoms(use_true_random=False))
def test_responses_there_and_back(shape, dice):
    p, k, t = shape
    length = torch.tensor([[dice.randint(0, t) for _ in range(k)] for _ in range(p)])
    tokens = torch.tensor([[[dice.randint(1, 9) for _ in range(t)] for _ in range(k)] for _ in range(p)])
    tokens = tokens.to(torch.int32) * (torch.arange(t) < length[..., None])
    kept = pa.table({"tokens": ragged(cut(tokens, length)), "length": column(length)})
    lists = [tokens[i, j, : length[i, j]].tolist() for i in range(p) for j in range(k)]
    assert kept["tokens"].to_pylist() == lists == [row.tolist() for row in rows(kept["tokens"])]
    for whole in (kept, pa.concat_tables([kept.slice(0, 1), kept.slice(1)])):  # however it is cut into pieces
        again, lengths = padded(whole["tokens"].chunks, (p, k), t)
        assert torch.equal(again, tokens) and torch.equal(lengths, length) and again.dtype == torch.int32
        assert torch.equal(grid(whole["length"], p), length)


def test_rows_are_numbered_prompt_by_prompt():
    index = numbered(2, 3)
    assert index["prompt_index"].to_pylist() == [0, 0, 0, 1, 1, 1]
    assert index["sample_index"].to_pylist() == [0, 1, 2, 0, 1, 2]


def columns(name, number=2500):
    return {name: pa.array(range(number), pa.int32())}


@pytest.fixture
def grown(tmp_path):
    (tmp_path / "round-000").mkdir()
    table = Table(tmp_path / "round-000" / "rollouts.parquet")
    assert table.names() == []
    for name in ("z", "a", "m"):
        table.add(name, columns(name))
    return table


def test_columns_keep_the_order_in_which_they_came(grown):
    assert grown.names() == ["z", "a", "m"]
    grown.add("a", columns("a"))  # once more, as a resumed run does
    assert grown.names() == ["z", "a", "m"] and len(grown.files()) == 3
    assert grown.read().column_names == ["z", "a", "m"]
    assert grown.read(["m", "z"]).to_pydict() == {"m": list(range(2500)), "z": list(range(2500))}
    with pytest.raises(UserError, match="its column nothing is missing"):
        grown.read(["nothing"])


def test_rows_that_come_one_after_another_are_written_and_read_so(grown, monkeypatch):
    written = []

    def rows(step):
        for start in range(0, 2500, step):
            written.append(start)
            yield {"late": columns("late")["late"][start : start + step]}

    grown.add("late", rows(ROW_GROUP))
    assert written == [0, ROW_GROUP, 2 * ROW_GROUP] and grown.names() == ["z", "a", "m", "late"]
    monkeypatch.setattr(parquet, "read_table", lambda *_, **__: pytest.fail("a table is read whole"))
    pieces = list(grown.pieces(["late", "z"]))
    assert [piece.num_rows for piece in pieces] == [ROW_GROUP, ROW_GROUP, 2500 - 2 * ROW_GROUP]
    assert pa.concat_tables(pieces).to_pydict() == {"z": list(range(2500)), "late": list(range(2500))}


def test_adding_a_column_reads_and_writes_that_column_alone(grown, monkeypatch):
    before = tree(grown.parts)
    monkeypatch.setattr(parquet, "read_table", lambda *_, **__: pytest.fail("a table is read"))
    grown.add("late", columns("late"))
    assert {name: value for name, value in tree(grown.parts).items() if name in before} == before


def test_a_closed_table_is_one_file_in_row_groups(grown):
    grown.close()
    assert grown.files() == [grown.file] and not grown.parts.exists()
    file = parquet.ParquetFile(grown.file)
    assert file.schema_arrow.names == ["z", "a", "m"]
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [ROW_GROUP, ROW_GROUP, 2500 - 2 * ROW_GROUP]
    assert grown.head().num_rows == ROW_GROUP
    before = tree(grown.file.parent)
    grown.close()
    assert tree(grown.file.parent) == before


def test_a_table_without_rows_is_closed_and_read(tmp_path):
    """A round whose policy wrote no prompt that could be used."""
    table = RunFolder(tmp_path, {}).table(0, "written")
    table.add("prompt", {"prompt": pa.array([], pa.string()), "tokens": pa.array([], pa.list_(pa.int32()))})
    table.add("log_prob", {"log_prob": pa.array([], pa.float32())})
    table.close()
    table.close()
    assert table.files() == [table.file] and table.read(["log_prob", "prompt"]).num_rows == 0
    other = RunFolder(tmp_path, {}).table(1, "written")
    other.take("start", table, ["tokens"])
    assert other.names() == ["prompt", "log_prob"]


def test_a_late_column_joins_a_closed_table(grown):
    grown.close()
    grown.add("late", columns("late"))
    assert grown.names() == ["z", "a", "m", "late"] == grown.head().column_names
    grown.close()
    assert parquet.read_table(grown.file).to_pydict() == {n: list(range(2500)) for n in ("z", "a", "m", "late")}


def test_a_table_of_an_earlier_version_is_one_row_group(tmp_path):
    parquet.write_table(pa.table(columns("old")), tmp_path / "rollouts.parquet")
    table = Table(tmp_path / "rollouts.parquet")
    table.add("new", columns("new"))
    assert table.head().to_pydict() == {n: list(range(ROW_GROUP)) for n in ("old", "new")}
    table.close()
    assert parquet.read_table(table.file).to_pydict() == {n: list(range(2500)) for n in ("old", "new")}


def test_of_a_column_in_two_files_the_newer_counts(grown):
    grown.close()
    grown.add("a", {"a": pa.array(range(2500, 0, -1), pa.int32())})
    assert grown.read(["a"])["a"][0].as_py() == 2500 and grown.head()["a"][0].as_py() == 2500
    assert sorted(grown.names()) == ["a", "m", "z"]
    grown.close()
    assert parquet.read_table(grown.file)["a"][0].as_py() == 2500


def test_what_a_kill_left_half_written_is_no_table(grown):
    wanted = grown.read().to_pydict()
    for file in (grown.parts / f"{SCRATCH}-03-late.parquet", grown.file.with_name(f"{SCRATCH}-rollouts.parquet")):
        file.write_bytes(b"PAR1 half")
    assert grown.read().to_pydict() == wanted
    other = Table(grown.file.with_name("other.parquet"))
    other.take("start", grown, ())
    assert other.read().to_pydict() == wanted
    run = RunFolder(grown.file.parent.parent, {})
    assert [table.file.stem for table in run.tables(int(grown.file.parent.name[-3:]))] == ["other", "rollouts"]


@pytest.mark.parametrize("moment", ["before the file has its name", "before the parts are gone", "some parts are gone"])
def test_closing_can_be_killed(grown, tmp_path, monkeypatch, moment):
    wanted = grown.read().to_pydict()

    def killed(*_):
        raise KeyboardInterrupt

    if moment == "before the file has its name":
        monkeypatch.setattr(os, "replace", killed)
    elif moment == "before the parts are gone":
        monkeypatch.setattr(shutil, "rmtree", killed)
    else:
        monkeypatch.setattr(shutil, "rmtree", lambda folder: (next(folder.glob("*")).unlink(), killed()))
    with pytest.raises(KeyboardInterrupt):
        grown.close()
    monkeypatch.undo()
    assert grown.read().to_pydict() == wanted
    grown.close()
    assert grown.files() == [grown.file] and parquet.read_table(grown.file).to_pydict() == wanted


def test_a_start_is_lent_without_what_was_made_of_it(grown, tmp_path):
    (tmp_path / "other").mkdir()
    other = Table(tmp_path / "other" / "rollouts.parquet")
    other.take("start", grown, ("a",))
    assert other.read().to_pydict() == {n: list(range(2500)) for n in ("z", "m")}
    grown.close()
    other.take("start", grown, ("z", "m"))
    assert other.read().to_pydict() == {"a": list(range(2500))}


def test_a_folder_with_an_equals_sign_adds_no_column(tmp_path):
    folder = tmp_path / "lr=3"
    folder.mkdir()
    table = Table(folder / "rollouts.parquet")
    table.add("a", columns("a"))
    assert table.read().column_names == ["a"]
    table.close()
    assert table.read().column_names == ["a"]
