from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, norm, t

from srlm.estimators.calibration import (
    auroc,
    auroc_interval,
    expected_calibration_error,
    grouped_auroc,
    grouped_auroc_interval,
    reliability,
)
from srlm.estimators.intervals import score_interval, wilson


@given(st.lists(st.tuples(st.sampled_from([-math.inf, -2.0, 0.5, 1.0, 3.0]), st.booleans()), max_size=20))
def test_auroc_is_the_share_of_pairs_in_order(pairs: list[tuple[float, bool]]) -> None:
    right = [s for s, is_right in pairs if is_right]
    wrong = [s for s, is_right in pairs if not is_right]
    every = [(a > b) + (a == b) / 2 for a in right for b in wrong]
    expected = sum(every) / len(every) if every else math.nan
    score, label = [s for s, _ in pairs], [is_right for _, is_right in pairs]
    assert auroc(score, label) == pytest.approx(expected, nan_ok=True)


def test_auroc_agrees_with_mann_whitney_whatever_the_shape() -> None:
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 30, size=(40, 8)).astype(float), rng.random((40, 8)) < 0.3
    u = mannwhitneyu(score[label], score[~label]).statistic
    assert auroc(score, label) == pytest.approx(u / (label.sum() * (~label).sum()))
    assert auroc(score.ravel(), label.ravel().astype(int)) == auroc(score, label)


def test_grouped_auroc_sees_only_the_order_within_a_prompt() -> None:
    score = np.array([[1.0, 2.0, 3.0], [13.0, 12.0, 11.0], [5.0, 5.0, 4.0], [1.0, 2.0, 3.0]])
    label = np.array([[0, 0, 1], [1, 0, 0], [1, 0, 1], [1, 1, 1]])
    value, groups = grouped_auroc(score, label)
    assert groups == 3 and value == pytest.approx((1 + 1 + 0.25) / 3)
    assert grouped_auroc(score + 100 * np.arange(4)[:, None], label) == (value, groups)
    value, groups = grouped_auroc(score[3:], label[3:])
    assert math.isnan(value) and groups == 0
    assert grouped_auroc(np.empty((0, 3)), np.empty((0, 3)))[1] == 0


