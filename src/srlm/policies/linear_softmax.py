"""pi_theta(y|x) proportional to exp <phi(x, y), theta> (Def. 6.1): parameters shared by all prompts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from srlm.policies.draws import Draws, draw, look_up
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

    def __post_init__(self) -> None:
        if self.theta.dtype != torch.float64 or self.features.dtype != torch.float64:
            raise ValueError(f"theta and features must be float64, got {self.theta.dtype} and {self.features.dtype}")
        if self.features.ndim < 3 or self.features.shape[-1] != self.theta.shape[-1]:
            raise ValueError(
                f"features must be [..., X, Y, {self.theta.shape[-1]}] to match theta, got {list(self.features.shape)}"
            )
        if not self.features.norm(dim=-1).max() <= 1 + 1e-9:
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
            return replace(self, theta=parameters)
        norm = parameters.norm(dim=-1, keepdim=True)
        return replace(self, theta=parameters * (self.radius / norm.clamp_min(1e-300)).clamp_max(1.0))

    @cached_property
    def _log_table(self) -> Tensor:
        return torch.log_softmax((self.features @ self.theta[..., None, :, None])[..., 0], -1)

    def log_table(self) -> Tensor:
        return self._log_table

    def sample(self, prompts: Prompts, num_samples: int, generator: torch.Generator) -> Draws:
        table = self.log_table()
        row = torch.as_tensor(prompts.items).expand(*table.shape[:-2], len(prompts))
        return Draws(row, draw(table, row, num_samples, generator))

    def log_prob(self, prompts: Prompts, responses: Draws) -> Tensor:
        return look_up(self.log_table(), responses)

    def observed(self, draws: Draws) -> Tensor:
        """phi of the draws [..., P, K, D]."""
        place = draws.prompt[..., None] * self.features.shape[-2] + draws.response
        lead = self.features.shape[:-3]
        first = torch.arange(math.prod(lead)).view(*lead, 1, 1) * math.prod(self.features.shape[-3:-1])
        return self.features.flatten(0, -2)[place + first]


def least_squares(beta: float, ridge: float = 0.0) -> Update:
    """ERM of Eq. 3 in closed form: log-ratio differences are linear in theta, so the all-pairs objective is least
    squares in the centred features of each group. Of several minimisers the one nearest to theta_t, inside the ball.

    With noise-free log-prob rewards it is (1 + 1/beta) theta_t on the span of the observed differences.
    """

    def update(
        policy: LinearSoftmaxPolicy, rollouts: Rollouts, reward: Tensor
    ) -> tuple[LinearSoftmaxPolicy, UpdateInfo]:
        phi, weight = policy.observed(rollouts.responses), rollouts.weight[..., None]
        mass = weight.sum(-2, keepdim=True)
        phi = phi - (weight * phi).sum(-2, keepdim=True) / mass
        weighted = phi * weight * rollouts.prompts.weight[:, None, None]
        flat, pulls = phi.flatten(-3, -2), weighted.flatten(-3, -2)
        matrix = flat.mT @ pulls
        vector = (pulls.mT @ (reward / beta).flatten(-2)[..., None])[..., 0]
        theta = policy.theta.expand(vector.shape)
        after = replace(policy, theta=theta + on_ball(matrix, vector, theta, policy.radius, ridge))
        log_ratio = after.log_prob(rollouts.prompts, rollouts.responses) - rollouts.log_prob
        return after, UpdateInfo(rollouts, reward, log_ratio, torch.zeros(0, dtype=torch.float64))

    return update
