"""pi_theta(y|x) proportional to exp <phi(x, y), theta> (Def. 6.1): parameters shared by all prompts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import InitVar, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from srlm.policies.draws import Draws, draw, look_up, take
from srlm.policies.least_squares import on_ball
from srlm.types import Prompts, Rollouts, Update, UpdateInfo


@dataclass(frozen=True, eq=False)
class LinearSoftmaxPolicy:
    """theta: [..., D] float64, |theta| <= radius; replicas, if any, lead.
    features: phi [X, Y, D] (or [..., X, Y, D], one set per replica), each |phi| <= 1.
    """

    theta: Tensor
    features: Tensor
    radius: float = math.inf
    same_features: InitVar[bool] = False  # the policy they come from has checked them

    def __post_init__(self, same_features: bool) -> None:
        if self.theta.dtype != torch.float64 or self.features.dtype != torch.float64:
            raise ValueError(f"theta and features must be float64, got {self.theta.dtype} and {self.features.dtype}")
        if self.features.ndim < 3 or self.features.shape[-1] != self.theta.shape[-1]:
            raise ValueError(
                f"features must be [..., X, Y, {self.theta.shape[-1]}] to match theta, got {list(self.features.shape)}"
            )
        if not same_features and not self.features.norm(dim=-1).max() <= 1 + 1e-9:
            raise ValueError(f"features must have norms of at most 1, got {self.features.norm(dim=-1).max():g}")
        if not self.theta.norm(dim=-1).max() <= self.radius * (1 + 1e-9):
            raise ValueError(
                f"theta must have a norm of at most {self.radius:g}, got {self.theta.norm(dim=-1).max():g}"
            )

    @classmethod
    def of(
        cls,
        theta: Tensor,
        feature: Callable[[Tensor, Tensor], Tensor],
        num_prompts: int,
        num_responses: int,
        radius: float = math.inf,
    ) -> LinearSoftmaxPolicy:
        """With phi(x, y) given as a function of row numbers [X, 1] and column numbers [1, Y] to [X, Y, D]."""
        phi = feature(torch.arange(num_prompts)[:, None], torch.arange(num_responses)[None])
        return cls(theta, phi, radius)

    @property
    def parameters(self) -> Tensor:
        return self.theta

    def moved(self, parameters: Tensor) -> LinearSoftmaxPolicy:
        """With other parameters, drawn back to the ball if they left it."""
        if math.isinf(self.radius):
            return replace(self, theta=parameters, same_features=True)
        norm = parameters.norm(dim=-1, keepdim=True)
        inside = parameters * (self.radius / norm.clamp_min(1e-300)).clamp_max(1.0)
        return replace(self, theta=inside, same_features=True)

    @cached_property
    def _log_table(self) -> Tensor:
        # Rows times matrices, and log_softmax by hand: on many small tables both are up to four times faster.
        logits = (self.theta[..., None, :] @ self.features.flatten(-3, -2).mT).squeeze(-2)
        logits = logits.view(*logits.shape[:-1], *self.features.shape[-3:-1])
        return logits - logits.logsumexp(-1, keepdim=True)

    def log_table(self) -> Tensor:
        return self._log_table

    def sample(self, prompts: Prompts, num_samples: int, generator: torch.Generator) -> Draws:
        table = self.log_table()
        row = torch.as_tensor(prompts.items).expand(*table.shape[:-2], len(prompts))
        return Draws(row, draw(table, row, num_samples, generator))

    def log_prob(self, prompts: Prompts, responses: Draws) -> Tensor:
        return look_up(self.log_table(), responses)

    def observed(self, draws: Draws) -> Tensor:
        """phi of the draws [..., K, P, D]: with K in front, sums over it run along memory."""
        place = (draws.prompt[..., None] * self.features.shape[-2] + draws.response).mT
        return take(self.features.flatten(-3, -2), place.flatten(-2)).view(*place.shape, -1)


def least_squares(beta: float, ridge: float = 0.0) -> Update:
    """ERM of Eq. 3 in closed form: log-ratio differences are linear in theta, so the all-pairs objective is least
    squares in the centred features of each group. Of several minimisers the one nearest to theta_t, inside the ball.

    With noise-free log-prob rewards it is (1 + 1/beta) theta_t on the span of the observed differences.
    """

    def update(
        policy: LinearSoftmaxPolicy, rollouts: Rollouts, reward: Tensor
    ) -> tuple[LinearSoftmaxPolicy, UpdateInfo]:
        phi, weight = policy.observed(rollouts.responses), rollouts.weight.mT[..., None].contiguous()
        root = (weight * rollouts.prompts.weight[:, None]).sqrt()
        phi -= (weight * phi).sum(-3, keepdim=True) / weight.sum(-3, keepdim=True)  # in place: memory is what is slow
        phi *= root
        rows = phi.flatten(-3, -2)
        target = (root * reward.mT[..., None] / beta).flatten(-3, -2)
        theta = policy.theta.expand(*rows.shape[:-2], -1)
        step = on_ball(rows.mT @ rows, (target.mT @ rows)[..., 0, :], theta, policy.radius, ridge)
        after = policy.moved(theta + step)
        log_ratio = after.log_prob(rollouts.prompts, rollouts.responses) - rollouts.log_prob
        return after, UpdateInfo(rollouts, reward, log_ratio, torch.zeros(0, dtype=torch.float64))

    return update
