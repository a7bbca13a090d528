"""Objectives: (log_ratio [P, K], reward [P, K], weight [P, K]) -> loss [P]. Free functions; beta > 0 in nats."""

from __future__ import annotations

import torch
from torch import Tensor


def clip_reward(reward: Tensor, level: float) -> Tensor:
    """r_k <- max(r_k, max_j r_j - level) within each group: App. C.4's clipping, applied to rewards.

    The population target becomes pi_t exp(clip(r)/beta): ranking and odds near the mode stay, and what lies more than
    `level` nats under the group's best is pushed down by level/beta and no further. `level` 0 turns it off.
    """
    if level <= 0:
        return reward
    return torch.maximum(reward, reward.amax(-1, keepdim=True) - level)


def log_partition(reward: Tensor, weight: Tensor, beta: float) -> Tensor:
    """log Z [P] with Z = sum_k weight_k exp(r_k / beta): exact when enumerated; from K samples Z is unbiased, so log Z
    is biased low for small K."""
    return torch.logsumexp(reward / beta + torch.log(weight), -1)


def regression(log_ratio: Tensor, reward: Tensor, weight: Tensor, *, beta: float = 1.0, anchor: float = 1.0) -> Tensor:
    """Least-squares DPO over all pairs (Eq. 3), plus the mass-conserving anchor.

    With d_k = beta * log_ratio_k - reward_k, the mean over the K(K-1)/2 pairs of (d_i - d_j)^2 is 2 Var_unbiased(d).
    The anchored loss adds anchor * (sum_k weight_k d_k + beta log Z)^2: same population minimiser
    pi_{t+1} = pi_t exp(r / beta) / Z, without the free constant per prompt that lets all samples lose mass together.
    Weighted groups use the reliability-weighted unbiased variance, which is the pairwise mean under weight_i weight_j.
    """
    difference = beta * log_ratio - reward
    mean = (weight * difference).sum(-1, keepdim=True)
    pairs = (weight * (1 - weight)).sum(-1)  # mass of the pairs i != j: 0 once all of a table's mass is on one response
    spread = (weight * (difference - mean) ** 2).sum(-1) / pairs.clamp_min(torch.finfo(pairs.dtype).tiny)
    if anchor == 0:
        return 2 * spread
    return 2 * spread + anchor * (mean[:, 0] + beta * log_partition(reward, weight, beta)) ** 2
