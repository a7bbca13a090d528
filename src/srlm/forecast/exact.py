"""What T rounds would give if they went as the theory says, from what is known of pi_0 alone (THEORY section 7).

Exact rounds keep the order of responses and only stretch their odds. So the sharpened policy is known wherever pi_0 is:
on the complete responses that a search found, and, between two bounds, on all others together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from srlm.search import Found, Tokens
from srlm.theory import sharpened_log_odds

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
LIMIT = 512  # rounds that leave nothing to what is less probable than the mode by the width of a float


@dataclass(frozen=True)
class Evidence:
    """What is known of pi_0 on one prompt.

    found: the search's result, not broken and not empty. found_right: which of its responses are right, None without
        labels.
    samples: K i.i.d. responses. sample_log_prob: [K] nats. sample_right: [K], None without labels.
    """

    found: Found
    samples: Sequence[Tokens]
    sample_log_prob: Floats
    found_right: Flags | None = None
    sample_right: Flags | None = None


@dataclass(frozen=True)
class Estimate:
    """low, high: certain, up to the arithmetic of the model. point: with what samples say of the rest, nan where a
    prompt's mode is not certified; its standard error is that of the samples, the prompts being given (delete-one
    jackknife; nan for K = 1)."""

    low: float
    point: float
    high: float
    standard_error: float


@dataclass(frozen=True)
class ForecastRow:
    """The sharpened policy after T exact rounds, averaged over prompts.

    target: escort (rewards as they are) or clipped (B nats under the best); training is content with either, and with
        all between. kappa: Eq. 5. mode_mass: E_x pi_T(y*|x). failure: P_x[pi_T(y*|x) <= 1/2].
    accuracy: E_x P_{y ~ pi_T}[y is right], None without labels. beta: of all rounds, or one for each of them.
    """

    beta: float | tuple[float, ...]
    rounds: int
    target: str
    kappa: Estimate
    mode_mass: Estimate
    failure: Estimate
    accuracy: Estimate | None


def forecast(
    evidence: Sequence[Evidence], beta: float | Sequence[float], rounds: int | None = None, clip: float = math.inf
) -> ForecastRow:
    """One cell of the grid; clip is B in nats, inf for the escort. Without rounds, beta has one entry a round, inf for
    one that asks for nothing.

    A prompt whose mode is not certified has no more than this to say: pi_T(y*) lies in [pi_0(best known), 1], the
    accuracy in [0, 1]. It leaves no point: what K samples say of a mode that none of them is would be too optimistic
    by orders of magnitude. Only pi_0's own accuracy, T = 0, is that of its samples.
    """
    beta = tuple(beta) if isinstance(beta, Sequence) else beta
    cells = [_cell(one, beta, rounds, clip) for one in evidence]
    with np.errstate(over="ignore"):  # kappa of long responses may be inf
        inverse = np.exp(np.stack([log_inverse for log_inverse, _ in cells]))
    rights = [right for _, right in cells if right is not None]
    failed = np.where(np.isnan(inverse), math.nan, inverse >= 2)
    return ForecastRow(
        beta=beta,
        rounds=len(beta) if isinstance(beta, tuple) else rounds or 0,
        target="escort" if math.isinf(clip) else "clipped",
        kappa=_estimate(inverse),
        mode_mass=_estimate(1 / inverse),
        failure=_estimate(failed),
        accuracy=_estimate(np.stack(rights)) if len(rights) == len(cells) else None,
    )


def limit(evidence: Sequence[Evidence]) -> ForecastRow:
    """As T grows: pi_T is uniform over the modes, which are several where responses tie; where more than
    those found may tie, the interval says so."""
    return forecast(evidence, 1.0, LIMIT)


def _cell(
    one: Evidence, beta: float | Sequence[float], rounds: int | None, clip: float
) -> tuple[Floats, Floats | None]:
    """log 1/pi_T(y*) and accuracy of one prompt, each [2 + 1 + K]: both ends, the point estimate, and that estimate
    without each of the samples."""
    found = one.found
    known = np.minimum(found.log_prob, 0.0)
    mode = known[0]
    betas = beta if isinstance(beta, Sequence) else (beta,) * (rounds or 0)
    if not found.num_certified:
        return _uncertified(one, moved=any(map(math.isfinite, betas)))

    def stretched(log_prob: Floats | float) -> Floats:
        odds: Floats = np.asarray(sharpened_log_odds(np.maximum(mode - log_prob, 0.0), beta, rounds, clip))
        return odds

    # In units of the mode's mass: e^-g(D) for a response known, (pi_0/pi*) e^-(g(D) - D) for mass that lies D below.
    inside = -stretched(known)
    mass = min(float(logsumexp(known)), 0.0)
    unknown = math.log(-math.expm1(mass)) if mass < 0 else -math.inf
    steepest = sum(clip / each for each in betas if math.isfinite(each))
    least = unknown - mode - steepest
    gap = max(mode - found.open_log_prob, 0.0)
    most = unknown - mode - float(stretched(mode - gap) - gap) if math.isfinite(gap) else least
    total = logsumexp(inside)
    ends = np.logaddexp(total, least), np.logaddexp(total, most)

    core = found.num_certified
    certain = set(found.responses[:core])
    outside = np.array([tuple(sample) not in certain for sample in one.samples])
    below = np.maximum(mode - one.sample_log_prob, 0.0)
    weight = np.where(outside, -mode - (stretched(one.sample_log_prob) - below), -np.inf)

    def with_samples(chosen: Flags | None, in_core: Flags | None) -> Floats:
        """log of the core's mass plus the samples' estimate of the rest: with all of them, then without each."""
        parts = weight if chosen is None else np.where(chosen, weight, -np.inf)
        own = inside[:core] if in_core is None else np.where(in_core[:core], inside[:core], -np.inf)
        k = len(parts)
        leaving = np.where(np.eye(k, dtype=bool), -np.inf, parts) if k > 1 else np.empty((0, k))
        with np.errstate(divide="ignore"):
            rest = np.append(logsumexp(parts) - math.log(k), logsumexp(leaving, axis=-1) - math.log(max(k - 1, 1)))
            return np.asarray(np.logaddexp(logsumexp(own), rest))

    point = with_samples(None, None)
    log_inverse = np.concatenate([ends, np.clip(point, *ends)])
    if one.found_right is None or one.sample_right is None:
        return log_inverse, None
    right = np.exp(with_samples(one.sample_right, one.found_right) - point)
    low, wrong = (
        float(np.exp(logsumexp(np.where(flags, inside, -np.inf)) - ends[1]))
        for flags in (one.found_right, ~one.found_right)
    )
    return log_inverse, np.concatenate([[low, 1 - wrong], np.clip(right, low, 1 - wrong)])


def _uncertified(one: Evidence, moved: bool) -> tuple[Floats, Floats | None]:
    """`_cell` of a prompt whose mode is not certified. The responses known are the best samples, so they and the rest
    of the samples make no estimate together. moved: pi_T is not pi_0."""
    k = len(one.samples)
    none = np.full(1 + (k if k > 1 else 0), math.nan)
    log_inverse = np.concatenate([[0.0, -min(one.found.log_prob[0], 0.0)], none])
    if one.found_right is None or one.sample_right is None:
        return log_inverse, None
    right = one.sample_right.astype(np.float64)
    without = (right.sum() - right) / (k - 1) if k > 1 else right[:0]
    return log_inverse, np.concatenate([[0.0, 1.0], none if moved else np.append(right.mean(), without)])


def _estimate(values: Floats) -> Estimate:
    """From [P, 2 + 1 + K]."""
    first, second, point, *without = values.mean(0).tolist()
    with np.errstate(invalid="ignore"):
        error = math.sqrt((len(without) - 1) * float(np.var(without))) if len(without) > 1 else math.nan
    return Estimate(min(first, second), point, max(first, second), error)
