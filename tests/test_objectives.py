from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from srlm.objectives import censored, clip_reward, log_partition, regression


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> bool:
    return bool(((one - other).abs() <= tolerance * (1 + other.abs())).all())


# The loss, by its definition


def all_pairs(log_ratio: Tensor, reward: Tensor, weight: Tensor, beta: float) -> Tensor:
    """Eq. 3 for each prompt, pair by pair; pairs i != j have probability proportional to w_i w_j."""
    losses = []
    for ratio, r, w in zip(log_ratio, reward, weight, strict=True):
        total = mass = 0.0
        for i, j in itertools.combinations(range(len(r)), 2):
            total += w[i] * w[j] * ((beta * ratio[i] - beta * ratio[j]) - (r[i] - r[j])) ** 2
            mass += w[i] * w[j]
        losses.append(total / mass)
    return torch.stack(losses)


@given(st.integers(1, 3), st.integers(2, 7), st.floats(0.05, 5), st.booleans(), st.integers(0, 2**32))
def test_variance_form_is_the_mean_over_all_pairs(p: int, k: int, beta: float, uniform: bool, seed: int) -> None:
    ratio, reward = 3 * randn(p, k, seed=seed), 10 * randn(p, k, seed=seed + 1)
    weight = (
        torch.full((p, k), 1 / k, dtype=torch.float64) if uniform else torch.softmax(2 * randn(p, k, seed=seed + 2), -1)
    )
    loss = regression(ratio, reward, weight, beta=beta, anchor=0.0, clip=0.0)
    assert loss.shape == (p,)
    assert close(loss, all_pairs(ratio, reward, weight, beta))
    if uniform:
        assert close(loss, 2 * (beta * ratio - reward).var(-1))


@given(st.integers(2, 6), st.floats(0.05, 5), st.floats(0, 4), st.integers(0, 2**32))
def test_the_anchor_by_its_definition(k: int, beta: float, anchor: float, seed: int) -> None:
    ratio, reward = randn(2, k, seed=seed), 3 * randn(2, k, seed=seed + 1)
    weight = torch.softmax(randn(2, k, seed=seed + 2), -1)
    expected = []
    for x in range(2):
        z = sum(float(w) * math.exp(float(r) / beta) for w, r in zip(weight[x], reward[x], strict=True))
        mean = sum(float(weight[x, i]) * (beta * float(ratio[x, i]) - float(reward[x, i])) for i in range(k))
        expected.append(anchor * (mean + beta * math.log(z)) ** 2)
    plain = regression(ratio, reward, weight, beta=beta, anchor=0.0, clip=0.0)
    loss = regression(ratio, reward, weight, beta=beta, anchor=anchor, clip=0.0)
    assert close(loss - plain, torch.tensor(expected, dtype=torch.float64), 1e-8 * (1 + float(loss.max())))


def test_two_responses_are_the_paper_s_pair() -> None:
    loss = regression(
        torch.tensor([[0.3, -0.2]]),
        torch.tensor([[-4.0, -6.5]]),
        torch.full((1, 2), 0.5),
        beta=2.0,
        anchor=0.0,
        clip=0.0,
    )
    assert float(loss) == pytest.approx((2 * 0.3 - 2 * -0.2 - (-4.0 + 6.5)) ** 2)


@given(st.floats(-5, 5), st.integers(0, 2**32))
def test_a_constant_per_prompt_is_free_without_the_anchor_only(shift: float, seed: int) -> None:
    ratio, reward = randn(3, 5, seed=seed), randn(3, 5, seed=seed + 1)
    weight = torch.softmax(randn(3, 5, seed=seed + 2), -1)
    free = regression(ratio + shift, reward, weight, anchor=0.0, clip=0.0)
    assert close(free, regression(ratio, reward, weight, anchor=0.0, clip=0.0))
    assert close(free, regression(ratio, reward + shift, weight, anchor=0.0, clip=0.0))
    beta = 0.7
    exact = (reward - beta * log_partition(reward, weight, beta)[:, None]) / beta
    anchored = regression(exact + shift, reward, weight, beta=beta, anchor=2.0, clip=0.0)
    assert close(anchored, torch.full_like(anchored, 2 * (beta * shift) ** 2))


def test_a_group_of_one_certain_response_has_no_spread() -> None:
    weight = torch.tensor([[0.0, 1.0, 0.0]])
    ratio = torch.tensor([[-3.0, 0.5, 2.0]], requires_grad=True)
    loss = regression(ratio, torch.tensor([[-9.0, 0.0, -5.0]]), weight, clip=0.0)
    assert float(loss.detach()) == pytest.approx(0.5**2)  # Z = exp(0), so the anchor wants a log-ratio of 0
    loss.sum().backward()
    assert ratio.grad.tolist() == [[0.0, 1.0, 0.0]]


