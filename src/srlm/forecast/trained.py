"""What more rounds would give if they went like the one before: less far than exact ones, and with errors.

A round that follows its rewards with an effective exponent alpha and errors e of standard deviation sigma nats,

    log pi_{t+1}(y|x) = log pi_t(y|x) + (alpha - 1) max(log pi_t(y|x), log pi_t(y*|x) - B) + e_t(x, y) - c_t(x),

takes pi_0 in T rounds to the escort, of exponent alpha_T = alpha^T for B = inf, of pi_0 exp(xi) with xi = sum_t
e_t / alpha_{t+1}, Var xi = sum_t sigma^2 / alpha_{t+1}^2: a perturbed start. Errors of later rounds are discounted, so
modes that are lost are lost early. alpha and sigma are those of the round before
(`estimators.exponent.effective_exponent`), and pi_0 the policy that it left, whose own errors are then known and not
simulated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from srlm.estimators.exponent import EffectiveExponent
from srlm.forecast.exact import Evidence

Floats = NDArray[np.float64]
DRAWS = 200


@dataclass(frozen=True)
class Likely:
    """low, high: 95 % interval of the model above at these prompts: from alpha, the errors to come, and samples.
    point: nan where a prompt's mode is not certified."""

    low: float
    point: float
    high: float


@dataclass(frozen=True)
class TrainedRow:
    """After T more rounds like the one before, averaged over prompts. Each policy has a mode of its own.

    exponent: alpha_T. kappa: Eq. 5. mode_mass: E_x max_y pi_T(y|x). failure: P_x[max_y pi_T(y|x) <= 1/2].
    mode_kept: share of prompts whose mode does not move. accuracy: None without labels.
    """

    rounds: int
    exponent: float
    kappa: Likely
    mode_mass: Likely
    failure: Likely
    mode_kept: Likely
    accuracy: Likely | None


def trained_forecast(
    evidence: Sequence[Evidence],
    update: EffectiveExponent,
    rounds: int,
    clip: float = math.inf,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> TrainedRow:
    """T rounds from the policy that `evidence` is about, by simulation of the model above.

    The point is the mean over draws of e, with alpha and the samples as they are. The interval holds 95 % of draws that
    also take alpha from its standard error (Student's, P - 1 degrees of freedom) and resample each prompt's samples.
    Later rounds may have other alphas: that is not in it. Responses that no search certified are estimated from
    samples, as in `forecast`; a prompt without a certified mode leaves no point, and counts as everything that it may
    be.

    rounds: T [1, inf). clip: B in nats, inf for none.

    Raises:
        ValueError: no evidence, a number out of range, or an update that turned the order of responses round.
    """
    if not evidence or rounds < 1 or draws < 2 or not clip > 0:
        raise ValueError(
            "need evidence of a prompt, rounds >= 1, draws >= 2 and clip > 0, "
            f"got {len(evidence)} prompts, {rounds}, {draws} and {clip}"
        )
    finite = 0 <= update.noise < math.inf and 0 <= update.standard_error < math.inf
    if not (update.exponent > 0 and finite and update.prompts >= 2):
        raise ValueError(
            "need an exponent > 0 with finite noise and standard error >= 0 from 2 prompts, got "
            f"{update.exponent:.3g}, {update.noise:.3g}, {update.standard_error:.3g} and {update.prompts}: "
            "rounds like this one cannot be forecast"
        )
    generator = np.random.default_rng([seed, rounds])
    fixed = np.full(draws, update.exponent)
    drawn = np.maximum(fixed + update.standard_error * generator.standard_t(update.prompts - 1, draws), 1e-3)

    certified = [one for one in evidence if one.found.num_certified]
    share = len(certified) / len(evidence)
    labelled = all(one.found_right is not None and one.sample_right is not None for one in evidence)

    def simulated(exponent: Floats, resample: bool) -> list[dict[str, Floats]]:
        return [_cell(one, exponent, update.noise, rounds, clip, resample, generator) for one in certified]

    points, spreads = simulated(fixed, False), simulated(drawn, True)

    def likely(name: str) -> Likely:
        least, most = (1.0, math.inf) if name == "kappa" else (0.0, 1.0)
        if not certified:
            return Likely(least, math.nan, most)
        point = float(np.mean([cell[name] for cell in points]))
        spread = np.mean([cell[name] for cell in spreads], axis=0)
        low, high = np.quantile(spread, [0.025, 0.975], method="inverted_cdf").tolist()
        if share < 1:
            return Likely(share * low + (1 - share) * least, math.nan, share * high + (1 - share) * most)
        return Likely(min(low, point), point, max(high, point))

    return TrainedRow(
        rounds=rounds,
        exponent=update.exponent**rounds,
        kappa=likely("kappa"),
        mode_mass=likely("mode_mass"),
        failure=likely("failure"),
        mode_kept=likely("mode_kept"),
        accuracy=likely("accuracy") if labelled else None,
    )


def _cell(
    one: Evidence,
    exponent: Floats,
    noise: float,
    rounds: int,
    clip: float,
    resample: bool,
    generator: np.random.Generator,
) -> dict[str, Floats]:
    """One prompt's part of each quantity, a value a draw [S]; its mode is certified."""
    core = one.found.num_certified
    certain = set(one.found.responses[:core])
    k = len(one.samples)
    outside = [i for i, sample in enumerate(one.samples) if tuple(sample) not in certain]
    place: dict[tuple[int, ...], int] = {}
    same = [place.setdefault(tuple(one.samples[i]), core + len(place)) for i in outside]
    column = np.array([*range(core), *same])  # equal samples are one response, with one error
    start = np.minimum(np.concatenate([one.found.log_prob[:core], one.sample_log_prob[outside]]), 0.0)
    size = len(exponent)
    now = np.broadcast_to(start, (size, len(start)))
    for _ in range(rounds):
        error = noise * generator.standard_normal((size, core + len(place)))[:, column]
        best = now.max(-1, keepdims=True)
        now = now + (exponent[:, None] - 1) * np.maximum(now - best, -clip) + error
    # A sample stands for 1/(K pi_0) responses like it.
    counts = generator.multinomial(k, np.full(k, 1 / k), size) if resample else np.ones((size, k), np.int64)
    weighed = now.copy()
    with np.errstate(divide="ignore"):
        weighed[:, core:] += np.log(counts[:, outside] / k) - start[core:]
    # No less than what is known by name.
    _, first = np.unique(column, return_index=True)
    total = np.maximum(logsumexp(weighed, axis=-1), logsumexp(now[:, first], axis=-1))
    log_mode = now.max(-1) - total
    with np.errstate(over="ignore"):
        made = {
            "kappa": np.exp(-log_mode),
            "mode_mass": np.exp(log_mode),
            "failure": (log_mode <= math.log(0.5)).astype(np.float64),
            "mode_kept": (now.argmax(-1) == start.argmax()).astype(np.float64),
        }
    if one.found_right is not None and one.sample_right is not None:
        right = np.concatenate([one.found_right[:core], one.sample_right[outside]]).astype(bool)
        share = logsumexp(np.where(right, weighed, -np.inf), axis=-1)
        made["accuracy"] = np.exp(np.minimum(share - logsumexp(weighed, axis=-1), 0.0))
    return made
