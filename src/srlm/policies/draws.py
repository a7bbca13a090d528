"""What exact policies share: drawing from tables log pi [..., X, Y], and looking up what was drawn.

R replicas (seeds, sizes) run as one computation: every axis in this file may be led by a replica axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from srlm.types import EnumerablePolicy, Prompts, Rollouts, Sampler


@dataclass(frozen=True, eq=False)
class Draws:
    """Responses of exact policies: row and column numbers of the table.

    prompt: [..., P] in 0..X-1. response: [..., P, K] in 0..Y-1.
    """

    prompt: Tensor
    response: Tensor


def take(table: Tensor, row: Tensor) -> Tensor:
    """Rows [..., N, C] by number [..., N] of a table [..., M, C], which may lack the replica axis of the numbers."""
    *lead, rows, columns = table.shape
    first = rows * torch.arange(math.prod(lead)).view(*lead, 1)
    return table.reshape(-1, columns).index_select(0, (first + row).flatten()).view(*row.shape, columns)


def draw(log_table: Tensor, row: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """K i.i.d. columns [..., P, K] from pi(. | row) for rows [..., P]."""
    cumulative = log_table.exp().cumsum(-1)
    uniform = torch.rand(*row.shape, num_samples, dtype=torch.float64, generator=generator)
    return torch.searchsorted(take(cumulative / cumulative[..., -1:], row), uniform, right=True)


def look_up(table: Tensor, draws: Draws) -> Tensor:
    """Entries [..., P, K] of a table [..., X, Y], which may lack the replica axis of the draws."""
    columns = table.shape[-1]
    index = (draws.prompt[..., None] * columns + draws.response).flatten(-2)
    lead = index.shape[:-1]
    return table.flatten(-2).expand(*lead, -1).gather(-1, index).view(draws.response.shape)


def every(log_table: Tensor) -> Draws:
    """All responses to all prompts, once."""
    *lead, x, y = log_table.shape
    return Draws(torch.arange(x).expand(*lead, x), torch.arange(y).expand(*lead, x, y))


def enumerated(policy: EnumerablePolicy, prompts: Prompts, round: int, generator: torch.Generator) -> Rollouts:
    """Sampler for the loop: every response of every prompt, weighed by its probability: expectations are exact."""
    table = policy.log_table()
    return Rollouts(round, prompts, every(table), table, table.exp())


def sampled(num_prompts: int, num_samples: int) -> Sampler:
    """Sampler for the loop: n prompts a round drawn from D with replacement, K i.i.d. responses to each."""

    def sampler(policy: EnumerablePolicy, prompts: Prompts, round: int, generator: torch.Generator) -> Rollouts:
        table = policy.log_table()
        lead = table.shape[:-2]
        uniform = torch.rand(*lead, num_prompts, dtype=torch.float64, generator=generator)
        share = prompts.weight.double().cumsum(0)
        row = torch.searchsorted(share / share[-1], uniform, right=True)
        draws = Draws(row, draw(table, row, num_samples, generator))
        log_prob = look_up(table, draws)
        return Rollouts(
            round, Prompts.uniform(range(num_prompts)), draws, log_prob, torch.full_like(log_prob, 1 / num_samples)
        )

    return sampler
