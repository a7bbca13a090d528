from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm.theory import (
    condition_number,
    mode_margin,
    sharpen,
    sharpened_kappa_bound,
    sharpened_log_odds,
    sharpened_mode_bracket,
    sharpening_exponent,
)

seeds = st.integers(0, 2**32 - 1)
exponents = st.one_of(st.just(1.0), st.floats(0, 4).map(lambda x: 10**x))


def random_table(seed: int, responses: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=responses) * rng.choice([0.01, 1.0, 10.0, 200.0])
    return logits - np.logaddexp.reduce(logits)


@given(seeds, st.integers(1, 8), st.floats(0.05, 20))
def test_the_escort_by_its_definition(seed: int, responses: int, alpha: float) -> None:
    prob = np.random.default_rng(seed).dirichlet(np.ones(responses)) + 1e-6
    expected = prob**alpha / (prob**alpha).sum()
    np.testing.assert_allclose(np.exp(sharpen(np.log(prob), alpha)), expected, rtol=1e-9)


@given(seeds, st.integers(2, 6), st.floats(0.1, 10), st.integers(0, 5))
def test_rounds_of_the_exact_update_are_one_escort(seed: int, responses: int, beta: float, rounds: int) -> None:
    start = policy = random_table(seed, responses)
    for _ in range(rounds):
        # Eq. 2 in closed form: pi_t exp(log pi_t / beta) / Z
        policy = policy + policy / beta
        policy = policy - np.logaddexp.reduce(policy)
    alpha = sharpening_exponent(beta, rounds)
    assert alpha == pytest.approx((1 + 1 / beta) ** rounds, rel=1e-12)
    np.testing.assert_allclose(sharpen(start, alpha), policy, rtol=1e-6, atol=1e-9)


@given(seeds, st.integers(2, 6), st.lists(st.floats(0.1, 10) | st.just(math.inf), max_size=5))
def test_rounds_of_their_own_beta_are_one_escort(seed: int, responses: int, betas: list[float]) -> None:
    start = policy = random_table(seed, responses)
    for beta in betas:
        policy = policy + policy / beta
        policy = policy - np.logaddexp.reduce(policy)
    alpha = sharpening_exponent(betas)
    assert alpha == pytest.approx(math.prod(1 + 1 / beta for beta in betas), rel=1e-12)
    np.testing.assert_allclose(sharpen(start, alpha), policy, rtol=1e-6, atol=1e-9)


def test_exponents_of_several_paths() -> None:
    np.testing.assert_allclose(sharpening_exponent([[1.0, 2.0], [0.5, math.inf]]), [3, 3])
    with pytest.raises(ValueError, match="where rounds are not given, got 2"):
        sharpening_exponent(2.0)
    with pytest.raises(ValueError, match=r"^beta must be in \(0, inf\], got 0"):
        sharpening_exponent([1.0, 0.0])


@given(seeds, st.integers(2, 6), exponents)
def test_sharpening_multiplies_log_odds(seed: int, responses: int, alpha: float) -> None:
    start = random_table(seed, responses)
    end = sharpen(start, alpha)
    np.testing.assert_allclose(end - end.max(), alpha * (start - start.max()), rtol=1e-9, atol=1e-9)
    assert np.logaddexp.reduce(end) == pytest.approx(0, abs=1e-9)


def test_sharpening_at_the_ends() -> None:
    np.testing.assert_allclose(sharpen([-math.inf, -1.0, -1.0], 7.0), [-math.inf, -math.log(2), -math.log(2)])
    np.testing.assert_allclose(sharpen([-5000.0, -5001.0], 1e4), [0, -1e4])
    assert sharpening_exponent(1e-320, 1) == math.inf
    assert sharpening_exponent(2.0, 0) == 1
    np.testing.assert_allclose(sharpening_exponent([1.0, 2.0], [[1], [2]]), [[2, 1.5], [4, 2.25]])


def test_rows_have_their_own_exponents() -> None:
    rows = np.log(np.random.default_rng(0).dirichlet(np.ones(4), size=3))
    together = sharpen(rows, [1.0, 2.0, 50.0])
    for row, alpha, sharpened in zip(rows, [1.0, 2.0, 50.0], together, strict=True):
        np.testing.assert_allclose(sharpened, sharpen(row, alpha))
    assert sharpen(rows, [[1.0], [2.0]]).shape == (2, 3, 4)


