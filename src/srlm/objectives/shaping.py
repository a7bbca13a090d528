"""What a reward becomes before the objective sees it."""

from __future__ import annotations

import torch
from torch import Tensor


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
    A trust region KL(pi||pi_t) <= step has beta for its multiplier, 0 where the region is wide enough: beta' is then
    what `step_size` solves for r', or beta0 if that is larger.
    At pi_t, where E[grad log pi] = 0, the gradient of E[r] - beta0 KL(pi||pi_0) is E[r' grad log pi]: of a policy
    gradient too r' is the reward, unless it divides by the rewards' spread, and beta0 with them.
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
