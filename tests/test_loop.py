from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from srlm.loop import round_generator, self_reward
from srlm.rewards.table import REWARDS
from srlm.types import Prompts, Rollouts, Step, UpdateInfo


@dataclass
class Table:
    """pi(y|x) = softmax(logits[x, y]). It enumerates instead of sampling."""

    logits: Tensor

    def log_p(self) -> Tensor:
        return torch.log_softmax(self.logits, -1)


PROMPTS = Prompts.uniform(range(3))
START = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def run(rounds: int, *, beta: float = 1.0, seed: int = 0, calls: list[str] | None = None, policy: Table | None = None):
    calls = [] if calls is None else calls

    def sampler(policy: Table, prompts: Prompts, round: int, generator: torch.Generator) -> Rollouts:
        calls.append(f"sample {round}")
        assert prompts is PROMPTS
        log_p = policy.log_p()
        return Rollouts(round, prompts, torch.rand(3, generator=generator), log_p, log_p.exp())

    def reward(policy: Table, rollouts: Rollouts) -> Tensor:
        calls.append(f"reward {rollouts.round}")
        return REWARDS["log_likelihood"](policy, rollouts)

    def update(policy: Table, rollouts: Rollouts, score: Tensor) -> tuple[Table, UpdateInfo]:
        calls.append(f"update {rollouts.round}")
        assert torch.equal(policy.log_p(), rollouts.log_prob)
        before = rollouts.log_prob
        policy.logits += score / beta  # in place: the loop must not need the old policy
        return policy, UpdateInfo(rollouts, score, policy.log_p() - before, torch.zeros(1))

    start = Table(START.clone()) if policy is None else policy
    return self_reward(start, PROMPTS, sampler=sampler, reward=reward, update=update, rounds=rounds, seed=seed)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_exact_updates_follow_the_escort(beta: float) -> None:
    """pi_t is proportional to pi_0^alpha_t with alpha_t = (1 + 1/beta)^t, and step t shows it before update t."""
    for t, step in enumerate(run(4, beta=beta)):
        expected = torch.log_softmax((1 + 1 / beta) ** t * torch.log_softmax(START, -1), -1)
        assert step.round == step.rollouts.round == t
        assert (step.rollouts.log_prob - expected).abs().max() <= 1e-9
        assert torch.equal(step.reward, step.rollouts.log_prob)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_calls_come_in_order_and_no_sooner_than_asked_for(rounds: int) -> None:
    calls: list[str] = []
    steps = run(rounds, calls=calls)
    assert calls == []
    expected: list[str] = []
    for t in range(rounds + 1):
        next(steps)
        expected += [f"update {t - 1}"] * (t > 0) + [f"sample {t}", f"reward {t}"]
        assert calls == expected
    with pytest.raises(StopIteration):
        next(steps)
    assert calls == expected  # nothing is updated after the last step


def test_a_step_carries_the_update_that_made_it() -> None:
    policy = Table(START.clone())
    steps: list[Step] = []
    for step in run(3, policy=policy):
        assert step.policy is policy
        steps.append(step)
    assert steps[0].info is None
    for before, after in pairwise(steps):
        assert after.info is not None
        assert after.info.rollouts is before.rollouts and after.info.reward is before.reward
        assert torch.allclose(after.info.log_ratio, after.rollouts.log_prob - before.rollouts.log_prob)


def test_a_round_s_randomness_is_a_function_of_seed_and_round() -> None:
    def draws(seed: int, round: int) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=round_generator(seed, round)).tolist())

    grid = {(seed, round): draws(seed, round) for seed in range(20) for round in range(20)}
    assert len(set(grid.values())) == len(grid)
    assert {key: draws(*key) for key in reversed(grid)} == grid
    assert draws(2**40, 3) != draws(0, 3)


def test_the_loop_hands_each_round_its_own_generator() -> None:
    drawn = [step.rollouts.responses for step in run(3, seed=7)]
    assert all(torch.equal(d, torch.rand(3, generator=round_generator(7, t))) for t, d in enumerate(drawn))
    make = partial(run, 3)
    assert all(torch.equal(a, s.rollouts.responses) for a, s in zip(drawn, make(seed=7), strict=True))
    assert not any(torch.equal(a, s.rollouts.responses) for a, s in zip(drawn, make(seed=8), strict=True))