@given(seeds, st.integers(2, 12), exponents, st.data())
def test_the_bracket_contains_the_truth(seed: int, responses: int, alpha: float, data) -> None:
    """Whatever part is known, the mode or not, and however loose the bounds on the rest."""
    table = random_table(seed, responses)
    order = data.draw(st.permutations(range(responses)))
    known = data.draw(st.integers(1, responses - 1))
    inside, outside = table[order[:known]], table[order[known:]]
    slack = data.draw(st.sampled_from([1.0, 1.5, 100.0]))
    mass = min(1.0, slack * np.exp(outside).sum())
    largest = min(0.0, outside.max() + math.log(slack))
    if mass == 0:
        largest = -math.inf
    low, high = sharpened_mode_bracket(inside, mass, largest, alpha)
    truth = math.exp(sharpen(table, alpha).max())
    assert 0 <= low <= truth * (1 + 1e-9)
    assert truth <= high * (1 + 1e-9) <= 1 + 2e-9


@given(seeds, st.integers(1, 8), exponents)
def test_with_nothing_unknown_the_bracket_is_the_truth(seed: int, responses: int, alpha: float) -> None:
    table = random_table(seed, responses)
    low, high = sharpened_mode_bracket(table, 0.0, -math.inf, alpha)
    assert low == high == pytest.approx(math.exp(sharpen(table, alpha).max()), rel=1e-9)


@given(seeds, st.integers(2, 8), st.floats(1, 100))
def test_by_the_formulas_where_the_mode_is_known(seed: int, responses: int, alpha: float) -> None:
    prob = np.sort(np.random.default_rng(seed).dirichlet(np.ones(responses)))[::-1] + 1e-9
    known, u, mass = prob[:-1], prob[-1], prob[-1]
    low, high = sharpened_mode_bracket(np.log(known), mass, math.log(u), alpha)
    top = known[0]
    assert low == pytest.approx(1 / (((known / top) ** alpha).sum() + (u / top) ** (alpha - 1) * mass / top), rel=1e-6)
    assert high == pytest.approx(1 / ((known / top) ** alpha).sum(), rel=1e-6)


def test_a_mode_outside_needs_the_second_part_of_high() -> None:
    known, alpha = np.log([0.1, 0.1]), 1.0
    low, high = sharpened_mode_bracket(known, 0.8, math.log(0.8), alpha)
    assert 0.1**alpha / (2 * 0.1**alpha) < 0.8  # what the first part alone would certify
    assert low == pytest.approx(0.1) and high == pytest.approx(0.8)


@given(seeds, st.integers(1, 5), st.integers(2, 8), exponents)
def test_kappa_of_the_escort_is_under_its_bound(seed: int, prompts: int, responses: int, alpha: float) -> None:
    table = np.array([random_table(seed + i, responses) for i in range(prompts)])
    weight = np.random.default_rng(seed).dirichlet(np.ones(prompts))
    start = condition_number(np.exp(table.max(-1)), weight)
    end = condition_number(np.exp(np.minimum(sharpen(table, alpha).max(-1), 0)), weight)
    assert end <= sharpened_kappa_bound(start, mode_margin(table).min(), alpha) * (1 + 1e-9)


@given(st.integers(1, 50), st.floats(1e-3, 20), exponents)
def test_with_all_rivals_at_the_margin_it_is_kappa(rivals: int, margin: float, alpha: float) -> None:
    table = np.append(0.0, np.full(rivals, -margin))
    table -= np.logaddexp.reduce(table)
    start, end = math.exp(-table.max()), math.exp(-sharpen(table, alpha).max())
    assert sharpened_kappa_bound(start, margin, alpha) == pytest.approx(end, rel=1e-7)


def test_the_bound_on_kappa_at_the_ends() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sharpened_kappa_bound(1e304, 0.1, math.inf) == 1
        assert sharpened_kappa_bound(1e304, 1e308, 1e308) == 1
        assert sharpened_kappa_bound(1e304, 0.1, 1.0) == pytest.approx(1e304)
        assert sharpened_kappa_bound(1.0, 0.1, 5.0) == 1
        assert sharpened_kappa_bound([2.0, 3.0], [[1.0], [2.0]], 4.0).shape == (2, 2)


