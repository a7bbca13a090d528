"""Self-rewards with noise: a judge that errs, or scores of finite precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from srlm.types import Reward, Rollouts


def noisy(reward: Reward, sigma: float, seed: int = 0) -> Reward:
    """r + sigma * N(0, 1), independent for every response drawn, in nats; a function of (seed, round)."""

    def noised(policy: Any, rollouts: Rollouts) -> Tensor:
        clean = reward(policy, rollouts)
        # A CPU generator keeps 32 bits of its seed, so seed and round must be mixed first; 1 tells this stream from
        # the loop's own.
        state = np.random.SeedSequence([seed, rollouts.round, 1]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> 1))
        return clean + sigma * torch.randn(clean.shape, dtype=clean.dtype, generator=generator)

    return noised
