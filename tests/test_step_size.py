"""beta solved from a round's samples, and what a round makes of it."""

from __future__ import annotations

import json
import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from support import (
    SETTINGS,
    alive,
    command,
    learned,
    records,
    refused,
    run_and_die,
    table,
    train_words,
    whole,
    write_held_out,
    write_prompts,
)
from torch import Tensor

from srlm import SelfRewardConfig, UserError
from srlm.objectives.regression import regression, regression_in_nats
from srlm.objectives.step_size import divergence, effective_samples, step_size
from srlm.theory import sharpen, sharpening_exponent
from srlm.training.parts import objective_function

seeds = st.integers(0, 2**32 - 1)
shares = st.floats(1e-4, 0.97)  # of the KL that beta -> 0 would give
scales = st.floats(-6, 6).map(lambda x: 10**x)


def groups(seed: int, equal: bool = False) -> tuple[Tensor, Tensor]:
    """Rewards [P, K] of one spread for all groups or of one for each, and weights."""
    rng = np.random.default_rng(seed)
    p, k = rng.integers(1, 6), rng.integers(2, 9)
    reward = torch.from_numpy(rng.normal(size=(p, k)) * rng.choice([1.0, 30.0], size=(p, 1)) - 40)
    weight = np.full((p, k), 1 / k) if equal else rng.dirichlet(np.ones(k), size=p) + 1e-3
    return reward, torch.from_numpy(weight / weight.sum(-1, keepdims=True))


def most(reward: Tensor, weight: Tensor) -> float:
    best = reward == reward.amax(-1, keepdim=True)
    return float(-(weight * best).sum(-1).log().mean())


def moved(reward: Tensor, weight: Tensor, beta: float) -> float:
    """Mean KL by its definition."""
    total = 0.0
    for r, w in zip(reward.tolist(), weight.tolist(), strict=True):
        tilted = [b * math.exp((a - max(r)) / beta) for a, b in zip(r, w, strict=True)]
        q = [one / sum(tilted) for one in tilted]
        total += sum(a * math.log(a / b) for a, b in zip(q, w, strict=True) if a > 0)
    return total / len(reward)


# The solution


@given(seeds, shares, st.booleans())
def test_the_smallest_beta_that_keeps_to_the_step(seed: int, share: float, equal: bool) -> None:
    reward, weight = groups(seed, equal)
    step = share * most(reward, weight)
    beta = step_size(reward, weight, step)
    assert moved(reward, weight, beta) <= step * (1 + 1e-9) + 1e-12
    assert moved(reward, weight, beta * (1 - 1e-6)) > step
    found = brentq(lambda s: moved(reward, weight, math.exp(s)) - step, math.log(beta) - 3, math.log(beta) + 3)
    assert beta == pytest.approx(math.exp(found), rel=1e-6)


@given(seeds, st.floats(-9, 9).map(lambda x: 10**x))
def test_divergence_and_effective_samples_by_their_definition(seed: int, beta: float) -> None:
    reward, weight = groups(seed)
    assert float(divergence(reward, weight, beta).mean()) == pytest.approx(moved(reward, weight, beta), abs=1e-12)
    q = weight * torch.exp((reward - reward.amax(-1, keepdim=True)) / beta)
    q = q / q.sum(-1, keepdim=True)
    torch.testing.assert_close(effective_samples(reward, weight, beta), 1 / (q**2).sum(-1))


@given(seeds, shares, scales)
def test_it_has_the_unit_of_the_reward(seed: int, share: float, scale: float) -> None:
    reward, weight = groups(seed)
    step = share * most(reward, weight)
    assert step_size(scale * reward, weight, step) == pytest.approx(scale * step_size(reward, weight, step), rel=1e-8)


@given(seeds, shares, st.floats(-100, 100))
def test_a_constant_per_group_changes_nothing(seed: int, share: float, shift: float) -> None:
    reward, weight = groups(seed)
    step, constants = share * most(reward, weight), shift * torch.arange(len(reward), dtype=torch.float64)
    shifted = step_size(reward + constants[:, None], weight, step)
    assert shifted == pytest.approx(step_size(reward, weight, step), rel=1e-6)


