"""Least squares on log-ratios (Eq. 3), clipped and anchored."""

from __future__ import annotations

import torch
from torch import Tensor

from srlm.objectives.groups import taking_part


def clip_reward(reward: Tensor, level: float) -> Tensor:
    """r_k <- max(r_k, max_j r_j - level) within each group: App. C.4's clipping, applied to rewards; `level` 0 turns it
    off."""
    if level <= 0:
        return reward
    return torch.maximum(reward, reward.amax(-1, keepdim=True) - level)


def censored(log_ratio: Tensor, reward: Tensor, weight: Tensor, *, beta: float, clip: float) -> Tensor:
    """What each reward counts as [P, K] when one that is clipped says "at most this" instead of "exactly this".

    A clipped reward stands for the interval [r_k, max_j r_j - clip]. Of it, the value that the policy realises counts:
    beta * log_ratio_k + c, cut to the interval, with c the mean of r - beta * log_ratio over the group's unclipped
    responses. The unclipped target pi_t exp(r/beta) and the clipped one are both reached with no residual, and so is
    everything between: how far below the clip a response ends is the policy's own affair. No gradient flows through.
    """
    if clip <= 0:
        return reward
    ceiling = clip_reward(reward, clip)
    realised = beta * log_ratio.detach()
    known = torch.where(ceiling > reward, 0.0, weight)
    constant = (known * (reward - realised)).sum(-1, keepdim=True) / known.sum(-1, keepdim=True).clamp_min(
        torch.finfo(known.dtype).tiny
    )
    return torch.minimum(torch.maximum(realised + constant, reward), ceiling)


def log_partition(reward: Tensor, weight: Tensor, beta: float) -> Tensor:
    """log Z [P] with Z = sum_k weight_k exp(r_k / beta): exact when enumerated; from K samples Z is unbiased, so log Z
    is biased low for small K."""
    return torch.logsumexp(reward / beta + torch.log(weight), -1)


def regression(
    log_ratio: Tensor, reward: Tensor, weight: Tensor, *, beta: float = 1.0, anchor: float = 1.0, clip: float = 8.0
) -> Tensor:
    """Least-squares DPO over all pairs (Eq. 3), plus the mass-conserving anchor, on censored rewards.

    With d_k = beta * log_ratio_k - reward_k, the mean over the K(K-1)/2 pairs of (d_i - d_j)^2 is 2 Var_unbiased(d).
    The anchored loss adds anchor * (sum_k weight_k d_k + beta log Z)^2: with the exact Z the same population minimiser
    pi_{t+1} = pi_t exp(r / beta) / Z, without the free constant per prompt that lets all samples lose mass together.
    Where one response holds nearly all of exp(r/beta), log Z is r_best/beta - log K (weights 1/K): the anchor then asks
    of that response K times its probability, no more, and of the rest what the pairs ask; `effective_samples` tells.
    Weighted groups use the reliability-weighted unbiased variance, which is the pairwise mean under weight_i weight_j.

    clip: B > 0 asks of a response whose reward lies more than B under its group's best only that it be pushed down by
        B / beta or more, up to what Eq. 3 asks (`censored`). 0 is Eq. 3 itself.
    """
    log_ratio, reward = taking_part(log_ratio, reward, weight)
    target = censored(log_ratio, reward, weight, beta=beta, clip=clip)
    difference = beta * log_ratio - target
    mean = (weight * difference).sum(-1, keepdim=True)
    pairs = (weight * (1 - weight)).sum(-1)  # mass of the pairs i != j: 0 once all of a table's mass is on one response
    spread = (weight * (difference - mean) ** 2).sum(-1) / pairs.clamp_min(torch.finfo(pairs.dtype).tiny)
    if anchor == 0:
        return 2 * spread
    log_z = log_partition(target, weight, beta)
    return 2 * spread + anchor * (mean[..., 0] + beta * log_z.where(weight.sum(-1) > 0, 0.0)) ** 2


def regression_in_nats(
    log_ratio: Tensor, reward: Tensor, weight: Tensor, *, beta: float, anchor: float = 1.0, clip: float = 8.0
) -> Tensor:
    """`regression` / beta^2: what log-ratios miss the target r / beta by, squared. With beta from `step_size` neither
    value nor gradient knows the unit of the reward, so that a limit on gradients acts alike in every unit. beta (0,
    inf]; inf asks for no change. clip: B in nats of log-ratio."""
    return regression(log_ratio, reward / beta, weight, beta=1.0, anchor=anchor, clip=clip)
