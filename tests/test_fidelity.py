"""The fidelity guarantee: a union over rounds, against every policy that could break it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm.theory.fidelity import fidelity_bound, fidelity_guarantee
from srlm.theory.guarantee import finite_class_guarantee
from srlm.theory.recursion import tail_integral

KNOWN = {
    "num_samples": 1e6, "kappa0": 20.0, "log_class_size": 3.0, "min_confidence": 0.2, "margin": 2.0, "beta": 0.02,
    "level": 0.1, "failure_probability": 0.05,
}  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 12), st.integers(2, 5), st.floats(0.02, 0.98),
    st.floats(0.1, 6.0),
)  # fmt: skip
def test_no_sequence_of_policies_crosses_it(seed, rounds, prompts, responses, level, sharpness) -> None:
    """A_t is the least number for which Eq. 43 holds at every delta: sup delta P[pi_{t+1}(y*_t) <= 1 - delta]."""
    generator = np.random.default_rng(seed)
    logits = np.cumsum(sharpness * generator.normal(size=(rounds + 1, prompts, responses)), 0)
    policy = np.exp(logits - logits.max(-1, keepdims=True))
    policy /= policy.sum(-1, keepdims=True)
    mode = policy.argmax(-1)
    rates = []
    for before, after in zip(mode[:-1], policy[1:], strict=True):
        missing = np.sort(1 - after[np.arange(prompts), before])
        # at delta = the k-th largest deficit, k of the prompts fail
        rates.append((missing * np.arange(prompts, 0, -1)).max() / prompts)
    lost = (mode[-1] != mode[0]) | (policy[-1][np.arange(prompts), mode[0]] <= 1 - level)
    assert lost.mean() <= fidelity_bound(rates, level) + 1e-12


def test_it_is_the_sum() -> None:
    assert fidelity_bound([0.01, 0.02, 0.03], 0.25) == pytest.approx(0.02 + 0.04 + 0.12)
    assert fidelity_bound([0.1], 0.5) == pytest.approx(0.2)
    assert fidelity_bound([0.1], 0.9) == pytest.approx(0.2)  # a mode with more than 1 - .9 may not be the mode
    assert fidelity_bound([0.3, 0.3], 0.5) == pytest.approx(1.2)
    assert fidelity_bound([[0.01, 0.02], [0.0, 0.1]], [0.5, 0.2]).tolist() == pytest.approx([0.06, 0.5])


def test_the_union_is_attained() -> None:
    """Every round moves the mode of other prompts, and just so: nothing smaller than the sum is true."""
    rounds, prompts = 4, 8
    mode = np.zeros((rounds + 1, prompts), dtype=int)
    for t in range(rounds):
        mode[t + 1] = mode[t]
        mode[t + 1, t] = 1  # the old mode keeps 1/2, less a hair
    assert (mode[-1] != mode[0]).mean() == pytest.approx(fidelity_bound([0.5 / prompts] * rounds, 0.5))


def test_one_round_is_what_the_guarantee_says() -> None:
    single = finite_class_guarantee(rounds=1, **KNOWN).iterated_total
    assert fidelity_guarantee(rounds=1, **KNOWN) == pytest.approx([single])


def test_two_rounds_written_out() -> None:
    n, gamma, delta = KNOWN["num_samples"], KNOWN["margin"], KNOWN["level"]
    complexity = 3.0 + math.log(2 / 0.05)
    rate, beta_rate = (math.log(n) + complexity) * math.sqrt(complexity / n) / gamma, 0.02 / gamma
    first = rate * math.sqrt(20.0) + beta_rate * math.log(20.0)
    kappa = tail_integral(first, 0.2)
    second = rate * math.sqrt(kappa) + beta_rate * math.log(kappa)
    assert fidelity_guarantee(rounds=2, **KNOWN)[1] == pytest.approx(2 * first + second / delta)


def test_there_is_a_best_number_of_rounds() -> None:
    bounds = fidelity_guarantee(rounds=12, **KNOWN)
    best = int(bounds.argmin())
    assert 0 < best < 11 and bounds[best] < 0.9 * bounds[0]
    assert (np.diff(bounds[best:]) > 0).all()


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": 0},
        {"rounds": 1.5},
        {"margin": 0.0},
        {"level": 1.0},
        {"num_samples": 0.5},
        {"kappa0": 0.5},
        {"beta": [0.1, 0.2]},
    ],
)
def test_what_is_out_of_range(change) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
        fidelity_guarantee(**({"rounds": 2} | KNOWN | change))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("change", [{"margin": 1e-310}, {"beta": 1e308, "margin": 1e-3}])
def test_rates_beyond_the_floats_name_what_the_caller_gave(change) -> None:
    with pytest.raises(ValueError, match=r"^constant, beta and margin must leave .* finite, got margin "):
        fidelity_guarantee(**({"rounds": 2} | KNOWN | change))


def test_rates_out_of_range() -> None:
    for rates in ([], 0.1, [-0.1], [np.nan]):
        with pytest.raises(ValueError, match="round_rate must be"):
            fidelity_bound(rates, 0.5)
    with pytest.raises(ValueError, match="level must be"):
        fidelity_bound([0.1], 0.0)
