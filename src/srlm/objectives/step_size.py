"""beta solved from a round's own samples: how far, in nats, the round is asked to move.

Of a group with rewards r_k and weights w_k the target pi_{t+1} = pi_t exp(r / beta) / Z makes q_k = w_k exp(r_k / beta)
/ Z. KL(q || w) never rises in beta, since with s = 1/beta its derivative is s Var_q(r): from the log of 1 / (weight of
the best), at most log K for K samples, it falls to 0. Groups of weight 0 take no part, nor do responses of weight 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from srlm.objectives.groups import taking_part

REACH = 0.99  # of the KL that beta -> 0 would give: the rest would be bought with log-ratios without bound
ROUNDINGS = 16  # of fp32, in which rewards come
LEAST_EXPONENT = -800.0  # e^-746 is 0


def step_size(reward: Tensor, weight: Tensor, step: float, prompts: Tensor | None = None) -> float:
    """The smallest beta whose mean over prompts of KL(q || w) is at most `step`, to the last bits of float64.

    (0, inf); scales with the rewards, and a constant per group changes nothing. Where so many rewards are equal that
    all beta stay below `step`, the smallest that comes within a percent of the most they allow; inf, which asks for
    nothing, where no group has two rewards. Rewards count as they are: how far below the best one still counts
    (`regression`'s clip) is another question.

    reward [P, K], finite where it counts. weight [P, K]: a group sums to 1, or to 0 if it takes no part. step: nats,
    above 0. prompts [P]: their probabilities, equal unless given.
    """
    gap, share = _relative(reward, weight)
    unit = float(gap.amin().abs()) if gap.numel() else 0.0
    if unit == 0:
        return math.inf
    gap = gap / unit
    counts = share.sum(-1)
    mass = counts if prompts is None else prompts.double() * counts

    def moved(beta: float) -> float:
        return float((mass * _divergence(gap, share, beta)).sum() / mass.sum())

    most = float((mass * -torch.log(share.where(gap == 0, 0.0).sum(-1) + (1 - counts))).sum() / mass.sum())
    asked = min(step, REACH * most)
    enough = 1 / math.sqrt(2 * asked)  # by Hoeffding's lemma KL <= 1 / (8 beta^2), the rewards being within 1
    too_small = enough / 2
    while moved(too_small) <= asked:
        too_small, enough = too_small / 2, too_small
    while too_small < (middle := math.sqrt(too_small) * math.sqrt(enough)) < enough:
        if moved(middle) <= asked:
            enough = middle
        else:
            too_small = middle
    return unit * enough


def divergence(reward: Tensor, weight: Tensor, beta: float) -> Tensor:
    """KL(q || w) [P] in nats, float64; 0 in groups that take no part. beta (0, inf]."""
    return _divergence(*_relative(reward, weight), beta)


def target(reward: Tensor, weight: Tensor, beta: float) -> Tensor:
    """q [P, K], float64; sums to 1, or to 0 in groups that take no part. beta (0, inf]."""
    return _tilted(*_relative(reward, weight), beta)


def effective_samples(reward: Tensor, weight: Tensor, beta: float) -> Tensor:
    """1 / sum_k q_k^2 [P] in [1, K], float64: on how many of its responses a group's Z rests. inf in groups that take
    no part. beta (0, inf]."""
    return 1 / target(reward, weight, beta).square().sum(-1)


def _relative(reward: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards less their group's best, 0 where nothing counts or rounding alone tells them apart, and weights that sum
    to 1 or to 0."""
    share = weight.double()
    _, values = taking_part(share, reward.double(), share)
    total = share.sum(-1, keepdim=True)
    best = values.amax(-1, keepdim=True)
    gap = values - best
    rounding = ROUNDINGS * torch.finfo(torch.float32).eps * best.abs()
    return gap.where(gap < -rounding, 0.0), share / total.where(total > 0, 1.0)


def _tilted(gap: Tensor, share: Tensor, beta: float) -> Tensor:
    unscaled = share * torch.exp((gap / beta).clamp_min(LEAST_EXPONENT))
    total = unscaled.sum(-1, keepdim=True)
    return unscaled / total.where(total > 0, 1.0)


def _divergence(gap: Tensor, share: Tensor, beta: float) -> Tensor:
    exponent = (gap / beta).clamp_min(LEAST_EXPONENT)
    total = (share * torch.exp(exponent)).sum(-1)
    mean = (_tilted(gap, share, beta) * exponent).sum(-1)
    return mean - torch.log(total.where(total > 0, 1.0))
