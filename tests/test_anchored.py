from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from srlm.objectives.regression import regression
from srlm.theory import (
    anchored_failure_bound,
    condition_number,
    log_condition_number,
    log_group_condition_number,
    log_partition_bias_bound,
    noisy_anchored_failure_bound,
)

probs = st.lists(st.floats(-15, 0).map(math.exp), min_size=1, max_size=6)
RHO = 0.1


@given(probs, st.integers(1, 64))
def test_kappa_of_groups_by_its_definition(mode_prob: list[float], k: int) -> None:
    direct = sum(1 / math.fsum(p * (1 - p) ** j for j in range(k)) for p in mode_prob) / len(mode_prob)
    found = math.exp(log_group_condition_number(np.log(mode_prob), k))
    kappa = condition_number(mode_prob)
    assert found == pytest.approx(direct, rel=1e-9)
    assert found <= (1 + (kappa - 1) / k) * (1 + 1e-9)
    assert math.exp(log_group_condition_number(np.log(mode_prob), 1)) == pytest.approx(kappa, rel=1e-12)
    assert log_group_condition_number(np.log(mode_prob), k + 1) <= log_group_condition_number(np.log(mode_prob), k)


def test_from_kappa_alone_no_less_can_be_said() -> None:
    # Most prompts certain, one hopeless: kappa^(K) comes to 1 + (kappa - 1)/K.
    weight = [1 - 1e-9, 1e-9]
    kappa = condition_number([1.0, 1e-12], weight)
    for k in (1, 2, 8):
        found = math.exp(log_group_condition_number([0.0, math.log(1e-12)], k, weight))
        assert found == pytest.approx(1 + (kappa - 1) / k, rel=1e-6)


def test_kappa_of_groups_without_overflow() -> None:
    assert log_group_condition_number([-2000.0], 8) == pytest.approx(2000 - math.log(8))
    assert log_group_condition_number([-36.0 - math.log(8)], 8) == pytest.approx(36.0, abs=1e-12)
    assert log_group_condition_number([0.0, 0.0], 3) == 0
    assert log_group_condition_number([-math.inf], 3) == math.inf
    both = log_group_condition_number([[-1.0, -2.0], [-3.0, -2000.0]], 4, [0.25, 0.75])
    assert both.shape == (2,) and both[0] == log_group_condition_number([-1.0, -2.0], 4, [0.25, 0.75])


@given(probs, st.integers(1, 16), st.floats(0, 12), st.floats(0, 50))
def test_the_bound_by_its_formula(mode_prob: list[float], k: int, log10_n: float, size: float) -> None:
    run = {"num_samples": 10**log10_n, "samples_per_prompt": k, "log_class_size": size, "failure_probability": 0.05}
    condition = math.exp(log_group_condition_number(np.log(mode_prob), k))
    bound = anchored_failure_bound(**run, mode_prob=mode_prob)
    assert bound == pytest.approx(math.sqrt(condition * (size + math.log(20)) / 10**log10_n), rel=1e-9)
    log_kappa = log_condition_number(np.log(mode_prob))
    assert bound <= anchored_failure_bound(**run, log_condition=log_kappa) * (1 + 1e-9)
    expected = math.sqrt((1 + (math.exp(log_kappa) - 1) / k) * (size + math.log(20)) / 10**log10_n)
    assert anchored_failure_bound(**run, log_condition=log_kappa) == pytest.approx(expected, rel=1e-9)


def test_bounds_broadcast_and_take_any_kappa() -> None:
    run = {"log_class_size": 3.0, "failure_probability": 0.05}
    grid = anchored_failure_bound(
        num_samples=[[1e3], [1e6]], log_condition=[0.0, 2.0, 1e3], samples_per_prompt=[1, 2, 4], **run
    )
    assert grid.shape == (2, 3)
    assert grid[1, 2] == anchored_failure_bound(num_samples=1e6, log_condition=1e3, samples_per_prompt=4, **run)
    assert anchored_failure_bound(num_samples=1e6, log_condition=1e4, **run) == math.inf
    assert type(anchored_failure_bound(num_samples=9, mode_prob=[0.5, 0.1], **run)) is float


