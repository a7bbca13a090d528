"""T rounds of the anchored regression: a bound without a constant on losing the answer of pi_0 (ours).

Each round is that of `srlm.theory.anchored`: n fresh prompts with K draws each from pi_t, rewards log pi_t, and any
empirical minimiser. Proof: docs/theory-note.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from srlm.theory._check import Number, argument, log_start, number, per_round
from srlm.theory.condition import log_group_bound
from srlm.theory.sharpening import sharpened_kappa_bound


def anchored_exponent(beta: ArrayLike, rounds: ArrayLike | None = None) -> Number:
    """1 + sum_{t<T} prod_{s<=t} 1/beta_s: how far T *learned* rounds sharpen at least, wherever they went wrong.

    The odds against the mode, 1/pi_T(y*) - 1, are at most those of pi_0 times e^{-(exponent - 1) gamma} on every prompt
    that `anchored_rounds_bound` does not count, gamma the margin of pi_0. T = 1 is `sharpening_exponent`; beyond it is
    less (1 + T for beta = 1, not 2^T), because what a round did not see may come back as one rival with all its mass.

    beta (0, inf) and rounds T whole [0, inf), broadcast; inf beyond the range of floats. Without rounds, beta [T]
    (0, inf) has one entry a round.
    """
    if rounds is None:
        each = per_round("beta", beta, "(0, inf)", most=1)
        with np.errstate(over="ignore"):
            return number(1 + np.exp(-np.cumsum(np.log(each))).sum())
    log_inverse = -np.log(argument("beta", beta, "(0, inf)"))
    total = argument("rounds", rounds, "[0, inf)", whole=True)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        # b + b^2 + ... + b^T = (b^T - 1)/(1 - 1/b), b = 1/beta
        powers = np.expm1(total * log_inverse) / -np.expm1(-log_inverse)
    return number(1 + np.where(log_inverse == 0, total, powers))


def anchored_rounds_bound(
    *,
    num_samples: ArrayLike,
    rounds: ArrayLike | None = None,
    log_class_size: ArrayLike,
    failure_probability: ArrayLike,
    margin: ArrayLike,
    beta: ArrayLike,
    samples_per_prompt: ArrayLike = 1,
    kappa0: ArrayLike | None = None,
    log_kappa0: ArrayLike | None = None,
) -> Number:
    """P_x[y*_T != y*_0, or the odds against y*_0 are above e^{-(a_T - 1) gamma} times those of pi_0] after T rounds,

        <= sum_{t<T} sqrt( kappa_t log(|Pi| T/rho) / n ),      kappa_t = 1 + (kappa_0 - 1) e^{-(a_t - 1) gamma}/K

    a_t = `anchored_exponent`, with probability 1 - rho over all T samples, for *any* empirical minimisers. Proved, no
    constant, under what `anchored_failure_bound` asks in every round: a class of at most |Pi| policies, fixed before
    the round's sample, that holds the exact update of the policy *learned* so far; exact rewards and Z. gamma is the
    margin of pi_0 on every prompt; no later round is asked for one, nor for a confidence p. Add
    `sharpened_failure_bound` at a_T for P_x[y*_T != y*_0 or pi_T(y*_0|x) <= 1 - delta]. From 1 on it says nothing.

    At T = 1 it is `anchored_failure_bound` from kappa_0. kappa_t falls to 1: later rounds cost sqrt(log(|Pi| T/rho)/n)
    each, the first as much as ever. For a given nT it rises with T: one round at beta = 1/(a - 1) promises more.

    num_samples n a round [1, inf); rounds T whole [1, inf); log_class_size log|Pi| [0, inf) in nats;
    failure_probability rho (0, 1); margin gamma (0, inf) in nats; beta (0, inf); samples_per_prompt K whole [1, inf);
    kappa0 [1, inf) or log_kappa0 [0, inf). All broadcast. Without rounds, beta [T] has one entry a round.
    """
    n = argument("num_samples", num_samples, "[1, inf)")
    size = argument("log_class_size", log_class_size, "[0, inf)")
    rho = argument("failure_probability", failure_probability, "(0, 1)")
    k = argument("samples_per_prompt", samples_per_prompt, "[1, inf)", whole=True)
    start = log_start(kappa0, log_kappa0)
    if rounds is None:
        each = per_round("beta", beta, "(0, inf)", most=1)
        total = np.asarray(float(len(each)))
        with np.errstate(over="ignore"):
            exponent = 1 + np.append(0.0, np.exp(-np.cumsum(np.log(each))).cumsum())[:-1]
    else:
        total = argument("rounds", rounds, "[1, inf)", whole=True)
        temperature = argument("beta", beta, "(0, inf)")
        exponent = np.asarray(anchored_exponent(temperature[..., None], np.arange(total.max(initial=1))))
    gamma = argument("margin", margin, "(0, inf)")
    # Rounds are the last axis.
    sharpened = np.asarray(sharpened_kappa_bound(None, gamma[..., None], exponent, log_kappa0=start[..., None]))
    with np.errstate(divide="ignore", over="ignore"):
        condition = log_group_bound(sharpened, k[..., None])
        complexity = np.log(size + np.log(total) - np.log(rho)) - np.log(n)
        cost = np.exp((condition + complexity[..., None]) / 2)
    ran = np.arange(exponent.shape[-1]) < total[..., None]
    return number(np.where(ran, cost, 0.0).sum(-1))
