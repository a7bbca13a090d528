"""Scalars give floats, arrays broadcast, and what is no number in range raises ValueError: corners of that."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from srlm.theory import (
    effective_dimension,
    finite_class_guarantee,
    iterations_to_forget,
    kappa_bound,
    kappa_recursion,
    sharpened_kappa_bound,
    sharpened_log_odds,
    sharpened_mode_bracket,
    single_step_lower_bound,
    tail_integral,
    tail_integral_recursion,
)

RUN = {
    "num_samples": 1e6, "rounds": np.array([1, 2, 5]), "log_class_size": 5.0, "min_confidence": 0.3, "margin": 1.0,
    "beta": 1e-3, "level": 0.5, "failure_probability": 0.05, "constant": 0.05,
}  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        10**400,
        pytest.param(10**5000, id="no repr"),
        "3",
        ["3"],
        [1.0, "3"],
        b"3",
        1j,
        None,
        np.datetime64("2026-01-01"),
    ],
)
def test_what_is_no_number_is_refused(value) -> None:
    with pytest.raises(ValueError, match=r"^log_kappa must be in \[0, inf\), got ") as error:
        single_step_lower_bound(10.0, value, 2.0)
    assert len(str(error.value)) < 120


def test_numbers_of_any_kind_are_numbers() -> None:
    expected = single_step_lower_bound(10.0, 3.0, 2.0)
    for kind in (int, np.int8, np.float64, Fraction, torch.tensor):
        assert single_step_lower_bound(10.0, kind(3), 2.0) == expected


def test_a_spectrum_at_the_end_of_the_floats() -> None:
    assert effective_dimension([1e308, 1e308], 1e308) == 1
    assert effective_dimension([0.0, 1e-320, 1e308], 1e-10) == pytest.approx(1)


@pytest.mark.parametrize(
    "changes", [{"margin": 1e-320}, {"constant": 1e308, "log_class_size": 1e5}, {"beta": 1e308, "margin": 1e-3}]
)
def test_rates_beyond_the_floats_name_what_the_caller_gave(changes) -> None:
    with pytest.raises(ValueError, match=r"^constant, beta and margin must leave .* finite, got margin "):
        finite_class_guarantee(**RUN | changes, kappa0=5.0)


def test_a_bracket_of_what_is_no_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 1 in all, got 0\.2 known and 0\.2 in all"):
        sharpened_mode_bracket(np.log([0.1, 0.1]), 0.0, -3.0, 2.0)
    with pytest.raises(ValueError, match=r"got 1\.3 known"):
        sharpened_mode_bracket(np.log([0.6, 0.7]), 0.0, -3.0, 2.0)
    sharpened_mode_bracket(np.log([0.6, 0.4 - 1e-7]), 0.0, -math.inf, 2.0)  # single precision
    sharpened_mode_bracket(np.log([0.6, 0.3]), 0.9, -1.0, 2.0)  # more than there is left is allowed


def test_log_odds_broadcast() -> None:
    odds, rounds, clips, betas = [0.0, 1.0, 5.0, math.inf], [[0], [1], [3]], [[[0.5]], [[4.0]], [[math.inf]]], 0.7
    found = sharpened_log_odds(odds, betas, rounds, clips)
    assert found.shape == (3, 3, 4)
    for i, level in enumerate([0.5, 4.0, math.inf]):
        for j, t in enumerate([0, 1, 3]):
            for k, d in enumerate(odds):
                single = sharpened_log_odds(d, betas, t, level)
                assert type(single) is float and found[i, j, k] == pytest.approx(single, rel=1e-12)
    several = sharpened_log_odds(1.0, [0.5, 2.0], 2, [3.0, 3.0])
    np.testing.assert_allclose(several, [sharpened_log_odds(1.0, beta, 2, 3.0) for beta in (0.5, 2.0)])


# kappa by its logarithm


def test_by_its_logarithm_kappa_is_the_same() -> None:
    for kappa in (1.0, 1.5, 1e4, 1e300):
        log_kappa = math.log(kappa)
        plain = kappa_recursion(kappa, 6, 1.0, 0.2, 0.1)
        np.testing.assert_allclose(
            kappa_recursion(None, 6, 1.0, 0.2, 0.1, log_kappa0=log_kappa), np.log(plain), atol=1e-12
        )
        plain = tail_integral_recursion(kappa, 6, 0.01, 0.02, 0.1)
        found = tail_integral_recursion(None, 6, 0.01, 0.02, 0.1, log_kappa0=log_kappa)
        np.testing.assert_allclose(found, np.log(plain), atol=1e-12)
        bound = kappa_bound(kappa, [0, 3], 1.0, 0.4)
        np.testing.assert_allclose(kappa_bound(None, [0, 3], 1.0, 0.4, log_kappa0=log_kappa), np.log(bound), atol=1e-12)
        assert iterations_to_forget(None, 1.0, 0.4, log_kappa0=log_kappa) == iterations_to_forget(kappa, 1.0, 0.4)
        sharp = sharpened_kappa_bound(kappa, 0.3, [1.0, 2.0])
        np.testing.assert_allclose(
            sharpened_kappa_bound(None, 0.3, [1.0, 2.0], log_kappa0=log_kappa), np.log(sharp), atol=1e-12
        )
        by_log, by_kappa = (
            finite_class_guarantee(**RUN, log_kappa0=log_kappa),
            finite_class_guarantee(**RUN, kappa0=kappa),
        )
        np.testing.assert_allclose(by_log.total, by_kappa.total, rtol=1e-12)
        np.testing.assert_allclose(by_log.iterated_total, by_kappa.iterated_total, rtol=1e-12)


def test_beyond_the_floats_kappa_has_a_logarithm() -> None:
    far = 3000.0
    # kappa_1 = .2 e^{1500} + ..., kappa_2 = .2 sqrt(kappa_1) + ...
    relaxed = kappa_recursion(None, 2, 1.0, 0.2, 0.1, log_kappa0=far)
    np.testing.assert_allclose(relaxed, [far, 1500 + math.log(0.2), 750 + 1.5 * math.log(0.2)], rtol=1e-12)
    exact = tail_integral_recursion(None, 2, 0.01, 0.0, 0.1, log_kappa0=far)
    np.testing.assert_allclose(np.exp(exact[1:]), [10, tail_integral(0.01 * math.sqrt(10), 0.1)])
    bound = kappa_bound(None, [0, 10], 1.0, 0.5, log_kappa0=far)
    slope = 0.5 / (0.5 + math.sqrt(0.25 + 4))
    np.testing.assert_allclose(bound, [far, far + 10 * math.log(slope)], rtol=1e-12)
    assert iterations_to_forget(None, 1.0, 0.5, log_kappa0=far) == 1 + math.ceil(
        (far - math.log(kappa_bound(1.0, 0, 1.0, 0.5))) / -math.log(slope)
    )
    assert sharpened_kappa_bound(None, 0.5, 1001.0, log_kappa0=far) == pytest.approx(far - 500)
    made = finite_class_guarantee(**RUN, log_kappa0=far)
    assert made.total[0] == math.inf and made.total[1] < 1 and made.vacuous.tolist() == [True, False, False]
    assert kappa_recursion(1e300, 1, 1.0, 1e300, 0.0)[1] == math.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda **start: kappa_recursion(start["kappa0"], 1, 1.0, 0.1, 0.1, log_kappa0=start["log_kappa0"]),
        lambda **start: tail_integral_recursion(start["kappa0"], 1, 0.1, 0.1, 0.1, log_kappa0=start["log_kappa0"]),
        lambda **start: kappa_bound(start["kappa0"], 1, 1.0, 0.1, log_kappa0=start["log_kappa0"]),
        lambda **start: iterations_to_forget(start["kappa0"], 1.0, 0.1, log_kappa0=start["log_kappa0"]),
        lambda **start: sharpened_kappa_bound(start["kappa0"], 0.1, 2.0, log_kappa0=start["log_kappa0"]),
        lambda **start: finite_class_guarantee(**RUN, **start),
    ],
)
def test_a_start_is_given_once_and_in_range(call) -> None:
    for start, said in [
        ({"kappa0": 2.0, "log_kappa0": 1.0}, "^kappa0 or log_kappa0 must be given, got both"),
        ({"kappa0": None, "log_kappa0": None}, "^kappa0 or log_kappa0 must be given, got neither"),
        ({"kappa0": None, "log_kappa0": -0.1}, r"^log_kappa0 must be in \[0, inf\), got -0.1"),
        ({"kappa0": None, "log_kappa0": math.inf}, r"^log_kappa0 must be in \[0, inf\), got inf"),
    ]:
        with pytest.raises(ValueError, match=said):
            call(**start)
