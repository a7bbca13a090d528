"""Objectives: (log_ratio [P, K], reward [P, K], weight [P, K]) -> loss [P]. Free functions; beta > 0 in nats.

log_ratio is log pi(y_k|x) - log pi_t(y_k|x), weight sums to 1 in each group, or to 0 in one that costs nothing.
Responses of weight 0 take part in nothing. P(r < r_k): the probability under pi_t that a response has less reward.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LARGEST_LOG_RATIO = 30.0  # nats: of a ratio beyond it only its clipping counts, and fp32 overflows at 88


def _taking_part(log_ratio: Tensor, reward: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whatever stands at weight 0 becomes harmless: the best reward of those that count, 0 where none does."""
    counts = weight > 0
    best = torch.where(counts, reward, -torch.inf).amax(-1, keepdim=True)
    return log_ratio.where(counts, 0.0), reward.where(counts, best.where(counts.any(-1, keepdim=True), 0.0))


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
    The anchored loss adds anchor * (sum_k weight_k d_k + beta log Z)^2: same population minimiser
    pi_{t+1} = pi_t exp(r / beta) / Z, without the free constant per prompt that lets all samples lose mass together.
    Weighted groups use the reliability-weighted unbiased variance, which is the pairwise mean under weight_i weight_j.

    clip: B > 0 asks of a response whose reward lies more than B under its group's best only that it be pushed down by
        B / beta or more, up to what Eq. 3 asks (`censored`). 0 is Eq. 3 itself.
    """
    log_ratio, reward = _taking_part(log_ratio, reward, weight)
    target = censored(log_ratio, reward, weight, beta=beta, clip=clip)
    difference = beta * log_ratio - target
    mean = (weight * difference).sum(-1, keepdim=True)
    pairs = (weight * (1 - weight)).sum(-1)  # mass of the pairs i != j: 0 once all of a table's mass is on one response
    spread = (weight * (difference - mean) ** 2).sum(-1) / pairs.clamp_min(torch.finfo(pairs.dtype).tiny)
    if anchor == 0:
        return 2 * spread
    log_z = log_partition(target, weight, beta)
    return 2 * spread + anchor * (mean[..., 0] + beta * log_z.where(weight.sum(-1) > 0, 0.0)) ** 2


# Preferences: which of two responses has the higher reward, and nothing of by how much


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
    """
    log_ratio, reward = _taking_part(log_ratio, reward, weight)
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
    """
    log_ratio, reward = _taking_part(log_ratio, reward, weight)
    h = beta * (log_ratio[..., :, None] - log_ratio[..., None, :])
    loss = (1 - label_smoothing) * (h - 0.5) ** 2 + label_smoothing * (h + 0.5) ** 2
    return (pair_weight(reward, weight, pairs=pairs, margin=margin) * loss).sum((-2, -1))


def consistency(tau: float | None) -> float:
    """CREAM's label smoothing (1 - tau)/2 in [0, 1] (arXiv 2410.12735: 1 - C with C = (1 + tau)/2), from
    Kendall's tau between pi_t and pi_{t-1}; 0 where there is none, as in round 0."""
    return 0.0 if tau is None else (1 - tau) / 2


# Imitation and policy gradient


def best_of_k(log_ratio: Tensor, reward: Tensor, weight: Tensor) -> Tensor:
    """-log_ratio of the best response: supervised fine-tuning on it (-log pi up to a constant); equals share.

    "SFT-sharpening" of arXiv 2412.01951. Population minimiser: the law of the best of K draws from pi_t,
    pi(y) = P(r <= r_y)^K - P(r < r_y)^K where no two rewards are equal.
    """
    log_ratio, reward = _taking_part(log_ratio, reward, weight)
    share = torch.where(reward == reward.amax(-1, keepdim=True), weight, 0.0)
    return -(share * log_ratio).sum(-1) / share.sum(-1).clamp_min(torch.finfo(share.dtype).tiny)


def nll(log_ratio: Tensor, reward: Tensor, weight: Tensor, *, margin: float = 0.0) -> Tensor:
    """`best_of_k` where a group has a pair, else 0: the term that iterative DPO adds (arXiv 2404.19733, Eq. 1).
    It holds up the mass of the best response, which pairs alone leave free."""
    paired = pair_weight(reward, weight, margin=margin).sum((-2, -1)) > 0
    return best_of_k(log_ratio, reward, weight).where(paired, 0.0)


def grpo(log_ratio: Tensor, reward: Tensor, weight: Tensor, *, ratio_clip: float = 0.2, by_std: bool = True) -> Tensor:
    """Clipped policy gradient on group advantages (arXiv 2402.03300, Eq. 3), one ratio per response as in GSPO:

    -sum_k weight_k min(u_k A_k, clip(u_k, 1 - c, 1 + c) A_k), u = exp(log_ratio), A = r - mean r, over the group's
    standard deviation if by_std; c is ratio_clip.

    No unique population minimiser: where the clips can be reached together, every pi with u >= 1 + c for A > 0 and
    u <= 1 - c for A < 0 attains the least loss, -2 c sum_{A > 0} weight A. A group of equal rewards costs 0.
    """
    log_ratio, reward = _taking_part(log_ratio, reward, weight)
    differ = reward.amax(-1, keepdim=True) > reward.amin(-1, keepdim=True)
    advantage = torch.where(differ, reward - (weight * reward).sum(-1, keepdim=True), 0.0)
    if by_std:
        advantage = advantage / (weight * advantage**2).sum(-1, keepdim=True).sqrt().where(differ, 1.0)
    ratio = log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()
    return -(weight * torch.minimum(ratio * advantage, ratio.clamp(1 - ratio_clip, 1 + ratio_clip) * advantage)).sum(-1)


# What a reward becomes before the objective sees it


def length_penalty(reward: Tensor, length: Tensor, per_token: float, window: tuple[int, int] | None = None) -> Tensor:
    """r - per_token * (tokens outside the window): with `window` (low, high) how far the length misses it, without one
    the length itself. per_token at least 0, in the unit of the reward per token."""
    if window is None:
        return reward - per_token * length
    low, high = window
    return reward - per_token * ((low - length).clamp_min(0) + (length - high).clamp_min(0))


def kl_initial(reward: Tensor, log_prob: Tensor, initial: Tensor, strength: float) -> Tensor:
    """r' = r - beta0 (log pi_t - log pi_0), for use with beta' = beta + beta0: a KL term to pi_0 beside that to pi_t.

    The maximiser of E[r] - beta KL(pi||pi_t) - beta0 KL(pi||pi_0) has, its derivative in pi(y) being constant,
    (beta + beta0) log pi = r + beta log pi_t + beta0 log pi_0 + const, which is pi = pi_t exp(r'/beta') / Z.
    log_prob, initial: [P, K] log pi_t and log pi_0 of the responses; strength is beta0 >= 0, nats of reward per nat.
    """
    return reward - strength * (log_prob - initial)


def truncated(reward: Tensor, weight: Tensor, finished: Tensor, policy: str) -> tuple[Tensor, Tensor]:
    """(reward, weight) where responses that were cut off, not `finished` [P, K], are treated by `policy`:

    keep: like any other. penalise: no better than the worst of its group. drop: weight 0, the others' weights sum to
    what the group's did; a group with fewer than two left costs nothing.
    """
    if policy == "penalise":
        return reward.where(finished, reward.amin(-1, keepdim=True)), weight
    if policy == "drop":
        left = weight * finished * (finished & (weight > 0)).sum(-1, keepdim=True).ge(2)
        total = weight.sum(-1, keepdim=True) / left.sum(-1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        return reward, left * total
    return reward, weight
