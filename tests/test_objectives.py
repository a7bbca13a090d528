from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from srlm.objectives.imitation import best_of_k, nll
from srlm.objectives.policy_gradient import grpo
from srlm.objectives.preferences import consistency, dpo, ipo
from srlm.objectives.regression import censored, clip_reward, log_partition, regression
from srlm.objectives.shaping import kl_initial, length_penalty, truncated
from srlm.policies.draws import Draws
from srlm.policies.gradient import gradient_steps
from srlm.policies.tabular import TabularPolicy
from srlm.types import Objective, Prompts, Rollouts


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


# Preferences, imitation, policy gradient: population minimisers on a table, by converged gradient steps


def table_minimiser(objective: Objective, log_p: Tensor, reward: Tensor, steps: int = 1500) -> Tensor:
    """log pi of the minimiser over all of a table, enumerated."""
    policy = TabularPolicy(log_p)
    prompts = Prompts.uniform(range(len(log_p)))
    row = torch.arange(len(log_p))
    draws = Draws(row, torch.arange(log_p.shape[-1]).expand_as(log_p))
    rollouts = Rollouts(0, prompts, draws, log_p, log_p.exp())
    return gradient_steps(objective, steps=steps, learning_rate=0.05)(policy, rollouts, reward)[0].log_table()


def tournament(weight: Tensor, reward: Tensor, smoothing: float) -> Tensor:
    """Bradley-Terry log-strengths by Hunter's MM iteration (Ann. Statist. 2004, Eq. 3), one group."""
    games = weight[:, None] * weight[None, :] * (reward[:, None] != reward[None, :])
    wins = (games * torch.where(reward[:, None] > reward[None, :], 1 - smoothing, smoothing)).sum(-1)
    strength = torch.ones_like(wins)
    for _ in range(5000):
        strength = wins / (games / (strength[:, None] + strength[None, :])).sum(-1)
    return strength.log()


def centred(values: Tensor) -> Tensor:
    return values - values.mean(-1, keepdim=True)


@pytest.mark.parametrize("beta, smoothing", [(1.0, 0.1), (0.5, 0.3)])
def test_dpo_finds_the_strengths_of_a_tournament(beta: float, smoothing: float) -> None:
    log_p, reward = torch.log_softmax(randn(3, 5), -1), randn(3, 5, seed=1)
    found = table_minimiser(partial(dpo, beta=beta, label_smoothing=smoothing), log_p, reward)
    for x in range(3):
        assert close(
            centred(beta * (found - log_p)[x]), centred(tournament(log_p[x].exp(), reward[x], smoothing)), 1e-3
        )
    two = table_minimiser(
        partial(dpo, beta=beta, pairs="best_worst", label_smoothing=smoothing), log_p[:, :2], reward[:, :2]
    )
    ratio = two - log_p[:, :2]
    gap = ratio.gather(-1, reward[:, :2].argmax(-1, keepdim=True)) - ratio.gather(
        -1, reward[:, :2].argmin(-1, keepdim=True)
    )
    assert close(gap, torch.full_like(gap, math.log(1 / smoothing - 1) / beta), 1e-3)


@pytest.mark.parametrize("beta, smoothing", [(1.0, 0.0), (0.4, 0.2)])
def test_ipo_tilts_by_the_probability_of_winning(beta: float, smoothing: float) -> None:
    log_p, reward = torch.log_softmax(randn(3, 5), -1), randn(3, 5, seed=1)
    found = table_minimiser(partial(ipo, beta=beta, label_smoothing=smoothing), log_p, reward)
    won = (log_p.exp()[:, None, :] * torch.sign(reward[:, :, None] - reward[:, None, :])).sum(-1)
    assert close(found, torch.log_softmax(log_p + (1 - 2 * smoothing) / (2 * beta) * won, -1), 1e-4)