# The minimiser


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    logits = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=2000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(logits)
        value.backward()
        return value

    optimiser.step(closure)
    return logits.detach()


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("anchor", [0.0, 1.0])
def test_a_converged_gradient_update_is_the_escort(beta: float, anchor: float) -> None:
    """Eqs. 1-3 on a table: log-prob reward, enumerated responses, gradient descent on the logits."""
    log_p = torch.log_softmax(2 * randn(4, 6), -1)

    def loss(logits: Tensor) -> Tensor:
        ratio = torch.log_softmax(logits, -1) - log_p
        return regression(ratio, log_p, log_p.exp(), beta=beta, anchor=anchor, clip=0.0).sum()

    found = torch.softmax(minimise(loss, log_p), -1)
    escort = log_p.exp() ** (1 + 1 / beta)
    assert close(found, escort / escort.sum(-1, keepdim=True), 1e-6)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_anchored_minimiser_needs_no_normalisation(beta: float) -> None:
    """Log-ratios that are not tied to a softmax: the anchor alone makes pi_t exp(r/beta) sum to Z."""
    log_p, reward = torch.log_softmax(randn(3, 5), -1), 3 * randn(3, 5, seed=9)
    ratio = minimise(
        lambda d: regression(d, reward, log_p.exp(), beta=beta, anchor=1.0, clip=0.0).sum(), torch.zeros_like(log_p)
    )
    target = log_p.exp() * torch.exp(reward / beta)
    wanted = target / target.sum(-1, keepdim=True)
    assert close(log_p.exp() * ratio.exp(), wanted, 1e-6)
    loose = minimise(
        lambda d: regression(d, reward, log_p.exp(), beta=beta, anchor=0.0, clip=0.0).sum(), torch.ones_like(log_p)
    )
    mass = (log_p.exp() * loose.exp()).sum(-1)
    assert (mass.log().abs() > 0.1).all()  # every pair is satisfied all the same
    assert close(log_p.exp() * loose.exp() / mass[:, None], wanted, 1e-6)


@pytest.mark.parametrize("anchor", [0.0, 1.0])
def test_clipped_responses_are_pushed_down_by_at_least_the_clip(anchor: float) -> None:
    log_p, level, beta = torch.log_softmax(2 * randn(3, 7), -1), 1.5, 0.8
    far = log_p < log_p.amax(-1, keepdim=True) - level
    assert far.any(-1).all() and (~far).sum() > 3
    found = minimise(
        lambda z: regression(
            torch.log_softmax(z, -1) - log_p, log_p, log_p.exp(), beta=beta, anchor=anchor, clip=level
        ).sum(),
        log_p.clone(),
    )
    ratio = torch.log_softmax(found, -1) - log_p
    best = log_p.argmax(-1, keepdim=True)
    fall = ratio.gather(-1, best) - ratio
    wanted = (log_p.gather(-1, best) - log_p) / beta
    assert close(fall[~far], wanted[~far], 1e-3)
    assert (fall[far] >= level / beta - 1e-3).all() and (fall[far] <= wanted[far] + 1e-3).all()


@given(st.floats(0.2, 3), st.floats(0.5, 6), st.floats(0, 1), st.floats(-4, 4), st.integers(0, 2**32))
def test_what_lies_between_the_clipped_and_the_plain_target_costs_nothing(
    beta: float, clip: float, share: float, shift: float, seed: int
) -> None:
    reward = 5 * randn(3, 6, seed=seed)
    weight = torch.full((3, 6), 1 / 6, dtype=torch.float64)
    between = share * reward + (1 - share) * clip_reward(reward, clip)
    ratio = (between + shift) / beta
    assert close(censored(ratio, reward, weight, beta=beta, clip=clip), between)
    options = {"beta": beta, "anchor": 0.0, "clip": clip}
    assert float(regression(ratio, reward, weight, **options).max()) < 1e-12
    outside = between + torch.where(
        clip_reward(reward, clip) > reward, clip, 0.0
    )  # above the ceiling of those that are clipped
    loss = regression((outside + shift) / beta, reward, weight, **options)
    pushed = clip_reward(reward, clip)
    assert close(loss, 2 * (outside - torch.minimum(outside, pushed)).var(-1))


def test_a_gradient_reaches_clipped_responses_only_where_they_are_not_low_enough() -> None:
    reward, weight = torch.tensor([[0.0, -1.0, -20.0, -20.0]]), torch.full((1, 4), 0.25)
    ratio = torch.tensor([[0.0, -1.0, -3.0, -12.0]], requires_grad=True)  # asked: at least 8 under the best
    regression(ratio, reward, weight, anchor=0.0, clip=8.0).sum().backward()
    assert ratio.grad[0, 2] > 0 > ratio.grad[0, 3] - ratio.grad[0, :2].mean() - 1e-6
    assert ratio.grad[0, 0] == ratio.grad[0, 1] == ratio.grad[0, 3]


# Parts


@given(st.integers(1, 8), st.floats(0.1, 20), st.integers(0, 2**32))
def test_clip_reward_entry_by_entry(k: int, level: float, seed: int) -> None:
    reward = 10 * randn(3, k, seed=seed)
    clipped = clip_reward(reward, level)
    for x in range(3):
        for i in range(k):
            assert clipped[x, i] == max(float(reward[x, i]), float(max(reward[x])) - level)
    assert torch.equal(clip_reward(clipped, level), clipped)
    assert torch.equal(clip_reward(reward + 7, 0.0), reward + 7)


def test_log_partition_survives_extreme_rewards_and_empty_weights() -> None:
    reward = torch.tensor([[-2000.0, -2001.0, 0.0]])
    weight = torch.tensor([[0.25, 0.75, 0.0]])
    assert float(log_partition(reward, weight, 1.0)) == pytest.approx(-2000 + math.log(0.25 + 0.75 * math.exp(-1)))


def test_sampled_log_partition_is_biased_low_and_its_exponential_is_not() -> None:
    p, reward, beta, k = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([-0.5, -1.0, -3.0]), 0.5, 3
    exact = float((p * torch.exp(reward / beta)).sum())
    mean = log_mean = 0.0
    for draw in itertools.product(range(3), repeat=k):  # every possible group
        estimate = float(log_partition(reward[list(draw)][None], torch.full((1, k), 1 / k), beta))
        mean += float(p[list(draw)].prod()) * math.exp(estimate)
        log_mean += float(p[list(draw)].prod()) * estimate
    assert mean == pytest.approx(exact, rel=1e-5)
    assert log_mean < math.log(exact) - 0.01