@given(seeds, shares, shares)
def test_a_larger_step_is_a_smaller_beta(seed: int, one: float, other: float) -> None:
    reward, weight = groups(seed)
    low, high = sorted((one, other))
    small, large = (step_size(reward, weight, share * most(reward, weight)) for share in (low, high))
    assert small >= large
    if high > low * (1 + 1e-6):
        assert small > large


@given(seeds, shares)
def test_what_has_no_weight_takes_no_part(seed: int, share: float) -> None:
    reward, weight = groups(seed)
    step = share * most(reward, weight)
    beta = step_size(reward, weight, step)
    nothing = torch.zeros(len(reward), 1, dtype=torch.float64)
    wider = torch.cat([reward, nothing + math.inf], -1), torch.cat([weight, nothing], -1)
    assert step_size(*wider, step) == pytest.approx(beta, rel=1e-12)
    longer = torch.cat([reward, 1e9 * reward]), torch.cat([weight, 0 * weight])
    assert step_size(*longer, step) == pytest.approx(beta, rel=1e-12)
    assert divergence(*longer, beta)[len(reward) :].tolist() == [0.0] * len(reward)


@given(seeds, shares)
def test_a_weight_is_as_many_equal_samples(seed: int, share: float) -> None:
    reward, _ = groups(seed)
    step = share * most(reward, torch.full_like(reward, 1 / reward.shape[-1]))
    twice = reward.repeat_interleave(torch.tensor([2] + [1] * (reward.shape[-1] - 1)), -1)
    weight = torch.full_like(reward, 1 / twice.shape[-1])
    weight[:, 0] *= 2
    even = torch.full_like(twice, 1 / twice.shape[-1])
    assert step_size(twice, even, step / 2) == pytest.approx(step_size(reward, weight, step / 2), rel=1e-9)


@given(seeds, shares)
def test_prompts_count_by_their_probability(seed: int, share: float) -> None:
    reward, weight = groups(seed)
    step = share * most(reward, weight)
    twice = torch.cat([reward, reward[:1]]), torch.cat([weight, weight[:1]])
    prompts = torch.tensor([2.0] + [1.0] * (len(reward) - 1), dtype=torch.float64)
    by_probability = step_size(reward, weight, step, prompts / prompts.sum())
    assert by_probability == pytest.approx(step_size(*twice, step), rel=1e-9)


def test_two_responses_by_hand() -> None:
    """q = (.9, .1) is asked for by r/beta = log 9 apart, and is log 2 - H(.1) nats away."""
    step = math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)
    reward, weight = torch.tensor([[3.0, 0.0]]), torch.full((1, 2), 0.5)
    beta = step_size(reward, weight, step)
    assert beta == pytest.approx(3 / math.log(9), rel=1e-12)
    assert float(effective_samples(reward, weight, beta)) == pytest.approx(1 / 0.82, rel=1e-12)


# Ties


def test_ties_that_keep_the_step_out_of_reach_leave_a_beta_near_the_most_there_is() -> None:
    reward = torch.zeros(4, 8)
    reward[0, 3] = 0.2  # three groups of four are of one mind
    weight = torch.full_like(reward, 1 / 8)
    beta = step_size(reward, weight, 1.0)
    assert float(divergence(reward, weight, beta).mean()) == pytest.approx(0.99 * math.log(8) / 4, rel=1e-9)
    assert beta == step_size(reward, weight, 2.0) and 0.2 / beta < 10  # nats asked of a response
    assert step_size(reward, weight, 0.1) > beta


@pytest.mark.parametrize("weight", [0.0, 1 / 3])
def test_where_nothing_is_to_be_told_apart_nothing_is_asked(weight: float) -> None:
    reward, even = torch.full((2, 3), -7.0), torch.full((2, 3), weight)
    beta = step_size(reward, even, 0.5)
    assert beta == math.inf
    assert divergence(reward, even, beta).tolist() == [0.0, 0.0]
    ratio = torch.tensor([[0.3, -0.1, 0.0], [0.0, 0.0, 0.0]])
    loss = regression_in_nats(ratio, reward, even, beta=beta)
    torch.testing.assert_close(loss, regression(ratio, torch.zeros(2, 3), even, clip=0.0))
    assert loss[1] == 0 and bool(loss[0] > 0) == bool(weight)


