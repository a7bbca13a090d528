"""A folder from somebody else: what is in it neither runs here nor reaches beyond it."""

import json
import shutil
import sys

import pytest
from support import command, refused, train_words, tree, write_held_out, write_prompts

from srlm.report import report
from srlm.run.folder import RunFolder


@pytest.fixture(scope="module")
def strange(tiny, tmp_path_factory):
    """A run that is not finished, with settings that would run code."""
    folder = tmp_path_factory.mktemp("strange")
    data = {"prompts": write_prompts(folder), "held_out": write_held_out(folder)}
    run = folder / "run"
    assert command(*train_words(model=tiny, **data, output=run, rounds=1)).code == 0
    manifest = json.loads((run / "manifest.json").read_text()) | {"state": "running"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


OWN = "import pathlib\npathlib.Path('ran').touch()\ndef f(*given):\n    return True\n"


@pytest.mark.parametrize(
    ("name", "value", "commands"),
    [
        ("reward", "own_code:f", ["train"]),
        ("reward", "0.5*own_code:f+random", ["train"]),
        ("answers", "own_code:f", ["train"]),
        ("match", "own_code:f", ["train", "diagnose"]),
        ("trust_remote_code", True, ["train", "diagnose"]),
    ],
)
def test_a_folder_does_not_say_whose_code_runs(strange, tmp_path, monkeypatch, name, value, commands):
    run = shutil.copytree(strange, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"][name] = value
    (run / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "own_code.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_code", raising=False)
    option = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
    for word in commands:
        said = refused(word, "--resume" if word == "train" else "--run", run)
        assert f"was begun with {option}, which runs code" in said and "give" in said
    assert not (tmp_path / "ran").exists()
    again = [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    if name == "trust_remote_code":
        assert command("train", "--resume", run, *again).code == 0
    assert not (run / ".lock").exists()


def test_patterns_are_no_code(strange, tmp_path):
    run = shutil.copytree(strange, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"]["answers"] = "regex:a:b"
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert command("train", "--resume", run).code == 0


def test_a_planted_lock_empties_nothing(tmp_path):
    (tmp_path / "mine").write_text("thesis")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"\.lock is a link, expected a file of srlm's own"):
        RunFolder(tmp_path / "run", {}).hold()
    assert (tmp_path / "mine").read_text() == "thesis"


def test_a_planted_scratch_file_is_not_written_through(strange, tmp_path):
    run = shutil.copytree(strange, tmp_path / "run")
    (tmp_path / "mine").write_text("thesis")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "chapter").write_text("one")
    (run / ".partial-report.html").symlink_to(tmp_path / "mine")
    (run / ".partial-manifest.json").symlink_to(tmp_path / "folder")
    before = tree(tmp_path / "folder")
    report([run])
    held = RunFolder(run, json.loads((run / "manifest.json").read_text()))
    held.take_up()
    held.save_manifest()
    held.release()
    assert (tmp_path / "mine").read_text() == "thesis" and tree(tmp_path / "folder") == before
    assert (run / "report.html").is_file() and not (run / "report.html").is_symlink()
