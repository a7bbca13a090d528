"""The guard: each signal by itself, whole runs that are broken on purpose, and healthy ones that it leaves alone."""

from __future__ import annotations

import json
import math
import os
import random
import string
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from support import command, measured, records, table, train_words, tree, weights, write_rows
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import srlm.guard.decision
from srlm import SelfRewardConfig, SelfRewardTrainer
from srlm.console import Display
from srlm.estimators.diversity import repeated_ngrams
from srlm.guard.advice import advice
from srlm.guard.decision import best_round, decide, history
from srlm.guard.signals import alarms, settled
from srlm.measure import HeldOut, drift_record
from srlm.measure.record import update_fidelity
from srlm.objectives.imitation import nll
from srlm.objectives.policy_gradient import dapo
from srlm.objectives.preferences import ipo
from srlm.objectives.regression import regression
from srlm.policies.transformer.responses import Responses
from srlm.training.parts import added_objective, objective_function
from srlm.types import Prompts, Rollouts

CONFIG = SelfRewardConfig(max_new_tokens=12, rounds=9)
START = {
    "round": 0,
    "entropy": 1.7,
    "mean_length": 11.0,
    "eos_rate": 0.4,
    "truncation_rate": 0.6,
    "distinct_2": 0.5,
    "repeated_ngrams": 0.0,
    "same_response": 0.02,
    "held_out_prompts": 48,
    "mode_fidelity": 1.0,
    "log10_kappa_upper_held_out": 4.0,
    "mode_surprisal_held_out": 4.5,
    "self_consistency": 0.05,
    "auroc": 0.9,
    "auroc_high": 0.95,
    "j0_gap": 14.0,
}
HEALTHY = START | {
    "round": 1,
    "prompts": 48,
    "entropy": 0.4,
    "mean_length": 10.3,
    "eos_rate": 0.75,
    "truncation_rate": 0.25,
    "distinct_2": 0.25,
    "mode_fidelity": 0.96,
    "displacement": 1.0,
    "displacement_held_out": 0.9,
    "achieved": 0.8,
    "achieved_error": 0.1,
    "achieved_prompts": 48,
    "leak": -0.3,
    "leak_error": 0.1,
    "leak_held_out": -0.2,
    "leak_held_out_error": 0.1,
    "log10_kappa_upper_held_out": 0.7,
    "mode_surprisal_held_out": 1.3,
    "mode_surprisal_forecast": 1.6,
    "self_consistency": 0.4,
    "auroc": 0.85,
    "auroc_high": 0.92,
    "j0_gap": 2.0,
}


def drifted(name: str, value: float, error: float, prompts: int = 48) -> dict[str, float]:
    return {name: value, f"{name}_error": error, f"{name}_prompts": prompts}


HEALTHY |= drifted("token_likelihood_rank", 0.7, 0.03) | drifted("agreement_change", 0.1, 0.02)
HEALTHY |= drifted("length_change", -0.2, 0.05) | drifted("truncation_change", -0.3, 0.03)
HEALTHY |= drifted("repetition_change", 0.01, 0.002)


def accuracy(value: float) -> dict[str, float]:
    return {"accuracy_sampled": value, "accuracy_sampled_low": value - 0.08, "accuracy_sampled_high": value + 0.08}


# Signal by signal


def test_a_healthy_round_raises_no_alarm() -> None:
    assert alarms([START], CONFIG) == alarms([START, HEALTHY], CONFIG) == []


