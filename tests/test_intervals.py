from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm, t

from srlm.estimators.intervals import (
    bounded_mean,
    clopper_pearson,
    clustered_proportion,
    modal_share_interval,
    score_interval,
    wilson,
)


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
    quantile = float(t.ppf(0.975, 5))
    assert clustered_proportion(rates, 4) == pytest.approx((mean, *score_interval(mean * size, size, quantile)))


def test_effective_size_stays_between_prompts_and_samples() -> None:
    alternating = np.tile([0.0, 1.0], 10)  # samples of a prompt all agree: no more than one observation a prompt
    assert clustered_proportion(alternating, 8) == pytest.approx((0.5, *wilson(10, 20)))
    even = np.tile([0.45, 0.55], 10)  # steadier than independent samples could be: no more than all samples
    quantile = float(t.ppf(0.975, 19))
    assert clustered_proportion(even, 8) == pytest.approx((0.5, *score_interval(80, 160, quantile)))


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


@pytest.mark.parametrize(("prompts", "least"), [(2, 0.95), (3, 0.93), (5, 0.95), (20, 0.95)])
@pytest.mark.parametrize(("a", "b"), [(1, 1), (0.3, 0.3), (5, 5)])
def test_clustered_proportion_covers_with_few_prompts(prompts: int, least: float, a: float, b: float) -> None:
    """The spread of P rates is an estimate too. Three prompts of Beta(.3, .3) have .933 in the long run; 1500 draws
    err by .0065 (standard error, at .933) and a margin of three of them is left. Normal quantiles have .75 to .95."""
    rng = np.random.default_rng(3)
    rates = rng.binomial(16, rng.beta(a, b, size=(1500, prompts))) / 16
    ends = np.array([clustered_proportion(row, 16)[1:] for row in rates])
    truth = a / (a + b)
    assert np.mean((ends[:, 0] <= truth) & (ends[:, 1] >= truth)) > least - 0.019


def test_clustered_proportion_of_nothing_and_of_nonsense() -> None:
    mean, low, high = clustered_proportion(np.array([]), 8)
    assert math.isnan(mean) and (low, high) == (0.0, 1.0)
    for rates, samples in [([1.5], 1), ([math.nan], 1), ([[0.5]], 1), ([0.5], 0)]:
        with pytest.raises(ValueError, match=r"rates \[P\] in \[0, 1\]"):
            clustered_proportion(np.array(rates), samples)
    with pytest.raises(ValueError, match="0 < level < 1"):
        clustered_proportion([0.5, 0.6], 1, 1.0)


def test_bounded_mean_of_zeros_and_ones_is_clopper_pearson() -> None:
    for successes, trials in [(0, 1), (0, 9), (3, 9), (40, 48), (48, 48)]:
        mean, low, high = bounded_mean([0.0] * (trials - successes) + [1.0] * successes, 0, 1)
        exact = clopper_pearson(successes, trials)
        assert mean == successes / trials and (low, high) == pytest.approx(exact, abs=0.01)
        scaled = bounded_mean([-2.0] * (trials - successes) + [4.0] * successes, -2, 4)
        assert scaled == pytest.approx((6 * mean - 2, 6 * low - 2, 6 * high - 2))
    assert bounded_mean([0.3, 0.9, 0.1], 0, 1) == bounded_mean([0.9, 0.1, 0.3], 0, 1)
    for values, level in [([], 0.95), ([1.5], 0.95), ([math.nan], 0.95), ([[0.5]], 0.95), ([0.5], 1.0)]:
        with pytest.raises(ValueError, match=r"values \[n\] in \[0, 1\]"):
            bounded_mean(values, 0, 1, level)


