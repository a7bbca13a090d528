from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq

from srlm.theory import (
    contraction_factor,
    iterations_to_forget,
    kappa_bound,
    kappa_fixed_point,
    kappa_recursion,
    relaxation_factor,
    tail_integral,
    tail_integral_recursion,
)

rates = st.floats(-12, 0.5).map(lambda x: 10**x)
confidences = st.floats(-6, 0).map(lambda x: 10**x)
kappas = st.floats(0, 300).map(lambda x: 10**x)
baselines = st.floats(1, 50)
coefficients = st.one_of(st.just(0.0), st.floats(-6, 6).map(lambda x: 10**x))


@settings(max_examples=200)
@given(rates, confidences)
def test_the_tail_integral_is_the_integral_of_the_tail(rate: float, p: float) -> None:
    # kappa = E Z = 1 + the integral over 1 < z < 1/p of P(Z >= z) <= min(1, A z/(z - 1)), here in x = log(z - 1).
    def tail(x: float) -> float:
        return min(math.exp(x), rate * (1 + math.exp(x)))

    expected = 1.0
    if p < 1:
        end = math.log1p(-p) - math.log(p)
        corner = math.log(rate) - math.log1p(-rate) if rate < 1 else end
        cuts = [-45.0, *(c for c in [corner] if -45 < c < end), *np.arange(math.ceil(corner), end, 3.0), end]
        cuts = sorted({c for c in cuts if c >= -45})
        expected += sum(quad(tail, a, b, epsabs=0, epsrel=1e-10)[0] for a, b in itertools.pairwise(cuts))
    assert tail_integral(rate, p) == pytest.approx(expected, rel=1e-8)


@given(rates, confidences)
def test_the_tail_integral_keeps_its_range(rate: float, p: float) -> None:
    values = tail_integral([0.0, rate / 2, rate, 1.0], p)
    assert values[0] == 1 and values[-1] == 1 / p
    assert (np.diff(values) >= 0).all()
    assert (tail_integral(rate, [p, math.sqrt(p), 1.0]) >= [values[2] * (1 - 1e-12), 1, 1]).all()


def test_the_tail_integral_is_attained() -> None:
    rate, p, count = 0.2, 0.05, 2_000_000
    share = (np.arange(count) + 0.5) / count  # P(Z >= z) = min(1, A z/(z - 1)) turned into quantiles
    z = np.where(share > rate, share / np.maximum(share - rate, 1e-300), np.inf)
    z = np.minimum(z, 1 / p)
    assert z.mean() == pytest.approx(tail_integral(rate, p), rel=1e-5)
    for delta in (0.3, 0.5, 0.9):
        assert (1 / z <= 1 - delta).mean() == pytest.approx(rate / delta, abs=1e-5)


@given(kappas, st.integers(0, 12), baselines, coefficients, coefficients)
def test_the_recursion_is_its_iteration(kappa0: float, rounds: int, a: float, b: float, c: float) -> None:
    trajectory = kappa_recursion(kappa0, rounds, a, b, c)
    expected = [kappa0]
    for _ in range(rounds):
        expected.append(a + b * math.sqrt(expected[-1]) + c * math.log(expected[-1]))
    np.testing.assert_allclose(trajectory, expected, rtol=1e-12)
    assert (trajectory >= 1).all()


@given(kappas, st.integers(0, 8), rates, rates, confidences)
def test_the_exact_recursion_is_its_iteration(kappa0: float, rounds: int, rate: float, beta: float, p: float) -> None:
    trajectory = tail_integral_recursion(kappa0, rounds, rate, beta, p)
    expected = [kappa0]
    for _ in range(rounds):
        expected.append(tail_integral(rate * math.sqrt(expected[-1]) + beta * math.log(expected[-1]), p))
    np.testing.assert_allclose(trajectory, expected, rtol=1e-9)


@given(kappas, rates, rates, confidences)
def test_relaxed_with_its_factor_the_recursion_is_above_the_exact_one(
    kappa0: float, rate: float, beta: float, p: float
) -> None:
    factor = relaxation_factor(rate, p)
    exact = tail_integral_recursion(kappa0, 8, rate, beta, p)
    relaxed = kappa_recursion(kappa0, 8, 1.0, rate / p * factor, beta / p * factor)
    line = kappa_bound(kappa0, np.arange(9), 1.0, (rate + beta) / p * factor)
    assert (exact <= relaxed * (1 + 1e-9)).all()
    assert (relaxed <= line * (1 + 1e-9)).all()


@given(rates, st.floats(1, 1e6), confidences)
def test_the_relaxation_factor(rate: float, times: float, p: float) -> None:
    larger = rate * times
    assert tail_integral(larger, p) <= (1 + relaxation_factor(rate, p) * larger / p) * (1 + 1e-12)


def test_without_its_factor_the_relaxation_is_no_bound() -> None:
    assert tail_integral(0.1, 0.05) == pytest.approx(3.5142, abs=1e-4)
    assert 1 + 0.1 / 0.05 == 3.0
    assert 1 + relaxation_factor(0.1, 0.05) * 0.1 / 0.05 == pytest.approx(3.5298, abs=1e-4)


@given(baselines, coefficients)
def test_the_fixed_point_and_the_slope_there(a: float, s: float) -> None:
    limit = kappa_fixed_point(a, s)
    assert limit == pytest.approx(a + s * math.sqrt(limit), rel=1e-12)
    slope = contraction_factor(a, s)
    assert slope == pytest.approx(s / (2 * math.sqrt(limit)), rel=1e-12)
    assert 0 <= slope <= 0.5
    if s <= 1e3:
        by_roots = brentq(lambda kappa: kappa - a - s * math.sqrt(kappa), a, 4 * (a + s) ** 2 + 1)
        assert limit == pytest.approx(by_roots, rel=1e-8)
        assert slope < 0.5