def clusters(rng: np.random.Generator, prompts: int, samples: int, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels that depend within a prompt; right scores exceed wrong ones of other prompts by N(gap, 3)."""
    label = rng.random((prompts, samples)) < rng.beta(0.6, 0.4, size=(prompts, 1))
    noise = rng.normal(size=(prompts, 1)) + math.sqrt(0.5) * rng.normal(size=(prompts, samples))
    return noise + gap * label, label


def variance(interval: tuple[float, float, float], z: float) -> float:
    """Solved for: |A - low| = z sqrt(low (1 - low) / n) with n = A (1 - A) / Var(A)."""
    value, low, _ = interval
    return (value - low) ** 2 / (z * z * low * (1 - low)) * value * (1 - value)


def test_interval_of_independent_responses_is_delong() -> None:
    score, label = clusters(np.random.default_rng(1), 60, 1, 1.0)
    right, wrong = score[label], score[~label]
    kernel = (right[:, None] > wrong) + (right[:, None] == wrong) / 2
    expected = kernel.mean(1).var(ddof=1) / len(right) + kernel.mean(0).var(ddof=1) / len(wrong)
    z = t.ppf(0.975, min(len(right), len(wrong)) - 1)
    assert variance(auroc_interval(score, label), z) == pytest.approx(expected)


def test_interval_of_clusters_agrees_with_the_jackknife_over_prompts() -> None:
    score, label = clusters(np.random.default_rng(6), 300, 4, 1.0)
    without = [auroc(np.delete(score, i, axis=0), np.delete(label, i, axis=0)) for i in range(300)]
    z = t.ppf(0.975, min(label.any(1).sum(), (~label).any(1).sum()) - 1)
    assert variance(auroc_interval(score, label), z) == pytest.approx(299 * np.var(without), rel=0.03)


def test_interval_of_repeated_responses_is_that_of_one() -> None:
    score, label = clusters(np.random.default_rng(2), 30, 1, 1.0)
    assert auroc_interval(np.tile(score, 5), np.tile(label, 5)) == pytest.approx(auroc_interval(score, label))


def test_interval_covers_where_counting_responses_does_not() -> None:
    rng = np.random.default_rng(3)
    for prompts, gap in [(12, 0.0), (30, 1.0), (60, 2.0)]:
        truth = norm.cdf(gap / math.sqrt(3))
        data = [clusters(rng, prompts, 8, gap) for _ in range(200)]
        clustered = np.array([auroc_interval(s, y)[1:] for s, y in data])
        counted = np.array([auroc_interval(s.reshape(-1, 1), y.reshape(-1, 1))[1:] for s, y in data])
        coverage, naive = (np.mean((ci[:, 0] <= truth) & (truth <= ci[:, 1])) for ci in (clustered, counted))
        assert coverage >= 0.88 and naive < 0.88


def test_interval_where_the_spread_says_nothing() -> None:
    label = np.tile([0, 1], (10, 2))
    z = t.ppf(0.975, 9)
    assert auroc_interval(label, label) == (1.0, pytest.approx(5 / (5 + z * z)), 1.0)  # Wilson's for 5 of 5
    value, low, high = auroc_interval(np.zeros((10, 4)), label)
    assert value == 0.5 and low == pytest.approx(1 - high) and high - low > 0.6
    alike = auroc_interval(np.tile(np.arange(6.0), (10, 1)), np.tile([0, 1, 0, 1, 0, 1], (10, 1)))
    assert alike == pytest.approx((2 / 3, *score_interval(40, 60, z)))  # a variance of rounding errors is not believed


def test_interval_needs_two_prompts_of_each_kind() -> None:
    score = np.arange(6.0).reshape(3, 2)
    assert auroc_interval(score, [[0, 0], [0, 0], [1, 1]]) == (1.0, 0.0, 1.0)
    value, low, high = auroc_interval(score, np.ones((3, 2)))
    assert math.isnan(value) and (low, high) == (0.0, 1.0)


def test_reliability_has_equal_counts_in_order_of_score() -> None:
    rng = np.random.default_rng(4)
    score, label = rng.normal(size=(10, 10)), rng.random((10, 10)) < 0.5
    bins = reliability(score, label, 5)
    order = np.argsort(score, axis=None)
    for b, members in zip(bins, order.reshape(5, 20), strict=True):
        hits = label.ravel()[members]
        assert (b.count, b.share_right) == (20, hits.mean())
        assert b.mean_score == pytest.approx(score.ravel()[members].mean())
        assert (b.low, b.high) == wilson(hits.sum(), 20)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans())), st.integers(1, 8), st.randoms())
def test_reliability_ignores_the_order_of_ties(data: list[tuple[int, bool]], bins: int, random: object) -> None:
    every = reliability([s for s, _ in data], [y for _, y in data], bins)
    assert len(every) <= bins and sum(b.count for b in every) == len(data)
    random.shuffle(data)  # type: ignore[attr-defined]
    again = reliability([s for s, _ in data], [y for _, y in data], bins)
    assert [(b.count, b.share_right) for b in again] == [(b.count, b.share_right) for b in every]


def test_expected_calibration_error() -> None:
    # Two bins: 0.25 on average with one of four right, 0.75 on average with four of four.
    probability, label = [0.2, 0.3, 0.2, 0.3, 0.7, 0.8, 0.7, 0.8], [0, 0, 0, 1, 1, 1, 1, 1]
    assert expected_calibration_error(probability, label, 2) == pytest.approx(0.5 * 0.25)
    assert expected_calibration_error(label, label) == 0.0
    assert math.isnan(expected_calibration_error([], []))
    rng = np.random.default_rng(5)
    p = rng.random(100_000)
    assert expected_calibration_error(p, rng.random(p.size) < p) < 3 * 0.5 / math.sqrt(10_000)
    assert expected_calibration_error(p, rng.random(p.size) < p**2) == pytest.approx(1 / 6, abs=0.01)  # E[p - p^2]


def test_refuses_nonsense() -> None:
    for function in (auroc, grouped_auroc, auroc_interval, reliability):
        for score, label in [([[math.nan, 1.0]], [[0, 1]]), ([[0.0, 1.0]], [[0, 2]])]:
            with pytest.raises(ValueError, match="scores that are not nan and labels that are 0 or 1"):
                function(score, label)
        with pytest.raises(ValueError, match="got shapes"):
            function([[0.0, 1.0]], [[1], [0]])
    for function in (grouped_auroc, auroc_interval):
        with pytest.raises(ValueError, match=r"\[P, K\]"):
            function([0.0, 1.0], [0, 1])
    with pytest.raises(ValueError, match="level"):
        auroc_interval([[0.0, 1.0]], [[0, 1]], 1.0)
    with pytest.raises(ValueError, match="bins >= 1"):
        reliability([0.5], [1], 0)
    for value in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"probabilities in \[0, 1\]"):
            expected_calibration_error([value], [1])


def test_grouped_interval_covers_the_mean_over_prompts() -> None:
    rng, gap = np.random.default_rng(9), 1.0
    truth = norm.cdf(gap / math.sqrt(2))  # within a prompt its own level cancels
    inside = []
    for _ in range(300):
        label = rng.random((25, 8)) < 0.5
        score = rng.normal(size=(25, 1)) + rng.normal(size=(25, 8)) + gap * label
        value, low, high = grouped_auroc_interval(score, label)
        assert value == grouped_auroc(score, label)[0]
        inside.append(low <= truth <= high)
    assert 0.92 <= np.mean(inside) <= 0.98


def test_grouped_interval_of_few_or_equal_prompts() -> None:
    label = np.tile([0, 1], (6, 2))
    z = t.ppf(0.975, 5)
    assert grouped_auroc_interval(label, label) == (1.0, pytest.approx(6 / (6 + z * z)), 1.0)
    assert grouped_auroc_interval(label[:1], label[:1]) == (1.0, 0.0, 1.0)
    value, low, high = grouped_auroc_interval(label, np.ones((6, 4)))
    assert math.isnan(value) and (low, high) == (0.0, 1.0)


def test_a_level_is_between_0_and_1() -> None:
    label = np.tile([0, 1], (3, 2))
    for interval in (auroc_interval, grouped_auroc_interval):
        for level in (0.0, 1.0, -0.1, math.nan):
            with pytest.raises(ValueError, match="level"):
                interval(np.zeros((3, 4)), label, level)
        assert interval(np.zeros((3, 4)), label, 0.01)[0] == 0.5


def test_where_all_scores_are_equal_a_prompt_is_in_one_pair() -> None:
    """Every prompt holds both kinds: ten of them are five pairs, and Wilson's interval is that of 2.5 of 5."""
    z = t.ppf(0.975, 9)
    value, low, high = auroc_interval(np.zeros((10, 4)), np.tile([0, 1], (10, 2)))
    assert (value, low, high) == pytest.approx((0.5, *score_interval(2.5, 5, z)))