# At level .02 / 9 Student's t of 47 degrees of freedom reaches 2.99 standard errors.
SIGNALS = {
    "token likelihood rank is 0.4 (at most 0.49), below 0.5": drifted("token_likelihood_rank", 0.4, 0.03),
    "agreement change is -0.1 (at most -0.0103), below 0": drifted("agreement_change", -0.1, 0.03),
    "achieved is -0.4 (at most -0.101) of the gain": {"achieved": -0.4},
    "kept mass is 0.0821 (at most 0.111), below 0.2": {"leak": -2.5},
    "auroc is 0.3 (at most 0.45), below 0.5: the self-reward prefers wrong": {"auroc": 0.3, "auroc_high": 0.45},
    "length of finished responses is 0.741 (at most 0.86) times": drifted("length_change", -0.3, 0.05),
    "length of finished responses is 1.35 (at least 1.16) times": drifted("length_change", 0.3, 0.05)
    | drifted("token_likelihood_rank", 0.55, 0.03),
    "truncation change is 0.2 (at least 0.11) since round 0, above 0.1": drifted("truncation_change", 0.2, 0.03),
    "repetition change is 0.06 (at least 0.054) since": drifted("repetition_change", 0.06, 0.002),
    "same response is 0.6 (at least 0.399), more than 0.3 above round 0's 0.02": {"same_response": 0.6},
}


@pytest.mark.parametrize("reason", SIGNALS)
def test_each_signal_alone_raises_its_alarm(reason: str) -> None:
    bad = HEALTHY | SIGNALS[reason]
    (found,) = alarms([START, bad], CONFIG)
    assert reason in found
    decision = decide([START, HEALTHY, bad], CONFIG)
    assert (decision.action, decision.round, decision.stage, decision.reason) == ("roll back", 1, "collapsing", found)


@pytest.mark.parametrize(("words", "alpha"), [(16, 2.0), (160, 1.4)])
def test_exact_sharpening_is_no_alarm_though_few_samples_hit_what_gains(words: int, alpha: float) -> None:
    """Responses of independent words of 2.7 nats: pi^alpha / Z of K = 8 samples."""
    generator, prompts, k = np.random.default_rng(0), 48, 8
    word = np.log(np.arange(1, 41) ** -1.0 / np.sum(np.arange(1, 41) ** -1.0))
    partition = words * np.log(np.sum(np.exp(alpha * word)))
    log_prob = word[generator.choice(40, size=(prompts, k, words), p=np.exp(word))].sum(-1)
    ratio = torch.from_numpy((alpha - 1) * log_prob - partition)
    found = update_fidelity(ratio, None, torch.from_numpy(log_prob), None)
    assert found["leak"] + 4 * found["leak_error"] < math.log(CONFIG.guard_kept_mass)
    held_out = {f"{name}_held_out": found[name] for name in ("leak", "displacement")}
    held_out["leak_held_out_error"] = found["leak_error"]
    assert alarms([START, HEALTHY | held_out], CONFIG) == []


@pytest.mark.parametrize(
    ("name", "harmless"),
    [
        ("token_likelihood_rank", drifted("token_likelihood_rank", 0.4, 0.04)),
        ("agreement_change", drifted("agreement_change", -0.1, 0.04)),
        ("achieved", {"achieved": -0.29}),
        ("kept mass", {"leak": -1.8}),
        ("length", drifted("length_change", -0.3, 0.105)),
        ("truncation", drifted("truncation_change", 0.2, 0.04)),
        ("repetition", drifted("repetition_change", 0.055, 0.002)),
        ("same response", {"same_response": 0.5}),
    ],
)
def test_what_the_choice_of_prompts_explains_is_no_alarm(name, harmless) -> None:
    assert alarms([START, HEALTHY | harmless], CONFIG) == []
    (reason,) = alarms([START, HEALTHY | harmless], replace(CONFIG, guard_false_alarm=0.9))
    assert reason.startswith(name.replace("_", " "))


def test_lengths_of_training_and_held_out_prompts_are_taken_together() -> None:
    """Neither alone would be enough."""
    parts = [drifted(name, -0.3, 0.12, 16) for name in ("length_change", "length_change_held_out")]
    for part in parts:
        assert alarms([START, HEALTHY | drifted("length_change", 0.0, 0.12, 0) | part], CONFIG) == []
    (reason,) = alarms([START, HEALTHY | parts[0] | parts[1]], CONFIG)
    # 16 + 16 prompts: -.3 +- .12/sqrt 2, Student's t of 30 degrees of freedom 3.08
    assert reason.startswith("length of finished responses is 0.741 (at most 0.962)")


