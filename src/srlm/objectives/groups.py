"""Which responses of a group take part."""

from __future__ import annotations

import torch
from torch import Tensor


def taking_part(log_ratio: Tensor, reward: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whatever stands at weight 0 becomes harmless: the best reward of those that count, 0 where none does."""
    counts = weight > 0
    best = torch.where(counts, reward, -torch.inf).amax(-1, keepdim=True)
    return log_ratio.where(counts, 0.0), reward.where(counts, best.where(counts.any(-1, keepdim=True), 0.0))
