from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from srlm.estimators.intervals import clustered_proportion, wilson


@given(st.integers(1, 200), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_wilson_agrees_with_scipy(trials: int, share: float, level: float) -> None:
    successes = round(share * trials)
    expected = binomtest(successes, trials).proportion_ci(level, method="wilson")
    assert wilson(successes, trials, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_solves_its_equation_for_fractional_counts() -> None:
    successes, trials, z = 3.7, 11.2, float(norm.ppf(0.975))

    def gap(p: float) -> float:
        return (successes / trials - p) ** 2 - z * z * p * (1 - p) / trials

    expected = (brentq(gap, 0, successes / trials), brentq(gap, successes / trials, 1))
    assert wilson(successes, trials) == pytest.approx(expected, abs=1e-9)


def test_wilson_at_the_edges() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 5)[0] == 0.0 and wilson(5, 5)[1] == 1.0
    for successes, trials, level in [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0), (math.nan, 5, 0.95)]:
        with pytest.raises(ValueError, match="successes"):
            wilson(successes, trials, level)


def test_clustered_proportion_is_wilson_at_the_effective_size() -> None:
    rates = np.array([0.0, 0.25, 0.5, 1.0, 0.75, 0.25])
    mean = rates.mean()
    size = mean * (1 - mean) / (rates.var(ddof=1) / 6)
    assert 6 < size < 24
    assert clustered_proportion(rates, 4) == pytest.approx((mean, *wilson(mean * size, size)))


def test_effective_size_stays_between_prompts_and_samples() -> None:
    alternating = np.tile([0.0, 1.0], 10)  # samples of a prompt all agree: no more than one observation a prompt
    assert clustered_proportion(alternating, 8) == pytest.approx((0.5, *wilson(10, 20)))
    even = np.tile([0.45, 0.55], 10)  # steadier than independent samples could be: no more than all samples
    assert clustered_proportion(even, 8) == pytest.approx((0.5, *wilson(80, 160)))


@pytest.mark.parametrize(("rates", "mean"), [([0.1] * 7, 0.1), ([0.0] * 7, 0.0), ([1.0] * 7, 1.0), ([0.3], 0.3)])
def test_without_spread_the_size_is_the_number_of_prompts(rates: list[float], mean: float) -> None:
    trials = len(rates)
    assert clustered_proportion(np.array(rates), 8) == pytest.approx((mean, *wilson(mean * trials, trials)))


def test_clustered_proportion_covers_where_counting_samples_does_not() -> None:
    rng = np.random.default_rng(0)
    repeats, prompts, samples = 1000, 40, 8
    right = rng.beta(0.6, 0.4, size=(repeats, prompts))  # E = 0.6, prompts far apart
    rates = rng.binomial(samples, right) / samples
    clustered = np.array([clustered_proportion(row, samples)[1:] for row in rates])
    counted = np.array([wilson(row.sum() * samples, prompts * samples) for row in rates])
    coverage, naive = (np.mean((ci[:, 0] <= 0.6) & (ci[:, 1] >= 0.6)) for ci in (clustered, counted))
    standard_error = math.sqrt(0.95 * 0.05 / repeats)
    assert abs(coverage - 0.95) < 3 * standard_error
    assert naive < 0.95 - 30 * standard_error


def test_clustered_proportion_of_nothing_and_of_nonsense() -> None:
    mean, low, high = clustered_proportion(np.array([]), 8)
    assert math.isnan(mean) and (low, high) == (0.0, 1.0)
    for rates, samples in [([1.5], 1), ([math.nan], 1), ([[0.5]], 1), ([0.5], 0)]:
        with pytest.raises(ValueError, match=r"rates \[P\] in \[0, 1\]"):
            clustered_proportion(np.array(rates), samples)
