from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats
from support import ANSWER, SETTINGS, command, measured, records, refused, words

from srlm.comparison import Spread, compare
from srlm.config import SelfRewardConfig
from srlm.console import Display
from srlm.errors import UserError

OPTIONS = SETTINGS | {"rounds": 1}


@pytest.fixture
def labelled(tmp_path):
    file = tmp_path / "labelled.jsonl"
    rows = [{"prompt": f"Spell {word}", "answer": ANSWER} for word in ["x", "yy", "z"]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def settings(folder, **changes) -> SelfRewardConfig:
    return SelfRewardConfig(output=str(folder), **{**OPTIONS, **changes})


def test_arms_share_their_start_and_differ_by_their_reward_alone(tiny, prompts_file, labelled, tmp_path):
    rewards = ["log_likelihood", "random", "0.5*random+0.5*log_likelihood"]
    given = {reward: {"reward": reward} for reward in rewards}
    arms = compare(
        str(tiny), settings(tmp_path / "c"), prompts_file, labelled, given, seeds=2, display=Display(silent=True)
    )
    assert [arm.name for arm in arms] == rewards
    own = settings(tmp_path / "alone", reward="random")
    from srlm import SelfRewardTrainer

    alone = SelfRewardTrainer(str(tiny), own, prompts_file, labelled, display=Display(silent=True)).train()
    shared = records(tmp_path / "c" / "random-seed-3")
    assert [measured(r) for r in shared] == [measured(r) for r in alone.records]
    starts = {
        json.dumps({k: v for k, v in measured(records(f)[0]).items() if k != "mean_reward"})
        for f in (
            tmp_path / "c" / "log_likelihood-seed-3",
            tmp_path / "c" / "random-seed-3",
            tmp_path / "c" / "0.5xrandom+0.5xlog_likelihood-seed-3",
        )
    }
    assert len(starts) == 1
    stages = [
        json.loads((tmp_path / "c" / f"{arm}-seed-3" / "round-000" / "stages.json").read_text())
        for arm in ("log_likelihood", "random")
    ]
    for name in ("sample rollouts", "score rollouts", "sample held_out", "score held_out", "sample greedy"):
        assert stages[0][name] == stages[1][name]  # seconds too: it was done once
    values = [records(tmp_path / "c" / f"random-seed-{s}")[1]["accuracy_sampled"] for s in (3, 4)]
    (arm,) = (arm for arm in arms if arm.name == "random")
    assert arm.end["accuracy_sampled"] == Spread.of(values)
    kept = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert kept["state"] == "finished"
    assert kept["arms"][1] == json.loads(json.dumps(dataclasses.asdict(arm)))


def test_the_same_call_goes_on(tiny, prompts_file, labelled, tmp_path):
    line = ["train", *words(**OPTIONS)]
    line += ["--model", tiny, "--prompts", prompts_file, "--held-out", labelled, "--output", tmp_path / "c", "--quiet"]
    first = command(*line, "--compare", "log_likelihood,random")
    assert first.code == 0, first
    assert "gain" in first.out
    again = command(*line, "--compare", "log_likelihood,random")
    assert again.code == 0
    assert again.out.splitlines()[-2:] == first.out.splitlines()[-2:]
    assert "nothing to do" in again.out


@pytest.mark.parametrize(
    ("compared", "changes", "what"),
    [("log_likelihood,wisdom", {}, "wisdom"), ("random,random", {}, "twice"), ("random", {"seeds": 0}, "--seeds")],
)
def test_what_cannot_be_compared(tiny, prompts_file, tmp_path, compared, changes, what):
    said = refused(
        "train",
        "--model",
        tiny,
        "--prompts",
        prompts_file,
        "--output",
        tmp_path / "c",
        "--compare",
        compared,
        *words(**changes),
    )
    assert what in said
    assert not (tmp_path / "c").exists()


def test_a_folder_of_something_else_is_refused(tiny, prompts_file, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="not an empty folder"):
        compare(str(tiny), settings(tmp_path / "c"), prompts_file, None, {"random": {"reward": "random"}})


def test_spread_is_students_interval():
    values = [0.1, 0.3, 0.35]
    spread = Spread.of(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), np.std(values, ddof=1) / math.sqrt(3))
    assert (spread.mean, spread.low, spread.high) == pytest.approx((np.mean(values), low, high))
    assert Spread.of([0.5]) == Spread(0.5, None, None)
