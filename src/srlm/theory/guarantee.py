"""Failure after T rounds (Thm 5.3 for a finite class, Thm 6.2 for linear softmax), taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

from srlm.theory._check import Number, argument, log_start, number
from srlm.theory.dimension import covering_log_size
from srlm.theory.recursion import (
    contraction_factor,
    kappa_fixed_point,
    log_difference,
    relaxation_factor,
    tail_integral_recursion,
)

Floats: TypeAlias = NDArray[np.float64] | float


@dataclass(frozen=True)
class Guarantee:
    """P_x[pi_T(y*|x) <= 1 - delta] <= total = stable_part + transient_part + beta_part, up to the constant C.

    Each a float, or an array of the arguments' broadcast shape; a total of 1 or more says nothing, and is `vacuous`.
    """

    statistical_factor: Number
    """C B sqrt(log(|Pi| T/rho)/n)/(gamma delta): what stands before the root of kappa."""
    stable_part: Number
    """statistical_factor sqrt(min(kappa_infinity, 1/p)): what more rounds do not remove."""
    stable_part_by_confidence: Number
    """statistical_factor/sqrt(p): the paper's stable part, never below ours."""
    transient_part: Number
    """statistical_factor sqrt(lambda^{T-1} (kappa_0 - kappa_s)_+), kappa_s = min(kappa_infinity, 1/p): what is left of
    the start. For T >= 2 at most that of lambda^{T-2} (1/p - kappa_s), since p says kappa_1 <= 1/p."""
    beta_part: Number
    """beta log(kappa_{T-1})/(gamma delta), with the bound on kappa_{T-1} that the other parts use."""
    total: Number
    vacuous: bool | NDArray[np.bool_]
    """total >= 1: no probability needs a bound for that."""
    iterated_total: Number
    """A_{T-1}/delta with kappa_{T-1} from the exact recursion of Eq. 56: never above total, and not decomposed."""
    kappa_infinity: Number
    contraction: Number
    """lambda in [0, 1/2)."""
    coefficient: Number
    """s of kappa_{t+1} <= 1 + s sqrt(kappa_t): (b + c) relaxation, for `kappa_bound` and `iterations_to_forget`."""
    relaxation: Number
    """What b and c of Eq. 59 are multiplied by so that they bound Eq. 56."""


def finite_class_guarantee(
    *,
    num_samples: ArrayLike,
    rounds: ArrayLike,
    kappa0: ArrayLike | None = None,
    log_kappa0: ArrayLike | None = None,
    log_class_size: ArrayLike,
    min_confidence: ArrayLike,
    margin: ArrayLike,
    beta: ArrayLike,
    level: ArrayLike,
    failure_probability: ArrayLike,
    constant: ArrayLike = 1.0,
) -> Guarantee:
    """Thm 5.3, the shape of Eq. 7: with probability 1 - rho over all T rounds of n fresh prompts each,

        P_x[pi_T(y*|x) <= 1-delta] <= F (sqrt(kappa_inf) + sqrt(kappa_0) lambda^{(T-1)/2}) + beta-part,
        F = C B sqrt(log(|Pi| T/rho)/n)/(gamma delta),      B = log(n |Pi| T/rho)

    Not proved for a realizable class, with any constant C: App. C.5 puts kappa_t where the concentrability
    E_{y~pi_{t+1}}[pi_{t+1}/pi_t] of the *learned* policy belongs, and a minimiser that agrees on all that was sampled
    may have its mass where nobody samples (docs/theory.md; `srlm verify concentrability`). Read it as what Eq. 43 gives
    if that concentrability is of the order of kappa_t, as it is for the exact update; `anchored_failure_bound` needs
    neither this nor a constant. It also takes for granted that the class holds pi_0^{alpha_t}/Z for all t <= T, and
    that margin and confidence hold in every round: that kappa_1 <= 1/p is assumed, not shown.
    Four places are sharper than the paper, or repaired: kappa_0 - kappa_inf for kappa_0; min(kappa_inf, 1/p) for 1/p;
    kappa_t <= 1/p from round 1 on, which p says; and the relaxation factor, without which Eq. 59 does not bound Eq. 56.

    num_samples n a round [1, inf); rounds T whole [1, inf); kappa0 [1, inf) or log_kappa0 [0, inf), what exceeds the
    floats being inf; log_class_size log|Pi| [0, inf) in nats;
    min_confidence p (0, 1], the least pi_t(y*|x) of rounds t >= 1; margin gamma (0, inf) in nats; beta [0, inf), the
    largest beta_t where every round has its own, since Eq. 59 holds with it in all of them; level delta and
    failure_probability rho (0, 1); constant C (0, inf). All broadcast: a budget N is split over rounds by num_samples =
    N/rounds with an array of rounds.
    """
    n = argument("num_samples", num_samples, "[1, inf)")
    t = argument("rounds", rounds, "[1, inf)", whole=True)
    start = log_start(kappa0, log_kappa0)
    size = argument("log_class_size", log_class_size, "[0, inf)")
    p = argument("min_confidence", min_confidence, "(0, 1]")
    gamma = argument("margin", margin, "(0, inf)")
    strength = argument("beta", beta, "[0, inf)")
    delta = argument("level", level, "(0, 1)")
    rho = argument("failure_probability", failure_probability, "(0, 1)")
    c = argument("constant", constant, "(0, inf)")

    rate, beta_rate = round_rates(n, size + np.log(t) - np.log(rho), gamma, strength, c)
    relaxation = np.asarray(relaxation_factor(rate, p))
    coefficient = (rate + beta_rate) / p * relaxation
    limit = np.asarray(kappa_fixed_point(1.0, coefficient))
    contraction = np.asarray(contraction_factor(1.0, coefficient))

    stable_kappa = np.minimum(np.log(limit), -np.log(p))  # logarithms, these three
    transient_kappa = xlogy(t - 1, contraction) + log_difference(start, stable_kappa)
    # By the hypothesis on p, kappa_1 <= 1/p whatever kappa_0 was, and contracts from there.
    later = xlogy(np.maximum(t - 2, 0), contraction) + log_difference(-np.log(p), stable_kappa)
    transient_kappa = np.where(t > 1, np.minimum(transient_kappa, later), transient_kappa)
    stable = rate / delta * np.exp(stable_kappa / 2)
    with np.errstate(over="ignore"):
        transient = rate / delta * np.exp(transient_kappa / 2)
        beta_part = beta_rate / delta * np.logaddexp(stable_kappa, transient_kappa)
        total = stable + transient + beta_part
        last = _iterate(start, t - 1, rate, beta_rate, p)
        iterated = (rate * np.exp(last / 2) + beta_rate * last) / delta
    shape = total.shape

    def result(values: ArrayLike) -> Number:
        return number(np.broadcast_to(values, shape).copy())

    return Guarantee(
        statistical_factor=result(rate / delta),
        stable_part=result(stable),
        stable_part_by_confidence=result(rate / delta / np.sqrt(p)),
        transient_part=result(transient),
        beta_part=result(beta_part),
        total=result(total),
        vacuous=bool(total >= 1) if not shape else total >= 1,
        iterated_total=result(iterated),
        kappa_infinity=result(limit),
        contraction=result(contraction),
        coefficient=result(coefficient),
        relaxation=result(relaxation),
    )


