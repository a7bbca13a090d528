from __future__ import annotations

import inspect
import math

import pytest
import torch

from srlm import rewards
from srlm.rewards import REWARDS
from srlm.types import Prompts, Rollouts


def rollouts(round: int = 0, p: int = 200, k: int = 8) -> Rollouts:
    log_prob = -10 * torch.rand(p, k, generator=torch.Generator().manual_seed(9))
    return Rollouts(round, Prompts.uniform(range(p)), None, log_prob, torch.full((p, k), 1 / k))


def test_every_reward_has_its_name() -> None:
    assert set(REWARDS) == {"log_likelihood", "random"}
    for name, reward in REWARDS.items():
        assert reward.__name__ == name
        assert inspect.getmodule(reward).__name__ == f"{rewards.__name__}.{name}"


def test_log_likelihood_is_what_was_scored() -> None:
    given = rollouts()
    assert REWARDS["log_likelihood"](None, given) is given.log_prob  # Eq. 1; no policy is asked


def test_random_deals_each_group_its_own_scores() -> None:
    given = rollouts()
    dealt = REWARDS["random"](None, given)
    assert torch.equal(dealt.sort(-1).values, given.log_prob.sort(-1).values)
    assert not torch.equal(dealt, given.log_prob)


def test_random_deals_each_group_in_its_own_order() -> None:
    given = rollouts()
    dealt = REWARDS["random"](None, given)
    order = (dealt[:, :, None] == given.log_prob[:, None, :]).int().argmax(-1)
    assert len({tuple(row) for row in order.tolist()}) > 190  # of 200, out of 8! = 40320


def test_random_knows_nothing() -> None:
    """The correlation with the log-likelihood inside groups is 0 within 4 standard errors."""
    given = rollouts()
    x, y = (v - v.mean(-1, keepdim=True) for v in (given.log_prob, REWARDS["random"](None, given)))
    each = (x * y).sum(-1) / (x**2).sum(-1)
    assert abs(float(each.mean())) <= 4 * float(each.std()) / math.sqrt(len(each))
    assert float(each.std()) == pytest.approx(1 / math.sqrt(7), rel=0.2)  # a random permutation's: 1/sqrt(K - 1)


def test_random_is_fixed_by_the_round() -> None:
    random = REWARDS["random"]
    assert torch.equal(random(None, rollouts(3)), random(None, rollouts(3)))
    assert not torch.equal(random(None, rollouts(3)), random(None, rollouts(4)))
    state = torch.random.get_rng_state()
    random(None, rollouts(3))
    assert torch.equal(torch.random.get_rng_state(), state)
