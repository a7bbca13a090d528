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
from srlm.objectives.policy_gradient import dapo, dr_grpo, grpo, gspo
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


def of_one_token(objective: Objective) -> Objective:
    """An objective of single tokens, as policies see it whose responses are one token long."""
    return lambda log_ratio, reward, weight: objective(log_ratio[..., None], reward, weight[..., None])


CLIPS = {grpo: (0.2, 0.2), dapo: (0.2, 0.28), dr_grpo: (0.2, 0.2), gspo: (3e-4, 4e-4)}  # as published


@pytest.mark.parametrize("objective", CLIPS)
def test_a_clipped_gradient_goes_to_its_clips_and_no_further_matters(objective: Objective) -> None:
    low, high = CLIPS[objective]
    log_p = torch.log(torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=torch.float64))
    reward = torch.tensor([[2.0, -1.0], [0.5, 1.5]], dtype=torch.float64)
    whole = objective if objective is gspo else of_one_token(objective)
    ratio = table_minimiser(whole, log_p, reward, steps=400) - log_p
    mean = (log_p.exp() * reward).sum(-1, keepdim=True)
    advantage = reward - mean
    if objective is not dr_grpo:
        advantage /= (log_p.exp() * (reward - mean) ** 2).sum(-1, keepdim=True).sqrt()
    least = -(log_p.exp() * (high * advantage.clamp_min(0) - low * advantage.clamp_max(0))).sum(-1)  # sum of p A is 0
    assert close(whole(ratio, reward, log_p.exp()), least, 1e-9)
    assert (ratio.exp()[advantage > 0] >= 1 + high).all() and (ratio.exp()[advantage < 0] <= 1 - low).all()


# Token by token


def on_tokens(weight: Tensor, length: Tensor, width: int) -> Tensor:
    return weight[..., None] * (torch.arange(width) < length[..., None])


def by_definition(
    name: str, ratio: list[list[float]], reward: list[float], weight: list[float], clip: tuple[float, float], most: int
) -> tuple[float, list[list[float]]]:
    """Loss of one group and its gradient in each token's log-ratio, from sums over responses and tokens."""
    mean = sum(w * r for w, r in zip(weight, reward, strict=True))
    std = math.sqrt(sum(w * (r - mean) ** 2 for w, r in zip(weight, reward, strict=True)))
    tokens = sum(w * len(row) for w, row in zip(weight, ratio, strict=True))
    loss, gradient = 0.0, []
    for row, r, w in zip(ratio, reward, weight, strict=True):
        advantage = r - mean if name == "dr_grpo" else (r - mean) / std
        rows = [sum(row) / len(row)] if name == "gspo" else row
        share = {"gspo": w, "grpo": w / len(row), "dapo": w / tokens, "dr_grpo": w / most}[name]
        pulls = []
        for value in rows:
            u = math.exp(value)
            held = min(max(u, 1 - clip[0]), 1 + clip[1])
            loss -= share * min(u * advantage, held * advantage)
            free = u <= 1 + clip[1] if advantage > 0 else u >= 1 - clip[0]
            pulls.append(-share * u * advantage if free else 0.0)
        gradient.append([pulls[0] / len(row)] * len(row) if name == "gspo" else pulls)
    return loss, gradient


@given(st.sampled_from(list(CLIPS)), st.integers(2, 5), st.booleans(), st.booleans(), st.integers(0, 2**32))
def test_clipped_gradients_token_by_token(
    objective: Objective, k: int, uniform: bool, published: bool, seed: int
) -> None:
    draw, most = torch.Generator().manual_seed(seed), 6
    length = torch.randint(1, most + 1, (2, k), generator=draw)
    clip = CLIPS[objective] if published else (0.3, 0.9)
    size = 1e-3 if published and objective is gspo else 0.5  # about half of the ratios are clipped
    token = size * torch.randn(2, k, most, generator=draw, dtype=torch.float64)
    weight = torch.full((2, k), 1 / k).double() if uniform else torch.softmax(randn(2, k, seed=seed + 1), -1)
    reward = randn(2, k, seed=seed + 2)
    more = {} if published else {"ratio_clip": clip}
    leaf = token.requires_grad_()
    if objective is gspo:
        inside = on_tokens(torch.ones(2, k), length, most)
        loss = objective((leaf * inside).sum(-1) / length, reward, weight, **more)
    else:
        loss = objective(leaf, reward, on_tokens(weight, length, most), **more)
    (found,) = torch.autograd.grad(loss.sum(), leaf)
    for x in range(2):
        rows = [token[x, i, : length[x, i]].tolist() for i in range(k)]
        value, pulls = by_definition(objective.__name__, rows, reward[x].tolist(), weight[x].tolist(), clip, most)
        assert float(loss[x].detach()) == pytest.approx(value, abs=1e-12)
        for i in range(k):
            assert found[x, i].tolist() == pytest.approx(pulls[i] + [0.0] * (most - len(pulls[i])), abs=1e-12)


