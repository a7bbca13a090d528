from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm.theory import (
    covering_log_size,
    effective_dimension,
    exponential_spectrum_bound,
    polynomial_spectrum_bound,
    spiked_spectrum_bound,
)

seeds = st.integers(0, 2**32 - 1)
ridges = st.floats(-8, 3).map(lambda x: 10**x)
scales = st.floats(-3, 3).map(lambda x: 10**x)


@given(seeds, st.integers(1, 8), ridges)
def test_effective_dimension_is_the_trace_of_the_ridge_hat_matrix(seed: int, d: int, ridge: float) -> None:
    features = np.random.default_rng(seed).normal(size=(3 * d, d))
    covariance = features.T @ features / len(features)
    trace = np.trace(covariance @ np.linalg.inv(covariance + ridge * np.eye(d)))
    assert effective_dimension(np.linalg.eigvalsh(covariance), ridge) == pytest.approx(trace, rel=1e-6)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), ridges, st.floats(1, 1e3))
def test_effective_dimension_falls_with_the_ridge_and_counts_at_most_the_dimensions(
    eigenvalues: list[float], ridge: float, times: float
) -> None:
    small, large = effective_dimension(eigenvalues, [ridge, ridge * times])
    assert 0 <= large <= small <= np.count_nonzero(eigenvalues)
    assert effective_dimension(eigenvalues, ridge) == small


@given(seeds, scales, st.floats(0.01, 5), ridges)
def test_exponential_spectra_are_under_their_bound(seed: int, scale: float, decay: float, ridge: float) -> None:
    i = np.arange(1, 3001)
    full = scale * np.exp(-decay * i)
    bound = exponential_spectrum_bound(scale, decay, ridge)
    for eigenvalues in (full, full * np.random.default_rng(seed).random(i.size)):
        assert effective_dimension(eigenvalues, ridge) <= bound * (1 + 1e-12)
    assert bound <= effective_dimension(full, ridge) + 1  # the integral and its sum differ by less than one term


@given(seeds, scales, st.floats(1.05, 8), ridges)
def test_polynomial_spectra_are_under_their_bound(seed: int, scale: float, power: float, ridge: float) -> None:
    i = np.arange(1, 3001)
    full = scale * i**-power
    bound = polynomial_spectrum_bound(scale, power, ridge)
    for eigenvalues in (full, full * np.random.default_rng(seed).random(i.size)):
        assert effective_dimension(eigenvalues, ridge) <= bound * (1 + 1e-12)
    tail = scale / ridge / (power - 1) * 3000 ** (1 - power)
    assert bound <= effective_dimension(full, ridge) + tail + 1


@given(seeds, st.integers(0, 6), st.integers(1, 50), scales, ridges)
def test_spiked_spectra_are_under_their_bound(seed: int, spikes: int, rest: int, scale: float, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    tail = scale * rng.random(rest)
    eigenvalues = np.append(1e6 * rng.random(spikes), tail)
    assert effective_dimension(eigenvalues, ridge) <= spiked_spectrum_bound(spikes, tail.sum(), ridge) * (1 + 1e-12)


def test_the_spiked_bound_is_reached_by_large_spikes_and_a_thin_tail() -> None:
    eigenvalues = np.append(np.full(3, 1e12), np.full(1000, 1e-6))
    assert effective_dimension(eigenvalues, 0.1) == pytest.approx(spiked_spectrum_bound(3, 1e-3, 0.1), rel=1e-4)


@given(seeds, st.integers(1, 5), st.integers(2, 8))
def test_the_net_needs_no_more_than_four(seed: int, d: int, responses: int) -> None:
    # |log pi_theta - log pi_theta'| <= 2 |theta - theta'|: a net of radius eps/2 in theta is one of eps in log pi.
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(responses, d))
    features /= np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1)
    theta, other = rng.normal(size=(2, d)) * 5

    def log_prob(parameters: np.ndarray) -> np.ndarray:
        logits = features @ parameters
        return logits - np.logaddexp.reduce(logits)

    distance = np.linalg.norm(theta - other)
    assert np.abs(log_prob(theta) - log_prob(other)).max() <= 2 * distance + 1e-12
    assert covering_log_size(d, 3.0, 0.1) == pytest.approx(d * math.log(1 + 6 * 3.0 / 0.1))


def test_the_net_in_one_dimension() -> None:
    # [-B, B] is covered by ceil(2B/eps) intervals of radius eps/2.
    for radius, eps in [(1.0, 0.1), (20.0, 3.0), (1.0, 10.0)]:
        assert math.log(math.ceil(2 * radius / eps)) <= covering_log_size(1, radius, eps)


def test_broadcasting() -> None:
    eigenvalues = np.random.default_rng(0).random((3, 1, 5))
    grid = effective_dimension(eigenvalues, [0.1, 1.0])
    assert grid.shape == (3, 2)
    assert grid[1, 0] == effective_dimension(eigenvalues[1, 0], 0.1)
    assert covering_log_size([1, 2], 1.0, [[0.1], [0.2], [0.3]]).shape == (3, 2)
    assert exponential_spectrum_bound(1.0, [0.5, 1.0], 0.1).shape == (2,)
    assert polynomial_spectrum_bound(1.0, [1.5, 2.0], 0.1).shape == (2,)
    assert spiked_spectrum_bound([1, 2], 0.5, 0.1).tolist() == pytest.approx([6, 7])
    assert exponential_spectrum_bound(1e300, 1.0, 1e-300) == pytest.approx(600 * math.log(10))


def test_a_single_eigenvalue_is_still_a_spectrum() -> None:
    with pytest.raises(ValueError, match="eigenvalues must be an array"):
        effective_dimension(1.0, 0.1)