def test_best_of_k_learns_the_law_of_the_best() -> None:
    log_p = torch.log_softmax(randn(1, 4), -1)
    reward = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=torch.float64)
    groups = torch.tensor(list(itertools.product(range(4), repeat=3)))  # every possible one is a prompt of its own
    chance = log_p[0][groups].sum(-1).exp()
    draws = Draws(torch.zeros(len(groups), dtype=torch.long), groups)
    rollouts = Rollouts(
        0, Prompts(tuple([0] * len(groups)), chance), draws, log_p[0][groups], torch.full(groups.shape, 1 / 3).double()
    )
    found, _ = gradient_steps(best_of_k, steps=1500, learning_rate=0.05)(TabularPolicy(log_p), rollouts, reward[groups])
    p = log_p.exp()[0]
    upto, below = ((p * op(reward[None, :], reward[:, None])).sum(-1) for op in (torch.le, torch.lt))
    assert close(found.log_table()[0].exp(), upto**3 - below**3, 1e-4)


@pytest.mark.parametrize("by_std", [True, False])
def test_grpo_goes_to_its_clips_and_no_further_matters(by_std: bool) -> None:
    log_p, clip = torch.log(torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=torch.float64)), 0.2
    reward = torch.tensor([[2.0, -1.0], [0.5, 1.5]], dtype=torch.float64)
    objective = partial(grpo, ratio_clip=clip, by_std=by_std)
    ratio = table_minimiser(objective, log_p, reward, steps=400) - log_p
    mean = (log_p.exp() * reward).sum(-1, keepdim=True)
    advantage = reward - mean
    if by_std:
        advantage /= (log_p.exp() * (reward - mean) ** 2).sum(-1, keepdim=True).sqrt()
    least = -2 * clip * (log_p.exp() * advantage.clamp_min(0)).sum(-1)
    assert close(objective(ratio, reward, log_p.exp()), least, 1e-9)
    assert (ratio.exp()[advantage > 0] >= 1 + clip).all() and (ratio.exp()[advantage < 0] <= 1 - clip).all()


def test_kl_to_the_start_is_a_reward_and_a_larger_beta() -> None:
    """The maximiser of E[r] - beta KL(pi||pi_t) - beta0 KL(pi||pi_0), found directly."""
    log_p, log_0, reward = torch.log_softmax(randn(2, 5), -1), torch.log_softmax(randn(2, 5, seed=5), -1), randn(2, 5)
    beta, strength = 0.7, 0.4

    def cost(logits: Tensor) -> Tensor:
        log_q = torch.log_softmax(logits, -1)
        return -(log_q.exp() * (reward - beta * (log_q - log_p) - strength * (log_q - log_0))).sum()

    shaped = kl_initial(reward, log_p, log_0, strength)
    found = table_minimiser(partial(regression, beta=beta + strength, clip=0.0), log_p, shaped)
    assert close(found, torch.log_softmax(minimise(cost, log_p), -1), 1e-5)


# Pairs, one by one


@given(
    st.integers(2, 6), st.sampled_from(["all", "best_worst"]), st.floats(0, 2), st.floats(0, 1), st.integers(0, 2**32)
)
def test_preference_losses_pair_by_pair(k: int, pairs: str, margin: float, smoothing: float, seed: int) -> None:
    ratio, reward = randn(2, k, seed=seed), randn(2, k, seed=seed + 1).round(decimals=0)  # with ties
    weight = torch.softmax(randn(2, k, seed=seed + 2), -1)
    for x in range(2):
        r, total, mass = reward[x].tolist(), {"dpo": 0.0, "ipo": 0.0}, 0.0
        for i, j in itertools.permutations(range(k), 2):
            if r[i] - r[j] <= margin or (pairs == "best_worst" and (r[i] < max(r) or r[j] > min(r))):
                continue
            h, w = 0.5 * float(ratio[x, i] - ratio[x, j]), float(weight[x, i] * weight[x, j])
            mass += w
            total["dpo"] += w * (math.log1p(math.exp(-h)) * (1 - smoothing) + math.log1p(math.exp(h)) * smoothing)
            total["ipo"] += w * ((h - 0.5) ** 2 * (1 - smoothing) + (h + 0.5) ** 2 * smoothing)
        options = {"beta": 0.5, "pairs": pairs, "margin": margin, "label_smoothing": smoothing}
        for name, objective in (("dpo", dpo), ("ipo", ipo)):
            loss = float(objective(ratio, reward, weight, **options)[x])
            assert loss == pytest.approx(total[name] / mass if mass else 0.0)


