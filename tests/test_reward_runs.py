"""Whole runs under other rewards than the default: what they record, and who sees an answer."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import make_model, make_tokenizer
from support import (
    HELD_OUT,
    SETTINGS,
    WORDS,
    command,
    learned,
    measured,
    records,
    refused,
    table,
    train_words,
    words,
    write_held_out,
    write_prompts,
    write_rows,
)
from test_trainer import Sealed

import srlm
from srlm import SelfRewardConfig, SelfRewardTrainer, UserError, load_prompts
from srlm.answers import normalise
from srlm.console import Display
from srlm.prompts.select import PromptSet
from srlm.types import Prompts

K = SETTINGS["num_samples"]
RIGHT, RIGHT_HELD_OUT = "[a-mA-M0-4]", "[n-zN-Z5-9]"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_prompts(folder)
    write_held_out(folder)
    rows = [{"prompt": f"Say {word}", "answer": RIGHT} for word in WORDS]
    write_rows(folder / "answered.jsonl", rows)
    rows = [{"prompt": f"Spell {word}", "answer": RIGHT_HELD_OUT} for word in HELD_OUT]
    write_rows(folder / "held-out-answered.jsonl", rows)
    return folder


def trainer(model: object, data: Path, output: Path, **options: Any) -> SelfRewardTrainer:
    prompts = options.pop("prompts", data / "prompts.jsonl")
    held_out = options.pop("held_out", data / "held-out.jsonl")
    config = SelfRewardConfig(output=str(output), **(SETTINGS | {"rounds": 1} | options))
    return SelfRewardTrainer(str(model), config, prompts, held_out, display=Display(silent=True))


def manifest(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_text())


def grid(rows: dict[str, list[Any]], column: str) -> np.ndarray:
    return np.array(rows[column]).reshape(-1, max(rows["sample_index"]) + 1)


# Each in a run


def test_majority_of_classes_of_the_users(tiny: Path, data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "meaning.py").write_text("def of(text): return sum(c.islower() for c in text) or None\n")
    run = tmp_path / "run"
    options = {"reward": "majority", "answers": "meaning:of", "rounds": 1}
    options |= {"model": tiny, "prompts": data / "prompts.jsonl", "held_out": data / "held-out.jsonl", "output": run}
    assert command(*train_words(**options)).code == 0
    for name in ("rollouts", "held_out"):
        rows = table(run, 0, name)
        shares = []
        for texts in grid(rows, "response"):
            small = [sum(map(str.islower, text)) for text in texts]
            shares.append([Counter(small)[n] / len(texts) if n else 0 for n in small])
        assert len(set(np.ravel(shares))) > 2
        np.testing.assert_allclose(grid(rows, "reward"), shares, atol=1e-6)
    assert manifest(run)["labels_used"] is False
    assert not any("reward_" in key for record in records(run) for key in record)  # it takes no time worth a column


def test_a_mixture_that_asks_the_model_is_timed(tiny: Path, data: Path, tmp_path: Path) -> None:
    run = trainer(tiny, data, tmp_path / "run", reward="0.5*majority-2*self_certainty+implicit").train().output
    for record in records(run):
        for name in ("reward_rollouts", "reward_held_out"):
            assert record[f"seconds_{name}"] > 0 and record[f"tokens_per_second_{name}"] > 0
        stages = sum(value for key, value in record.items() if key.startswith("seconds_"))
        assert record["seconds"] == pytest.approx(stages)
    first = table(run, 0)
    shares = [[Counter(map(normalise, row))[normalise(text)] / K for text in row] for row in grid(first, "response")]
    certainty = (grid(first, "reward") - 0.5 * np.array(shares)) / -2  # the log-ratio to pi_0 is 0 still
    assert certainty.min() > 0 and certainty.std() > 0


def test_the_share_of_unparsed_judgements_is_recorded(data: Path, tmp_path: Path) -> None:
    model = make_model()
    model.config.max_position_embeddings = 4096
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    run = trainer(tmp_path / "model", data, tmp_path / "run", reward="random+judge").train().output
    for record in records(run):
        assert 0.5 < record["unparsed_reward_rollouts"] <= 1
        assert not any("reward_held_out" in key for key in record)  # grading those would double the cost
    assert [r["unparsed_reward_rollouts"] for r in records(run)] == [
        json.loads((run / f"round-{t:03d}" / "stages.json").read_text())["reward rollouts"]["unparsed"] for t in (0, 1)
    ]


def test_a_model_without_room_for_the_judge_says_so(tiny: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no room for the judge"):
        trainer(tiny, data, tmp_path / "run", reward="judge").train()


def test_a_diagnosis_calibrates_every_reward_that_needs_no_options(tiny: Path, data: Path) -> None:
    found = srlm.diagnose(
        str(tiny),
        data / "held-out-answered.jsonl",
        num_samples=6,
        max_new_tokens=4,
        match="regex",
        search_budget=20,
        dtype="fp32",
        display=Display(silent=True),
    )
    cheap = {*("log_likelihood", "mean_log_likelihood", "self_certainty", "negative_entropy", "majority", "random")}
    assert set(found.labels.calibration) == cheap
    answers = np.array(found.samples["answer"]).reshape(-1, 6)
    shares = (answers[:, :, None] == answers[:, None, :]).mean(-1)
    np.testing.assert_allclose(np.reshape(found.samples["reward_majority"], (-1, 6)), shares)


# Starting and resuming


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reward": "praise"}, "there is no reward 'praise'"),
        ({"reward": "0.5*judge+praise"}, "there is no reward 'praise'"),
        ({"reward": "no_such_module:f"}, "the reward no_such_module:f cannot be imported"),
        ({"reward": "random+oracle"}, "uses labels"),
        ({"reward": "oracle"}, r"prompts.jsonl has no answers, which the reward oracle needs"),
        ({"answers": "praise"}, "there are no answer classes 'praise'"),
    ],
)
def test_bad_rewards_are_refused_before_the_model_is_loaded(data, tmp_path, options, said) -> None:
    given = {"model": "/no/model", "prompts": data / "prompts.jsonl", "output": tmp_path / "run"}
    assert re.search(said, refused("train", *words(**(given | options))))
    assert not (tmp_path / "run").exists()


def test_the_oracle_needs_held_out_answers_too(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no-answers\.jsonl has no answers"):
        bare = write_rows(tmp_path / "no-answers.jsonl", [{"prompt": "Spell x"}])
        trainer(
            "/no/model", data, tmp_path / "run", reward="oracle", prompts=data / "answered.jsonl", held_out=bare
        ).train()


def test_a_run_does_not_go_on_with_another_reward(tiny: Path, data: Path, tmp_path: Path) -> None:
    run = trainer(tiny, data, tmp_path / "run", reward="0.5*random+majority").train().output
    before = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text(before.replace('"finished"', '"running"'))
    for option, value in (("reward", "random"), ("reward", "0.5*random + majority"), ("answers", "exact")):
        assert f"began with {option} =" in refused("train", "--resume", run, f"--{option}", value)
    assert command("train", "--resume", run, "--quiet").code == 0


def test_a_run_goes_on_after_its_reward_has_failed(tiny: Path, data: Path, tmp_path: Path, monkeypatch) -> None:
    """As if it never had: values in float64, and a stage that was begun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "unsteady.py").write_text(
        "import pathlib\n"
        "def reward(policy, rollouts):\n"
        "    if rollouts.round == 1 and not pathlib.Path('mended').exists(): raise RuntimeError('broken')\n"
        "    return rollouts.log_prob.double() / 3\n"
    )
    spec = {"reward": "unsteady:reward+0.1*self_certainty", "rounds": 2}
    given = trainer(tiny, data, tmp_path / "run", **spec)
    with pytest.raises(RuntimeError, match="broken"):
        given.train()
    (tmp_path / "mended").touch()
    again = ["--resume", tmp_path / "run", "--quiet"]
    assert "which runs code" in refused("train", *again)  # a folder is not to say whose
    assert command("train", *again, "--reward", spec["reward"]).code == 0
    whole = trainer(tiny, data, tmp_path / "whole", **spec).train().output
    assert learned(tmp_path / "run") == learned(whole)
    assert [measured(r) for r in records(tmp_path / "run")] == [measured(r) for r in records(whole)]


