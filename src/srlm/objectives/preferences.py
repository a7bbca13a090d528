"""Preferences: which of two responses has the higher reward, and nothing of by how much."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from srlm.objectives.groups import taking_part


def pair_weight(reward: Tensor, weight: Tensor, *, pairs: str = "all", margin: float = 0.0) -> Tensor:
    """How much the pair "i beats j" counts, [P, K, K]; a group sums to 1, or to 0 if it has no pair.

    pairs: `all` i, j with r_i - r_j > margin, in proportion to weight_i weight_j; `best_worst` those of them with i the
        best and j the worst. Ties make no pair; where several are best or worst, they share.
    margin: at least 0, in the unit of the reward.
    """
    counts = weight > 0
    gap = reward[..., :, None] - reward[..., None, :]
    chosen = (gap > margin) & counts[..., :, None] & counts[..., None, :]
    if pairs == "best_worst":
        best = reward == reward.where(counts, -torch.inf).amax(-1, keepdim=True)
        worst = reward == reward.where(counts, torch.inf).amin(-1, keepdim=True)
        chosen &= best[..., :, None] & worst[..., None, :]
    product = torch.where(chosen, weight[..., :, None] * weight[..., None, :], 0.0)
    return product / product.sum((-2, -1), keepdim=True).clamp_min(torch.finfo(product.dtype).tiny)


def dpo(
    log_ratio: Tensor,
    reward: Tensor,
    weight: Tensor,
    *,
    beta: float = 1.0,
    pairs: str = "all",
    margin: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """DPO (arXiv 2305.18290, Eq. 7) on the pairs of `pair_weight`, conservative by label_smoothing e in [0, 1]:

    mean over pairs of -(1 - e) log s(h) - e log s(-h), h = beta (log_ratio_i - log_ratio_j), s the logistic function.

    Population minimiser: of two responses h = log((1 - e)/e), infinite at e = 0, where only few steps keep pi close.
    Of more, beta log_ratio are the Bradley-Terry strengths of a tournament in which i beats j with probability 1 - e:
    for each i, sum_j w_ij s(h_ij) = sum_j w_ij (1 - e if r_i > r_j else e), j over the pairs of i.

    Of log-ratios divided by length it is the length-normalised DPO of Tulu 3 (arXiv 2411.15124), there with beta 5.
    """
    log_ratio, reward = taking_part(log_ratio, reward, weight)
    h = beta * (log_ratio[..., :, None] - log_ratio[..., None, :])
    loss = -(1 - label_smoothing) * logsigmoid(h) - label_smoothing * logsigmoid(-h)
    return (pair_weight(reward, weight, pairs=pairs, margin=margin) * loss).sum((-2, -1))


def ipo(
    log_ratio: Tensor,
    reward: Tensor,
    weight: Tensor,
    *,
    beta: float = 1.0,
    pairs: str = "all",
    margin: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """IPO (arXiv 2310.12036, Eq. 17, times beta^2) on the pairs of `pair_weight`, with label_smoothing e in [0, 1]:

    mean over pairs of (1 - e)(h - 1/2)^2 + e (h + 1/2)^2, h = beta (log_ratio_i - log_ratio_j).

    Population minimiser over all pairs without ties, finite at every e:
    pi = pi_t exp((1 - 2e)/(2 beta) (P(r < r_k) - P(r > r_k))) / Z. Of best and worst alone: h = (1 - 2e)/2.

    TRL's `ipo` divides log-ratios by length, so that the gap asked for, 1/(2 beta), is one of nats a token.
    """
    log_ratio, reward = taking_part(log_ratio, reward, weight)
    h = beta * (log_ratio[..., :, None] - log_ratio[..., None, :])
    loss = (1 - label_smoothing) * (h - 0.5) ** 2 + label_smoothing * (h + 0.5) ** 2
    return (pair_weight(reward, weight, pairs=pairs, margin=margin) * loss).sum((-2, -1))


def consistency(tau: float | None) -> float:
    """CREAM's label smoothing (1 - tau)/2 in [0, 1] (arXiv 2410.12735: 1 - C with C = (1 + tau)/2), from Kendall's tau
    between the rankings by this round's reward and by the last one's; 0 where there is none, as in round 0."""
    return 0.0 if tau is None else (1 - tau) / 2