# The objective


@given(seeds, st.floats(0.1, 30), st.just(0.0) | st.floats(1e-300, 20), scales)  # times beta never 0, which is none
def test_the_regression_in_nats_knows_no_unit(seed: int, beta: float, clip: float, scale: float) -> None:
    reward, weight = groups(seed)
    ratio = torch.from_numpy(np.random.default_rng(seed).normal(size=reward.shape))
    loss = regression_in_nats(ratio, reward, weight, beta=beta, clip=clip)
    torch.testing.assert_close(loss, regression(ratio, reward, weight, beta=beta, clip=clip * beta) / beta**2)
    scaled = regression_in_nats(ratio, scale * reward, weight, beta=scale * beta, clip=clip)
    torch.testing.assert_close(scaled, loss, rtol=1e-6, atol=1e-9)


def test_a_step_reaches_the_objective() -> None:
    reward, weight = groups(3)
    ratio = torch.randn(reward.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config = SelfRewardConfig(step=0.4, clip=2.0, anchor=0.5)
    wanted = regression(ratio, reward, weight, beta=7.0, anchor=0.5, clip=14.0) / 49
    torch.testing.assert_close(objective_function(config, None, 7.0)(ratio, reward, weight), wanted)


# The escort


@given(seeds, st.lists(st.floats(0.02, 0.6), min_size=1, max_size=4))
def test_exact_rounds_of_solved_steps_are_one_escort(seed: int, steps: list[float]) -> None:
    """A table under log-prob rewards, enumerated: pi_T is pi_0^alpha_T / Z with alpha_T the product of 1 + 1/beta_t."""
    start = torch.log_softmax(torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 5))), -1)
    prompts = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    policy, betas = start, []
    for step in steps:
        betas.append(step_size(policy, policy.exp(), step, prompts))
        after = torch.log_softmax(policy + policy / betas[-1], -1)
        walked = (prompts * (after.exp() * (after - policy)).sum(-1)).sum()
        limit = float(-(prompts * policy.amax(-1)).sum())
        assert float(walked) == pytest.approx(min(step, 0.99 * limit), rel=1e-6, abs=1e-12)
        policy = after
    escort = sharpen(start.numpy(), sharpening_exponent(betas))
    np.testing.assert_allclose(policy.exp(), np.exp(escort), rtol=1e-6, atol=1e-9)


# Settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"step": 0.0}, "--step is 0.0, expected a number of nats above 0 and below log(--num-samples 8) = 2.079"),
        ({"step": 2.08}, "--step is 2.08, expected"),
        ({"step": math.nan}, "--step is nan, expected"),
        ({"step": 0.7, "num_samples": 2}, "below log(--num-samples 2) = 0.693"),
        ({"step": 0.5, "beta": 2.0}, "--beta is 2.0 beside --step 0.5, expected one of them"),
        ({"step": 0.5, "objective": "dpo"}, "--step is 0.5 beside --objective dpo, expected --objective regression"),
    ],
)
def test_a_step_that_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        SelfRewardConfig(**given)
    assert said in str(caught.value)
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert said in refused("train", "--prompts", "none.jsonl", *words)


@pytest.mark.parametrize(
    ("given", "beta", "step"),
    [
        ({}, 1.0, None),
        ({"reward": "majority"}, 1.0, math.log(8) / 2),
        ({"reward": "0.5*judge + mine:log_likelihood", "num_samples": 2}, 1.0, math.log(2) / 2),
        ({"reward": "majority", "beta": 1.0}, 1.0, None),
        ({"reward": "majority", "step": 0.3}, 1.0, 0.3),
        ({"reward": "0.5*majority+2*log_likelihood"}, 1.0, None),
        ({"reward": "random"}, 1.0, None),
        ({"reward": "majority", "objective": "dpo"}, 1.0, None),
    ],
)
def test_what_is_taken_where_neither_is_given(given: dict[str, Any], beta: float, step: float | None) -> None:
    taken = SelfRewardConfig(**given).with_defaults()
    assert (taken.beta, taken.step) == (beta, step)
    assert taken.with_defaults() == taken


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ({}, 1.5e-4),
        ({"lora_rank": 0}, 1e-5),
        ({"lora_rank": 0, "learning_rate": 3e-5}, 3e-5),
        ({"learning_rate": 3e-5}, 3e-5),
    ],
)
def test_what_is_trained_has_a_learning_rate_of_its_own(given: dict[str, Any], rate: float) -> None:
    config = SelfRewardConfig(**given)
    assert config.peak_rate == config.with_defaults().learning_rate == rate
    begun = {"learning_rate": 7e-5}  # before there was this default
    assert config.with_defaults(begun).learning_rate == given.get("learning_rate", 7e-5)