# Answers


def oracle(model: object, data: Path, output: Path, **options: Any) -> SelfRewardTrainer:
    sources = {"prompts": data / "answered.jsonl", "held_out": data / "held-out-answered.jsonl"}
    return trainer(model, data, output, **({"reward": "oracle"} | sources | options))


def test_the_oracle_scores_by_the_answers_and_the_manifest_says_so(tiny: Path, data: Path, tmp_path: Path) -> None:
    run = oracle(tiny, data, tmp_path / "run").train().output
    for name, pattern in (("rollouts", RIGHT), ("held_out", RIGHT_HELD_OUT)):
        rows = table(run, 0, name)
        expected = [float(bool(re.search(pattern, text))) for text in rows["response"]]
        assert 0 < sum(expected) < len(expected)
        assert rows["reward"] == expected
    facts = manifest(run)
    assert facts["labels_used"] is True and len(facts["data"]["prompts_answers"]["fingerprint"]) == 64


def test_answers_reach_nothing_but_the_oracles_reward(tiny: Path, data: Path, tmp_path: Path) -> None:
    """Before the first update, answers show in the column `reward`, in what derives from it, and nowhere else."""
    other = write_rows(tmp_path / "other.jsonl", [{"prompt": f"Say {word}", "answer": "[5-9n-z]"} for word in WORDS])
    runs = [oracle(tiny, data, tmp_path / "a"), oracle(tiny, data, tmp_path / "b", prompts=other)]
    one, two = (run.train().output for run in runs)
    assert table(one, 0)["reward"] != table(two, 0)["reward"]
    for name in ("rollouts", "held_out", "greedy"):
        mine, theirs = table(one, 0, name), table(two, 0, name)
        assert {key for key in mine if mine[key] != theirs[key]} <= {"reward", "log_prob_next"}
        if name != "rollouts":
            assert mine.get("reward") == theirs.get("reward")
    a, b = (measured(records(run)[0]) for run in (one, two))
    rounding = {"step"}  # is asked for, and met
    assert {key for key in a if a[key] != b[key]} - rounding == {"mean_reward", "beta", "effective_samples"}