def test_of_responses_of_one_token_three_are_the_same() -> None:
    ratio, reward, weight = 0.3 * randn(3, 4), randn(3, 4, seed=1), torch.softmax(randn(3, 4, seed=2), -1)
    one, two, three = (
        objective(ratio, reward, weight)
        for objective in (
            partial(gspo, ratio_clip=(0.1, 0.2)),
            of_one_token(partial(grpo, ratio_clip=(0.1, 0.2))),
            of_one_token(partial(dapo, ratio_clip=(0.1, 0.2))),
        )
    )
    assert torch.equal(one, two) and close(one, three, 1e-12)


def test_grpo_counts_responses_alike_and_dapo_tokens() -> None:
    """Pull of a short response over that of one five times as long, both of the same advantage."""
    length, reward = torch.tensor([[2, 10, 6]]), torch.tensor([[1.0, 1.0, 0.0]])
    weight = on_tokens(torch.full((1, 3), 1 / 3), length, 12)
    for objective, wanted in ((grpo, 1.0), (dapo, 0.2), (dr_grpo, 0.2)):
        leaf = torch.zeros(1, 3, 12, requires_grad=True)
        (pull,) = torch.autograd.grad(objective(leaf, reward, weight).sum(), leaf)
        assert float(pull[0, 0].sum() / pull[0, 1].sum()) == pytest.approx(wanted)


@pytest.mark.parametrize("objective", CLIPS)
def test_the_clip_is_that_of_a_token_however_long_the_response(objective: Objective) -> None:
    """Just inside every token pulls, just outside none does; sums over 400 tokens are up to 73 and -89 nats."""
    low, high = CLIPS[objective]
    reward, length = torch.tensor([[1.0, 0.0]], dtype=torch.float64), 400
    weight = torch.full((1, 2, length), 0.5, dtype=torch.float64)
    for factor, pulls in ((0.99, True), (1.01, False)):
        edge = torch.tensor([[math.log1p(factor * high), math.log1p(-factor * low)]], dtype=torch.float64)
        leaf = edge.clone() if objective is gspo else edge[..., None].repeat(1, 1, length)
        loss = objective(leaf.requires_grad_(), reward, weight[..., 0] if objective is gspo else weight)
        (pull,) = torch.autograd.grad(loss.sum(), leaf)
        assert bool((pull != 0).all()) if pulls else bool((pull == 0).all())


LONG = {"dpo": dpo, "ipo": ipo, "gspo": gspo, "grpo": grpo, "dapo": dapo, "dr_grpo": dr_grpo}


@pytest.mark.parametrize("name", LONG)
def test_long_responses_stay_finite(name: str) -> None:
    """Sums of 500 nats either way, over 400 tokens or in a single one of them, in fp32."""
    length, total = 400, torch.tensor([[500.0, -500.0, 0.0, 500.0]])
    even = (total / length)[..., None].repeat(1, 1, length)
    peaked = torch.zeros(1, 4, length)
    peaked[..., 7] = total
    weight = torch.full((1, 4), 0.25)
    for token in (even, peaked):
        for reward in ([1.0, 0.0, 2.0, -1.0], [-1.0, 1.0, 0.0, 2.0]):
            by_token = name in ("grpo", "dapo", "dr_grpo")
            leaf = (token if by_token else token.sum(-1) / length).requires_grad_()
            own = weight[..., None].repeat(1, 1, length) if by_token else weight
            loss = LONG[name](leaf, torch.tensor([reward]), own)
            (pull,) = torch.autograd.grad(loss.sum(), leaf)
            assert bool(loss.isfinite().all() and pull.isfinite().all() and (pull != 0).any())


def test_ipo_of_log_ratios_by_length_asks_for_a_gap_of_a_token() -> None:
    """Least where the means over tokens are 1 / (2 beta) apart, whatever the lengths."""
    length, beta = torch.tensor([[300.0, 20.0]]).double(), 0.1
    weight, reward = torch.full((1, 2), 0.5).double(), torch.tensor([[1.0, 0.0]]).double()
    total = minimise(lambda sums: ipo(sums / length, reward, weight, beta=beta).sum(), torch.zeros(1, 2).double())
    mean = total / length
    assert float(mean[0, 0] - mean[0, 1]) == pytest.approx(1 / (2 * beta))


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
    "gspo": gspo,
    "grpo": of_one_token(grpo),
    "dapo": of_one_token(dapo),
    "dr_grpo": of_one_token(dr_grpo),
}


@pytest.mark.parametrize("name", EVERY)
def test_weight_zero_takes_part_in_nothing(name: str) -> None:
    ratio, reward = randn(2, 4), 3 * randn(2, 4, seed=1)
    weight = torch.tensor([[0.2, 0.5, 0.3]] * 2, dtype=torch.float64)
    more = torch.cat([weight, torch.zeros(2, 1, dtype=torch.float64)], -1)
    alone = EVERY[name](ratio[:, :3], reward[:, :3], weight)
    for value in (100.0, -100.0, math.inf, math.nan):
        wild, leaf = reward.clone(), ratio.clone()
        wild[:, 3] = leaf[:, 3] = value
        leaf.requires_grad_()
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
        loss = gspo(log_ratio, torch.tensor([reward]), torch.full((1, 4), 0.25))
        (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
        assert bool(loss.isfinite().all() and gradient.isfinite().all())
