"""Self-rewards with noise: a judge that errs, or scores of finite precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srlm.types import Reward, Rollouts


def noisy(reward: Reward, sigma: float, seed: int = 0) -> Reward:
    """r + sigma * N(0, 1), independent for every response drawn, in nats; a function of (seed, round)."""

    def noised(policy: Any, rollouts: Rollouts) -> Tensor:
        clean = reward(policy, rollouts)
        generator = torch.Generator().manual_seed(2**32 * (seed + 1) + rollouts.round)
        return clean + sigma * torch.randn(clean.shape, dtype=clean.dtype, generator=generator)

    return noised
