from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm.theory import condition_number, log_condition_number, mode_margin

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


@given(log_probs)
def test_kappa_is_the_exponential_of_its_log(values: list[float]) -> None:
    assert condition_number(np.exp(values)) == pytest.approx(math.exp(log_condition_number(values)), rel=1e-12)
    assert type(condition_number(np.exp(values))) is type(log_condition_number(values)) is float


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_kappa_of_a_policy_lies_between_one_and_the_number_of_responses(
    responses: int, prompts: int, seed: int
) -> None:
    policy = np.random.default_rng(seed).dirichlet(np.full(responses, 0.3), size=prompts)
    assert 1 <= condition_number(policy.max(-1)) <= responses * (1 + 1e-12)


def test_certain_modes_give_kappa_one_exactly() -> None:
    assert condition_number([1.0, 1.0, 1.0]) == 1
    assert log_condition_number(np.zeros(49), np.full(49, 1 / 49)) == 0


def test_kappa_at_the_ends() -> None:
    assert condition_number([0.0, 0.5]) == math.inf
    assert condition_number([0.0, 0.5], [0, 1]) == pytest.approx(2)
    assert condition_number([1e-320]) == math.inf


def test_rows_are_independent() -> None:
    values = np.log(np.random.default_rng(0).uniform(0.01, 1, (4, 3, 5)))
    weight = np.random.default_rng(1).dirichlet(np.ones(5), size=3)
    batch = log_condition_number(values, weight)
    assert batch.shape == (4, 3)
    assert batch[2, 1] == pytest.approx(log_condition_number(values[2, 1], weight[1]))
    np.testing.assert_allclose(condition_number(np.exp(values), weight), np.exp(batch))


def test_margin_is_the_gap_between_the_two_best() -> None:
    assert mode_margin([-3.0, -1.0, -2.5]) == pytest.approx(1.5)
    assert mode_margin([-math.inf, -math.inf, 0.0]) == math.inf
    np.testing.assert_allclose(mode_margin([[-1.0, -1.0, -5.0], [-0.5, -1.25, -4.0]]), [0, 0.75])


@pytest.mark.parametrize("values", [[], [-1.0], -1.0, [-math.inf, -math.inf], [-1.0, math.nan], [-1.0, 0.5]])
def test_what_has_no_margin_is_refused(values) -> None:
    with pytest.raises(ValueError, match="log_prob must be"):
        mode_margin(values)


@pytest.mark.parametrize("values", [[], [0.1], [math.nan], -1.0, "x", ["x"]])
def test_what_is_no_log_probability_is_refused(values) -> None:
    with pytest.raises(ValueError, match="mode_log_prob"):
        log_condition_number(values)


@pytest.mark.parametrize("values", [[], [-0.1], [1.1], [math.nan], 0.5])
def test_what_is_no_probability_is_refused(values) -> None:
    with pytest.raises(ValueError, match="mode_prob"):
        condition_number(values)


def test_an_error_names_argument_value_and_range() -> None:
    with pytest.raises(ValueError, match=r"mode_prob must be in \[0, 1\], got 1.5"):
        condition_number([0.5, 1.5])


def test_the_theory_needs_no_torch() -> None:
    code = "import sys, srlm.theory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("weight", [[1.0], [0.5, 0.6], [1.5, -0.5], [math.nan, 1.0], 1.0, [[1.0, 0.0], [0.4, 0.4]]])
def test_what_is_no_distribution_over_prompts_is_refused(weight) -> None:
    with pytest.raises(ValueError, match="weight"):
        log_condition_number([-1.0, -2.0], weight)