@given(st.integers(1, 200), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_clopper_pearson_agrees_with_scipy(trials: int, share: float, level: float) -> None:
    successes = round(share * trials)
    expected = binomtest(successes, trials).proportion_ci(level, method="exact")
    assert clopper_pearson(successes, trials, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_clopper_pearson_at_the_edges() -> None:
    low, high = clopper_pearson([[0], [5]], [5, 7])
    assert low.shape == high.shape == (2, 2)
    assert low[0].tolist() == [0.0, 0.0] and high[1, 0] == 1.0 and high[1, 1] < 1
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    for successes, trials, level in [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0), (1.5, 5, 0.95), (1, math.inf, 0.95)]:
        for interval in (clopper_pearson, modal_share_interval):
            with pytest.raises(ValueError, match=r"whole 0 <= .* <= trials"):
                interval(successes, trials, level)


def law_of_the_largest_count(q: list[float], trials: int) -> np.ndarray:
    """P(largest count of a class = n) for n = 0..K, from K! [z^K] e^(rest z) prod_c sum_{j <= n} (q_c z)^j / j!."""
    factorial = np.array([math.factorial(j) for j in range(trials + 1)], dtype=np.float64)
    at_most = np.zeros(trials + 1)
    for n in range(trials + 1):
        total = max(1 - sum(q), 0) ** np.arange(trials + 1) / factorial
        for p in q:
            terms = p ** np.arange(n + 1) / factorial[: n + 1]
            total = np.convolve(total, terms)[: trials + 1]
        at_most[n] = total[trials] * factorial[trials]
    return np.diff(at_most, prepend=0.0)


def check_both_errors(q: list[float], trials: int, level: float) -> None:
    law = law_of_the_largest_count(q, trials)
    assert law.sum() == pytest.approx(1)
    low, high = modal_share_interval(np.arange(trials + 1), trials, level)
    assert (np.diff(low) >= 0).all()
    assert law[low > max(q) + 1e-15].sum() <= (1 - level) / 2 + 1e-9
    assert law[high < max(q) - 1e-15].sum() <= (1 - level) / 2 + 1e-9


@given(
    st.lists(st.floats(0.001, 1), min_size=1, max_size=6),
    st.floats(0, 1),
    st.integers(1, 10),
    st.sampled_from([0.2, 0.5, 0.8, 0.95]),
)
def test_modal_share_is_covered_at_each_end(weights: list[float], rest: float, trials: int, level: float) -> None:
    check_both_errors([w / (sum(weights) + rest) for w in weights], trials, level)


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 6, 400])
@pytest.mark.parametrize("trials", [2, 5, 6, 20])
def test_modal_share_of_a_uniform_distribution_is_covered(classes: int, trials: int) -> None:
    check_both_errors([1 / classes] * classes, trials, 0.95)


@pytest.mark.parametrize(("largest", "trials"), [(2, 2), (5, 8), (8, 8), (40, 64), (64, 64)])
def test_lower_end_of_the_modal_share_is_attained(largest: int, trials: int) -> None:
    share = modal_share_interval(largest, trials)[0]
    fit = math.floor(1 / share)
    law = law_of_the_largest_count([share] * fit + [1 - fit * share], trials)
    assert law[largest:].sum() == pytest.approx(0.025, rel=1e-6)  # n > K/2: no two classes both reach n


def test_a_class_at_the_mode_of_its_chance_is_seen_often_enough() -> None:
    trials = np.repeat(np.arange(2, 301), np.arange(1, 300))
    largest = np.concatenate([np.arange(2, k + 1) for k in range(2, 301)])
    mode = (largest - 1) / (trials - 1)
    assert (np.floor(1 / mode) * binom.sf(largest - 1, trials, mode) >= 0.5).all()  # S(m) > a of the docstring


def test_modal_share_is_monotone_and_below_clopper_pearson() -> None:
    trials = np.arange(1, 41)
    largest = np.minimum(np.arange(41)[:, None], trials)
    low, high = modal_share_interval(largest, trials)
    exact_low, exact_high = clopper_pearson(largest, trials)
    assert (np.diff(low, axis=0) >= 0).all() and (np.diff(high, axis=0) >= 0).all()
    more = np.arange(41)[:, None] <= trials[:-1]  # the same count of more draws
    assert (np.diff(low, axis=1)[more] <= 1e-12).all() and (np.diff(high, axis=1)[more] <= 1e-12).all()
    assert (low <= np.minimum(exact_low, largest / trials)).all() and (high == exact_high).all()
    assert (low[:2] == 0).all() and (low[2, 1:] > 0).all()


def test_modal_share_by_hand() -> None:
    assert modal_share_interval(0, 0) == (0.0, 1.0)
    # Two of two agree with probability sum_c q_c^2 <= M, attained by 1/M classes. S is flat there: half the digits.
    assert modal_share_interval(2, 2) == (pytest.approx(0.025, abs=1e-8), 1.0)
    low, _ = modal_share_interval(3, 64, 0.9)
    assert binom.sf(2, 64, low) == pytest.approx(0.05 * low, rel=0.2)  # nearly 1/M classes fit


def test_one_sample_a_prompt_is_a_cluster() -> None:
    assert clustered_proportion([0.0, 1.0, 1.0], 1) == pytest.approx((2 / 3, *wilson(2, 3)))
    with pytest.raises(ValueError, match="K >= 1"):
        clustered_proportion([0.5], 0)
