from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from srlm.estimators.slopes import log_log_slope


@given(st.floats(-3, 3), st.floats(0.1, 10), st.floats(0.001, 0.2))
def test_a_power_law_is_found_exactly(power: float, scale: float, error: float) -> None:
    x = np.array([1.0, 3.0, 10.0, 40.0])
    y = scale * x**power
    slope, low, high = log_log_slope(x, y, error * y)
    assert slope == pytest.approx(power, abs=1e-9)
    assert low < power < high


@given(st.integers(0, 2**32))
def test_the_slope_is_the_weighted_least_squares_one(seed: int) -> None:
    draw = np.random.default_rng(seed)
    x, y, error = (draw.uniform(0.5, 3, 6) for _ in range(3))
    slope, _, _ = log_log_slope(x, y, error)
    fit = optimize.curve_fit(lambda t, a, b: a + b * t, np.log(x), np.log(y), sigma=error / y)[0]
    assert slope == pytest.approx(fit[1], abs=1e-5)


def test_intervals_cover_at_their_level() -> None:
    draw = np.random.default_rng(0)
    x = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    error = 0.03 * x**-0.5
    covered = 0
    for _ in range(2000):
        _, low, high = log_log_slope(x, x**-0.5 + error * draw.standard_normal(5), error)
        covered += low <= -0.5 <= high
    # The wider of two intervals of 95 % covers somewhat more often.
    assert 0.95 < covered / 2000 < 0.99


def test_what_is_no_power_law_widens_the_interval() -> None:
    x = np.array([1.0, 2.0, 4.0, 8.0])
    straight = log_log_slope(x, 1 / x, 0.01 / x)
    bent = log_log_slope(x, np.exp(-x / 3), 0.01 * np.exp(-x / 3))
    assert bent[2] - bent[1] > 10 * (straight[2] - straight[1])


@pytest.mark.parametrize(
    ("x", "y", "error"),
    [
        ([1, 2], [1, 2], [1, 1]),
        ([1, 2, 3], [1, 2, 3], [1, 1]),
        ([0, 1, 2], [1, 1, 1], [1, 1, 1]),
        ([1, 2, 3], [1, 0, 1], [1, 1, 1]),
        ([1, 2, 3], [1, 1, 1], [1, 0, 1]),
    ],
)
def test_what_has_no_slope_is_refused(x, y, error) -> None:
    with pytest.raises(ValueError, match="standard_error must be"):
        log_log_slope(x, y, error)
