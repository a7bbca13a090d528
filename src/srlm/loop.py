"""The only loop. It knows no policy by name and opens no response."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from srlm.types import Prompts, Reward, Sampler, Step, Update


def round_generator(seed: int, round: int) -> torch.Generator:
    """Randomness of one round: a function of (seed, round) alone, so that a replay from disk meets the same numbers."""
    state = np.random.SeedSequence([seed, round]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def self_reward(
    policy: Any, prompts: Prompts, *, sampler: Sampler, reward: Reward, update: Update, rounds: int, seed: int
) -> Iterator[Step]:
    """Self-rewarding training (Eqs. 1-4): for t = 0..T-1, sample from pi_t, score with pi_t, update against pi_t.

    Yields T + 1 steps; step t describes pi_t before update t, the last one describes pi_T. `update` may consume its
    policy (a transformer is changed in place), so a step must be measured before the next one is asked for.
    """
    info = None
    for t in range(rounds + 1):
        rollouts = sampler(policy, prompts, t, round_generator(seed, t))
        score = reward(policy, rollouts)
        yield Step(t, policy, rollouts, score, info)
        if t < rounds:
            policy, info = update(policy, rollouts, score)
