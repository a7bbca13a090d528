from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from srlm.estimators.intervals import clustered_proportion, wilson
from srlm.estimators.pass_at_k import maj_at_k, pass_at_k
from srlm.measure import (
    HeldOut,
    accuracy_record,
    achieved_record,
    agreement_record,
    at_k_record,
    calibration_record,
    exact_update,
    flips_record,
    held_out_record,
    log10_kappa_upper,
    subset_sizes,
    train_record,
    update_fidelity,
)
from srlm.objectives import step_size
from srlm.types import Prompts, Rollouts, Step, UpdateInfo

ENDS = ("", "_low", "_high")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mean(values) -> float:
    values = list(values)
    return sum(map(float, values)) / len(values)


def rollouts(log_prob: Tensor, entropy: Tensor | None = None) -> Rollouts:
    p, k = log_prob.shape
    return Rollouts(0, Prompts.uniform(range(p)), None, log_prob, torch.full((p, k), 1 / k), entropy)


# Fidelity of an update


@given(st.integers(1, 4), st.integers(2, 6), st.floats(0.1, 4), st.integers(0, 2**32))
def test_update_fidelity_by_its_definition(p: int, k: int, beta: float, seed: int) -> None:
    ratio, reward, log_prob = (randn(p, k, seed=seed + i) for i in range(3))
    record = update_fidelity(ratio, reward, log_prob, beta)
    error = scale = 0.0
    for x in range(p):
        a, b = mean(ratio[x]), mean(reward[x]) / beta
        for i in range(k):
            error += ((float(ratio[x, i]) - a) - (float(reward[x, i]) / beta - b)) ** 2
            scale += (float(reward[x, i]) / beta - b) ** 2
    best = [max(range(k), key=lambda i, x=x: float(log_prob[x, i])) for x in range(p)]
    assert record["fidelity_r2"] == pytest.approx(1 - error / scale, rel=1e-9, abs=1e-9)
    assert record["displacement"] == pytest.approx(mean(ratio[x, best[x]] for x in range(p)))
    assert record["leak"] == pytest.approx(mean(math.log(mean(r.exp())) for r in ratio))
    assert record["log_ratio_mean"] == pytest.approx(mean(ratio.flatten()))
    assert record["log_ratio_max_abs"] == pytest.approx(max(map(abs, ratio.flatten().tolist())))
    within = [float(ratio[x, i]) - mean(ratio[x]) for x in range(p) for i in range(k)]
    assert record["log_ratio_std"] == pytest.approx(math.sqrt(sum(v**2 for v in within) / (len(within) - 1)))


@pytest.mark.parametrize("beta", [0.7, 2.0])
def test_a_perfect_update_is_faithful_and_leaks_nothing(beta: float) -> None:
    """Responses of pi_t by the thousand: the leak is 0 within 4 standard errors, R^2 is 1, the favourite gains."""
    log_p = torch.log_softmax(randn(6, 5), -1)
    reward = log_p
    exact = reward / beta - torch.logsumexp(log_p + reward / beta, -1, keepdim=True)
    k = 40_000
    drawn = torch.multinomial(log_p.exp(), k, replacement=True, generator=torch.Generator().manual_seed(1))
    record = update_fidelity(exact.gather(-1, drawn), reward.gather(-1, drawn), log_p.gather(-1, drawn), beta)
    assert record["fidelity_r2"] == pytest.approx(1, abs=1e-12)
    assert float(exact.logsumexp(-1).min()) > 0.1  # a mean that ignores pi_t would be off by that much
    error = math.sqrt(sum(float((log_p.exp() * (exact.exp() - 1) ** 2).sum(-1)[x]) for x in range(6)) / k) / 6
    assert abs(record["leak"]) <= 4 * error
    assert record["displacement"] == pytest.approx(float(exact.amax(-1).mean())) and record["displacement"] > 0


