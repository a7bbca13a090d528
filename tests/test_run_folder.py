"""The run folder: whole files or none, one run at a time, and honest refusals."""

import errno
import json
import os

import pytest
import safetensors.torch
import torch
from support import tree

from srlm import UserError
from srlm.run.files import SCRATCH, write_atomically
from srlm.run.folder import RunFolder
from srlm.run.manifest import read_manifest

MANIFEST = {"state": "running", "model": "m", "config": {}}


def begun(folder):
    run = RunFolder(folder, dict(MANIFEST))
    run.begin()
    return run


def taken_up(folder):
    run = RunFolder(folder, read_manifest(folder))
    run.take_up()
    return run


def test_a_file_appears_whole(tmp_path):
    file = tmp_path / "a.txt"
    write_atomically(file, lambda p: p.write_text("one"))
    write_atomically(file, lambda p: p.write_text("two"))
    assert file.read_text() == "two"
    assert list(tree(tmp_path)) == ["a.txt"]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")

    def half(path):
        path.write_text("tw")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_atomically(file, half)
    assert file.read_text() == "one"
    assert list(tree(tmp_path)) == ["a.txt"]


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path):
    seen = []

    def write(path):
        path.write_text("one")
        seen.append((tmp_path / "a.txt").exists())

    write_atomically(tmp_path / "a.txt", write)
    assert seen == [False]


def test_a_folder_replaces_another(tmp_path):
    def folder(name):
        def write(path):
            path.mkdir()
            (path / name).write_text(name)

        return write

    write_atomically(tmp_path / "f", folder("old"))
    write_atomically(tmp_path / "f", folder("new"))
    assert list(tree(tmp_path)) == ["f", "f/new"]


def test_everything_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda handle: events.append("sync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("name"), replace(a, b)))

    def write(path):
        path.mkdir()
        for name in "ab":
            (path / name).write_text(name)

    write_atomically(tmp_path / "f", write)
    assert events == ["sync", "sync", "name", "sync"]


def test_who_may_open_a_folder_may_read_what_is_in_it(tmp_path):
    """safetensors leaves its files to their owner."""

    def write(path):
        path.mkdir(mode=0o755)
        safetensors.torch.save_file({"w": torch.zeros(1)}, path / "model.safetensors")
        (path / "model.safetensors").chmod(0o600)

    write_atomically(tmp_path / "f", write)
    assert (tmp_path / "f" / "model.safetensors").stat().st_mode & 0o777 == 0o644


class Rust(Exception):
    pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device"),
        Rust("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["python", "pyarrow", "safetensors"],
)
def test_a_full_disk_is_one_error_whoever_meets_it(tmp_path, error):
    def write(path):
        path.write_text("half")
        raise error

    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "a", write)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_create_takes_a_new_or_empty_folder(tmp_path):
    for folder in (tmp_path / "new" / "deep", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        run = begun(folder)
        run.release()
        assert read_manifest(folder) == MANIFEST
        assert list(tree(folder)) == ["manifest.json"]


def test_create_takes_what_a_kill_before_the_manifest_left(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / f"{SCRATCH}-manifest.json").write_text('{"sta')
    begun(tmp_path).release()
    assert list(tree(tmp_path)) == ["manifest.json"]


def test_create_refuses_what_is_used(tmp_path):
    run, notes, file = tmp_path / "run", tmp_path / "notes", tmp_path / "file"
    begun(run).release()
    notes.mkdir()
    (notes / ".hidden").write_text("mine")
    file.write_text("mine")
    before = tree(tmp_path)
    for folder, said in ((run, "never overwritten"), (notes, "not an empty folder"), (file, "Not a directory")):
        with pytest.raises(UserError, match=said):
            begun(folder)
    assert tree(tmp_path) == before


def test_create_refuses_what_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file" / "run", "/proc/run", tmp_path / ("n" * 300)):
        with pytest.raises(UserError, match="choose another --output"):
            begun(type(tmp_path)(folder))


def test_create_on_a_full_disk_leaves_an_empty_folder(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        begun(tmp_path / "run")
    assert tree(tmp_path) == {"run": "folder"}


def test_a_run_is_held_by_one_at_a_time(tmp_path):
    run = begun(tmp_path)
    with pytest.raises(UserError, match="in use by another process"):
        RunFolder(tmp_path, {}).take_up()
    run.release()
    taken_up(tmp_path).release()
    assert list(tree(tmp_path)) == ["manifest.json"]


def test_open_removes_leftovers_wherever_they_are(tmp_path):
    begun(tmp_path).release()
    before = tree(tmp_path)
    for folder in (tmp_path, tmp_path / "round-000"):
        (folder / f"{SCRATCH}-model" / "deep" / "er").mkdir(parents=True)
        (folder / f"{SCRATCH}-model" / "deep" / f"{SCRATCH}-x").mkdir()
        (folder / f"{SCRATCH}-records.jsonl").write_text("{")
    taken_up(tmp_path).release()
    assert tree(tmp_path) == before | {"round-000": "folder"}


def test_records_are_strict_json(tmp_path):
    run = begun(tmp_path)
    run.append_record({"round": 0, "loss": None, "κ": 1e-300})
    with pytest.raises(ValueError):
        run.append_record({"round": 1, "loss": float("nan")})
    run.append_record({"round": 1, "loss": 0.1 + 0.2})
    assert run.records() == [{"round": 0, "loss": None, "κ": 1e-300}, {"round": 1, "loss": 0.1 + 0.2}]
    run.release()


def test_checkpoint_comes_and_goes(tmp_path):
    run = begun(tmp_path)
    checkpoint = run.checkpoint(3)
    assert checkpoint.load() is None
    state = {"a": torch.randn(3, 2).T, "done": torch.tensor(7)}
    checkpoint.save(state)
    loaded = checkpoint.load()
    assert loaded.keys() == state.keys()
    assert torch.equal(loaded["a"], state["a"]) and int(loaded["done"]) == 7
    assert safetensors.torch.load_file(tmp_path / "round-003" / "update.safetensors").keys() == state.keys()
    checkpoint.settle()
    assert checkpoint.load() is None and checkpoint.carried() is None
    run.release()


def test_an_optimiser_is_handed_on_and_kept_of_the_newest_round_alone(tmp_path):
    run = begun(tmp_path)
    for t in range(3):
        checkpoint = run.checkpoint(t, carry=True)
        kept = checkpoint.carried()
        assert (kept is None) is (t == 0) and (kept is None or int(kept["done"]) == t)
        checkpoint.save({"done": torch.tensor(t + 1)})
        run.round(t + 1)
        if t == 1:  # killed in the middle of settling
            checkpoint.path.rename(checkpoint.after)
        checkpoint.settle()
        checkpoint.settle()
        assert [path.parent.name for path in tmp_path.rglob("*.safetensors")] == [f"round-{t + 1:03d}"]
    run.forget_optimizer()
    assert not list(tmp_path.rglob("*.safetensors"))
    run.release()


@pytest.mark.parametrize("content", [None, "{", "[1]", '"x"'])
def test_a_folder_without_a_manifest_is_no_run(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    expected = "is not a run folder" if content is None else r"manifest\.json is damaged"
    with pytest.raises(UserError, match=expected):
        read_manifest(tmp_path)


def test_manifest_is_readable_json_with_its_words(tmp_path):
    run = begun(tmp_path)
    run.save_manifest(state="stopped: κ")
    run.release()
    assert json.loads((tmp_path / "manifest.json").read_text())["state"] == "stopped: κ"
    assert "κ" in (tmp_path / "manifest.json").read_text()