def test_a_small_change_of_length_is_none_however_sure() -> None:
    assert alarms([START, HEALTHY | drifted("length_change", -0.2, 0.001)], CONFIG) == []


def test_longer_answers_that_are_likelier_by_token_are_no_alarm_and_shorter_ones_are() -> None:
    """A model that works problems out further, as mean log-likelihood made one: 1.33 times, rank .93, and better."""
    likelier = HEALTHY | drifted("token_likelihood_rank", 0.93, 0.03)
    assert alarms([START, likelier | drifted("length_change", 0.29, 0.04)], CONFIG) == []
    (reason,) = alarms([START, likelier | drifted("length_change", -0.29, 0.04)], CONFIG)
    assert reason.startswith("length of finished responses is 0.748")
    unknown = {name: value for name, value in likelier.items() if not name.startswith("token_likelihood_rank")}
    assert alarms([START, unknown | drifted("length_change", 0.29, 0.04)], CONFIG) != []


def test_few_prompts_need_a_clearer_sign() -> None:
    few = HEALTHY | drifted("token_likelihood_rank", 0.3, 0.03, prompts=4)
    assert alarms([START, few], CONFIG) == [] != alarms([START, few | {"token_likelihood_rank_error": 0.0}], CONFIG)


@pytest.mark.parametrize("prompts", [6, 24])
def test_false_alarms_are_as_rare_as_was_asked(prompts) -> None:
    """Of a policy that has not changed: two sets of 8 samples a prompt, from the same distribution."""
    drawn, config, rounds = torch.Generator().manual_seed(0), replace(CONFIG, guard_false_alarm=0.2), 300
    alarmed = 0
    for _ in range(rounds):
        tables = []
        for _ in range(2):
            length = torch.randint(1, 9, (prompts, 8), generator=drawn)
            tokens = torch.randint(0, 20, (prompts, 8, 9), generator=drawn, dtype=torch.int32)
            log_prob = -torch.rand(prompts, 8, generator=drawn).log().abs() * 9
            rollouts = Rollouts(
                0,
                Prompts.uniform(range(prompts)),
                Responses(tokens, length, torch.rand(prompts, 8, generator=drawn) < 0.7),
                log_prob,
                torch.full_like(log_prob, 1 / 8),
            )
            classes = torch.randint(0, 4, (prompts, 8), generator=drawn).tolist()
            tables.append(HeldOut(rollouts, None, None, classes, log_prob, log_prob.amax(-1), log_prob.amax(-1)))
        alarmed += bool(alarms([{"round": 0}, drift_record(*tables)], config))
    assert alarmed / rounds < 0.2


def test_accuracy_counts_where_intervals_part() -> None:
    rounds = [START | accuracy(0.3), HEALTHY | accuracy(0.6)]
    assert alarms([*rounds, HEALTHY | accuracy(0.5)], CONFIG) == []
    (reason,) = alarms([*rounds, HEALTHY | accuracy(0.4)], CONFIG)
    assert reason == "accuracy sampled is 0.4, down from 0.6 in round 1"


def test_self_consistency_is_held_against_its_best() -> None:
    assert alarms([START, HEALTHY, HEALTHY | {"self_consistency": 0.25}], CONFIG) == []
    (reason,) = alarms([START, HEALTHY, HEALTHY | {"self_consistency": 0.05}], CONFIG)
    assert reason == "self consistency is 0.05, down from 0.4"


def test_missing_signals_are_no_alarm() -> None:
    assert alarms([{"round": 0}, {"round": 1}], CONFIG) == []
    assert decide([{"round": 0}, {"round": 1, "entropy": None}], CONFIG).action == "continue"


