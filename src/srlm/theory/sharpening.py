"""What the loop does when nothing goes wrong: the escort distribution, and what can be known of it beforehand."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from srlm.theory._check import Number, argument, log_start, number, per_round

SLACK = 1e-6  # of probabilities that models in single precision give


def sharpening_exponent(beta: ArrayLike, rounds: ArrayLike | None = None) -> Number:
    """alpha_T = (1 + 1/beta)^T: pi_T is proportional to pi_0^alpha_T (Eq. 2 solved exactly, T times).

    Exact for a realizable class and an infinite sample. beta (0, inf); rounds T [0, inf), broadcast. inf beyond the
    range of floats. Without rounds, beta [..., T] (0, inf] has one entry a round: alpha_T = prod_t (1 + 1/beta_t).
    """
    if rounds is None:
        each = per_round("beta", beta, "(0, inf]")
        with np.errstate(over="ignore"):
            return number(np.exp(np.logaddexp(0, -np.log(each)).sum(-1)))
    temperature = argument("beta", beta, "(0, inf)")
    power = argument("rounds", rounds, "[0, inf)")
    with np.errstate(over="ignore"):
        # logaddexp: 1/beta overflows for a beta that is allowed
        return number(np.exp(power * np.logaddexp(0, -np.log(temperature))))


def sharpen(log_prob: ArrayLike, exponent: ArrayLike) -> Number:
    """log of the escort distribution pi^alpha / sum_y pi(y)^alpha, in nats.

    log_prob: [..., Y], up to a constant per row, -inf allowed but not everywhere in a row. exponent alpha (0, inf),
    broadcast against [...]. Returns [..., Y], normalised over the last axis.
    """
    values = argument("log_prob", log_prob, "[-inf, inf)")
    alpha = argument("exponent", exponent, "(0, inf)")
    if values.ndim == 0 or not values.size or np.isneginf(values.max(-1)).any():
        raise ValueError(f"log_prob must be [..., Y] with a finite largest value in every row, got {log_prob!r}")
    with np.errstate(over="ignore"):
        powers = alpha[..., None] * (values - values.max(-1, keepdims=True))
    return number(powers - logsumexp(powers, axis=-1, keepdims=True))


def sharpened_kappa_bound(
    kappa0: ArrayLike | None, margin: ArrayLike, exponent: ArrayLike, *, log_kappa0: ArrayLike | None = None
) -> Number:
    """kappa_T <= 1 + (kappa_0 - 1) e^{-(alpha - 1) gamma} for the escort distribution pi_0^alpha/Z (ours).

    Proved, nothing hidden, if gamma is the margin of pi_0 on *every* prompt (Def. 5.2 at t = 0); no later round is
    asked for anything. An equality where all rivals of a mode have p e^{-gamma}. With alpha = `sharpening_exponent`:
    the loop on a realizable class and an infinite sample, not a sampled run.

    kappa0 [1, inf); margin gamma (0, inf) in nats; exponent alpha [1, inf]. Broadcast. With log_kappa0 [0, inf) in the
    place of kappa0 (None then), a logarithm.
    """
    start = log_start(kappa0, log_kappa0)
    gamma = argument("margin", margin, "(0, inf)")
    alpha = argument("exponent", exponent, "[1, inf]")
    with np.errstate(divide="ignore", over="ignore"):
        # log (kappa_0 - 1), without the exponential where it is large
        excess = start + np.log(-np.expm1(-start)) - (alpha - 1) * gamma
        return number(np.logaddexp(0, excess) if log_kappa0 is not None else 1 + np.exp(excess))


def sharpened_failure_bound(
    kappa0: ArrayLike | None,
    margin: ArrayLike,
    exponent: ArrayLike,
    level: ArrayLike,
    *,
    log_kappa0: ArrayLike | None = None,
) -> Number:
    """P_x[pi(y*|x) <= 1 - delta] <= (kappa_0 - 1) e^{-(alpha - 1) gamma} (1 - delta)/delta for the escort (ours).

    Markov on what `sharpened_kappa_bound` bounds, the mean odds 1/pi(y*|x) - 1, which are delta/(1 - delta) or more on
    a prompt that fails. Proved under the same hypotheses, nothing hidden, and crude: a forecast from a diagnosis is
    sharper. From 1 on it says nothing. level delta (0, 1); the rest as there, broadcast.
    """
    start = log_start(kappa0, log_kappa0)
    gamma = argument("margin", margin, "(0, inf)")
    alpha = argument("exponent", exponent, "[1, inf]")
    delta = argument("level", level, "(0, 1)")
    with np.errstate(divide="ignore", over="ignore"):
        excess = start + np.log(-np.expm1(-start)) - (alpha - 1) * gamma
        return number(np.exp(excess + np.log1p(-delta) - np.log(delta)))


def sharpened_mode_bracket(
    known_log_prob: ArrayLike, unknown_mass: ArrayLike, largest_unknown_log_prob: ArrayLike, exponent: ArrayLike
) -> tuple[Number, Number]:
    """(low, high) around max_y of the escort distribution pi_0^alpha/Z, from a part S of the responses (ours).

        low  = p^alpha / (sum_S pi^alpha + u^{alpha-1} U)
        high = max( p^alpha / sum_S pi^alpha,  u^alpha / (sum_S pi^alpha + u^alpha) )

    with p the largest probability in S, U the mass outside and u <= U the largest single probability possible there.
    Certain, nothing hidden: outside, sum pi^alpha <= u^{alpha-1} U. Where p >= u the mode is in S, and the second part
    of high never counts. Overestimates of U and u keep it true, underestimates do not.

    known_log_prob [..., S] in [-inf, 0], nats, one of them finite; unknown_mass U [0, 1]; largest_unknown_log_prob
    log u [-inf, 0], -inf only where U = 0; exponent alpha [1, inf). Broadcast against [...].
    """
    known = argument("known_log_prob", known_log_prob, "[-inf, 0]")
    mass = argument("unknown_mass", unknown_mass, "[0, 1]")
    largest = argument("largest_unknown_log_prob", largest_unknown_log_prob, "[-inf, 0]")
    alpha = argument("exponent", exponent, "[1, inf)")
    if known.ndim == 0 or not known.size or np.isneginf(known.max(-1)).any():
        raise ValueError(f"known_log_prob must be [..., S] with a finite largest value, got {known_log_prob!r}")
    whole = np.exp(known).sum(-1) + mass
    if (np.exp(known).sum(-1) > 1 + SLACK).any() or (whole < 1 - SLACK).any():
        raise ValueError(
            "known_log_prob and unknown_mass must be probabilities of at most 1 known and at least 1 in all, "
            f"got {float(np.exp(known).sum(-1).max()):.6g} known and {float(np.min(whole)):.6g} in all"
        )
    if ((mass > 0) & np.isneginf(largest)).any():
        raise ValueError("largest_unknown_log_prob must be in (-inf, 0] where unknown_mass > 0, got -inf")
    best = known.max(-1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Everything in units of p^alpha.
        inside = logsumexp(alpha[..., None] * (known - best[..., None]), axis=-1)
        log_mass = np.log(mass)
        single = np.minimum(largest, log_mass)
        rest = np.where(mass > 0, (alpha - 1) * (single - best) + log_mass - best, -np.inf)
        rival = np.where(mass > 0, alpha * (single - best), -np.inf)
    low = np.exp(-np.logaddexp(inside, rest))
    with np.errstate(over="ignore"):
        outside = 1 / (1 + np.exp(inside - rival))
    return number(low), number(np.maximum(np.exp(-inside), outside))


def sharpened_log_odds(
    log_odds: ArrayLike, beta: ArrayLike, rounds: ArrayLike | None = None, clip: ArrayLike = np.inf
) -> Number:
    """g_T(D): log-odds of the mode against a response after T exact rounds, D = log pi_0(y*) - log pi_0(y) before.

        D_{t+1} = D_t + min(D_t, B)/beta_t,    pi_T(y) proportional to exp(-g_T(D(y)))                            (ours)

    B = inf is the escort: g_T(D) = alpha_T D (`sharpening_exponent`). With rewards clipped B nats under the mode's
    (THEORY section 5, the proof's clipping level of App. C.4) responses beyond B fall by B/beta_t a round. g_T(D) - D
    never falls in D and ends at the sum of B/beta_t.

    log_odds D [0, inf]; beta (0, inf); rounds T whole [0, inf); clip B (0, inf]. All broadcast. Without rounds, beta
    [T] (0, inf] has one entry a round.
    """
    odds = argument("log_odds", log_odds, "[0, inf]")
    level = argument("clip", clip, "(0, inf]")
    exponent = sharpening_exponent(beta, rounds)
    if rounds is None:
        each = per_round("beta", beta, "(0, inf]", most=1)
        total = np.asarray(float(len(each)))
    else:
        total = argument("rounds", rounds, "[0, inf)", whole=True)
        each = argument("beta", beta, "(0, inf)")
    with np.errstate(over="ignore", invalid="ignore"):
        escort = np.where(odds > 0, exponent * odds, 0.0)
        clipped = odds + np.zeros(np.broadcast_shapes(escort.shape, level.shape))
        for t in range(int(total.max(initial=0)) if np.isfinite(level).any() else 0):
            temperature = each[t] if rounds is None else each
            clipped = np.where(t < total, clipped + np.minimum(clipped, level) / temperature, clipped)
    return number(np.where(np.isinf(level), escort, clipped))
