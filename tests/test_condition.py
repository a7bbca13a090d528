from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm.theory import log_condition_number

log_probs = st.lists(st.floats(-30, 0), min_size=1, max_size=8)


@given(log_probs)
def test_kappa_is_the_mean_inverse_probability_of_the_mode(values: list[float]) -> None:
    kappa = sum(1 / math.exp(v) for v in values) / len(values)
    assert log_condition_number(values) == pytest.approx(math.log(kappa), abs=1e-9)
    assert log_condition_number(values) >= -1e-12  # kappa >= 1
    assert log_condition_number(values) <= -min(values) + 1e-9  # kappa <= 1/p


@given(log_probs, st.randoms(use_true_random=False))
def test_prompts_are_weighed_by_their_probability(values: list[float], random) -> None:
    weight = np.array([random.random() for _ in values]) + 1e-3
    weight /= weight.sum()
    kappa = sum(w / math.exp(v) for w, v in zip(weight, values, strict=True))
    assert log_condition_number(values, weight) == pytest.approx(math.log(kappa), abs=1e-9)


def test_no_overflow() -> None:
    assert log_condition_number([-2000.0, -3.0]) == pytest.approx(2000 - math.log(2))
    assert log_condition_number([-math.inf, -3.0]) == math.inf
    assert log_condition_number([-math.inf, -3.0], [0, 1]) == pytest.approx(3)
    assert log_condition_number([0.0, 0.0]) == pytest.approx(0)


@pytest.mark.parametrize("values", [[], [0.1], [math.nan], [[-1.0]], -1.0])
def test_what_is_no_log_probability_is_refused(values) -> None:
    with pytest.raises(ValueError, match="mode_log_prob"):
        log_condition_number(values)


@pytest.mark.parametrize("weight", [[1.0], [0.5, 0.6], [1.5, -0.5], [math.nan, 1.0]])
def test_what_is_no_distribution_over_prompts_is_refused(weight: list[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        log_condition_number([-1.0, -2.0], weight)