def test_a_uniform_policy_enumerated_leaks_exactly_nothing() -> None:
    reward, beta = randn(3, 4), 1.3  # pi_t uniform, so that every response once is its exact sample
    exact = reward / beta - torch.logsumexp(reward / beta, -1, keepdim=True) + math.log(4)
    record = update_fidelity(exact, reward, torch.full((3, 4), -math.log(4)), beta)
    assert record["leak"] == pytest.approx(0, abs=1e-12)
    assert record["fidelity_r2"] == pytest.approx(1, abs=1e-12)


def test_lost_mass_shows_as_leak_and_displacement_and_not_as_r2() -> None:
    ratio, reward, log_prob = (randn(5, 4, seed=i) for i in range(3))
    before, after = (update_fidelity(ratio + shift, reward, log_prob, 1.0) for shift in (0.0, -6.5))
    assert after["leak"] == pytest.approx(before["leak"] - 6.5)
    assert after["displacement"] == pytest.approx(before["displacement"] - 6.5)
    assert after["log_ratio_mean"] == pytest.approx(before["log_ratio_mean"] - 6.5)
    for name in ("fidelity_r2", "log_ratio_std"):
        assert after[name] == pytest.approx(before[name])


def test_r2_of_no_update_is_zero_and_of_equal_rewards_undefined() -> None:
    zero = torch.zeros(2, 3)
    assert update_fidelity(zero, randn(2, 3), randn(2, 3), 1.0)["fidelity_r2"] == pytest.approx(0)
    assert update_fidelity(randn(2, 3), zero - 1, randn(2, 3), 1.0)["fidelity_r2"] is None
    assert update_fidelity(-randn(2, 3), randn(2, 3), randn(2, 3), 1.0)["fidelity_r2"] == pytest.approx(-3)


# Records


def test_kappa_upper_is_that_of_the_best_sample() -> None:
    log_prob = torch.tensor([[-3.0, -1.0], [-0.2, -40.0], [-2000.0, -900.0]])
    small = log10_kappa_upper(log_prob[:2])
    assert small == pytest.approx(math.log10((math.exp(1.0) + math.exp(0.2)) / 2), rel=1e-6)
    assert log10_kappa_upper(log_prob) == pytest.approx(900 / math.log(10) - math.log10(3), rel=1e-6)
    assert log10_kappa_upper(torch.tensor([[1e-7, -3.0]])) == 0  # rounding above probability 1


def step_and_update() -> tuple[Step, UpdateInfo]:
    log_prob, entropy = -5 * randn(3, 4).abs(), randn(3, 4, seed=5).abs()
    before = rollouts(-4 * randn(3, 4, seed=2).abs())
    info = UpdateInfo(before, randn(3, 4, seed=3), randn(3, 4, seed=4), torch.arange(40.0))
    return Step(2, None, rollouts(log_prob, entropy), log_prob - 1, info), info


def test_train_record_by_its_definitions() -> None:
    step, info = step_and_update()
    lengths = torch.tensor([[1, 2, 3, 4]] * 3)
    finished = torch.tensor([[True, True, False, True]] * 3)
    tokens = [[1, 2, 1, 2], [3], [1, 2, 3]] + [[]] * 9
    record = train_record(step, lengths, finished, tokens, 0.8)
    log_prob = step.rollouts.log_prob
    assert record["round"] == 2
    assert record["log10_kappa_upper"] == pytest.approx(
        math.log10(mean(math.exp(-max(row)) for row in log_prob.tolist()))
    )
    assert record["mean_log_prob"] == pytest.approx(mean(log_prob.flatten()))
    assert record["mean_reward"] == pytest.approx(mean(log_prob.flatten()) - 1)
    assert record["entropy"] == pytest.approx(mean(step.rollouts.entropy.flatten()))
    assert record["mean_length"] == pytest.approx(2.5)
    assert record["eos_rate"] == pytest.approx(0.75) and record["truncation_rate"] == pytest.approx(0.25)
    assert record["distinct_1"] == pytest.approx(3 / 8)
    assert record["distinct_2"] == pytest.approx(3 / 5)  # 12 21 12, nothing, 12 23
    assert record.items() >= update_fidelity(info.log_ratio, info.reward, info.rollouts.log_prob, 0.8).items()
    assert record["loss"] == pytest.approx(19.5) and record["loss_last"] == pytest.approx(37.5)
    old, new = info.rollouts.log_prob, info.rollouts.log_prob + info.log_ratio
    agree = mean(
        math.copysign(1, (a[i] - a[j]) * (b[i] - b[j]))
        for a, b in zip(old.tolist(), new.tolist(), strict=True)
        for i, j in combinations(range(4), 2)
    )
    assert record["kendall_tau"] == pytest.approx(agree)