def long_table(generator: torch.Generator, kind: str = "as at first", prompts: int = 16, samples: int = 4) -> HeldOut:
    """Made up: responses of 120 to 200 tokens of 3 nats each under pi_0, a third of them cut off."""
    length = torch.randint(120, 201, (prompts, samples), generator=generator)
    tokens = torch.randint(0, 5000, (prompts, samples, 200), generator=generator, dtype=torch.int32)
    nats = 3 + 0.3 * torch.randn(prompts, samples, generator=generator)
    finished = torch.rand(prompts, samples, generator=generator) < 2 / 3
    if kind == "length collapse":
        length = (0.6 * length).long()
    elif kind == "repetition":
        tokens[:, :, 60:] = tokens[:, :, :7].repeat(1, 1, 20)
        nats = nats - 1
    elif kind == "constant answer":
        length, tokens = torch.full_like(length, 25), tokens[:1, :1].expand(prompts, samples, 200)
        nats, finished = nats + 1, torch.ones_like(finished)
    log_prob = -nats * length
    rollouts = Rollouts(
        *(0, Prompts.uniform(range(prompts)), Responses(tokens, length, finished), log_prob),
        torch.full_like(log_prob, 1 / samples),
    )
    answers = torch.randint(0, 40, (prompts, samples), generator=generator).tolist()
    return HeldOut(rollouts, None, None, answers, log_prob, log_prob.amax(-1), log_prob.amax(-1))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("as at first", []),
        ("length collapse", ["length of finished responses is"]),
        ("repetition", ["repetition change is"]),
        ("constant answer", ["token likelihood rank is", "length of finished responses is"]),
    ],
)
def test_damage_at_200_tokens_is_told_in_its_round(kind, words) -> None:
    """On 16 prompts x 4, by nothing else than what is wrong."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        record = drift_record(long_table(generator), long_table(generator, kind))
        found = alarms([{"round": 0}, {"round": 1} | record], CONFIG)
        assert len(found) == len(words) and all(one.startswith(word) for one, word in zip(found, words, strict=True))


# Decisions


def test_the_best_round_is_the_last_healthy_one_or_the_most_accurate() -> None:
    bad = HEALTHY | {"leak": -9.0}
    assert best_round([START, bad], CONFIG) == 0
    assert best_round([START, HEALTHY, HEALTHY, bad], CONFIG) == 2
    told = [START | accuracy(0.2), HEALTHY | accuracy(0.6), HEALTHY | accuracy(0.55), bad | accuracy(0.9)]
    assert best_round(told, CONFIG) == 1
    assert best_round([*told[:2], HEALTHY | accuracy(0.6)], CONFIG) == 2


def test_patience_counts_rounds_in_a_row() -> None:
    bad, patient = HEALTHY | {"leak": -9.0}, replace(CONFIG, patience=2)
    assert decide([START, bad], patient).action == "continue"
    assert decide([START, bad], patient).stage == "collapsing"
    assert decide([START, bad, HEALTHY, bad], patient).action == "continue"
    assert decide([START, HEALTHY, bad, bad], patient) == replace(
        decide([START, HEALTHY, bad], CONFIG), action="roll back"
    )
    assert decide([START, bad], replace(patient, rounds=1)).action == "roll back"  # there is no round to wait for
    assert [event["action"] for event in history([START, HEALTHY, bad, bad], patient)] == ["alarm", "roll back"]


def test_stages_and_until_saturated() -> None:
    learning = HEALTHY | {"log10_kappa_upper_held_out": 0.2, "j0_gap": 0.8, "displacement_held_out": 0.4}
    done = learning | {"displacement_held_out": 0.05, "j0_gap": 0.6}
    rounds = [START, HEALTHY, learning, done]
    assert [decide(rounds[: t + 1], CONFIG).stage for t in range(4)] == [
        *("stabilising", "stabilising", "learning", "saturated")
    ]
    assert settled(rounds, CONFIG) and decide(rounds, CONFIG).action == "continue"
    until = replace(CONFIG, until="saturated")
    assert (decide(rounds, until).action, decide(rounds, until).round) == ("stop", 3)
    assert decide(rounds, until).reason.endswith("of round 0's mode surprisal and J_0 gap")
    assert decide(rounds, replace(until, patience=2)).action == "continue"
    assert decide([*rounds, done], replace(until, patience=2)).action == "stop"


def test_without_the_guard_nothing_is_stopped() -> None:
    decision = decide([START, HEALTHY | {"leak": -9.0}], replace(CONFIG, guard=False))
    assert (decision.action, decision.stage) == ("continue", "collapsing")


# Runs. A tiny model that knows its letters: "x" is followed by " is x", and four times in ten by anything.

LETTERS = string.ascii_letters
SETTINGS = {
    "rounds": 3,
    "num_samples": 6,
    "max_new_tokens": 8,
    "learning_rate": 1e-3,
    "prompts_per_step": 4,
    "checkpoint_steps": 100,
    "lora_rank": 4,
    "dtype": "fp32",
    "held_out_samples": 4,
    "match": "exact",
    "guard": True,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder with the model, prompts and held-out prompts."""
    torch.manual_seed(0)
    folder, drawn, longest = tmp_path_factory.mktemp("letters"), random.Random(0), 8
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=259, initializer_range=0.08, **sizes, **special))
    tokenizer, steps = make_tokenizer(chat=False), 250
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        rows, labels = [], []
        for letter in drawn.choices(LETTERS, k=32):
            noise = "".join(drawn.choices(LETTERS + " ", k=drawn.randint(1, 6)))
            text = f" is {letter}" if drawn.random() < 0.6 else noise
            tokens = [*tokenizer(text)["input_ids"], 2]
            padding = longest - len(tokens)
            rows.append([*tokenizer(letter)["input_ids"], *tokens, *[2] * padding])
            labels.append([-100, *tokens, *[-100] * padding])
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        loss = model(input_ids=torch.tensor(rows), labels=torch.tensor(labels)).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    model.eval().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_rows(folder / "prompts.jsonl", [{"prompt": letter} for letter in LETTERS[::2]])
    write_rows(folder / "held-out.jsonl", [{"prompt": x, "answer": f"is {x}"} for x in LETTERS[1::2]])
    return folder


