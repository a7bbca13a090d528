"""pi(y|x) = softmax(logits[x])[y]: the policy on which everything can be computed exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srlm.policies.draws import Draws, draw, look_up
from srlm.policies.least_squares import minimum_norm
from srlm.types import Prompts, Rollouts, Update, UpdateInfo


@dataclass(frozen=True, eq=False)
class TabularPolicy:
    """logits: [..., X, Y] float64, unnormalised log-probs in nats; replicas, if any, lead. Prompts are row numbers."""

    logits: Tensor

    def __post_init__(self) -> None:
        if self.logits.ndim < 2 or self.logits.dtype != torch.float64 or self.logits.isnan().any():
            raise ValueError(
                f"logits must be float64 [..., X, Y] without NaN, got {self.logits.dtype} {list(self.logits.shape)}"
            )

    @classmethod
    def autoregressive(cls, conditionals: Sequence[Tensor]) -> TabularPolicy:
        """From log pi(y_l | x, y_<l), l = 1..L, as tables [X, V^(l-1), V]: sequences are numbered 0..V^L - 1 like the
        digits of a number in base V, first word first."""
        joint = conditionals[0].new_zeros(len(conditionals[0]), 1)
        for conditional in conditionals:
            joint = (joint[:, :, None] + conditional.view(*joint.shape, -1)).flatten(1)
        return cls(joint)

    @property
    def parameters(self) -> Tensor:
        return self.logits

    def moved(self, parameters: Tensor) -> TabularPolicy:
        return TabularPolicy(parameters)

    def log_table(self) -> Tensor:
        return torch.log_softmax(self.logits, -1)

    def sample(self, prompts: Prompts, num_samples: int, generator: torch.Generator) -> Draws:
        table = self.log_table()
        row = torch.as_tensor(prompts.items).expand(*table.shape[:-2], len(prompts))
        return Draws(row, draw(table, row, num_samples, generator))

    def log_prob(self, prompts: Prompts, responses: Draws) -> Tensor:
        return look_up(self.log_table(), responses)


def tilt(beta: float) -> Update:
    """The exact update pi_{t+1} = pi_t exp(r / beta) / Z (Eq. 2), for enumerated rollouts; with r = log pi_t it is
    pi_t^(1 + 1/beta) / Z."""

    def update(policy: TabularPolicy, rollouts: Rollouts, reward: Tensor) -> tuple[TabularPolicy, UpdateInfo]:
        table = policy.log_table()
        if reward.shape != table.shape:
            raise ValueError(
                f"the exact tilt needs a reward for every response, {list(table.shape)}, got "
                f"{list(reward.shape)}: enumerate the rollouts"
            )
        after = TabularPolicy(torch.log_softmax(table + reward / beta, -1))
        return after, _info(after, rollouts, reward)

    return update


def least_squares(beta: float, ridge: float = 0.0) -> Update:
    """ERM of Eq. 3 over all tables, in closed form: of all minimisers the one that moves the logits least.

    The pairwise objective of a prompt is a weighted graph whose nodes are responses and whose edges are observed pairs.
    Within each connected component log-ratios become (r - mean r) / beta; other responses keep their logits, those
    that pi_t never gives among them.
    """

    def update(policy: TabularPolicy, rollouts: Rollouts, reward: Tensor) -> tuple[TabularPolicy, UpdateInfo]:
        logits, draws = policy.logits, rollouts.responses
        *lead, x, y = logits.shape
        n = draws.prompt.shape[-1]
        mass = rollouts.weight.sum(-1, keepdim=True)
        share = torch.zeros(*lead, n, y, dtype=logits.dtype).scatter_add(-1, draws.response, rollouts.weight / mass)
        weight = rollouts.prompts.weight[:, None] * mass
        asked = torch.where(rollouts.weight > 0, reward, 0)  # log 0 where the enumerated have no weight
        row = draws.prompt[..., None].expand(*lead, n, y)
        mean = (rollouts.weight / mass * asked / beta).sum(-1, keepdim=True)
        pull = rollouts.weight / mass * (asked / beta - mean)
        pulls = weight * torch.zeros(*lead, n, y, dtype=logits.dtype).scatter_add(-1, draws.response, pull)
        vector = torch.zeros(*lead, x, y, dtype=logits.dtype).scatter_add(-2, row, pulls)
        # The variance of a group is the quadratic form diag(share) - share share'.
        matrix = torch.diag_embed(torch.zeros_like(vector).scatter_add(-2, row, weight * share))
        for column in range(y):
            matrix[..., column, :].scatter_add_(-2, row, -weight * share[..., column, None] * share)
        step = minimum_norm(matrix, vector, ridge)
        after = TabularPolicy(logits + step)
        return after, _info(after, rollouts, reward)

    return update


def finite_class(candidates: Tensor, beta: float) -> Update:
    """ERM of Eq. 3 over a finite class: of the tables log pi [M, X, Y] the one of least empirical loss, which is
    infinite where something drawn has probability 0; ties go to the first."""

    def update(policy: TabularPolicy, rollouts: Rollouts, reward: Tensor) -> tuple[TabularPolicy, UpdateInfo]:
        losses = []
        for table in candidates:
            log_prob, drawn = look_up(table, rollouts.responses), rollouts.weight > 0
            absent = drawn & log_prob.isneginf()
            difference = beta * (log_prob - rollouts.log_prob) - reward
            difference = torch.where(drawn & ~absent, difference, 0)  # elsewhere inf - inf is no number
            mass = rollouts.weight.sum(-1, keepdim=True)
            mean = (rollouts.weight * difference).sum(-1, keepdim=True) / mass
            spread = (rollouts.weight * (difference - mean) ** 2).sum(-1)
            loss = (rollouts.prompts.weight * spread).sum(-1)
            lost = (absent.any(-1) & (rollouts.prompts.weight > 0)).any(-1)
            losses.append(torch.where(lost, math.inf, loss))
        best = torch.stack(losses).argmin(0)
        after = TabularPolicy(candidates[best])
        return after, _info(after, rollouts, reward)

    return update


def _info(after: TabularPolicy, rollouts: Rollouts, reward: Tensor) -> UpdateInfo:
    log_ratio = after.log_prob(rollouts.prompts, rollouts.responses) - rollouts.log_prob
    return UpdateInfo(rollouts, reward, log_ratio, torch.zeros(0, dtype=torch.float64))