def test_repetition_and_constant_answers() -> None:
    step, _ = step_and_update()
    best = step.rollouts.log_prob.argmax(-1).tolist()
    tokens = [[7, 7, 7, 7, 7, 10 + number] for number in range(12)]
    for p, same in ((0, [1, 2]), (1, [9]), (2, [1, 2])):
        tokens[p * 4 + best[p]] = same
    record = train_record(step, torch.ones(3, 4), torch.ones(3, 4).bool(), tokens, 1.0)
    assert record["repeated_ngrams"] == pytest.approx(2 / 4)  # 777 777 777 and 77n; the short ones have none
    assert record["same_response"] == pytest.approx(2 / 3)


def test_the_first_record_describes_no_update() -> None:
    step, _ = step_and_update()
    first = replace(step, round=0, info=None, rollouts=replace(step.rollouts, entropy=None))
    record = train_record(first, torch.ones(3, 4), torch.ones(3, 4).bool(), [[1]] * 12, 1.0)
    assert record["entropy"] is None
    assert not record.keys() & {"fidelity_r2", "leak", "displacement", "loss", "kendall_tau"}
    assert all(value is None or type(value) in (int, float) for value in record.values())


def test_the_share_achieved_of_the_gain_asked_for() -> None:
    reward, even = 3 * randn(6, 4, seed=1), torch.full((6, 4), 0.25, dtype=torch.float64)
    q = torch.softmax(reward / 2.0, -1)
    exact = (4 * q).log()
    assert achieved_record(exact, reward, even, 2.0)["achieved"] == pytest.approx(1.0)
    assert achieved_record(0 * exact, reward, even, 2.0)["achieved"] == 0.0
    ratio = randn(6, 4, seed=2)
    found = achieved_record(ratio, reward, even, 2.0)
    gains, asked = (q * ratio).sum(-1), float((q * (4 * q).log()).sum(-1).mean())
    assert found["achieved"] == pytest.approx(float(gains.mean()) / asked)
    assert found["achieved_error"] == pytest.approx(float(gains.std()) / math.sqrt(6) / asked)
    assert found["achieved_prompts"] == 6
    assert achieved_record(ratio, reward, even, None) == achieved_record(ratio, 0 * reward, even, 2.0) == {}
    barely = step_size.step_size(reward, even, 0.021 * math.log(4))
    assert achieved_record(ratio, reward, even, barely) and achieved_record(ratio, reward, even, 1.05 * barely) == {}


def test_what_takes_no_part_in_an_update_is_asked_for_nothing() -> None:
    """A prompt of weight 0, and a response of weight 0 with the best reward of all."""
    reward, ratio = 3 * randn(3, 4, seed=1), randn(3, 4, seed=2)
    weight = torch.tensor([[0.25] * 4, [0.0] * 4, [0.5, 0.5, 0.0, 0.0]], dtype=torch.float64)
    reward[2, 3] = 99.0
    found = achieved_record(ratio, reward, weight, 2.0)
    rows = [achieved_record(ratio[:1], reward[:1], weight[:1], 2.0), None]
    rows[1] = achieved_record(ratio[2:, :2], reward[2:, :2], weight[2:, :2], 2.0)
    asked = [float(step_size.divergence(r, w, 2.0)[0]) for r, w in ((reward[:1], weight[:1]), (reward[2:], weight[2:]))]
    expected = sum(row["achieved"] * a for row, a in zip(rows, asked, strict=True)) / sum(asked)
    assert found["achieved"] == pytest.approx(expected) and found["achieved_prompts"] == 2


def test_the_error_of_the_leak() -> None:
    ratio = randn(6, 4, seed=2)
    kept = ratio.exp().mean(-1).log()
    found = update_fidelity(ratio, None, ratio, None)
    assert found["leak_error"] == pytest.approx(float(kept.std()) / math.sqrt(6))