def train(place, output, resume=False, **options):
    config = SelfRewardConfig(output=str(output), **(SETTINGS | options))
    files = (place / "prompts.jsonl", place / "held-out.jsonl")
    return SelfRewardTrainer(str(place / "model"), config, *files, resume=resume, display=Display(silent=True)).train()


def manifest(run):
    return json.loads((run / "manifest.json").read_text())


@pytest.mark.parametrize("seed", range(10))
def test_no_false_alarm_in_healthy_runs(place, tmp_path, seed):
    result = train(place, tmp_path / "run", seed=seed)
    found = [r["accuracy_sampled"] for r in result.records]
    assert result.round == SETTINGS["rounds"] and found[-1] > found[0] + 0.1
    assert manifest(result.output)["guard"] == {"events": [], "chosen": result.round}


def shortest(policy, rollouts) -> Tensor:
    return -4.0 * rollouts.responses.length


def repeating(policy, rollouts) -> Tensor:
    ids = [rollouts.responses.ids(p) for p in range(len(rollouts.prompts))]
    return torch.tensor([[20.0 * len(y) * repeated_ngrams([y], 1) for y in group] for group in ids])


def constant(policy, rollouts) -> Tensor:
    """Likes the letter e, whatever was asked."""
    texts = policy.texts(rollouts.responses)
    return torch.tensor([[20.0 * text.count("e") for text in group] for group in texts])


BROKEN = {
    "unclipped and without the anchor, too fast": {"clip": 0.0, "anchor": 0.0, "learning_rate": 1e-2},
    "length collapse": {"reward": "test_guard:shortest"},
    "repetition": {"reward": "test_guard:repeating", "learning_rate": 4e-3, "clip": 0.0},
    "constant answer": {"reward": "test_guard:constant", "beta": 1.0, "learning_rate": 8e-3, "clip": 0.0},
    "learning rate x 30": {"learning_rate": 3e-2},
    "inverted reward": {"reward": "inverted"},
}