# Runs


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {"prompts": write_prompts(folder), "held_out": write_held_out(folder)}


def run(model: Path, data: dict[str, Path], output: Path, **options: Any) -> Path:
    outcome = command(*train_words(model=model, **data, output=output, **options))
    assert outcome.code == 0, outcome
    return output


def test_every_round_moves_as_far_and_says_so(tiny: Path, data: dict[str, Path], tmp_path: Path) -> None:
    found = run(tiny, data, tmp_path / "run", step=0.4)
    k = SETTINGS["num_samples"]
    betas = []
    for t, record in enumerate(records(found)):
        reward = torch.tensor(table(found, t)["reward"]).view(-1, k).double()
        weight = torch.full_like(reward, 1 / k)
        assert record["step"] == pytest.approx(0.4, rel=1e-9)
        assert record["beta"] == pytest.approx(step_size(reward, weight, 0.4), rel=1e-12)
        assert record["effective_samples"] == pytest.approx(
            float(effective_samples(reward, weight, record["beta"]).mean())
        )
        betas.append(record["beta"])
    assert len(set(betas)) == len(betas) == SETTINGS["rounds"] + 1


def test_a_reward_in_units_of_its_own_takes_a_step(tiny: Path, data: dict[str, Path], tmp_path: Path) -> None:
    options = {"reward": "mean_log_likelihood", "rounds": 1}
    found = run(tiny, data, tmp_path / "run", **options)
    half = math.log(SETTINGS["num_samples"]) / 2
    assert records(found)[0]["step"] == pytest.approx(half, rel=1e-6)
    kept = json.loads((found / "manifest.json").read_text())
    assert (kept["config"]["beta"], kept["config"]["step"]) == (1, half)
    before = kept["config"] | {"step": None}  # begun before there was this default
    assert SelfRewardConfig(**options).with_defaults(before).step is None


def test_a_given_beta_says_how_far_it_goes(tiny: Path, data: dict[str, Path], tmp_path: Path) -> None:
    found = run(tiny, data, tmp_path / "run", beta=2.0, kl_initial=0.5, rounds=1)
    reward = torch.tensor(table(found, 0)["reward"]).view(-1, SETTINGS["num_samples"])
    record = records(found)[0]
    assert record["beta"] == 2.5
    assert record["step"] == pytest.approx(moved(reward, torch.full_like(reward, 1 / reward.shape[-1]), 2.5), rel=1e-6)


def test_the_kl_to_the_untouched_model_is_the_least_beta(tiny: Path, data: dict[str, Path], tmp_path: Path) -> None:
    found = records(run(tiny, data, tmp_path / "run", step=0.4, kl_initial=3.0))
    assert found[0]["beta"] > 3 and found[0]["step"] == pytest.approx(0.4)
    assert any(record["beta"] == 3 and record["step"] < 0.4 for record in found)


def test_dropped_responses_take_no_part(tiny: Path, data: dict[str, Path], tmp_path: Path) -> None:
    options = {"truncated": "drop", "stop": ["e", "t", "o", "a"], "held_out_samples": 8, "clip": 0.0}
    found = run(tiny, data, tmp_path / "run", step=0.3, rounds=1, **options)
    start, end = records(found)
    for name, samples, ending in (("rollouts", "num_samples", ""), ("held_out", "held_out_samples", "_held_out")):
        rows = table(found, 0, name)
        columns = ("reward", "finished", "log_prob", "log_prob_next")
        reward, finished, before, after = (
            torch.tensor(rows[one]).view(-1, (SETTINGS | options)[samples]) for one in columns
        )
        counts = finished & (finished.sum(-1, keepdim=True) >= 2)
        assert counts.any() and not counts.all()
        weight = counts / counts.sum(-1, keepdim=True).clamp_min(1)
        if not ending:
            assert start["beta"] == pytest.approx(step_size(reward, weight, 0.3), rel=1e-6)
        got, asked = (
            one - (weight * one).sum(-1, keepdim=True) for one in (after - before, reward.double() / start["beta"])
        )
        missed = float((weight * (got - asked) ** 2).sum() / (weight * asked**2).sum())
        assert end[f"fidelity_r2{ending}"] == pytest.approx(1 - missed, abs=1e-5)


