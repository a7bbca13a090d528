from __future__ import annotations

import dataclasses
import json
import math
import shutil
import weakref

import numpy as np
import pytest
from scipy import stats
from support import ANSWER, SETTINGS, command, measured, records, refused, table, words, write_rows

from srlm.commands.train import arms_of
from srlm.config import SelfRewardConfig
from srlm.console import Display
from srlm.errors import UserError
from srlm.run.tables import Table
from srlm.training import parts, trainer
from srlm.training.comparison import Spread, compare, file_name

OPTIONS = SETTINGS | {"rounds": 1}


@pytest.fixture
def labelled(tmp_path):
    file = tmp_path / "labelled.jsonl"
    rows = [{"prompt": f"Spell {word}", "answer": ANSWER} for word in ["x", "yy", "z"]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def settings(folder, **changes) -> SelfRewardConfig:
    return SelfRewardConfig(output=str(folder), **{**OPTIONS, **changes})


def test_one_arm_lets_go_of_its_model_before_the_next_is_loaded(tiny, prompts_file, tmp_path, monkeypatch):
    loaded = []

    def load(*given):
        assert not any(model() for model in loaded)
        policy = parts.load_policy(*given)
        loaded.append(weakref.ref(policy.model))
        return policy

    monkeypatch.setattr(trainer, "load_policy", load)
    given = {reward: {"reward": reward} for reward in ("log_likelihood", "random", "majority")}
    compare(str(tiny), settings(tmp_path / "c"), prompts_file, None, given, display=Display(silent=True))
    assert len(loaded) == 3


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
    of_the_reward = ("mean_reward", "auroc", "step", "effective_samples")
    starts = {
        json.dumps({k: v for k, v in measured(records(f)[0]).items() if not k.startswith(of_the_reward)})
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
    ends = {
        name: [records(tmp_path / "c" / f"{name}-seed-{seed}")[1]["accuracy_sampled"] for seed in (3, 4)]
        for name in ("log_likelihood", "random")
    }
    assert arms[0].over_random == Spread.of([a - b for a, b in zip(*ends.values(), strict=True)])
    assert arm.over_random is None  # it is the control
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


def test_arms_have_settings_of_their_own(tiny, prompts_file, labelled, tmp_path):
    line = ["train", *words(**OPTIONS), "--model", tiny, "--prompts", prompts_file, "--held-out", labelled, "--quiet"]
    arms = "log_likelihood,0.5*majority + random  beta=0.05 clip=0, log_likelihood objective=dpo pairs=best_worst"
    outcome = command(*line, "--output", tmp_path / "c", "--compare", arms)
    assert outcome.code == 0, outcome
    folders = sorted(path.name for path in (tmp_path / "c").iterdir() if path.is_dir())
    assert folders == [
        "0.5xmajority_+_random_beta_0.05_clip_0-seed-3",
        "log_likelihood-seed-3",
        "log_likelihood_objective_dpo_pairs_best_worst-seed-3",
    ]
    mixed, plain, dpo = (json.loads((tmp_path / "c" / f / "manifest.json").read_text())["config"] for f in folders)
    assert (mixed["reward"], mixed["beta"], mixed["clip"]) == ("0.5*majority + random", 0.05, 0.0)
    assert (dpo["objective"], dpo["pairs"], dpo["beta"]) == ("dpo", "best_worst", plain["beta"])
    ignored = {"output", "reward", "beta", "clip", "objective", "pairs"}
    assert len({json.dumps({k: v for k, v in c.items() if k not in ignored}) for c in (mixed, plain, dpo)}) == 1
    assert "− random" not in outcome.out  # there is no such arm


def test_an_arm_by_tokens_learns_what_it_learns_alone(tiny, prompts_file, labelled, tmp_path):
    """The start it shares was scored without log-probs of single tokens."""
    line = ["train", *words(**OPTIONS), "--model", tiny, "--prompts", prompts_file, "--held-out", labelled, "--quiet"]
    arms = "log_likelihood, log_likelihood objective=grpo, log_likelihood objective=dpo length_normalised=true"
    assert command(*line, "--output", tmp_path / "c", "--compare", arms).code == 0
    assert command(*line, "--output", tmp_path / "alone", "--objective", "grpo", "--clip", 8).code == 0
    plain, mean, tokens = (
        tmp_path / "c" / f"log_likelihood{more}-seed-3"
        for more in ("", "_objective_dpo_length_normalised_true", "_objective_grpo")
    )
    assert json.loads((mean / "manifest.json").read_text())["config"]["length_normalised"] is True
    ends = [[measured(r) for r in records(run)][-1] for run in (tokens, tmp_path / "alone", plain)]
    assert ends[0] == ends[1] != ends[2]
    rows = table(tokens, 0)
    for each, log_prob, ids in zip(*(rows[key] for key in ("token_log_prob", "log_prob", "tokens")), strict=True):
        assert len(each) == len(ids) and sum(each) == pytest.approx(log_prob, abs=1e-5)
    assert "token_log_prob" not in table(plain, 0)


@pytest.mark.parametrize(
    ("compared", "changes", "what"),
    [
        ("log_likelihood,wisdom", {}, "wisdom"),
        ("random,random", {}, "twice"),
        ("random", {"seeds": 0}, "--seeds"),
        ("random,random num-samples=2", {}, "sets 'num_samples', expected some of reward, answers"),
        ("random,random model=other", {}, "sets 'model', expected"),
        ("random help=1", {}, "sets 'help', expected"),
        ("random config=c.yaml", {}, "sets 'config', expected"),
        ("random beta = 2", {}, "the arm 'random beta = 2' sets ''"),
        ("random reward=majority", {}, "sets something twice"),
        ("random length_window=3", {}, "the arm 'random length_window=3': "),
        ("random,log_likelihood beta=x", {}, "the arm 'log_likelihood beta=x': "),
        ("random", {"until": "saturated"}, "--until saturated was given"),
        ("random", {"push_to_hub": "me/mine"}, "--push-to-hub was given"),
        ("random,", {}, "has an empty arm"),
        ("random beta=0", {}, "--beta is 0.0"),
        ("random beta=much", {}, "beta"),
        ("random beta=1 beta=2", {}, "sets something twice"),
        ("random objective=dpo length_normalised=yes", {}, "expected true or false"),
        ("random,majority answers='number", {}, "has a quote that is not closed"),
        ("random,majority answers=numbers", {}, "numbers"),
        ("random,oracle", {}, "has no answers, which the reward oracle needs"),
    ],
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


def test_arms_without_a_reward_take_that_of_all():
    config = SelfRewardConfig(reward="random")
    assert arms_of("beta=2,majority label-smoothing=consistency", config) == {
        "beta=2": {"reward": "random", "beta": 2.0},
        "majority label-smoothing=consistency": {"reward": "majority", "label_smoothing": "consistency"},
    }


def test_what_holds_a_comma_or_a_space_is_quoted():
    arms = arms_of(
        r"majority answers='regex:(\d+), (\d+)',random length_penalty=1 length_window='2 9'", SelfRewardConfig()
    )
    assert list(arms.values()) == [
        {"reward": "majority", "answers": r"regex:(\d+), (\d+)"},
        {"reward": "random", "length_penalty": 1.0, "length_window": (2, 9)},
    ]


@pytest.mark.parametrize(
    ("arms", "held", "what"),
    [
        ({}, None, "no arm"),
        ({"a": {}, "b": {"beta": 0.0}}, None, "--beta is 0.0"),
        ({"a": {}, "oracle": {"reward": "oracle"}}, [{"prompt": "Spell x"}], "has no answers"),
    ],
)
def test_the_last_arm_is_checked_before_the_first_begins(tiny, labelled, tmp_path, arms, held, what):
    if held is not None:
        held = str(write_rows(tmp_path / "held.jsonl", held))
    with pytest.raises(UserError, match=what):
        compare(str(tiny), settings(tmp_path / "c"), labelled, held, arms)
    assert not (tmp_path / "c").exists()


def test_arms_added_later_leave_those_of_before_readable_meanwhile(tiny, prompts_file, labelled, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")

    def call(*rewards):
        given = {reward: {"reward": reward} for reward in rewards}
        return compare(
            str(model), settings(tmp_path / "c"), prompts_file, labelled, given, display=Display(silent=True)
        )

    def kept():
        return json.loads((tmp_path / "c" / "comparison.json").read_text())

    call("log_likelihood")
    before = kept()
    model.rename(tmp_path / "gone")
    with pytest.raises(UserError):
        call("log_likelihood", "random")
    (tmp_path / "gone").rename(model)
    assert kept()["state"] == "running"
    assert list(kept()["settings"]) == ["log_likelihood", "random"]
    assert kept()["earlier"] == before
    call("log_likelihood", "random")
    assert kept()["state"] == "finished"
    assert [arm["name"] for arm in kept()["arms"]] == ["log_likelihood", "random"]
    call("inverted", "random", "log_likelihood")  # whichever comes first, round 0 was sampled once
    starts = [json.loads(file.read_text()) for file in (tmp_path / "c").glob("*/round-000/stages.json")]
    assert len(starts) == 3
    assert len({start["sample rollouts"]["seconds"] for start in starts}) == 1


def test_arms_that_would_share_a_folder_are_refused(tiny, prompts_file, tmp_path):
    with pytest.raises(UserError, match="share a folder"):
        compare(str(tiny), settings(tmp_path / "c"), prompts_file, None, {"a b": {}, "a_b": {"beta": 2.0}})
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


def test_an_arm_that_diverges_does_not_end_the_others(tiny, prompts_file, labelled, tmp_path):
    line = ["train", *words(**OPTIONS), "--model", tiny, "--prompts", prompts_file, "--held-out", labelled, "--quiet"]
    outcome = command(*line, "--output", tmp_path / "c", "--compare", "log_likelihood learning_rate=1e30,random")
    assert outcome.code == 0, outcome
    assert "lower --learning-rate" in outcome.out
    assert "log_likelihood learning_rate=1e30 diverged in 1 of 1 runs" in outcome.out
    broken, control = json.loads((tmp_path / "c" / "comparison.json").read_text())["arms"]
    assert (broken["diverged"], control["diverged"]) == (1, 0)
    assert broken["end"] == broken["start"]


def test_names_of_folders_are_short_and_tell_arms_apart():
    long = [file_name(f"majority answers=regex:{letter}{500 * 'é'}") for letter in "ab"]
    assert len(set(long)) == 2 and all(len(name.encode()) < 230 for name in long)
    assert file_name("0.5*majority + random beta=2") == "0.5xmajority_+_random_beta_2"


@pytest.mark.parametrize("content", ['{"mine": 1}', "[1]", "{"])
def test_a_file_of_someone_else_is_left_alone(tiny, prompts_file, tmp_path, content):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "comparison.json").write_text(content)
    with pytest.raises(UserError, match="not one that srlm wrote"):
        compare(str(tiny), settings(tmp_path / "c"), prompts_file, None, {"random": {"reward": "random"}})
    assert (tmp_path / "c" / "comparison.json").read_text() == content


def test_a_start_that_was_taken_over_by_half_is_completed(tiny, prompts_file, labelled, tmp_path, monkeypatch):
    given = {name: {"reward": name} for name in ("log_likelihood", "random")}

    def call(folder):
        return compare(str(tiny), settings(folder), prompts_file, labelled, given, display=Display(silent=True))

    take, taken = Table.take, []

    def killed(self, *lent):
        if len(taken) == 1:
            raise KeyboardInterrupt
        taken.append(self.file)
        take(self, *lent)

    monkeypatch.setattr(Table, "take", killed)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "c")
    monkeypatch.undo()
    call(tmp_path / "c")
    stages = [json.loads((tmp_path / "c" / f"{arm}-seed-3" / "round-000" / "stages.json").read_text()) for arm in given]
    for name in ("sample rollouts", "score rollouts", "sample held_out", "score held_out", "sample greedy"):
        assert stages[0][name] == stages[1][name]


def test_to_go_on_is_to_give_the_same_line(tiny, prompts_file, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("srlm.training.comparison.compare", interrupted)
    line = ["train", "--model", tiny, "--prompts", prompts_file, "--output", tmp_path / "c", "--compare", "random"]
    assert "give the same line again" in command(*line).err
    run = tmp_path / "run"
    assert command("train", *words(**OPTIONS), "--model", tiny, "--prompts", prompts_file, "--output", run).code == 0
    assert "does not go with --compare" in refused("train", "--resume", run, "--compare", "random")
    assert "--seeds is 3 without --compare" in refused("train", *line[1:-2], "--seeds", "3")


def test_a_control_neither_votes_nor_has_a_teacher(tiny, prompts_file, tmp_path):
    own = {"model": tiny, "prompts": prompts_file, "output": tmp_path / "c", **OPTIONS, "answers": "regex:[a-z]"}
    own |= {"votes": 6, "teacher": "initial"}
    del own["guard"]
    said = refused("train", *words(**own), "--compare", "log_likelihood, random")
    assert "--votes is 6, but --reward log_likelihood takes no vote" in said
    said = refused("train", *words(**own), "--compare", "majority, random judge_samples=4")
    assert "--judge-samples was given, but --reward random does not judge" in said
    assert command("train", *words(**own), "--compare", "random, majority").code == 0
    assert (tmp_path / "c" / "majority-seed-3" / "round-000" / "votes.parquet").exists()
    assert not (tmp_path / "c" / "random-seed-3" / "round-000" / "votes.parquet").exists()


def form(response, columns):
    return float(len(response))


def test_an_arm_that_looks_at_columns_joins_those_that_do_not(tiny, prompts_file, tmp_path):
    own = {"model": tiny, "prompts": prompts_file, "output": tmp_path / "c", **OPTIONS}
    del own["guard"]
    for arms in ("random", "random, check:test_comparison:form", "random"):
        assert command("train", *words(**own), "--compare", arms).code == 0, arms
