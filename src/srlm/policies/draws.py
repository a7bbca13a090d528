"""What exact policies share: drawing from tables log pi [..., X, Y], and looking up what was drawn.

R replicas (seeds, sizes) run as one computation: every axis in this file may be led by a replica axis.
"""

from __future__ import annotations

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


def categorical(cumulative: Tensor, row: Tensor, uniform: Tensor) -> Tensor:
    """Inverse CDF: for each uniform [..., P, K] in [0, 1) a column of row [..., P] of the CDFs [..., X, Y].

    All rows of all replicas form one increasing sequence (row number + CDF), so that one binary search serves them all.
    """
    *lead, rows, columns = cumulative.shape
    count = cumulative.numel() // columns
    sequence = (cumulative.reshape(count, columns) + torch.arange(count, dtype=cumulative.dtype)[:, None]).flatten()
    replica = torch.arange(count // rows).view(*lead, 1) if lead else torch.zeros(1, dtype=torch.long)
    place = (replica * rows + row)[..., None]
    # Just below 1: a sum of row number and uniform must not be rounded up into the next row.
    found = torch.searchsorted(sequence, place + uniform * (1 - 2**-20), right=True) - place * columns
    return found.clamp_(0, columns - 1)


def draw(log_table: Tensor, row: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """K i.i.d. columns [..., P, K] from pi(. | row) for rows [..., P]."""
    cumulative = log_table.exp().cumsum(-1)
    uniform = torch.rand(*row.shape, num_samples, dtype=torch.float64, generator=generator)
    return categorical(cumulative / cumulative[..., -1:], row, uniform)


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
        share = prompts.weight.double().cumsum(0)[None]  # a table of one row
        row = categorical(share / share[:, -1:], torch.zeros(1, dtype=torch.long), uniform.view(1, -1)).view_as(uniform)
        draws = Draws(row, draw(table, row, num_samples, generator))
        log_prob = look_up(table, draws)
        return Rollouts(
            round, Prompts.uniform(range(num_prompts)), draws, log_prob, torch.full_like(log_prob, 1 / num_samples)
        )

    return sampler
