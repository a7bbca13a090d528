"""Options of earlier versions work for one minor version more, and say so."""

from __future__ import annotations

import re

import pytest
from support import command, refused

from srlm import SelfRewardConfig, UserError, __version__
from srlm.deprecated import OPTIONS, Old


@pytest.fixture
def renamed(monkeypatch):
    monkeypatch.setitem(OPTIONS, "old_seed", Old("seed", "0.2", "seed"))


def printed(*words: object) -> tuple[str, str]:
    with pytest.warns(DeprecationWarning):
        outcome = command("train", "--prompts", "x", *words, "--print-config")
    assert outcome.code == 0, outcome
    return outcome.out, outcome.err


def test_an_old_name_on_the_command_line(renamed):
    out, err = printed("--old_seed=7")
    assert "\nseed: 7\n" in out
    assert err == "srlm: note: --old-seed is called --seed now, and srlm 0.2 will refuse it: use the new name\n"
    said = refused("train", "--prompts", "x", "--old-seed", 7, "--seed", 8)
    assert said.endswith("--seed is given twice, once by its old name --old-seed, expected once: leave one out")


def test_an_old_name_in_a_file(renamed, tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text("old-seed: 9\nguard_leak: 2\nrounds: 2\n")
    out, err = printed("--config", file)
    assert "\nseed: 9\n" in out and "\nrounds: 2\n" in out and err.count("srlm: note: ") == 2


def test_an_old_name_in_python(renamed):
    with pytest.warns(DeprecationWarning, match="old_seed is called seed now, and srlm 0.2 will refuse it") as warned:
        assert SelfRewardConfig(old_seed=5).seed == 5
    assert warned[0].filename == __file__
    with pytest.raises(UserError, match="seed is given twice"), pytest.warns(DeprecationWarning):
        SelfRewardConfig(old_seed=5, seed=6)
    with pytest.raises(TypeError, match="never_was"):
        SelfRewardConfig(never_was=1)


def test_what_nothing_heeds_any_more():
    out, err = printed("--guard-leak", "-0.5", "--seed", 3)
    assert "\nseed: 3\n" in out
    assert err == "srlm: note: --guard-leak has no effect any more, and srlm 0.2 will refuse it: leave it out\n"
    with pytest.warns(DeprecationWarning, match="guard_kappa has no effect any more"):
        assert SelfRewardConfig(guard_kappa=3.0) == SelfRewardConfig()
    assert "unrecognized arguments: --guard-leak" in refused("evaluate", "--model", "x", "--guard-leak", 1)


def test_nothing_outlives_its_version():
    version = tuple(map(int, re.findall(r"\d+", __version__)[:2]))
    for name, old in OPTIONS.items():
        assert version < tuple(map(int, old.gone.split("."))), f"take {name} out of srlm.deprecated.OPTIONS"