@given(kappas, st.integers(0, 15), baselines, coefficients)
def test_the_bound_is_above_the_iteration(kappa0: float, rounds: int, a: float, s: float) -> None:
    trajectory = kappa_recursion(kappa0, rounds, a, s, 0.0)
    bound = kappa_bound(kappa0, np.arange(rounds + 1), a, s)
    assert (trajectory <= bound * (1 + 1e-9)).all()
    assert bound[0] == pytest.approx(max(kappa0, kappa_fixed_point(a, s)))


@given(kappas, baselines, coefficients)
def test_the_recursion_comes_to_its_fixed_point(kappa0: float, a: float, s: float) -> None:
    assert kappa_recursion(kappa0, 1100, a, s, 0.0)[-1] == pytest.approx(kappa_fixed_point(a, s), rel=1e-9)


@given(kappas, baselines, coefficients)
def test_iterations_to_forget_are_the_least_that_do(kappa0: float, a: float, s: float) -> None:
    rounds = iterations_to_forget(kappa0, a, s)
    log_limit, log_slope = math.log(kappa_fixed_point(a, s)), math.log(max(contraction_factor(a, s), 1e-308))

    def start_is_forgotten(t: float) -> bool:
        return math.log(kappa0) + (t - 1) * log_slope <= log_limit + 1e-9

    assert rounds == int(rounds) >= 1
    assert start_is_forgotten(rounds)
    assert rounds == 1 or not start_is_forgotten(rounds - 1 - 1e-6)


def test_iterations_grow_like_the_logarithm_of_kappa() -> None:
    rounds = iterations_to_forget(10.0 ** np.arange(10, 300, 10), 1.0, 0.5)
    per_decade = -math.log(10) / math.log(contraction_factor(1.0, 0.5))
    np.testing.assert_allclose(np.diff(rounds), 10 * per_decade, atol=1)
    assert iterations_to_forget(1e300, 1.0, 0.0) == 2  # a single round forgets everything
    assert iterations_to_forget(1.0, 1.0, 0.0) == 1


def test_extremes_are_numbers() -> None:
    assert kappa_fixed_point(1.0, 1e200) == math.inf
    assert contraction_factor(1.0, 1e200) == 0.5
    assert kappa_bound(1e300, 5, 1.0, 1e200) == math.inf
    assert kappa_bound(1e300, 0, 1.0, 0.0) == pytest.approx(1e300)
    assert tail_integral(1e-300, 1e-300) > 1
    assert tail_integral(5.0, 1.0) == tail_integral(0.0, 1.0) == 1


def test_recursions_broadcast_with_rounds_last() -> None:
    trajectory = kappa_recursion([[10.0], [1e8]], 4, 1.0, [0.1, 0.2, 0.3], 0.05)
    assert trajectory.shape == (2, 3, 5)
    np.testing.assert_allclose(trajectory[1, 2], kappa_recursion(1e8, 4, 1.0, 0.3, 0.05))
    exact = tail_integral_recursion([10.0, 1e8], 4, 0.01, 0.0, [[0.1], [0.2], [0.3]])
    assert exact.shape == (3, 2, 5)
    np.testing.assert_allclose(exact[2, 1], tail_integral_recursion(1e8, 4, 0.01, 0.0, 0.3))
    assert kappa_bound([10.0, 1e8], [[1], [2], [3]], 1.0, 0.1).shape == (3, 2)
    assert type(kappa_bound(10.0, 1, 1.0, 0.1)) is type(tail_integral(0.1, 0.1)) is float


RELAXED = {"kappa0": 5.0, "rounds": 2, "baseline": 1.0, "sqrt_coefficient": 0.1, "log_coefficient": 0.1}
EXACT = {"kappa0": 5.0, "rounds": 2, "statistical_rate": 0.1, "beta_rate": 0.1, "confidence": 0.1}


@pytest.mark.parametrize(("function", "valid"), [(kappa_recursion, RELAXED), (tail_integral_recursion, EXACT)])
def test_one_trajectory_has_one_number_of_rounds(function, valid) -> None:
    with pytest.raises(ValueError, match="rounds must be one whole number"):
        function(**{**valid, "rounds": [1, 2]})


def test_a_coefficient_a_round_is_one_round_at_a_time() -> None:
    betas = [0.3, 0.0, 0.05]
    relaxed = kappa_recursion(1e4, None, 1.0, 0.2, betas)
    exact = tail_integral_recursion(1e4, None, 0.01, betas, 0.1)
    for t, beta in enumerate(betas):
        assert relaxed[t + 1] == kappa_recursion(relaxed[t], 1, 1.0, 0.2, beta)[1]
        assert exact[t + 1] == tail_integral_recursion(exact[t], 1, 0.01, beta, 0.1)[1]
    several = kappa_recursion([10.0, 1e4], None, 1.0, 0.2, [[[0.3, 0.3]], [[0.1, 0.2]]])
    assert several.shape == (2, 2, 3)
    np.testing.assert_allclose(several[0, 1], kappa_recursion(1e4, 2, 1.0, 0.2, 0.3))
    for recursion in (kappa_recursion, tail_integral_recursion):
        with pytest.raises(ValueError, match="where rounds are not given"):
            recursion(10.0, None, 1.0, 0.2, 0.3)
