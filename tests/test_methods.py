"""Published methods by name."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import command, records, refused, table, train_words, write_held_out, write_prompts

from srlm import SelfRewardConfig
from srlm.estimators.rank import kendall_tau
from srlm.methods import METHODS
from srlm.objectives.imitation import imitation
from srlm.policies.transformer.sample import inverse_cdf, of_the_most_probable
from srlm.training import stages
from srlm.training.parts import objective_function

SMALL = {"rounds": 1, "num_samples": 3, "max_new_tokens": 6, "dtype": "fp32", "held_out_samples": 2, "guard": False}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path)
    write_held_out(tmp_path)


def words_of(name: str, **options: Any) -> list[str]:
    own = {"prompts": "prompts.jsonl", "held_out": "held-out.jsonl", "match": "regex", "method": name} | options
    from support import words

    return ["train", *words(**own)]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_an_assembly_of_settings(name: str) -> None:
    method = METHODS[name]
    names = {field.name for field in fields(SelfRewardConfig)}
    assert {*method.is_, *method.usual} <= names and not set(method.is_) & set(method.usual)
    SelfRewardConfig(**{**method.usual, **method.is_})
    printed = yaml.safe_load(command(*words_of(name), "--print-config").out)
    for key, value in {**method.usual, **method.is_}.items():
        assert printed[key] == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains(name: str, tiny: Path) -> None:
    small = SMALL | {"votes": 4} if name == "ttrl" else SMALL
    small = small | {"prompts_per_round": 4, "prompts_per_step": 4} if name == "intuitor" else small
    # What an untrained model says is never twice the same, so any band that it is within has to be wide.
    small = small | {"consistency_band": [0.0, 1.0]} if name in ("empo", "scpo") else small
    rate = {"learning_rate": 1e-3, "answers": "regex:[a-z]"}
    outcome = command(*words_of(name, model=tiny, output="run", **small, **rate))
    assert outcome.code == 0, outcome
    config = json.loads(Path("run/manifest.json").read_text())["config"]
    assert {key: config[key] for key in METHODS[name].is_} == dict(METHODS[name].is_)
    assert config["lora_rank"] == 0 and config["num_samples"] == 3
    last = records(Path("run"))[1]
    assert "loss" in last
    # None of them is the regression, so none has a target that could say how well it did.
    assert last["fidelity_r2"] is None and last["fidelity_r2_held_out"] is None
    assert not last.keys() & {"achieved", "beta", "step", "effective_samples", "mode_surprisal_forecast"}


def test_cream_compares_what_two_rewards_say_of_the_same_responses(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held out, and not two policies, which agree in all that they have of pi_0."""
    asked: list[object] = []

    def spied(config: SelfRewardConfig, tau: object, beta: float) -> Any:
        asked.append(tau)
        return objective_function(config, tau, beta)

    monkeypatch.setattr(stages, "objective_function", spied)
    small = SMALL | {"rounds": 3, "held_out_samples": 6, "learning_rate": 1e-3}
    assert command(*words_of("cream", model=tiny, output="run", **small)).code == 0
    found, wanted = records(Path("run")), []
    for t in range(2):
        rows = table(Path("run"), t, "held_out")
        names = ("log_prob", "log_prob_next", "log_prob_initial", "reward")
        last, now, first, reward = (torch.tensor(rows[name]).view(-1, 6) for name in names)
        by_token = 0.001 * last / torch.tensor([len(ids) for ids in rows["tokens"]]).view(-1, 6)
        torch.testing.assert_close(reward, last - first + by_token)
        wanted.append(kendall_tau(reward, now - first + by_token))
    assert asked == [None, *(pytest.approx(tau) for tau in wanted)]
    assert [record.get("reward_tau") for record in found[:3]] == asked
    assert asked[1:] != [record["kendall_tau"] for record in found[1:3]]


def test_what_contradicts_a_method_is_refused(tiny: Path) -> None:
    said = refused(*words_of("ttrl", model=tiny, reward="oracle"))
    assert "--reward is oracle beside --method ttrl, which is hard_majority (arXiv 2504.16084)" in said
    Path("c.yaml").write_text("objective: dpo\n")
    assert "--objective is dpo beside --method rent" in refused(*words_of("rent", model=tiny, config="c.yaml"))
    assert "--method is 'dpo', expected one of ssd, ttrl" in refused(*words_of("dpo", model=tiny))
    assert command(*train_words(model=tiny, prompts="prompts.jsonl", output="run", rounds=1)).code == 0
    assert "--method rent stands beside --resume" in refused("train", "--resume", "run", "--method", "rent")


def test_imitation_pulls_up_all_that_was_drawn() -> None:
    log_ratio = torch.tensor([[0.5, -1.0, 2.0, 9.0]], requires_grad=True)
    weight = torch.tensor([[0.25, 0.25, 0.5, 0.0]])
    loss = imitation(log_ratio, torch.randn(1, 4), weight)
    loss.sum().backward()
    assert loss.item() == pytest.approx(-(0.125 - 0.25 + 1.0))
    assert torch.equal(log_ratio.grad, -weight)


def test_top_k_draws_from_the_k_most_probable_words() -> None:
    logits = torch.log_softmax(torch.randn(1, 1000, generator=torch.Generator().manual_seed(0)), -1)
    kept = of_the_most_probable(logits, 3)
    best = set(logits.topk(3).indices[0].tolist())
    drawn = inverse_cdf(kept.expand(2000, -1), torch.rand(2000, dtype=torch.float64))
    assert set(drawn.tolist()) == best
    share = (drawn == logits.argmax()).double().mean()
    assert abs(share - torch.softmax(logits.topk(3).values[0], -1)[0]) < 0.05
    assert torch.equal(of_the_most_probable(logits, 5000), logits)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_brings_its_rate_and_length(name: str) -> None:
    """All weights at the default rate of LoRA, or of 64 tokens, would be another method."""
    usual = METHODS[name].usual
    assert "learning_rate" in usual and ("max_new_tokens" in usual or name == "ssd")
    assert usual["learning_rate"] <= 5e-6 and usual["lora_rank"] == 0


def test_what_nothing_rewards_raises_no_alarm_by_a_reward(tiny: Path) -> None:
    outcome = command(*words_of("ssd", model=tiny, output="run", **(SMALL | {"guard": True}), learning_rate=1e-6))
    assert outcome.code == 0, outcome
    assert not any(name.startswith("auroc") for record in records(Path("run")) for name in record)