def reachable(start: object) -> Iterable[object]:
    """All that hangs on an object by attributes and containers, but for what functions keep to themselves."""
    seen, left = set(), [start]
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, (FunctionType, MethodType, ModuleType, type, partial)):
            continue
        seen.add(id(thing))
        yield thing
        if isinstance(thing, dict):
            left += [*thing.keys(), *thing.values()]
        elif isinstance(thing, (list, tuple, set, frozenset)):
            left += thing
        else:
            left += vars(thing).values() if hasattr(thing, "__dict__") else []


def test_the_trainer_keeps_no_answer_where_anything_but_the_oracle_finds_it(data: Path, tmp_path: Path) -> None:
    given = oracle("/no/model", data, tmp_path / "run")
    assert RIGHT not in list(reachable(given)) and RIGHT_HELD_OUT in list(reachable(given))  # the latter is measured
    assert isinstance(given.prompts, Prompts)


@pytest.mark.parametrize("reward", ["majority", "inverted", "mean_log_likelihood-negative_entropy+self_certainty"])
def test_no_other_reward_can_look_at_answers(tiny: Path, data: Path, tmp_path: Path, reward: str) -> None:
    plain = load_prompts(data / "prompts.jsonl")
    sealed = PromptSet(plain.prompts, Sealed(), plain.source, plain.fingerprint)
    run = trainer(tiny, data, tmp_path / "run", prompts=sealed, reward=reward).train().output
    assert "prompts_answers" not in manifest(run)["data"]
    with pytest.raises(AssertionError, match="looked"):
        trainer(tiny, data, tmp_path / "other", prompts=sealed, reward="oracle")