def round_rates(
    num_samples: Floats, complexity: Floats, margin: Floats, beta: Floats, constant: Floats
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(C B sqrt(log(|Pi| T/rho)/n)/gamma, beta/gamma) of A_t (Eq. 42), complexity log(|Pi| T/rho), arguments checked.

    Raises:
        ValueError: one of both is beyond the floats.
    """
    with np.errstate(over="ignore"):
        rate = np.asarray(constant * (np.log(num_samples) + complexity) * np.sqrt(complexity / num_samples) / margin)
        beta_rate = np.asarray(beta / np.asarray(margin))
    if np.isinf(rate).any() or np.isinf(beta_rate).any():
        raise ValueError(
            f"constant, beta and margin must leave C B sqrt(...)/margin and beta/margin finite, got margin {margin!s}, "
            f"beta {beta!s} and constant {constant!s}"
        )
    return rate, beta_rate


def linear_softmax_guarantee(
    *,
    num_samples: ArrayLike,
    rounds: ArrayLike,
    kappa0: ArrayLike | None = None,
    log_kappa0: ArrayLike | None = None,
    dimension: ArrayLike,
    norm_bound: ArrayLike,
    min_confidence: ArrayLike,
    margin: ArrayLike,
    beta: ArrayLike,
    level: ArrayLike,
    failure_probability: ArrayLike,
    constant: ArrayLike = 1.0,
) -> Guarantee:
    """Thm 6.2: `finite_class_guarantee` with log|Pi| = d log(1 + 6 B_theta n), the net of resolution 1/n.

    What the net's resolution adds is of order 1/n and hidden in the constant C. With exact rewards linear softmax
    learns faster than n^{-1/2} on a fixed instance; over all instances n^{-1/2} is the rate with exact rewards too,
    because tables are linear softmax (docs/theory.md). Realizability over T rounds needs
    B_theta >= (1 + 1/beta)^T |theta_0|.

    dimension d (0, inf), or an effective dimension (Cor. 6.4, `effective_dimension` at ridge 1/n, where more is hidden
    in C); norm_bound B_theta (0, inf), for features of norm at most 1. The rest as there.
    """
    n = argument("num_samples", num_samples, "[1, inf)")
    return finite_class_guarantee(
        num_samples=n,
        rounds=rounds,
        kappa0=kappa0,
        log_kappa0=log_kappa0,
        log_class_size=covering_log_size(dimension, norm_bound, 1 / n),
        min_confidence=min_confidence,
        margin=margin,
        beta=beta,
        level=level,
        failure_probability=failure_probability,
        constant=constant,
    )


def _iterate(
    log_kappa0: NDArray[np.float64],
    rounds: NDArray[np.float64],
    rate: NDArray[np.float64],
    beta_rate: NDArray[np.float64],
    p: NDArray[np.float64],
) -> NDArray[np.float64]:
    """log kappa after each entry's own number of rounds of the exact recursion; stops where nothing moves any more."""
    kappa = log_kappa0 + 0 * (rounds + rate + beta_rate + p)
    for t in range(int(np.max(rounds, initial=0))):
        following = tail_integral_recursion(None, 1, rate, beta_rate, p, log_kappa0=kappa)[..., 1]
        following = np.where(t < rounds, following, kappa)
        if np.array_equal(following, kappa):
            break
        kappa = following
    return kappa
