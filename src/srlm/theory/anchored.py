"""One round of the anchored regression: a bound without a constant, and what noise and an estimated Z cost (ours).

Everything is about groups of K draws y_1..y_K ~ pi_t(.|x) to n fresh prompts x ~ D, the residuals
d_k = beta log(pi(y_k|x)/pi_t(y_k|x)) - r(x, y_k), and the exact update pi* = pi_t exp(r/beta)/Z, which has
d_k = -beta log Z. Proofs: docs/theory-note.md and, of the corollaries, docs/theory.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from srlm.theory._check import Number, argument, either, number
from srlm.theory.condition import log_group_bound, log_mean_inverse


def log_group_condition_number(
    mode_log_prob: ArrayLike, samples_per_prompt: ArrayLike, weight: ArrayLike | None = None
) -> Number:
    """log kappa^(K) = log E_x[1/(1 - (1 - pi(y*|x))^K)]: how many groups of K it takes to see the mode, in nats.

    kappa^(1) = kappa (Eq. 5), kappa^(K) <= 1 + (kappa - 1)/K, and no less can be said from kappa alone.
    mode_log_prob: [..., P] max_y log pi(y|x) in [-inf, 0]; samples_per_prompt K: one whole number in [1, inf); weight:
    prompt probabilities as for `log_condition_number`. Returns [...].
    """
    values = argument("mode_log_prob", mode_log_prob, "[-inf, 0]")
    draws = argument("samples_per_prompt", samples_per_prompt, "[1, inf)", whole=True)
    if draws.ndim:
        raise ValueError(f"samples_per_prompt must be one whole number in [1, inf), got {samples_per_prompt!r}")
    return number(_log_group_condition("mode_log_prob", values, float(draws), weight))


def anchored_failure_bound(
    *,
    num_samples: ArrayLike,
    log_class_size: ArrayLike,
    failure_probability: ArrayLike,
    samples_per_prompt: ArrayLike = 1,
    mode_prob: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    log_condition: ArrayLike | None = None,
) -> Number:
    """P_x[pi_{t+1}(y*_t|x) != pi*(y*_t|x)] of *any* empirical minimiser, with probability 1 - rho over the sample:

        <= sqrt( kappa^(K) log(|Pi|/rho) / n ),      kappa^(K) = E_x[1/(1 - (1 - pi_t(y*_t|x))^K)]

    Proved, no constant, for a finite class that contains pi*, exact rewards, and a loss that is zero only where
    d_k = -beta log Z for every draw: Eq. 3 with the anchor and the exact Z. With the pairs alone it is false
    (`srlm verify concentrability`). A value of 1 or more says nothing. Add P_x[pi*(y*|x) <= 1 - delta] for a bound on
    P_x[pi_{t+1}(y*|x) <= 1 - delta]. Linear softmax: with log_class_size = `covering_log_size`(d, B, eps) it bounds
    P_x[|log pi_{t+1}(y*|x) - log pi*(y*|x)| > 2 eps].

    num_samples n [1, inf); log_class_size log|Pi| [0, inf) in nats; failure_probability rho (0, 1); samples_per_prompt
    K whole [1, inf). One of: mode_prob [..., P] = pi_t(y*_t|x) in [0, 1] with prompt probabilities `weight` (uniform
    when None) and a single K; or log_condition log kappa_t [0, inf), which has kappa^(K) <= 1 + (kappa_t - 1)/K. All
    else broadcasts; inf beyond the range of floats.
    """
    n = argument("num_samples", num_samples, "[1, inf)")
    complexity = _complexity(log_class_size, failure_probability, 1)
    condition = _log_condition(mode_prob, weight, log_condition, samples_per_prompt)
    with np.errstate(over="ignore"):
        return number(np.exp((condition + np.log(complexity) - np.log(n)) / 2))


def noisy_anchored_failure_bound(
    *,
    num_samples: ArrayLike,
    log_class_size: ArrayLike,
    failure_probability: ArrayLike,
    samples_per_prompt: ArrayLike,
    noise: ArrayLike,
    tolerance: ArrayLike,
    mode_prob: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    log_condition: ArrayLike | None = None,
) -> Number:
    """P_x[beta |log pi_{t+1}(y*_t|x) - log pi*(y*_t|x)| > h] when every reward has independent noise of scale sigma:

        <= sqrt( 8 max(1, 4 sigma^2 K/((K - 1) h^2)) kappa^(K) log(2|Pi|/rho) / n )

    with probability 1 - rho, for the minimiser of sum over groups of 2 Var_unbiased(d) + (mean d + beta log Z)^2.
    Proved, constants included, for noise with mean 0 and E exp(s noise) <= exp(s^2 sigma^2/2) given what was drawn, a
    finite class that contains pi*, and the Z of the rewards *without* noise: how to know that one it does not say.

    samples_per_prompt K whole [2, inf); noise sigma [0, inf) and tolerance h (0, inf) in the reward's unit; the rest as
    for `anchored_failure_bound`.
    """
    n = argument("num_samples", num_samples, "[1, inf)")
    k = argument("samples_per_prompt", samples_per_prompt, "[2, inf)", whole=True)
    sigma = argument("noise", noise, "[0, inf)")
    h = argument("tolerance", tolerance, "(0, inf)")
    complexity = _complexity(log_class_size, failure_probability, 2)
    condition = _log_condition(mode_prob, weight, log_condition, samples_per_prompt)
    with np.errstate(divide="ignore", over="ignore"):
        loud = np.maximum(np.log(4 * k / (k - 1)) + 2 * (np.log(sigma) - np.log(h)), 0)
        return number(np.exp((np.log(8) + loud + condition + np.log(complexity) - np.log(n)) / 2))


def log_partition_bias_bound(
    samples_per_prompt: ArrayLike, concentrability: ArrayLike, largest_log_ratio: ArrayLike
) -> Number:
    """0 <= log Z - E log Z^ <= min(D, (C - 1)/K + D e^{-K/(8C)}) on one prompt, for Z^ = (1/K) sum_k exp(r_k/beta).

    What an anchor with Z^ in the place of Z asks too much of the samples, in nats; for large K it is (C - 1)/(2K).
    Proved: log(1 - u) >= -u - u^2 down to Z^ = Z/2, and a lower tail of sums of nonnegative variables below.

    samples_per_prompt K whole [1, inf); concentrability C = E_{y~pi*}[pi*(y)/pi_t(y)] [1, inf), at most 1/pi_t(y*|x)
    for the reward log pi_t; largest_log_ratio D = max_y log(pi_t(y)/pi*(y)) [0, inf). Broadcast.
    """
    k = argument("samples_per_prompt", samples_per_prompt, "[1, inf)", whole=True)
    c = argument("concentrability", concentrability, "[1, inf)")
    worst = argument("largest_log_ratio", largest_log_ratio, "[0, inf)")
    return number(np.minimum(worst, (c - 1) / k + worst * np.exp(-k / (8 * c))))


def _complexity(log_class_size: ArrayLike, failure_probability: ArrayLike, events: int) -> NDArray[np.float64]:
    """log(events |Pi|/rho)."""
    size = argument("log_class_size", log_class_size, "[0, inf)")
    rho = argument("failure_probability", failure_probability, "(0, 1)")
    return np.asarray(size + np.log(events) - np.log(rho))


def _log_condition(
    mode_prob: ArrayLike | None, weight: ArrayLike | None, log_condition: ArrayLike | None, draws: ArrayLike
) -> NDArray[np.float64]:
    either("mode_prob", mode_prob, "log_condition", log_condition)
    k = argument("samples_per_prompt", draws, "[1, inf)", whole=True)
    if log_condition is not None:
        if weight is not None:
            raise ValueError("weight must be given with mode_prob only, got log_condition")
        return log_group_bound(argument("log_condition", log_condition, "[0, inf)"), k)
    if k.ndim:
        raise ValueError(f"samples_per_prompt must be one number where mode_prob is given, got {draws!r}")
    assert mode_prob is not None
    with np.errstate(divide="ignore"):
        return _log_group_condition("mode_prob", np.log(argument("mode_prob", mode_prob, "[0, 1]")), float(k), weight)


def _log_group_condition(
    name: str, mode_log_prob: NDArray[np.float64], draws: float, weight: ArrayLike | None
) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        rare = mode_log_prob + np.log(draws)
        hit = np.log(-np.expm1(draws * np.log1p(-np.exp(mode_log_prob))))
    # Below e^-37 two draws of a mode are beyond the last digit, and below e^-745 the exponential is 0.
    return log_mean_inverse(name, np.where(rare < -37, rare, np.minimum(hit, 0)), weight)