def test_held_out_record_by_its_definitions() -> None:
    log_prob, initial = -5 * randn(4, 3).abs(), -5 * randn(4, 3, seed=1).abs()
    favourite = [float(initial[x, row.index(max(row))]) for x, row in enumerate(log_prob.tolist())]
    # pi_t's favourite: better than pi_0's best, 0.4 and 0.6 nat worse, much worse
    first_best = torch.tensor(favourite) + torch.tensor([-1.0, 0.4, 0.6, 9.0])
    best = torch.maximum(first_best, initial.amax(-1)) + 0.25
    classes = [["a", "a", "a"], ["a", "b", "a"], [None, "a", "b"], [None, None, None]]
    now = HeldOut(rollouts(log_prob), log_prob, log_prob, classes, initial, best, first_best)
    record = held_out_record(now, None, None, 1.0)
    assert record["mode_fidelity"] == pytest.approx(2 / 4)
    assert record["j0_gap"] == pytest.approx(mean(best) - mean(initial.flatten()))
    assert record["mean_log_prob_held_out"] == pytest.approx(mean(log_prob.flatten()))
    assert record["log10_kappa_upper_held_out"] == pytest.approx(log10_kappa_upper(log_prob))
    assert record.items() >= agreement_record(classes).items()
    assert record["mode_surprisal_held_out"] == pytest.approx(-mean(log_prob.amax(-1)))
    assert record["mode_surprisal_held_out"] <= math.log(10) * record["log10_kappa_upper_held_out"]
    assert not record.keys() & {"leak_held_out", "mode_surprisal_forecast"}


def test_held_out_record_measures_the_update_on_the_round_before() -> None:
    old, following, reward = -5 * randn(4, 3).abs(), -5 * randn(4, 3, seed=1).abs(), randn(4, 3, seed=2)
    before = HeldOut(rollouts(old), reward, reward, [[0, 0, 0]] * 4, old, old.amax(-1), old.amax(-1))
    other = rollouts(-5 * randn(4, 3, seed=7).abs())
    now = HeldOut(other, randn(4, 3, seed=8), None, [[0, 0, 0]] * 4, other.log_prob, old.amax(-1), old.amax(-1))
    record = held_out_record(now, before, following, 0.6)
    expected = update_fidelity(following - old, reward, old, 0.6)
    for name in ("fidelity_r2", "displacement", "leak"):
        assert record[f"{name}_held_out"] == expected[name]
    tilted = old.double().exp() * (reward / 0.6).double().exp()
    exact = tilted / (reward / 0.6).double().exp().mean(-1, keepdim=True)
    assert record["mode_surprisal_forecast"] == pytest.approx(-mean(exact.amax(-1).clamp(max=1).log()))
    unscored = replace(before, reward=None)
    without = held_out_record(now, unscored, following, 0.6)
    assert without["fidelity_r2_held_out"] is None and "mode_surprisal_forecast" not in without
    assert without["leak_held_out"] == expected["leak"]


def test_the_exact_update_of_every_response_of_a_table() -> None:
    """Each response of a uniform policy once: K samples are the policy, so Z is exact and so is pi^(1 + 1/beta)."""
    log_prob = torch.full((1, 4), -math.log(4.0))
    reward = torch.tensor([[0.3, -1.0, 2.0, 0.0]])
    found = exact_update(log_prob, reward, 0.5)
    torch.testing.assert_close(found, torch.log_softmax(reward.double() / 0.5, -1))
    clipped = exact_update(log_prob, reward, 0.5, clip=1.0)
    torch.testing.assert_close(clipped, torch.log_softmax(reward.clamp(min=1.0).double() / 0.5, -1))


