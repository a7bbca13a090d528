"""A guarantee for the answer of pi_0: Eq. 43 alone passes a policy that is sure of another one."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from srlm.theory._check import Number, argument, number, per_round, scalar
from srlm.theory.guarantee import round_rates
from srlm.theory.recursion import tail_integral_recursion


def fidelity_bound(round_rate: ArrayLike, level: ArrayLike) -> Number:
    """P_x[y*_T != y*_0 or pi_T(y*_0|x) <= 1-delta] <= sum_{t<T-1} 2 A_t + A_{T-1}/min(delta, 1/2) (ours).

    Proved for any A_t with P_x[pi_{t+1}(y*_t|x) <= 1-delta] <= A_t/delta at every delta (Eq. 43): a mode that moves had
    at most 1/2, so round t moves it on at most 2 A_t of prompts, and the last round is asked for delta as well. Vacuous
    from 1 on. Rounds add up, so it falls with T only while the last A_t does: `fidelity_guarantee` has a best T.

    round_rate A [..., T] in [0, inf), T >= 1; level delta (0, 1), broadcast against [...]. Returns [...].
    """
    rate = per_round("round_rate", round_rate, "[0, inf)")
    if not rate.shape[-1]:
        raise ValueError(f"round_rate must be [..., T] with T >= 1, got shape {rate.shape}")
    delta = argument("level", level, "(0, 1)")
    last = rate[..., -1] / np.minimum(delta, 0.5)
    return number(2 * rate[..., :-1].sum(-1) + last)


def fidelity_guarantee(
    *,
    num_samples: float,
    rounds: int,
    kappa0: float,
    log_class_size: float,
    min_confidence: float,
    margin: float,
    beta: float,
    level: float,
    failure_probability: float,
    constant: float = 1.0,
) -> NDArray[np.float64]:
    """`fidelity_bound` after 1, ..., T rounds of n prompts each, [T], with A_t of Thm 5.3; the best is argmin + 1.

        A_t = (C B sqrt(log(|Pi| T/rho)/n) sqrt(kappa_t) + beta log kappa_t)/gamma,    B = log(n |Pi| T/rho)

    and kappa_t from Eq. 56 (`tail_integral_recursion`). Each entry is for a run planned for so many rounds. Up to the
    constant C and with the hypotheses of `finite_class_guarantee`, whose arguments these are, one number each.
    """
    n = scalar("num_samples", num_samples, "[1, inf)")
    total = int(scalar("rounds", rounds, "[1, inf)", whole=True))
    start = scalar("kappa0", kappa0, "[1, inf)")
    size = scalar("log_class_size", log_class_size, "[0, inf)")
    p = scalar("min_confidence", min_confidence, "(0, 1]")
    gamma = scalar("margin", margin, "(0, inf)")
    strength = scalar("beta", beta, "[0, inf)")
    delta = scalar("level", level, "(0, 1)")
    rho = scalar("failure_probability", failure_probability, "(0, 1)")
    c = scalar("constant", constant, "(0, inf)")
    bounds = []
    for t in range(1, total + 1):
        rate, beta_rate = round_rates(n, size + np.log(t) - np.log(rho), gamma, strength, c)
        kappa = tail_integral_recursion(start, t - 1, rate, beta_rate, p)
        bounds.append(fidelity_bound(rate * np.sqrt(kappa) + beta_rate * np.log(kappa), delta))
    return np.array(bounds)