EVERY = {
    "regression": partial(regression, clip=1.5),
    "dpo": dpo,
    "dpo, best and worst": partial(dpo, pairs="best_worst"),
    "ipo": ipo,
    "best_of_k": best_of_k,
    "nll": nll,
    "grpo": grpo,
}


@pytest.mark.parametrize("name", EVERY)
def test_weight_zero_takes_part_in_nothing(name: str) -> None:
    ratio, reward = randn(2, 4), 3 * randn(2, 4, seed=1)
    weight = torch.tensor([[0.2, 0.5, 0.3]] * 2, dtype=torch.float64)
    more = torch.cat([weight, torch.zeros(2, 1, dtype=torch.float64)], -1)
    alone = EVERY[name](ratio[:, :3], reward[:, :3], weight)
    for value in (100.0, -100.0, math.inf, math.nan):
        wild = reward.clone()
        wild[:, 3] = value
        leaf = ratio.clone().requires_grad_()
        loss = EVERY[name](leaf, wild, more)
        assert close(loss.detach(), alone)
        loss.sum().backward()
        assert torch.isfinite(leaf.grad).all() and (leaf.grad[:, 3] == 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_a_group_with_nothing_to_say_costs_nothing(name: str) -> None:
    reward = torch.full((1, 3), 0.1) if name not in ("regression", "best_of_k") else randn(1, 3).float()
    weight = torch.full((1, 3), 1 / 3) if name not in ("regression", "best_of_k") else torch.zeros(1, 3)
    for w in (weight, torch.zeros(1, 3)):
        leaf = randn(1, 3).float().requires_grad_()
        loss = EVERY[name](leaf, reward, w)
        loss.sum().backward()
        assert float(loss.detach()) == 0 and (leaf.grad == 0).all()


# Shapes of rewards


def test_length_penalty_and_window() -> None:
    reward, length = torch.zeros(1, 4), torch.tensor([[1, 3, 5, 9]])
    assert length_penalty(reward, length, 0.5).tolist() == [[-0.5, -1.5, -2.5, -4.5]]
    assert length_penalty(reward, length, 0.5, (3, 5)).tolist() == [[-1.0, 0.0, 0.0, -2.0]]


def test_truncated_responses_follow_one_policy() -> None:
    reward, weight = torch.tensor([[1.0, -2.0, 3.0], [1.0, 2.0, 3.0]]), torch.tensor([[0.2, 0.3, 0.5]] * 2)
    finished = torch.tensor([[True, True, False], [False, True, False]])
    kept = truncated(reward, weight, finished, "keep")
    assert torch.equal(kept[0], reward) and torch.equal(kept[1], weight)
    punished, same = truncated(reward, weight, finished, "penalise")
    assert punished.tolist() == [[1, -2, -2], [1, 2, 1]] and torch.equal(same, weight)
    whole, left = truncated(reward, weight, finished, "drop")
    assert torch.equal(whole, reward) and close(left, torch.tensor([[0.4, 0.6, 0.0], [0.0, 0.0, 0.0]]), 1e-6)
    for objective in EVERY.values():
        assert objective(randn(2, 3).float(), reward, left)[1] == 0


def test_consistency_is_cream_s() -> None:
    assert [consistency(tau) for tau in (1.0, 0.5, -1.0, None)] == [0.0, 0.25, 1.0, 0.0]


def test_a_ratio_beyond_floats_is_clipped_without_nan():
    for reward in ([3.0, 1.0, 0.0, 0.0], [1.0, 2.0, 0.0, 1.0]):
        log_ratio = torch.tensor([[100.0, -1.0, -2.0, 0.0]], requires_grad=True)
        loss = grpo(log_ratio, torch.tensor([reward]), torch.full((1, 4), 0.25))
        (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
        assert bool(loss.isfinite().all() and gradient.isfinite().all())
