"""Rewarding an answer with its share (majority voting) instead of the logarithm of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from srlm.theory._check import Number, argument, number, scalar


def sharpen_by_share(log_share: ArrayLike, beta: float, rounds: int) -> Number:
    """log P_T after T exact updates P_{t+1}(c) proportional to P_t(c) e^{P_t(c)/beta} (Eq. 2 with r = P_t).

    A share differs by at most 1, so a round moves log-odds by at most 1/beta; from a flat start by about the mode's
    share over beta. log_share [..., C] in [-inf, 0], sums of exp 1; beta (0, inf); rounds T whole [0, inf).
    Returns [..., C] in nats.
    """
    values = argument("log_share", log_share, "[-inf, 0]")
    if not values.ndim or not values.size or not np.allclose(np.exp(values).sum(-1), 1):
        raise ValueError(f"log_share must be [..., C] with shares that sum to 1, got {log_share!r}")
    temperature = scalar("beta", beta, "(0, inf)")
    for _ in range(int(scalar("rounds", rounds, "[0, inf)", whole=True))):
        # In units of the largest reward: 1/beta may be large.
        share = np.exp(values)
        values = values + (share - share.max(-1, keepdims=True)) / temperature
        values = values - logsumexp(values, axis=-1, keepdims=True)
    return number(values)


def share_rounds_needed(num_rivals: ArrayLike, margin: ArrayLike, beta: ArrayLike) -> Number:
    """Rounds of `sharpen_by_share` before a mode with m rivals, all at margin gamma, has half of the share: at least

        beta ((m + 1) log((1 - 1/m)/(1 - e^-gamma)) + log m - gamma),    about beta m log(1/(1 - e^-gamma))     (ours)

    Proved: the log-odds D grow by (e^D - 1)/(beta (m + e^D)) a round, which rises with D, so the rounds from gamma to
    log m are at least the integral of one over it. Linear in kappa_0 = 1 + m e^-gamma, where log-shares
    (`sharpen`) need log(log(m)/gamma)/log(1 + 1/beta). 0 where the mode has its half already, gamma >= log m.

    num_rivals m whole [1, inf); margin gamma (0, inf) in nats; beta (0, inf). Broadcast.
    """
    m = argument("num_rivals", num_rivals, "[1, inf)", whole=True)
    gamma = argument("margin", margin, "(0, inf)")
    temperature = argument("beta", beta, "(0, inf)")
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = (m + 1) * (np.log1p(-1 / m) - np.log(-np.expm1(-gamma))) + np.log(m) - gamma
    return number(np.where(gamma < np.log(m), temperature * logs, 0.0))


def log_share_from_samples(log_share: ArrayLike, num_samples: ArrayLike) -> Number:
    """max(log P(c), -log K): the log-share as K samples can tell it at best, since one count of K is the least share.

    What is rarer than 1/K is not told apart; a start whose mode is rarer is not sharpened at all. log_share [-inf, 0];
    num_samples K whole [1, inf). Broadcast.
    """
    values = argument("log_share", log_share, "[-inf, 0]")
    return number(np.maximum(values, -np.log(argument("num_samples", num_samples, "[1, inf)", whole=True))))
