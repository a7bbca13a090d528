"""The policy condition number (Eq. 5) and the margin (Def. 5.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from srlm.theory._check import Number, argument, number


def condition_number(mode_prob: ArrayLike, weight: ArrayLike | None = None) -> Number:
    """kappa = E_x[1 / max_y pi(y|x)] (Eq. 5), in [1, 1/min_x max_y pi(y|x)]; inf beyond the range of floats.

    mode_prob: [..., P] max_y pi(y|x), in [0, 1]. A lower bound on it (the best of some samples) makes kappa an upper
    bound.
    weight: [P] or [..., P] prompt probabilities, uniform when None.
    Returns [...]: a float for a vector. ValueError as for log_condition_number.
    """
    values = argument("mode_prob", mode_prob, "[0, 1]")
    with np.errstate(divide="ignore", over="ignore"):
        return number(np.exp(log_mean_inverse("mode_prob", np.log(values), weight)))


def log_condition_number(mode_log_prob: ArrayLike, weight: ArrayLike | None = None) -> Number:
    """log kappa = log E_x[1 / max_y pi(y|x)] (Eq. 5), in nats, without overflow for log-probs of -2000.

    mode_log_prob: [..., P] max_y log pi(y|x), each <= 0. From samples the largest log-prob seen only bounds the mode's
    from below, and the result bounds log kappa from above.
    weight: [P] or [..., P] prompt probabilities, uniform when None.
    Returns [...]: a float for a vector. ValueError for values above 0, NaN, no prompts, or weights that are no
    distribution.
    """
    values = argument("mode_log_prob", mode_log_prob, "[-inf, 0]")
    return number(log_mean_inverse("mode_log_prob", values, weight))


def mode_margin(log_prob: ArrayLike) -> Number:
    """log pi(y*|x) - max_{y != y*} log pi(y|x) in nats (Def. 5.2 takes the least over x and rounds); 0 for a tie.

    log_prob: [..., Y] with Y >= 2 in [-inf, 0], at least one of them finite in every row. Returns [...].
    """
    values = argument("log_prob", log_prob, "[-inf, 0]")
    if values.ndim == 0 or values.shape[-1] < 2 or np.isneginf(values.max(-1)).any():
        raise ValueError(f"log_prob must be [..., Y] with Y >= 2 and a finite largest value, got shape {values.shape}")
    second, first = np.moveaxis(np.partition(values, -2, axis=-1)[..., -2:], -1, 0)
    return number(first - second)


def log_group_bound(log_condition: ArrayLike, draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(1 + (kappa - 1)/K), which kappa^(K) is never above, of log kappa and K that were looked at."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.logaddexp(np.log1p(-1 / draws), log_condition - np.log(draws)))


def log_mean_inverse(name: str, log_prob: NDArray[np.float64], weight: ArrayLike | None) -> NDArray[np.float64]:
    """log E_x[e^-log_prob] [...] of an argument [..., P] of this name."""
    if log_prob.ndim == 0 or not log_prob.size:
        raise ValueError(f"{name} must be a non-empty array with one value a prompt, got shape {log_prob.shape}")
    prompts = log_prob.shape[-1]
    share = np.full(prompts, 1 / prompts) if weight is None else argument("weight", weight, "[0, 1]")
    if share.shape[-1:] != (prompts,) or not np.allclose(share.sum(-1), 1):
        raise ValueError(f"weight must sum to 1 over {prompts} prompts, got {weight!r}")
    # Rounding must not make a kappa below 1: everything that takes one refuses it.
    result: NDArray[np.float64] = np.maximum(logsumexp(-log_prob, axis=-1, b=share / share.sum(-1, keepdims=True)), 0)
    return result