def test_no_overflow_and_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = sharpened_mode_bracket([[-2000.0, -2001.0], [-1e-9, -800.0]], [1.0, 0.0], [-1.0, -math.inf], 1e4)
        np.testing.assert_allclose(low, [0, 1], atol=1e-300)
        np.testing.assert_allclose(high, [1, 1])
        sharpen([-1e6, 0.0], 1e4)


def test_brackets_broadcast() -> None:
    known = np.log(np.random.default_rng(0).dirichlet(np.ones(5), size=4)[:, :3])
    mass = 1 - np.exp(known).sum(-1)
    low, high = sharpened_mode_bracket(known, mass, np.log(mass), [[1.0], [2.0], [30.0]])
    assert low.shape == high.shape == (3, 4)
    single = sharpened_mode_bracket(known[2], mass[2], math.log(mass[2]), 30.0)
    assert (low[2, 2], high[2, 2]) == pytest.approx(single)
    assert type(single[0]) is type(single[1]) is float


@pytest.mark.parametrize("values", [[], -1.0, [-math.inf], [[-1.0], [-math.inf]]])
def test_rows_without_a_response_are_refused(values) -> None:
    with pytest.raises(ValueError, match=r"^log_prob must be"):
        sharpen(values, 2.0)
    with pytest.raises(ValueError, match=r"^known_log_prob must be"):
        sharpened_mode_bracket(values, 0.5, -1.0, 2.0)


def test_inconsistent_or_flattening_brackets_are_refused() -> None:
    with pytest.raises(ValueError, match="largest_unknown_log_prob"):
        sharpened_mode_bracket([-1.0], 0.7, -math.inf, 2.0)
    with pytest.raises(ValueError, match="exponent must be"):
        sharpened_mode_bracket([-1.0], 0.7, -1.0, 0.9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 4), st.integers(0, 5), st.sampled_from([math.inf, 0.3, 2.0, 8.0]))
def test_stretched_log_odds_are_those_of_updated_tables(seed, beta, rounds, clip) -> None:
    log_prob = np.random.default_rng(seed).standard_normal((3, 7)) * 3
    odds = log_prob.max(-1, keepdims=True) - log_prob
    for _ in range(rounds):
        reward = np.maximum(log_prob, log_prob.max(-1, keepdims=True) - clip)
        log_prob = log_prob + reward / beta
        log_prob -= np.log(np.exp(log_prob - log_prob.max()).sum(-1, keepdims=True)) + log_prob.max()
    after = sharpened_log_odds(odds, beta, rounds, clip)
    np.testing.assert_allclose(after, log_prob.max(-1, keepdims=True) - log_prob, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.lists(st.floats(0.2, 4) | st.just(math.inf), max_size=5), st.sampled_from([math.inf, 2.0])
)
def test_stretched_log_odds_with_a_beta_a_round(seed, betas, clip) -> None:
    log_prob = np.random.default_rng(seed).standard_normal((3, 7)) * 3
    odds = log_prob.max(-1, keepdims=True) - log_prob
    for beta in betas:
        log_prob = log_prob + np.maximum(log_prob, log_prob.max(-1, keepdims=True) - clip) / beta
    after = sharpened_log_odds(odds, betas, clip=clip)
    np.testing.assert_allclose(after, log_prob.max(-1, keepdims=True) - log_prob, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("beta", "rounds"), [(2.0, None), ([[1.0]], None)])
def test_betas_and_rounds_that_do_not_fit(beta, rounds) -> None:
    with pytest.raises(ValueError, match=r"^beta must be"):
        sharpened_log_odds(1.0, beta, rounds, 2.0)


def test_what_clipping_leaves_of_responses_far_below() -> None:
    far = np.array([100.0, 1000.0, math.inf])
    np.testing.assert_allclose(sharpened_log_odds(far, 2.0, 3, 8.0)[:2] - far[:2], 3 * 8 / 2)
    assert sharpened_log_odds(far, 2.0, 3, 8.0)[2] == math.inf
    assert sharpened_log_odds(0.0, 1e-3, 10**6) == 0.0  # an exponent beyond floats leaves the mode where it is
