"""Many small least squares problems at once: the fast way against eigenvectors, easy and awkward ones in one batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srlm.loop import self_reward
from srlm.policies.draws import Draws, sampled
from srlm.policies.least_squares import by_cholesky, by_eigenvectors, minimum_norm, on_ball
from srlm.policies.linear_softmax import LinearSoftmaxPolicy, least_squares
from srlm.rewards.table import REWARDS
from srlm.types import Prompts, Rollouts

# Eigenvalues relative to the largest: full rank, rank deficient, near-singular, on either side of what counts as 0.
SPECTRA = [
    [1.0, 0.7, 0.3, 0.1], [1.0, 0.5, 1e-3, 1e-4], [1.0, 0.3, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0],
    [1.0, 0.2, 1e-6, 0.0], [1.0, 0.2, 1e-8, 1e-9], [1.0, 0.2, 1e-11, 0.0], [1.0, 0.5, 0.1, 1e-13],
    [1e-6, 1e-7, 0.0, 0.0],
]  # fmt: skip


def problems(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A, b = A x and a start of norm 1, for every spectrum in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(SPECTRA, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(len(SPECTRA), 4, 4, dtype=torch.float64, generator=generator))[0]
    truth, start = torch.randn(2, len(SPECTRA), 4, dtype=torch.float64, generator=generator)
    matrix = basis @ (values[..., None] * basis.mT)
    return (matrix + matrix.mT) / 2, (matrix @ truth[..., None])[..., 0], start / start.norm(dim=-1, keepdim=True)


@settings(deadline=None)
@given(st.sampled_from([1.0, 1.5, 3.0, math.inf]), st.sampled_from([0.0, 1e-3, 0.2]), st.integers(0, 2**32))
def test_eigenvectors_say_the_same(radius: float, ridge: float, seed: int) -> None:
    matrix, vector, start = problems(seed)
    expected = by_eigenvectors(matrix + ridge * torch.eye(4, dtype=torch.float64), vector, start, radius)
    found = on_ball(matrix, vector, start, radius, ridge)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    for each in range(len(SPECTRA)):
        alone = on_ball(matrix[each], vector[each], start[each], radius, ridge)
        assert torch.allclose(alone, found[each], rtol=1e-9, atol=1e-9)


def test_only_what_is_beyond_doubt_is_left_to_cholesky() -> None:
    clear = by_cholesky(*problems(0)[:2])[1]
    assert clear.tolist() == [True] * 5 + [False] * 3 + [True] * 2


def test_unobserved_directions_do_not_move() -> None:
    """Although what is left of b there is divided by the shift."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 12, 32, dtype=torch.float64, generator=generator) / 6
    right = torch.randn(500, 12, 1, dtype=torch.float64, generator=generator)
    matrix, vector = rows.mT @ rows, (rows.mT @ right)[..., 0]
    assert by_cholesky(matrix, vector)[1].double().mean() > 0.95
    step = minimum_norm(matrix, vector)
    expected = torch.linalg.lstsq(rows, right, driver="gelsd").solution[..., 0]
    assert torch.allclose(step, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shared", [False, True])
def test_linear_replicas_are_runs_of_their_own(shared: bool) -> None:
    """Whether they share their features or not, and however few directions they saw."""
    generator = torch.Generator().manual_seed(0)
    phi = torch.nn.functional.normalize(torch.randn(6, 3, 5, 4, dtype=torch.float64, generator=generator), dim=-1)
    theta = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    together = LinearSoftmaxPolicy(theta, phi[0] if shared else phi)
    rollouts = sampled(3, 2)(together, Prompts.uniform(range(3)), 0, generator)
    after, info = least_squares(0.5)(together, rollouts, rollouts.log_prob)
    for r in range(6):
        draws = Draws(rollouts.responses.prompt[r], rollouts.responses.response[r])
        own = Rollouts(0, rollouts.prompts, draws, rollouts.log_prob[r], rollouts.weight[r])
        policy = LinearSoftmaxPolicy(theta[r], phi[0] if shared else phi[r])
        assert torch.allclose(policy.log_prob(rollouts.prompts, draws), rollouts.log_prob[r])
        alone, own_info = least_squares(0.5)(policy, own, own.log_prob)
        assert torch.allclose(alone.theta, after.theta[r], rtol=1e-9, atol=1e-9)
        assert torch.allclose(own_info.log_ratio, info.log_ratio[r], rtol=1e-9, atol=1e-9)


def test_an_update_that_is_no_number_is_refused() -> None:
    policy = LinearSoftmaxPolicy(torch.ones(2).double(), torch.eye(2).double().view(1, 2, 2))
    steps = self_reward(
        policy, Prompts.uniform([0]), sampler=sampled(20, 4), update=least_squares(1.0), rounds=1, seed=0,
        reward=lambda policy, rollouts: REWARDS["log_likelihood"](policy, rollouts) * math.nan,
    )  # fmt: skip
    with pytest.raises(ValueError, match="must have a norm of at most inf, got nan"):
        list(steps)