def test_calibration_record() -> None:
    reward = torch.tensor([[0.1, 0.2, 0.3], [3.0, 2.0, 1.0], [5.0, 5.0, 5.0], [1.0, 2.0, 3.0]])
    right = torch.tensor([[False, False, True], [True, False, True], [True, False, True], [False] * 3])
    record = calibration_record(reward, right)
    assert record["auroc"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert record["auroc_low"] < record["auroc"] < record["auroc_high"]
    assert calibration_record(reward, right | True) == {"auroc": None, "auroc_low": 0.0, "auroc_high": 1.0}


def test_agreement_record() -> None:
    classes = [["a", "a", "a"], ["a", "b", "a"], [None, "a", "b"], [None, None, None]]
    record = agreement_record(classes)
    assert record["self_consistency"] == pytest.approx((1 + 1 / 3) / 4)  # of the three pairs of each prompt
    assert record["unanimous"] == 1 / 4
    assert agreement_record([["a"], [None]]) == {"self_consistency": None, "unanimous": 0.5}


def test_subset_sizes() -> None:
    assert [subset_sizes(n) for n in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


def test_at_k_record() -> None:
    right = torch.tensor([[True, False, True, False], [True, False, False, False], [False] * 4])
    classes = [["a", "b", "a", "b"], ["a", "b", "b", "b"], ["a", "b", "c", None]]
    record = at_k_record(right, classes)
    assert set(record) == {f"{name}_at_{k}{end}" for name in ("pass", "maj") for k in (1, 2, 4) for end in ENDS}
    for name, estimate in (("pass", pass_at_k), ("maj", lambda flags, k: maj_at_k(classes, flags, k))):
        for k, sets in ((1, 4), (2, 2), (4, 1)):
            found = tuple(record[f"{name}_at_{k}{end}"] for end in ENDS)
            assert found == clustered_proportion(estimate(right.numpy(), k), sets)
    one = accuracy_record(right, right[:, 0])
    assert [record[f"maj_at_1{end}"] for end in ENDS] == pytest.approx([one[f"accuracy_sampled{end}"] for end in ENDS])
    assert record["pass_at_4"] == pytest.approx(2 / 3) and record["maj_at_4"] == pytest.approx((1 / 2 + 0 + 0) / 3)


@pytest.mark.parametrize(("name", "k"), [("pass", 2), ("pass", 4), ("maj", 4)])
def test_intervals_at_k_cover_the_mean_over_prompts(name: str, k: int) -> None:
    """Two answers, so that the vote of k is right with a chance that binomials tell; prompts far apart."""
    rng = np.random.default_rng(1)
    repeats, prompts, samples = 400, 40, 8
    law = stats.beta(0.6, 0.4)
    chance = {
        "pass": lambda p: 1 - (1 - p) ** k,
        "maj": lambda p: stats.binom.sf(k // 2, k, p) + stats.binom.pmf(k // 2, k, p) / 2,
    }[name]
    truth = law.expect(chance)
    right = rng.random((repeats * prompts, samples)) < law.rvs((repeats * prompts, 1), random_state=rng)
    rates = pass_at_k(right, k) if name == "pass" else maj_at_k(right.tolist(), right, k)
    ends = [clustered_proportion(row, samples // k)[1:] for row in rates.reshape(repeats, prompts)]
    covered = mean(low <= truth <= high for low, high in ends)
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / repeats)


def test_flips_record() -> None:
    start = torch.tensor([True] * 4 + [False] * 6)
    now = torch.tensor([True] * 3 + [False] + [True] * 2 + [False] * 4)
    kinds = {"greedy_learned": 0.2, "greedy_kept": 0.3, "greedy_lost": 0.1, "greedy_never": 0.4}
    assert flips_record(start, now) == pytest.approx(kinds)


def test_accuracy_record() -> None:
    sampled = torch.tensor([[True, False, False, False], [True, True, True, False], [False] * 4])
    greedy = torch.tensor([True, True, False])
    record = accuracy_record(sampled, greedy)
    assert record["accuracy_sampled"] == pytest.approx(4 / 12)
    interval = (record["accuracy_sampled_low"], record["accuracy_sampled_high"])
    assert interval == clustered_proportion([0.25, 0.75, 0.0], 4)[1:]
    assert record["accuracy_greedy"] == pytest.approx(2 / 3)
    assert (record["accuracy_greedy_low"], record["accuracy_greedy_high"]) == wilson(2, 3)
