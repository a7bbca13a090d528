"""Clipped policy gradients on group advantages: what differs is whose ratios are clipped, and how tokens are counted.

All cost -sum share min(u A, clip(u, 1 - low, 1 + high) A), u = exp(log_ratio), A = r - mean r, over the group's
standard deviation unless said otherwise; (low, high) is ratio_clip. The KL terms of the papers are left out.

`grpo`, `dapo` and `dr_grpo` take single tokens [P, K, T], `gspo` the mean log-ratio of a response's tokens [P, K]. Of
responses of one token `gspo`, `grpo` and `dapo` are the same.

No unique population minimiser: where the clips can be reached together, every pi with u >= 1 + high for A > 0 and
u <= 1 - low for A < 0 attains the least loss, -sum share (A + |A| (high if A > 0 else low)). A group of equal rewards
costs 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srlm.objectives.groups import taking_part

LARGEST_LOG_RATIO = 30.0  # nats: of a ratio beyond it only its clipping counts, and fp32 overflows at 88

RatioClip = tuple[float, float]


def grpo(log_ratio: Tensor, reward: Tensor, weight: Tensor, *, ratio_clip: RatioClip = (0.2, 0.2)) -> Tensor:
    """GRPO (arXiv 2402.03300, Eq. 3; its clip is PPO's): every response counts alike, whatever its length |y|:
    a token's share is weight / |y|."""
    length = (weight > 0).sum(-1, keepdim=True).clamp_min(1)
    return _surrogate(log_ratio, reward, weight, weight / length, ratio_clip)


def dapo(log_ratio: Tensor, reward: Tensor, weight: Tensor, *, ratio_clip: RatioClip = (0.2, 0.28)) -> Tensor:
    """The loss of DAPO (arXiv 2503.14476, Eq. 8): every token of a group counts alike, share weight_k / sum_j weight_j
    |y_j|, and the clip is higher above than below."""
    total = weight.sum((-2, -1), keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    return _surrogate(log_ratio, reward, weight, weight / total, ratio_clip)


def dr_grpo(log_ratio: Tensor, reward: Tensor, weight: Tensor, *, ratio_clip: RatioClip = (0.2, 0.2)) -> Tensor:
    """Dr. GRPO (arXiv 2503.20783, Sec. 3.2): every token of all groups counts alike, share weight / T with T the length
    of the longest response there may be, and A is not divided by the standard deviation."""
    return _surrogate(log_ratio, reward, weight, weight / weight.shape[-1], ratio_clip, by_std=False)


def gspo(log_ratio: Tensor, reward: Tensor, weight: Tensor, *, ratio_clip: RatioClip = (3e-4, 4e-4)) -> Tensor:
    """GSPO (arXiv 2507.18071, Eqs. 5 and 7; clip of Sec. 5.1): one ratio per response, u = (pi / pi_t)^(1 / |y|), share
    weight."""
    share = weight[..., None]
    return _surrogate(log_ratio[..., None], reward, share, share, ratio_clip)


def _surrogate(
    log_ratio: Tensor, reward: Tensor, weight: Tensor, share: Tensor, ratio_clip: RatioClip, *, by_std: bool = True
) -> Tensor:
    """[P] from log_ratio, weight and share [P, K, T]."""
    log_ratio, advantage = log_ratio.where(weight > 0, 0.0), _advantage(reward, weight.amax(-1), by_std)[..., None]
    ratio, (low, high) = log_ratio.clamp(max=LARGEST_LOG_RATIO).exp(), ratio_clip
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    return -(share * gain).sum((-2, -1))


def _advantage(reward: Tensor, weight: Tensor, by_std: bool) -> Tensor:
    """[P, K]"""
    _, reward = taking_part(reward, reward, weight)
    differ = reward.amax(-1, keepdim=True) > reward.amin(-1, keepdim=True)
    advantage = torch.where(differ, reward - (weight * reward).sum(-1, keepdim=True), 0.0)
    if not by_std:
        return advantage
    return advantage / (weight * advantage**2).sum(-1, keepdim=True).sqrt().where(differ, 1.0)