def _world(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pi_t [X, Y], prompt probabilities [X], policies [M, X, Y], the exact update first; the others differ from it on
    a few responses of a few prompts, where they are wrong about the mode as often as not)."""
    prompts, responses, size = rng.integers(1, 6), rng.integers(2, 7), int(rng.integers(2, 400))
    pi = rng.dirichlet(np.full(responses, rng.choice([0.1, 0.5, 2.0])), size=prompts) + 1e-4
    pi /= pi.sum(-1, keepdims=True)
    exact = pi**2 / (pi**2).sum(-1, keepdims=True)
    policies = np.repeat(exact[None], size, 0)
    for policy in policies[1:]:
        for x in np.flatnonzero(rng.random(prompts) < rng.choice([0.3, 0.9])):
            one, other = rng.permutation(responses)[:2]
            one = pi[x].argmax() if rng.random() < 0.7 else one
            other = (one + 1) % responses if other == one else other
            moved = policy[x, one] * rng.uniform(0.3, 1)
            policy[x, one] -= moved
            policy[x, other] += moved
    return pi, rng.dirichlet(np.ones(prompts)), policies


def test_no_minimiser_is_beyond_the_bound_more_often_than_it_may() -> None:
    """The worst empirical minimiser of one sample in each of 300 random worlds: beta = 1, reward log pi_t, exact Z."""
    rng, beyond, ratios = np.random.default_rng(0), 0, []
    for _ in range(300):
        pi, weight, policies = _world(rng)
        n, k = int(rng.choice([5, 20, 80, 320])), int(rng.choice([1, 2, 4]))
        x = rng.choice(len(pi), p=weight, size=n)
        y = np.array([rng.choice(pi.shape[1], p=pi[i], size=k) for i in x])
        log_z = np.log((pi**2).sum(-1))
        with np.errstate(divide="ignore"):
            residual = np.log(policies) - 2 * np.log(pi) + log_z[:, None]
        loss = np.minimum(np.abs(residual[:, x[:, None], y]), 1e6).sum((1, 2))
        mode = pi.argmax(-1)
        wrong = np.abs(policies - policies[0])[:, np.arange(len(pi)), mode] > 1e-12
        failure = (wrong * weight).sum(-1)[loss < 1e-9].max()
        bound = anchored_failure_bound(
            num_samples=n, samples_per_prompt=k, log_class_size=math.log(len(policies)), failure_probability=RHO,
            mode_prob=pi.max(-1), weight=weight,
        )  # fmt: skip
        beyond += failure > bound
        ratios.append(failure / bound)
    assert beyond <= binom.ppf(0.999, 300, RHO)
    assert max(ratios) > 0.3  # and not for want of trying


def test_nor_is_one_beyond_the_noisy_bound() -> None:
    """The minimiser of the anchored loss, rewards noisy, over the exact update tilted on some prompts, some rare."""
    rng, beyond, said, ratios = np.random.default_rng(1), 0, 0, []
    prompts, responses, size, sigma, h = 8, 3, 60, 0.3, 0.3
    for _ in range(100):
        pi = rng.dirichlet(np.full(responses, 2.0), size=prompts) + 0.02
        pi /= pi.sum(-1, keepdims=True)
        weight = rng.dirichlet(np.full(prompts, 0.2))
        log_z = np.log((pi**2).sum(-1))
        tilt = rng.normal(size=(size, prompts, responses)) * (rng.random((size, prompts, 1)) < 0.3)
        tilt[0] = 0
        log_policy = 2 * np.log(pi) + tilt
        log_policy -= np.log(np.exp(log_policy).sum(-1, keepdims=True))
        n, k = int(rng.choice([200, 1000])), int(rng.choice([2, 4]))
        x = rng.choice(prompts, p=weight, size=n)
        y = np.array([rng.choice(responses, p=pi[i], size=k) for i in x])
        d = (log_policy - 2 * np.log(pi))[:, x[:, None], y] - sigma * rng.choice([-1, 1], size=(n, k))
        loss = (2 * d.var(-1, ddof=1) + (d.mean(-1) + log_z[x]) ** 2).sum(-1)
        off = np.abs(log_policy[loss.argmin()] - log_policy[0])[np.arange(prompts), pi.argmax(-1)] > h
        bound = noisy_anchored_failure_bound(
            num_samples=n, samples_per_prompt=k, log_class_size=math.log(size), failure_probability=RHO, noise=sigma,
            tolerance=h, mode_prob=pi.max(-1), weight=weight,
        )  # fmt: skip
        beyond += (off * weight).sum() > bound
        said += bound < 1
        ratios.append((off * weight).sum() / bound)
    assert beyond <= binom.ppf(0.999, 100, RHO)
    assert said >= 30 and max(ratios) > 0.01  # loose by a factor of about 50 here


def test_the_noisy_bound_by_its_formula() -> None:
    run = {"num_samples": 1e6, "samples_per_prompt": 4, "log_class_size": 3.0, "failure_probability": 0.05}
    for sigma, h in [(0.0, 1.0), (0.1, 1.0), (2.0, 0.5), (1e-200, 1e200)]:
        found = noisy_anchored_failure_bound(**run, noise=sigma, tolerance=h, log_condition=2.0)
        loud = max(1, 4 * 4 / 3 * (sigma / h) ** 2)
        condition = 1 + (math.e**2 - 1) / 4
        assert found == pytest.approx(math.sqrt(8 * loud * condition * (3 + math.log(40)) / 1e6), rel=1e-12)


def _bias(pi: np.ndarray, k: int) -> float:
    """log Z - E log Z^ over all y^k, reward log pi, beta = 1."""
    log_z = math.log((pi**2).sum())
    total = 0.0
    for draws in itertools.product(range(len(pi)), repeat=k):
        total += pi[list(draws)].prod() * (log_z - math.log(pi[list(draws)].mean()))
    return total


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([0.2, 1.0, 5.0]))
def test_the_bias_of_an_estimated_partition_function(seed: int, k: int, flat: float) -> None:
    pi = np.random.default_rng(seed).dirichlet(np.full(3, flat)) + 1e-6
    pi /= pi.sum()
    exact = pi**2 / (pi**2).sum()
    concentrability, worst = (exact**2 / pi).sum(), np.log(pi / exact).max()
    bias = _bias(pi, k)
    assert -1e-12 <= bias <= log_partition_bias_bound(k, concentrability, worst) * (1 + 1e-9)
    assert concentrability <= 1 / pi.max() * (1 + 1e-9)
    assert _bias(pi, k + 1) <= bias + 1e-12


def test_the_bias_for_many_samples() -> None:
    pi = np.array([0.5, 0.3, 0.2])
    exact = pi**2 / (pi**2).sum()
    concentrability = (exact**2 / pi).sum()
    assert _bias(pi, 9) == pytest.approx((concentrability - 1) / 18, rel=0.05)
    large = log_partition_bias_bound(1e5, concentrability, 2.0)
    assert large == pytest.approx((concentrability - 1) / 1e5, rel=1e-9)
    assert log_partition_bias_bound([1, 8], 2.0, [[0.1], [5.0]]).shape == (2, 2)


def test_with_one_sample_the_estimated_anchor_asks_for_no_change() -> None:
    """d + beta log Z^ = beta log(pi/pi_t) for K = 1: pi_t itself has no loss, whatever n."""
    reward = torch.tensor([[-0.5], [-3.0]], dtype=torch.float64)
    loss = regression(torch.zeros(2, 1, dtype=torch.float64), reward, torch.ones(2, 1, dtype=torch.float64), clip=0)
    assert loss.abs().max() < 1e-12


GIVEN = {"num_samples": 10.0, "log_class_size": 2.0, "failure_probability": 0.05, "samples_per_prompt": 2}
LOG = {**GIVEN, "log_condition": 1.0}
LOUD = {**LOG, "noise": 0.1, "tolerance": 0.1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mode_prob": [0.5]}, "mode_prob or log_condition must be given, got both"),
        ({"log_condition": None}, "mode_prob or log_condition must be given, got neither"),
        ({"weight": [1.0]}, "weight must be given with mode_prob only"),
        ({"log_condition": None, "mode_prob": [0.5], "samples_per_prompt": [1, 2]}, "samples_per_prompt must be one"),
        ({"log_condition": None, "mode_prob": [0.5], "weight": [0.5]}, "weight must sum to 1"),
        ({"log_condition": None, "mode_prob": 0.5}, "mode_prob must be a non-empty array"),
    ],
)
def test_arguments_that_do_not_fit(changes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        anchored_failure_bound(**{**LOG, **changes})


def test_one_number_of_draws_for_a_condition_number() -> None:
    with pytest.raises(ValueError, match="samples_per_prompt must be one whole number"):
        log_group_condition_number([-1.0], [1, 2])
    with pytest.raises(ValueError, match=r"^samples_per_prompt must be whole and in \[2, inf\), got 1"):
        noisy_anchored_failure_bound(**{**LOUD, "samples_per_prompt": 1})
