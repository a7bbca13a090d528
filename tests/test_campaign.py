"""A minute of `python -m benchmarks.campaign`: whatever a person brings ends right or as one sentence."""

import time
from itertools import takewhile

import pytest

pytest.importorskip("benchmarks.campaign", reason="the benchmarks are not part of an installed srlm")
from benchmarks.campaign import damage, inputs, kills
from benchmarks.campaign.engine import FAILED, RIGHT, Tally, Wrong, campaign, in_turn
from benchmarks.campaign.world import World

INPUTS = (
    *("prompts jsonl", "prompts json", "prompts csv", "prompts tsv", "prompts txt", "yaml", "words", "words of plan"),
    *("arms", "match rule", "answer classes", "chat template", "diagnosis", "paths", "run", "prompts parquet"),
)
DAMAGES = (
    *("damage finished report", "damage finished diagnose", "damage finished resume"),
    *("damage unfinished report", "damage unfinished diagnose", "damage unfinished resume"),
)
KILLS = ("kill lora", "kill set aside", "kill dpo")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


def ends(kinds, names, seconds, folder):
    """How attempts of these kinds ended, as many as there is time for; a failure says how to repeat it."""
    tally, deadline = Tally(), time.time() + seconds
    attempts = takewhile(lambda _: time.time() < deadline, in_turn(kinds, names, 0, 10_000))
    campaign(attempts, int(time.time()), folder, tally)
    assert not tally.failures, "\n".join(["python -m benchmarks.campaign --inputs 1", *tally.failures])
    return tally.counts


def test_inputs(world, tmp_path):
    counts = ends(inputs.kinds(world), INPUTS, 25, tmp_path)
    assert sum(counts.values()) > len(INPUTS)
    right = sum(number for (_, end), number in counts.items() if end == RIGHT)
    assert 0.1 < right / sum(counts.values()) < 0.9  # mutations that all pass, or none of which does, try nothing


def test_damaged_files(world, tmp_path):
    assert ends(damage.Damages(world).kinds(), DAMAGES, 8, tmp_path)


def test_kills(world, tmp_path):
    assert ends(kills.kinds(world), KILLS, 12, tmp_path)


def test_what_is_wrong_is_noticed(tmp_path, monkeypatch):
    """A hang, a traceback and a wrong end are failures, and the first of each sort leaves its folder and its seed."""
    monkeypatch.setattr("benchmarks.campaign.engine.SECONDS", 0.2)

    def hangs(dice, folder):
        while True:
            pass

    def raises(dice, folder):
        raise KeyError(dice.random())

    def wrong(dice, folder):
        raise Wrong("two sentences")

    tally = Tally()
    kinds = {"hangs": hangs, "raises": raises, "wrong": wrong, "right": lambda dice, folder: RIGHT}
    campaign(in_turn(kinds, [*kinds], 0, 8), 5, tmp_path, tally)
    assert {kind: tally.counts[kind, FAILED] for kind in kinds} == {"hangs": 2, "raises": 2, "wrong": 2, "right": 0}
    assert len(tally.failures) == 3 and all("--seed 5 --only" in failure for failure in tally.failures)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hangs-0", "raises-1", "wrong-2"]


@pytest.mark.parametrize("spoil", ["weights", "records", "leftover"])
def test_a_run_that_ends_otherwise_is_noticed(world, tmp_path, monkeypatch, spoil):
    """Were resuming to end with other numbers or to leave something behind, a kill would say so."""
    go_on = kills._gone_on

    def spoilt(story, run):
        go_on(story, run)
        if spoil == "leftover":
            (run / ".partial-x").touch()
        else:
            file = run / {"weights": "model/model.safetensors", "records": "records.jsonl"}[spoil]
            content = bytearray(file.read_bytes())
            at = len(content) - 9 if spoil == "weights" else content.index(b'"entropy": ') + 11
            content[at] ^= 1
            file.write_bytes(content)

    monkeypatch.setattr(kills, "_gone_on", spoilt)
    tally = Tally()
    campaign(in_turn(kills.kinds(world), ["kill lora"], 0, 1), 1, tmp_path, tally)
    assert tally.counts["kill lora", FAILED] == 1
    assert {"weights": "model", "records": "records", "leftover": "files"}[spoil] + " differs" in tally.failures[0]