def damaged(record, before) -> bool:
    """By what the guard may not know: the right answer has lost a quarter of its probability, or more."""
    return record["accuracy_sampled"] < 0.75 * max(r["accuracy_sampled"] for r in before)


@pytest.mark.parametrize("way", BROKEN)
def test_a_run_broken_on_purpose_is_caught_and_rolled_back(place, tmp_path, way):
    result = train(place, tmp_path / "run", rounds=6, **BROKEN[way])
    last, guard = len(result.records) - 1, manifest(result.output)["guard"]
    assert [(event["round"], event["action"]) for event in guard["events"]] == [(last, "roll back")]
    assert guard["chosen"] == result.round < last < 6
    healthy = result.records[:last]  # caught no later than one round after the damage
    assert not any(damaged(r, healthy[:t]) for t, r in enumerate(healthy[:-1]) if t)
    assert result.records[result.round]["accuracy_sampled"] == max(r["accuracy_sampled"] for r in healthy)


@pytest.mark.parametrize("rank", [4, 0])
@pytest.mark.parametrize("chosen", [0, 1])
def test_the_model_is_that_of_the_chosen_round(place, tmp_path, monkeypatch, rank, chosen):
    """Round 0 is the model as it was given."""
    if chosen:
        monkeypatch.setattr(srlm.guard.decision, "alarms", lambda records, _: ["made up"] * (len(records) == 3))
    # Healthy displacement is largest in round 1: a threshold below it makes round 2 the first with an alarm.
    run = train(place, tmp_path / "run", lora_rank=rank, **({} if chosen else BROKEN["inverted reward"]))
    assert run.round == chosen
    found = weights(run.model / "model.safetensors")
    if chosen == 0:
        assert found == weights(place / "model" / "model.safetensors")
    elif rank:
        kept = weights(run.output / "round-001" / "adapter" / "adapter_model.safetensors")
        assert weights(run.output / "adapter" / "adapter_model.safetensors") == kept
    else:
        assert found == weights(run.output / "round-001" / "weights" / "model.safetensors")
    last = len(run.records) - 1
    assert (run.output / f"round-{last:03d}").exists() and last > chosen
    assert f"{run.records[last]['accuracy_sampled']:.3f}" not in (run.model / "README.md").read_text()


