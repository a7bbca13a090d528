"""Share rewards: against the loop's own update, and rounds counted one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from srlm.loop import self_reward
from srlm.policies.draws import enumerated
from srlm.policies.tabular import TabularPolicy, tilt
from srlm.theory.share_rewards import log_share_from_samples, share_rounds_needed, sharpen_by_share
from srlm.types import Prompts


def flat(rivals: int, margin: float) -> np.ndarray:
    logits = np.array([0.0] + [-margin] * rivals)
    return logits - np.log(np.exp(logits).sum())


def rounds_to_half(rivals: int, margin: float, beta: float) -> int:
    """In one number, the log-odds."""
    odds, rounds = margin, 0
    while odds < math.log(rivals):
        odds += (math.exp(odds) - 1) / (beta * (rivals + math.exp(odds)))
        rounds += 1
    return rounds


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 5.0), st.integers(0, 6))
def test_it_is_the_loop_with_shares_for_rewards(seed, beta, rounds) -> None:
    start = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 5)))
    *_, last = self_reward(
        TabularPolicy(start), Prompts.uniform(range(3)), sampler=enumerated,
        reward=lambda policy, rollouts: rollouts.log_prob.exp(), update=tilt(beta), rounds=rounds, seed=0,
    )  # fmt: skip
    found = sharpen_by_share(start.log_softmax(-1).numpy().clip(max=0), beta, rounds)
    assert np.allclose(found, last.policy.log_table().numpy(), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 600), st.floats(0.05, 3.0), st.floats(0.02, 2.0))
def test_no_fewer_rounds_than_needed(rivals, margin, beta) -> None:
    needed = share_rounds_needed(rivals, margin, beta)
    counted = rounds_to_half(rivals, margin, beta)
    assert needed <= counted + 1e-9
    # A step of the log-odds is at most 1/(2 beta) before the half: the integral lags by what one step skips.
    if beta >= 0.5 and counted >= 10:
        assert counted <= 1.5 * needed + 3


def test_the_rounds_needed_are_an_integral() -> None:
    """Of the time that the log-odds spend at D, beta (m + e^D)/(e^D - 1), by quadrature."""
    for m, margin in ((3, 0.2), (50, 0.5), (1000, 2.0)):
        time = integrate.quad(lambda odds, m=m: 0.7 * (m + math.exp(odds)) / math.expm1(odds), margin, math.log(m))[0]
        assert share_rounds_needed(m, margin, 0.7) == pytest.approx(time, rel=1e-7)


def test_the_rounds_are_linear_in_the_rivals() -> None:
    counted = [rounds_to_half(m, 0.5, 0.1) for m in (100, 200, 500, 1000)]
    assert counted == [int(np.argmax([np.exp(sharpen_by_share(flat(m, 0.5), 0.1, t)[0]) >= 0.5 for t in range(150)]))
                       for m in (100, 200, 500, 1000)]  # fmt: skip
    needed = share_rounds_needed([100, 200, 500, 1000], 0.5, 0.1)
    assert np.allclose(needed / [100, 200, 500, 1000], 0.1 * math.log(1 / (1 - math.exp(-0.5))), rtol=0.05)
    assert (needed <= counted).all() and (counted <= needed + 4).all()


def test_half_already() -> None:
    assert share_rounds_needed(3, 2.0, 0.1) == 0.0 and share_rounds_needed(1, 0.1, 1.0) == 0.0


def test_samples_floor_the_log_share() -> None:
    floored = log_share_from_samples(np.log([0.9, 0.05, 0.001]), 16)
    assert floored == pytest.approx([math.log(0.9), math.log(1 / 16), math.log(1 / 16)])
    assert log_share_from_samples(-math.inf, 1) == 0.0


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: sharpen_by_share([-1.0, -1.0], 1.0, 1), "log_share"),
        (lambda: sharpen_by_share(0.0, 1.0, 1), "log_share"),
        (lambda: sharpen_by_share([0.0], 0.0, 1), "beta"),
        (lambda: sharpen_by_share([0.0], [1.0, 2.0], 1), "beta"),
        (lambda: sharpen_by_share([0.0], 1.0, 0.5), "rounds"),
        (lambda: share_rounds_needed(1.5, 1.0, 1.0), "num_rivals"),
        (lambda: share_rounds_needed(5, 0.0, 1.0), "margin"),
        (lambda: share_rounds_needed(5, 1.0, math.nan), "beta"),
        (lambda: log_share_from_samples(0.1, 4), "log_share"),
        (lambda: log_share_from_samples(-0.1, 0), "num_samples"),
    ],
)
def test_what_is_out_of_range(call, name) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        call()


def test_a_tiny_beta_and_a_share_of_nothing() -> None:
    once = sharpen_by_share([math.log(0.95), math.log(0.05), -math.inf], 1e-308, 1)
    assert once[0] == 0 and once[1] < -1e307 and once[2] == -math.inf
