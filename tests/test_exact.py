"""Policies on which everything can be computed: against loops, against each other, and on the one loop."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from torch import Tensor

from srlm.loop import self_reward
from srlm.objectives.regression import regression
from srlm.policies import linear_softmax, tabular
from srlm.policies.draws import Draws, enumerated, every, look_up, sampled
from srlm.policies.gradient import gradient_steps
from srlm.policies.least_squares import minimum_norm, on_ball
from srlm.policies.linear_softmax import LinearSoftmaxPolicy
from srlm.policies.tabular import TabularPolicy
from srlm.rewards.noise import noisy
from srlm.rewards.table import REWARDS
from srlm.types import Prompts, Rollouts

REWARD = REWARDS["log_likelihood"]
seeds = st.integers(0, 2**32)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vector(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> bool:
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance)


def one_step(policy, update, sampler=enumerated, reward=REWARD, prompts: Prompts | None = None, seed: int = 0):
    prompts = prompts or Prompts.uniform(range(policy.log_table().shape[-2]))
    steps = self_reward(policy, prompts, sampler=sampler, reward=reward, update=update, rounds=1, seed=seed)
    return list(steps)[-1]


def one_hot(x: int, y: int) -> Tensor:
    return torch.eye(x * y, dtype=torch.float64).view(x, y, x * y)


# Drawing


def test_draws_follow_the_table_in_every_replica() -> None:
    policy = TabularPolicy(2 * randn(3, 4, 5))
    prompts = Prompts(range(4), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))
    rollouts = sampled(40_000, 2)(policy, prompts, 0, generator())
    p = policy.log_table().exp()
    for replica in range(3):
        counts = torch.zeros(4, 5, dtype=torch.float64)
        rows = rollouts.responses.prompt[replica]
        for k in range(2):
            counts.index_put_(
                (rows, rollouts.responses.response[replica, :, k]), torch.ones(1).double(), accumulate=True
            )
        expected = prompts.weight[:, None] * p[replica] * 80_000
        # The two responses of a draw share its prompt: test rows by draws, and columns within rows.
        assert stats.chisquare(counts.sum(1) / 2, expected.sum(1) / 2).pvalue > 1e-4
        for x in range(4):
            assert stats.chisquare(counts[x], p[replica, x] * counts[x].sum()).pvalue > 1e-4
    first, second = rollouts.responses.response[..., 0], rollouts.responses.response[..., 1]
    there = rollouts.responses.prompt[0] == 3
    assert abs(np.corrcoef(first[0][there], second[0][there])[0, 1]) < 0.05  # given the prompt, independent
    assert close(rollouts.log_prob, look_up(policy.log_table(), rollouts.responses))


def test_a_response_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0], [-torch.inf, 0.0, -torch.inf]], dtype=torch.float64)
    draws = TabularPolicy(logits).sample(Prompts.uniform([0, 1]), 10_000, generator())
    assert set(draws.response[0].tolist()) == {0, 2} and set(draws.response[1].tolist()) == {1}


@given(st.integers(0, 3), st.integers(1, 4), st.integers(1, 5), seeds)
def test_look_up_entry_by_entry(replicas: int, x: int, y: int, seed: int) -> None:
    lead = (replicas,) if replicas else ()
    table = randn(*lead, x, y, seed=seed)
    row = torch.randint(x, (*lead, 3), generator=generator(seed))
    column = torch.randint(y, (*lead, 3, 2), generator=generator(seed))
    found = look_up(table, Draws(row, column))
    for at in itertools.product(*map(range, found.shape)):
        where = at[:-2] if replicas else ()
        assert found[at] == table[(*where, row[at[:-1]], column[at])]
    assert torch.equal(look_up(table, every(table)), table)


def test_a_round_depends_on_its_seed_alone() -> None:
    policy, prompts = TabularPolicy(randn(2, 3, 4)), Prompts.uniform(range(3))
    one, two, other = (sampled(5, 3)(policy, prompts, 0, generator(s)).responses.response for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_noise_is_a_function_of_seed_and_round() -> None:
    policy, prompts = TabularPolicy(torch.zeros(1, 2, 3, dtype=torch.float64)), Prompts.uniform(range(2))

    def noise(seed: int, round: int) -> Tensor:
        rollouts = enumerated(policy, prompts, round, generator())
        return noisy(REWARD, 2.0, seed)(policy, rollouts) - rollouts.log_prob

    assert torch.equal(noise(0, 1), noise(0, 1))
    streams = [noise(seed, round) for seed in (0, 1, 2**33) for round in (0, 1)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(streams, 2))
    many = torch.stack([noise(seed, 0) for seed in range(2000)])
    assert abs(float(many.std()) - 2) < 0.05 and abs(float(many.mean())) < 0.1


# Least squares


@given(st.integers(1, 5), st.integers(1, 5), st.floats(0, 2), seeds)
def test_minimum_norm_is_numpy_s(rows: int, columns: int, ridge: float, seed: int) -> None:
    a, b = randn(2, rows, columns, seed=seed), randn(2, rows, seed=seed + 1)
    found = minimum_norm(a.mT @ a, (a.mT @ b[..., None])[..., 0], ridge)
    for replica in range(2):
        if ridge > 1e-6:
            matrix = np.vstack([a[replica], np.sqrt(ridge) * np.eye(columns)])
            expected = np.linalg.lstsq(matrix, np.concatenate([b[replica], np.zeros(columns)]), rcond=None)[0]
            np.testing.assert_allclose(found[replica], expected, atol=1e-6)
        elif ridge == 0:
            expected = np.linalg.lstsq(a[replica], b[replica], rcond=1e-6)[0]
            if np.linalg.cond(a[replica]) < 1e3:
                np.testing.assert_allclose(found[replica], expected, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.floats(0.1, 3), st.sampled_from([0.0, 0.3]), seeds)
def test_the_ball(rows: int, columns: int, radius: float, ridge: float, seed: int) -> None:
    a, b = randn(rows, columns, seed=seed), randn(rows, seed=seed + 1)
    start = randn(columns, seed=seed + 2)
    start = start * min(1.0, radius / float(start.norm()))
    matrix, right = a.T @ a, a.T @ b

    def loss(z: np.ndarray) -> float:
        return float(z @ matrix.numpy() @ z - 2 * z @ right.numpy() + ridge * z @ z)

    z = on_ball(matrix, right, start, radius, ridge)
    assert float((start + z).norm()) <= radius * (1 + 1e-9)
    inside = {"type": "ineq", "fun": lambda z: radius**2 - np.sum((start.numpy() + z) ** 2)}
    best = min(
        (
            optimize.minimize(loss, s, constraints=[inside], method="SLSQP", options={"ftol": 1e-14, "maxiter": 500})
            for s in (np.zeros(columns), -start.numpy())
        ),
        key=lambda found: found.fun,
    )
    assert loss(z.numpy()) <= best.fun + 1e-5 * (1 + abs(best.fun))


def test_unobserved_directions_stay_and_are_shrunk_only_to_fit() -> None:
    matrix, start = torch.diag(vector([1.0, 0.0])), vector([0.5, 0.8])
    roomy = start + on_ball(matrix, vector([0.3, 0.0]), start, 2.0)
    assert close(roomy, vector([0.8, 0.8]))
    tight = start + on_ball(matrix, vector([0.3, 0.0]), start, 1.0)
    assert close(tight, vector([0.8, 0.6]))  # the loss is still 0
    full = start + on_ball(matrix, vector([5.0, 0.0]), start, 1.0)
    assert close(full, vector([1.0, 0.0]), 1e-6)


# Updates


@pytest.mark.parametrize("beta", [0.4, 1.0, 3.0])
def test_every_enumerated_update_is_the_escort(beta: float) -> None:
    policy = TabularPolicy(2 * randn(3, 4, 5))
    escort = torch.log_softmax((1 + 1 / beta) * policy.log_table(), -1)
    assert close(one_step(policy, tabular.tilt(beta)).policy.log_table(), escort)
    assert close(one_step(policy, tabular.least_squares(beta)).policy.log_table(), escort, 1e-6)
    objective = partial(regression, beta=beta, anchor=1.0, clip=0.0)
    step = one_step(policy, gradient_steps(objective, steps=1000, learning_rate=0.1))
    assert close(step.policy.log_table().exp(), escort.exp(), 1e-4)
    assert step.info.loss[-1] < 1e-6 < step.info.loss[0]


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(2, 4), st.integers(1, 4), st.integers(2, 4), st.floats(0.2, 4), seeds)
def test_tabular_is_one_hot_linear(x: int, y: int, n: int, k: int, beta: float, seed: int) -> None:
    logits = randn(2, x, y, seed=seed)
    table = TabularPolicy(logits)
    linear = LinearSoftmaxPolicy(logits.flatten(1), one_hot(x, y))
    assert close(table.log_table(), linear.log_table())
    noise = noisy(REWARD, 0.5, seed=3)
    one = one_step(table, tabular.least_squares(beta), sampled(n, k), noise, seed=seed % 1000)
    other = one_step(linear, linear_softmax.least_squares(beta), sampled(n, k), noise, seed=seed % 1000)
    assert torch.equal(one.info.rollouts.responses.response, other.info.rollouts.responses.response)
    assert close(one.policy.log_table(), other.policy.log_table(), 1e-6)
    assert close(one.info.log_ratio, other.info.log_ratio, 1e-6)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(2, 5), st.floats(0.3, 3), seeds)
def test_least_squares_by_the_normal_equations_of_all_pairs(n: int, k: int, beta: float, seed: int) -> None:
    phi = torch.nn.functional.normalize(randn(3, 4, 5, seed=seed), dim=-1)
    policy = LinearSoftmaxPolicy(randn(5, seed=seed + 1), phi)
    step = one_step(policy, linear_softmax.least_squares(beta), sampled(n, k), noisy(REWARD, 1.0), seed=seed % 99)
    rollouts, reward = step.info.rollouts, step.info.reward
    rows, right = [], []
    for p in range(n):
        features = phi[rollouts.responses.prompt[p], rollouts.responses.response[p]]
        for i, j in itertools.combinations(range(k), 2):
            rows.append(beta * (features[i] - features[j]))
            right.append(reward[p, i] - reward[p, j])
    matrix, target = torch.stack(rows), torch.stack(right)
    delta = step.policy.theta - policy.theta
    residual = matrix @ delta - target
    assert float((matrix.T @ residual).abs().max()) < 1e-6 * (1 + float(target.abs().max()))
    expected = np.linalg.lstsq(matrix, target, rcond=1e-5)[0]
    if np.linalg.svd(matrix, compute_uv=False)[-1] > 1e-2 or np.linalg.matrix_rank(matrix, 1e-5) == min(matrix.shape):
        assert float(delta.norm()) <= np.linalg.norm(expected) * (1 + 1e-3) + 1e-6


def test_noise_free_linear_updates_are_exact_once_every_direction_is_seen() -> None:
    phi = torch.nn.functional.normalize(randn(6, 5, 4), dim=-1)
    policy = LinearSoftmaxPolicy(randn(4, seed=1), phi)
    step = one_step(policy, linear_softmax.least_squares(0.5), sampled(50, 4))
    assert close(step.policy.theta, 3 * policy.theta, 1e-6)
    few = one_step(policy, linear_softmax.least_squares(0.5), sampled(1, 2))
    draws = few.info.rollouts.responses
    seen = phi[draws.prompt[0], draws.response[0, 0]] - phi[draws.prompt[0], draws.response[0, 1]]
    moved = few.policy.theta - policy.theta
    assert close(moved, (policy.theta @ seen) / (seen @ seen) * seen / 0.5, 1e-6)


def test_enumeration_is_the_limit_of_sampling() -> None:
    policy = TabularPolicy(randn(3, 4))
    exact = one_step(policy, tabular.tilt(1.0)).policy.log_table()
    noise = noisy(REWARD, 1.0)
    errors = []
    for k in (200, 20_000):
        found = one_step(policy, tabular.least_squares(1.0), sampled(20, k), noise).policy.log_table()
        errors.append(float((found.exp() - exact.exp()).abs().max()))
    assert errors[1] < 0.02 and errors[1] < errors[0] / 3  # noise averages out


def test_the_best_of_a_finite_class_is_found() -> None:
    truth = TabularPolicy(2 * randn(3, 4))
    exact = one_step(truth, tabular.tilt(1.0)).policy.log_table()
    others = torch.log_softmax(randn(6, 3, 4, seed=5), -1)
    candidates = torch.cat([others[:3], exact[None], others[3:]])
    replicas = TabularPolicy(truth.logits.expand(7, 3, 4))
    step = one_step(replicas, tabular.finite_class(candidates, 1.0), sampled(30, 4))
    assert all(torch.equal(table, exact.log_softmax(-1)) for table in step.policy.log_table())


@pytest.mark.parametrize("sampler", [enumerated, sampled(2, 4)])
def test_a_candidate_without_mass_on_what_was_drawn_is_the_worst(sampler) -> None:
    start = TabularPolicy(vector([[0.6, 0.3, 0.1, 0.0]]).log())
    exact = one_step(start, tabular.tilt(1.0)).policy.log_table()
    bad = vector([[1.0, 0.0, 0.0, 0.0]]).log()
    for candidates in (torch.stack([exact, bad]), torch.stack([bad, exact])):
        step = one_step(start, tabular.finite_class(candidates, 1.0), sampler)
        assert close(step.policy.log_table().exp(), exact.exp())


def test_what_a_policy_never_says_stays_unsaid() -> None:
    """As by the exact update: log 0 among the rewards of the enumerated has no weight."""
    start = TabularPolicy(vector([[0.6, 0.3, 0.1, 0.0], [0.25, 0.25, 0.5, 0.0]]).log())
    exact = one_step(start, tabular.tilt(0.5)).policy.log_table().exp()
    for ridge, tolerance in ((0.0, 1e-6), (1e-9, 1e-6)):
        found = one_step(start, tabular.least_squares(0.5, ridge)).policy.log_table().exp()
        assert close(found, exact, tolerance) and float(found[:, 3].max()) == 0


def test_the_ball_binds_on_the_loop() -> None:
    phi = torch.nn.functional.normalize(randn(5, 4, 3), dim=-1)
    theta = vector([0.6, 0.0, 0.8])
    policy = LinearSoftmaxPolicy(theta, phi, radius=1.5)
    steps = self_reward(
        policy, Prompts.uniform(range(5)), sampler=sampled(30, 4), reward=REWARD,
        update=linear_softmax.least_squares(1.0), rounds=4, seed=0,
    )  # fmt: skip
    norms = [float(step.policy.theta.norm()) for step in steps]
    assert norms == pytest.approx([1.0, 1.5, 1.5, 1.5, 1.5], abs=1e-6)


def test_replicas_are_runs_of_their_own() -> None:
    """Gradient steps and closed forms do not mix replicas."""
    logits = randn(3, 2, 4)
    together = TabularPolicy(logits)
    rollouts = sampled(6, 3)(together, Prompts.uniform(range(2)), 0, generator())
    objective = partial(regression, clip=4.0)
    for update in (tabular.least_squares(1.0), gradient_steps(objective, steps=20, learning_rate=0.1)):
        after, _ = update(together, rollouts, rollouts.log_prob)
        for r in range(3):
            own = Rollouts(
                0, rollouts.prompts, Draws(rollouts.responses.prompt[r], rollouts.responses.response[r]),
                rollouts.log_prob[r], rollouts.weight[r],
            )  # fmt: skip
            alone, _ = update(TabularPolicy(logits[r]), own, own.log_prob)
            assert close(alone.logits, after.logits[r])


# Tables


def test_autoregressive_tables_are_products_of_conditionals() -> None:
    v, length = 3, 3
    conditionals = [torch.log_softmax(randn(2, v**i, v, seed=i), -1) for i in range(length)]
    table = TabularPolicy.autoregressive(conditionals).log_table()
    assert table.shape == (2, v**length)
    for x in range(2):
        for number, words in enumerate(itertools.product(range(v), repeat=length)):
            total, prefix = 0.0, 0
            for conditional, word in zip(conditionals, words, strict=True):
                total += float(conditional[x, prefix, word])
                prefix = prefix * v + word
            assert float(table[x, number]) == pytest.approx(total)


def test_kappa_grows_like_a_to_the_minus_length() -> None:
    a = 0.6
    word = torch.log(torch.tensor([a, 0.3, 0.1], dtype=torch.float64))
    for length in (1, 3, 5):
        table = TabularPolicy.autoregressive([word.expand(1, 3**i, 3) for i in range(length)]).log_table()
        assert float(table.max().exp()) == pytest.approx(a**length)


def test_features_as_a_function() -> None:
    def angle(x: Tensor, y: Tensor) -> Tensor:
        at = x + 0.5 * y
        return torch.stack([at.double().cos(), at.double().sin()], -1)

    policy = LinearSoftmaxPolicy.of(vector([0.3, -0.2]), angle, 3, 4)
    assert policy.features.shape == (3, 4, 2)
    assert float(policy.features[2, 3, 0]) == pytest.approx(np.cos(3.5))


@pytest.mark.parametrize(
    "make",
    [
        lambda: TabularPolicy(torch.zeros(3, 4)),
        lambda: TabularPolicy(torch.zeros(3, dtype=torch.float64)),
        lambda: TabularPolicy(torch.full((1, 2), torch.nan, dtype=torch.float64)),
        lambda: LinearSoftmaxPolicy(torch.zeros(2).double(), torch.zeros(1, 2, 3).double()),
        lambda: LinearSoftmaxPolicy(torch.zeros(2).double(), 2 * torch.ones(1, 2, 2).double()),
        lambda: LinearSoftmaxPolicy(torch.ones(2).double(), torch.zeros(1, 2, 2).double(), radius=1.0),
        lambda: LinearSoftmaxPolicy(torch.ones(2), torch.zeros(1, 2, 2)),
        lambda: one_step(TabularPolicy(torch.zeros(2, 3).double()), tabular.tilt(1.0), sampled(4, 2)),
    ],
)
def test_what_is_no_policy_is_refused(make) -> None:
    with pytest.raises(ValueError, match=r"must|needs"):
        make()