def test_a_resumed_run_decides_the_same(place, tmp_path, monkeypatch):
    def told(run):
        files = {name: hash_ for name, hash_ in tree(run).items() if name.startswith("adapter") or "round-" in name}
        chosen = {name: files[name] for name in files if name.endswith((".parquet", ".safetensors"))}
        return manifest(run)["guard"], manifest(run)["state"], [measured(r) for r in records(run)], chosen

    whole = train(place, tmp_path / "whole", **BROKEN["learning rate x 30"])
    replace_file = os.replace
    for number in (12, 25, 38, 45):
        left = [number]

        def counted(source, target, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            replace_file(source, target)

        run = tmp_path / f"run-{number}"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", counted)
            train(place, run, **BROKEN["learning rate x 30"])
        result = train(place, run, resume=True, **BROKEN["learning rate x 30"])
        assert result.round == whole.round == train(place, run, resume=True, **BROKEN["learning rate x 30"]).round
        assert told(run) == told(whole.output)
        assert weights(result.model / "model.safetensors") == weights(whole.model / "model.safetensors")


@pytest.mark.parametrize("held", [{"held_out": "held-out.jsonl"}, {"held_out_share": 0}])
def test_until_saturated_and_the_stage_on_the_screen(place, tmp_path, monkeypatch, held):
    monkeypatch.chdir(place)
    files = {"prompts": "prompts.jsonl", "model": "model"} | held
    options = SETTINGS | {"rounds": 8, "until": "saturated", "guard_saturated": 0.4, "output": tmp_path / "run"}
    outcome = command(*train_words(**(files | options)))
    assert outcome.code == 0, outcome
    found = records(tmp_path / "run")
    (event,) = manifest(tmp_path / "run")["guard"]["events"]
    assert event["action"] == "stop" and event["round"] == len(found) - 1 < 8
    rows = [line.split() for line in outcome.out.splitlines() if line.strip()[:1].isdigit()]
    assert (rows[0][-1], rows[-1][-1]) == ("stabilising", "saturated")


def test_controls_run_to_their_end_without_the_guard(place, tmp_path):
    result = train(place, tmp_path / "run", reward="inverted", guard=False, rounds=2)
    assert (len(result.records), result.round) == (3, 2)
    assert manifest(result.output)["guard"] == {"events": [], "chosen": 2}


# The other objectives, on the same model


def test_options_reach_the_objective() -> None:
    generator = torch.Generator().manual_seed(0)
    ratio, reward = torch.randn(2, 3, 5, generator=generator)
    weight = torch.full_like(ratio, 0.2)
    config = SelfRewardConfig(
        objective="ipo",
        pairs="best_worst",
        margin=0.3,
        label_smoothing="consistency",
        nll=0.7,
        beta=0.7,
    )
    for tau, smoothing in ((None, 0.0), (0.4, 0.3)):
        pairs = ipo(ratio, reward, weight, beta=0.7, pairs="best_worst", margin=0.3, label_smoothing=smoothing)
        torch.testing.assert_close(objective_function(config, tau)(ratio, reward, weight), pairs)
    wanted, added = 0.7 * nll(ratio, reward, weight, margin=0.3), added_objective(config)
    torch.testing.assert_close(added(ratio, reward, weight), wanted)
    assert added_objective(SelfRewardConfig()) is None
    tokens, on = ratio[..., None].repeat(1, 1, 4), weight[..., None].repeat(1, 1, 4)
    config = SelfRewardConfig(objective="dapo", ratio_clip=(0.1, 0.3))
    wanted = dapo(tokens, reward, on, ratio_clip=(0.1, 0.3))
    torch.testing.assert_close(objective_function(config)(tokens, reward, on), wanted)
    plain = objective_function(SelfRewardConfig(clip=2.0, anchor=0.5, kl_initial=0.2))(ratio, reward, weight)
    torch.testing.assert_close(plain, regression(ratio, reward, weight, beta=1.2, clip=2.0, anchor=0.5))


WAYS = {
    "dpo": {"objective": "dpo", "label_smoothing": 0.1},
    "dpo of best and worst with nll": {"objective": "dpo", "pairs": "best_worst", "nll": 0.5, "margin": 1.0},
    "ipo with CREAM's labels": {"objective": "ipo", "beta": 0.1, "label_smoothing": "consistency"},
    "best of k": {"objective": "best_of_k"},
    "dpo by length": {"objective": "dpo", "length_normalised": True, "beta": 5.0},
    "ipo by length": {"objective": "ipo", "length_normalised": True},
    "grpo": {"objective": "grpo"},
    "dapo": {"objective": "dapo"},
    "dr_grpo with nll": {"objective": "dr_grpo", "nll": 0.5},
    "gspo": {"objective": "gspo"},
    "kl to the start": {"kl_initial": 0.5},
    "dr_grpo with kl to the start": {"objective": "dr_grpo", "kl_initial": 0.2},
    "length window": {"length_penalty": 1.0, "length_window": (5, 5)},
    "dropped": {"truncated": "drop", "max_new_tokens": 6},
    "penalised": {"truncated": "penalise", "max_new_tokens": 5},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_objective_makes_the_model_more_often_right(place, tmp_path, way):
    result = train(place, tmp_path / "run", rounds=2, guard=False, **WAYS[way])
    found = [r["accuracy_sampled"] for r in result.records]
    assert found[-1] > found[0] + 0.05, found
    rows = table(result.output, 1)
    if way == "kl to the start":
        for log_prob, initial, reward in zip(
            *(rows[c] for c in ("log_prob", "log_prob_initial", "reward")), strict=True
        ):
            assert reward == pytest.approx(log_prob - 0.5 * (log_prob - initial), abs=1e-5)
    if way == "length window":
        for log_prob, tokens, reward in zip(*(rows[c] for c in ("log_prob", "tokens", "reward")), strict=True):
            assert reward == pytest.approx(log_prob - abs(len(tokens) - 5), abs=1e-5)


def test_a_run_by_tokens_goes_on_where_it_was_killed(place, tmp_path, monkeypatch):
    """From its tables: the log-probs of single tokens are those that were kept."""
    way = {"objective": "grpo", "rounds": 2, "guard": False}
    whole = train(place, tmp_path / "whole", **way)
    replace_file = os.replace
    for number in (8, 20, 31):
        left = [number]

        def counted(source, target, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            replace_file(source, target)

        run = tmp_path / f"run-{number}"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", counted)
            train(place, run, **way)
        result = train(place, run, resume=True, **way)
        assert [measured(r) for r in result.records] == [measured(r) for r in whole.records]
        assert weights(result.model / "model.safetensors") == weights(whole.model / "model.safetensors")
        assert table(run, 1) == table(whole.output, 1)


@pytest.mark.parametrize(
    ("record", "options", "words"),
    [
        ({"truncation_rate": 0.51, "effective_samples": 3.0}, {}, ["cut off at 64 tokens"]),
        ({"truncation_rate": 0.5, "effective_samples": 2.0}, {}, []),
        ({"truncation_rate": 0.0, "effective_samples": 1.05}, {}, ["1.05 effective samples of 8"]),
        ({"truncation_rate": 1.0, "effective_samples": 1.0}, {}, ["--truncated drop", "--step"]),
        ({"effective_samples": 1.5, "step": 2.5}, {}, ["--step 1.0"]),
        ({"effective_samples": 1.5, "step": 1.04}, {}, ["--step 0.5"]),  # not the one it takes already
        ({"effective_samples": 1.65}, {"num_samples": 2}, []),  # of two, hardly fewer
        *(({"effective_samples": 1.0}, {"objective": one}, []) for one in ("imitation", "grpo", "dpo")),  # no --step
        ({"truncation_rate": 1.0}, {"truncated": "drop"}, ["tells little: raise --max-new-tokens"]),
        ({}, {}, []),
        ({"round": 1, "truncation_rate": 1.0, "effective_samples": 1.0, "fidelity_r2": 0.0, "achieved": 0.9}, {}, []),
        ({"round": 1, "fidelity_r2": -25.5, "achieved": 0.93}, {}, ["R² of the update is -26"]),
        ({"round": 2, "fidelity_r2": -25.5}, {}, []),  # nothing was asked for
    ],
)
def test_advice_before_anything_is_trained_and_of_updates(record, options, words):
    config = SelfRewardConfig(**options)
    said = advice(record, config, config)
    assert not any("--truncated drop" in one for one in said) or config.truncated == "keep"
    assert len(said) == len(words) and all(word in one for word, one in zip(words, said, strict=True))


def test_two_prompts_that_agree_by_chance_are_no_certainty() -> None:
    """Shares of eighths agree exactly now and then."""
    same = HEALTHY | drifted("truncation_change", 0.125, 0.0, prompts=2)
    assert alarms([START, same], CONFIG) == []
    (reason,) = alarms([START, HEALTHY | drifted("truncation_change", 0.125, 0.0, prompts=4)], CONFIG)
    assert reason.startswith("truncation change is 0.125")
    pooled = HEALTHY | drifted("length_change", 0.0, 0.0, 2) | drifted("length_change_held_out", -0.4, 0.05)
    assert alarms([START, pooled], CONFIG) != []
