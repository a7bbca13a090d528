"""Imitation of a group's best response, or of all."""

from __future__ import annotations

import torch
from torch import Tensor

from srlm.objectives.groups import taking_part
from srlm.objectives.preferences import pair_weight


def imitation(log_ratio: Tensor, reward: Tensor, weight: Tensor) -> Tensor:
    """-log_ratio of all responses, in the mean: supervised fine-tuning on whatever was drawn (-log pi up to a
    constant), as SSD does (arXiv 2604.01193). The reward takes no part.

    Population minimiser: the law that the responses were drawn from, pi_t unless decoding was truncated or hot.
    """
    log_ratio, _ = taking_part(log_ratio, reward, weight)
    return -(weight * log_ratio).sum(-1)


def best_of_k(log_ratio: Tensor, reward: Tensor, weight: Tensor) -> Tensor:
    """-log_ratio of the best response: supervised fine-tuning on it (-log pi up to a constant); equals share.

    "SFT-sharpening" of arXiv 2412.01951. Population minimiser: the law of the best of K draws from pi_t,
    pi(y) = P(r <= r_y)^K - P(r < r_y)^K where no two rewards are equal.
    """
    log_ratio, reward = taking_part(log_ratio, reward, weight)
    share = torch.where(reward == reward.amax(-1, keepdim=True), weight, 0.0)
    return -(share * log_ratio).sum(-1) / share.sum(-1).clamp_min(torch.finfo(share.dtype).tiny)


def nll(log_ratio: Tensor, reward: Tensor, weight: Tensor, *, margin: float = 0.0) -> Tensor:
    """`best_of_k` where a group has a pair, else 0. It holds up the mass of the best response y, which pairs alone
    leave free.

    Of log-ratios divided by length it is, up to a constant, the -log pi(y|x) / |y| that Iterative RPO (arXiv
    2404.19733, Eq. 1) and ScPO (arXiv 2411.04109) add to DPO.
    """
    paired = pair_weight(reward, weight, margin=margin).sum((-2, -1)) > 0
    return best_of_k(log_ratio, reward, weight).where(paired, 0.0)
