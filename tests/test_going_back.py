"""A run goes back to a round, does it again, and keeps what it had; what is damaged says which round that is."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from support import command, learned, refused, train_words, tree, whole, write_held_out, write_prompts

from srlm.run.files import damaged
from srlm.run.tables import Table

LAST = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("run")
    write_prompts(folder)
    write_held_out(folder)
    given = train_words(model=tiny, prompts=folder / "prompts.jsonl", held_out=folder / "held-out.jsonl", rounds=LAST)
    assert command(*given, "--output", folder / "run").code == 0
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def apart(run):
    """What was set aside, out of the way."""
    (found,) = run.glob("set-aside-*")
    return Path(shutil.move(found, run.parent))


@pytest.mark.parametrize("round", [0, 1, LAST])
def test_the_same_again_and_nothing_lost(finished, run, round):
    outcome = command("train", "--resume", run, "--from-round", round)
    assert outcome.code == 0 and f"back to round {round}" in outcome.err + outcome.out
    aside = apart(run)
    assert whole(run, LAST) == whole(finished, LAST)
    for name in ("records.jsonl", "model/model.safetensors", "report.html", f"round-{LAST:03d}/rollouts.parquet"):
        assert (aside / name).read_bytes() == (finished / name).read_bytes(), name
    kept = {f"round-{t:03d}" for t in range(round)}
    assert not kept & {path.name for path in aside.iterdir()}
    assert (aside / "prompts").exists() == (round == 0)
    assert command("train", "--resume", run, "--from-round", round).code == 0
    assert {path.name for path in run.glob("set-aside-*")} == {"set-aside-001"}
    (run / "set-aside-001").rename(run / "set-aside-002")  # somebody made room
    for _ in range(2):
        assert command("train", "--resume", run, "--from-round", round).code == 0
    assert {path.name for path in run.glob("set-aside-*")} == {f"set-aside-00{i}" for i in (1, 2, 3)}


@pytest.mark.parametrize("round", [0, 1])
def test_an_optimiser_that_is_carried_on_begins_anew_and_says_so(tiny, tmp_path, round):
    """From round 1 on: its state was kept of the newest round alone."""
    files = {"prompts": write_prompts(tmp_path), "held_out": write_held_out(tmp_path)}
    given = train_words(model=tiny, **files, rounds=2, carry_optimizer=True)
    assert command(*given, "--output", tmp_path / "run").code == 0
    assert not list((tmp_path / "run").rglob("optimizer.safetensors"))  # nothing goes on from it
    before = whole(tmp_path / "run", 2)
    outcome = command("train", "--resume", tmp_path / "run", "--from-round", round)
    assert ("AdamW begins anew in round 1" in outcome.out + outcome.err) is (round == 1)
    apart(tmp_path / "run")
    assert (whole(tmp_path / "run", 2) == before) is (round == 0)


@pytest.mark.parametrize("round", ["4", "-1", "x", ""])
def test_rounds_that_are_none(run, round):
    before = tree(run)
    assert "--from-round" in refused("train", "--resume", run, f"--from-round={round}")
    assert tree(run) == before


def test_it_is_the_run_that_was_named(run, tmp_path):
    """Not the one that a config file has for its output."""
    other = shutil.copytree(run, tmp_path / "other")
    (tmp_path / "c.yaml").write_text(f"output: {other}\n")
    before, given = tree(other), ["train", "--resume", run, "--from-round", LAST, "--config", tmp_path / "c.yaml"]
    assert f"--output is {other} beside --resume {run}" in refused(*given, "--output", other)
    assert command(*given, "--output", run.parent / "." / run.name).code == 0
    assert (run / "set-aside-001").exists() and tree(other) == before


def test_it_needs_a_run():
    assert "--resume" in refused("train", "--from-round", "1", "--prompts", "x.jsonl")


def spoil_text(run):
    """A letter of a response, which resuming does not need."""
    file = run / "round-001" / "rollouts.parquet"
    data = bytearray(file.read_bytes())
    from pyarrow import parquet

    about = parquet.ParquetFile(file).metadata.row_group(0)
    column = next(about.column(i) for i in range(about.num_columns) if about.column(i).path_in_schema == "response")
    data[column.dictionary_page_offset + column.total_compressed_size // 2] ^= 4
    file.write_bytes(data)
    return file, 1


def spoil_record(run):
    file = run / "records.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], lines[2][:-9], *lines[3:]]))
    return file, 2


def other_record(run):
    file = run / "records.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], *lines[2:]]))
    return file, 1


def spoil_stages(run):
    file = run / "round-002" / "stages.json"
    file.write_text(file.read_text()[:-9])
    return file, 2


def no_losses(run):
    file = run / "round-001" / "stages.json"
    file.write_text(json.dumps({}))
    return file, 1


def spoil_adapter(run):
    file = run / "round-002" / "adapter" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    return file, 1  # whose update makes it


def spoil_prompts(run):
    file = run / "prompts" / "rollouts.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    return file, 0


@pytest.mark.parametrize(
    "spoil", [spoil_text, spoil_record, other_record, spoil_stages, no_losses, spoil_adapter, spoil_prompts]
)
def test_what_is_damaged_says_where_to_go_back_to(finished, run, spoil):
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"state": "running"}))
    file, round = spoil(run)
    said = refused("train", "--resume", run)
    assert str(file) in said and f"--from-round {round}" in said
    assert command("train", "--resume", run, "--from-round", round).code == 0
    apart(run)
    if spoil in (spoil_stages, no_losses):  # what it had noted of costs is lost
        assert learned(run, LAST) == learned(finished, LAST)
    else:
        assert whole(run, LAST) == whole(finished, LAST)


@pytest.mark.parametrize(
    ("file", "run", "round"),
    [
        ("exp/round-001/round-002/rollouts.parquet", "exp/round-001", 2),
        ("exp/round-001/round-002/adapter/adapter_model.safetensors", "exp/round-001", 1),
        ("exp/round-001/round-000/weights.sha256", "exp/round-001", 0),
        ("exp/round-001/prompts/rollouts.parquet", "exp/round-001", 0),
        ("exp/round-001/manifest.json", "exp/round-001", None),
    ],
)
def test_the_run_is_the_one_that_holds_the_file(file, run, round):
    said = str(damaged(Path(file), "x"))
    assert (f"--resume {run} --from-round {round}," in said) if round is not None else ("--from-round" not in said)


def test_parts_of_other_lengths_are_damaged(run):
    Table(run / "round-001" / "rollouts.parquet").add("odd", {"odd": pa.array([1, 2])})
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"state": "running"}))
    assert "odd.parquet is damaged (it has fewer rows" in refused("train", "--resume", run)