def test_what_is_learned_knows_no_unit_of_the_reward(
    tiny: Path, data: dict[str, Path], tmp_path: Path, monkeypatch
) -> None:
    """In the small unit no gradient would reach the limit, in the large one each would."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "unit_of.py").write_text(
        textwrap.dedent(
            """\
            def plain(policy, rollouts): return rollouts.log_prob
            def large(policy, rollouts): return 100 * rollouts.log_prob
            def small(policy, rollouts): return rollouts.log_prob / 100
            """
        )
    )
    found = {
        name: run(tiny, data, tmp_path / name, reward=f"unit_of:{name}", rounds=1, step=0.4)
        for name in ("plain", "large", "small")
    }
    before, after = (
        {name: torch.tensor(table(one, 0)[column]) for name, one in found.items()}
        for column in ("log_prob", "log_prob_next")
    )
    plain = records(found["plain"])
    for name, unit in (("large", 100), ("small", 0.01)):
        other = records(found[name])
        assert other[0]["beta"] == pytest.approx(unit * plain[0]["beta"], rel=1e-5)
        for key in ("step", "effective_samples"):
            assert other[0][key] == pytest.approx(plain[0][key], rel=1e-5)
        assert other[1]["fidelity_r2"] == pytest.approx(plain[1]["fidelity_r2"], rel=1e-4)
        torch.testing.assert_close(after[name], after["plain"], rtol=0, atol=1e-3)
    assert (after["plain"] - before["plain"]).abs().max() > 0.1


def test_rewards_that_all_tie_ask_for_nothing(tiny: Path, data: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "all_equal.py").write_text("def reward(policy, rollouts): return 0 * rollouts.log_prob + 3\n")
    found = records(run(tiny, data, tmp_path / "run", reward="all_equal:reward", step=0.4, rounds=1))
    assert [record["beta"] for record in found] == [None, None]
    assert (found[0]["step"], found[0]["effective_samples"]) == (0.0, SETTINGS["num_samples"])
    assert found[1]["fidelity_r2"] is None
    assert found[1]["log_ratio_max_abs"] < 0.1


@pytest.mark.parametrize("files", [5, 13, 21])
def test_a_killed_run_ends_with_the_same_numbers(tiny: Path, data: dict[str, Path], tmp_path: Path, files: int) -> None:
    words = train_words(model=tiny, **data, step=0.4)
    assert alive(run_and_die, tmp_path / "killed", words, files) != 0
    outcome = command("train", "--resume", tmp_path / "killed")
    assert outcome.code == 0, outcome
    assert whole(tmp_path / "killed") == whole(run(tiny, data, tmp_path / "run", step=0.4))


def test_learning_follows_the_beta_of_the_record(tiny: Path, data: dict[str, Path], tmp_path: Path) -> None:
    """Of two steps the larger is another model, and the guard of `whole` above compares nothing with itself."""
    small, large = (run(tiny, data, tmp_path / str(step), step=step, rounds=1) for step in (0.05, 0.8))
    assert learned(small, 1)["model"] != learned(large, 1)["model"]
    assert abs(records(small)[1]["displacement"]) < records(large)[1]["displacement"]


def test_rounding_is_no_difference() -> None:
    """Identical responses whose sums were added in another order."""
    draw = torch.Generator().manual_seed(0)
    reward = torch.full((40, 8), -3.0)
    reward[0] = torch.randn(8, generator=draw)
    weight = torch.full((40, 8), 1 / 8)
    noisy = reward.clone()
    noisy[1:] += 4.8e-7 * torch.rand(39, 8, generator=draw).sub(0.5).sign()
    assert step_size(noisy, weight, 0.1) == step_size(reward, weight, 0.1) > 1e-3
