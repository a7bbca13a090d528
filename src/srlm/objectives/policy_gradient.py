"""Clipped policy gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from srlm.objectives.groups import taking_part

LARGEST_LOG_RATIO = 30.0  # nats: of a ratio beyond it only its clipping counts, and fp32 overflows at 88


def grpo(log_ratio: Tensor, reward: Tensor, weight: Tensor, *, ratio_clip: float = 0.2, by_std: bool = True) -> Tensor:
    """Clipped policy gradient on group advantages (arXiv 2402.03300, Eq. 3), one ratio per response as in GSPO:

    -sum_k weight_k min(u_k A_k, clip(u_k, 1 - c, 1 + c) A_k), u = exp(log_ratio), A = r - mean r, over the group's
    standard deviation if by_std; c is ratio_clip.

    No unique population minimiser: where the clips can be reached together, every pi with u >= 1 + c for A > 0 and
    u <= 1 - c for A < 0 attains the least loss, -2 c sum_{A > 0} weight A. A group of equal rewards costs 0.
    """
    log_ratio, reward = taking_part(log_ratio, reward, weight)
    differ = reward.amax(-1, keepdim=True) > reward.amin(-1, keepdim=True)
    advantage = torch.where(differ, reward - (weight * reward).sum(-1, keepdim=True), 0.0)
    if by_std:
        advantage = advantage / (weight * advantage**2).sum(-1, keepdim=True).sqrt().where(differ, 1.0)
    ratio = log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()
    return -(weight * torch.minimum(ratio * advantage, ratio.clamp(1 - ratio_clip, 1 + ratio_clip) * advantage)).sum(-1)
