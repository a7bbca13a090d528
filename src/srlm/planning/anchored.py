"""What follows from the inputs by the anchored bounds, which have no constant: one row for each number of rounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from srlm.estimators.intervals import clopper_pearson
from srlm.planning.diagnosis import Diagnosis
from srlm.planning.floor import largest_hard_instance
from srlm.planning.inputs import LARGEST_BUDGET
from srlm.planning.result import Floor, Inputs, Promise, Row, Target
from srlm.theory import (
    anchored_exponent,
    anchored_failure_bound,
    anchored_rounds_bound,
    covering_log_size,
    sharpened_failure_bound,
    sharpening_exponent,
)
from srlm.theory.condition import log_group_bound

FORECAST_LEVEL = 0.5  # what a diagnosis calls failure


def rows(inputs: Inputs, read: Diagnosis | None) -> tuple[Row, ...]:
    """Of every T at which something is known of the target."""
    most = inputs.max_rounds if inputs.budget is None else min(inputs.max_rounds, math.floor(inputs.budget))
    made = (_row(inputs, rounds, read) for rounds in range(1, most + 1))
    return tuple(row for row in made if row is not None)


def log_group_condition(inputs: Inputs) -> float:
    """log(1 + (kappa_0 - 1)/K), which kappa^(K) is never above."""
    return float(log_group_bound(inputs.log_kappa0, np.asarray(float(inputs.num_samples))))


def promises(inputs: Inputs, row: Row, prompts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The failure that one round at the row's beta promises with each of so many prompts."""
    target = row.one.target
    return np.array([_one_round(inputs, float(n), target.sample_probability) + target.failure for n in prompts])


def _row(inputs: Inputs, rounds: int, read: Diagnosis | None) -> Row | None:
    betas = inputs.betas(rounds)
    alpha, first = float(sharpening_exponent(betas)), float(sharpening_exponent(betas[:1]))
    targets = _targets(inputs, alpha, alpha, read)
    if not targets:
        return None
    one = _promise(inputs, 1, targets, lambda n, rho: _one_round(inputs, n, rho))
    several = None
    if inputs.log_class_size is not None:
        # Odds that no round lost never grow: what the first exact update settles stays so.
        targets = _targets(inputs, first, float(anchored_exponent(betas)), read)
        if targets:
            several = _promise(inputs, rounds, targets, lambda n, rho: _several_rounds(inputs, n / rounds, rounds, rho))
    one_beta = betas[0] if rounds == 1 else 1 / (alpha - 1) if alpha > 1 else math.inf
    return Row(rounds, alpha, one_beta, one, several)


def _targets(inputs: Inputs, forecast_by: float, exponent: float, read: Diagnosis | None) -> list[Target]:
    """In every way that is known. The first holds with probability 1 - rho/2 over what prompts were diagnosed; a
    margin of *every* prompt is what somebody gives, and not that of those diagnosed. Which of both promises more is
    seen from the diagnosis, so beside a forecast neither leaves the sample more than the other half."""
    targets, rho = [], inputs.failure_probability
    forecast = read.sharpened_by(forecast_by) if read is not None and inputs.level == FORECAST_LEVEL else None
    high = forecast.failure.high if forecast is not None and forecast.failure is not None else None
    if read is not None and high is not None and read.source.num_prompts:
        prompts, broken = read.source.counted, read.source.broken
        # Of those left out nothing is known; copies, which may all be of one that fails, are one prompt.
        failing = min(math.ceil(max(high, 0.0) * read.source.num_prompts - 1e-6) + broken, prompts)
        # Two-sided at 1 - rho: each end errs with rho/2.
        targets.append(Target(float(clopper_pearson(failing, prompts, 1 - rho)[1]), failing, rho / 2))
    if inputs.margin is not None:
        bound = sharpened_failure_bound(None, inputs.margin, exponent, inputs.level, log_kappa0=inputs.log_kappa0)
        targets.append(Target(min(float(bound), 1.0), None, rho / 2 if targets else rho))
    return targets


def _one_round(inputs: Inputs, prompts: float, rho: float) -> float:
    size = inputs.log_class_size
    if size is None:
        assert inputs.dimension is not None and inputs.norm_bound is not None  # or plan() had refused
        size = float(covering_log_size(inputs.dimension, inputs.norm_bound, 1 / prompts))
    return float(
        anchored_failure_bound(
            num_samples=prompts,
            log_class_size=size,
            failure_probability=rho,
            samples_per_prompt=inputs.num_samples,
            log_condition=inputs.log_kappa0,
        )
    )


def _several_rounds(inputs: Inputs, prompts: float, rounds: int, rho: float) -> float:
    assert inputs.log_class_size is not None
    if inputs.margin is None:  # kappa_t is no more than kappa_0, and each of T rounds errs like one, with rho / T
        one = anchored_failure_bound(
            num_samples=prompts,
            log_class_size=inputs.log_class_size + math.log(rounds),
            failure_probability=rho,
            samples_per_prompt=inputs.num_samples,
            log_condition=inputs.log_kappa0,
        )
        return float(rounds * one)
    return float(
        anchored_rounds_bound(
            num_samples=prompts,
            log_class_size=inputs.log_class_size,
            failure_probability=rho,
            margin=inputs.margin,
            beta=inputs.betas(rounds),
            samples_per_prompt=inputs.num_samples,
            log_kappa0=inputs.log_kappa0,
        )
    )


def _promise(
    inputs: Inputs, rounds: int, targets: Sequence[Target], sample: Callable[[float, float], float]
) -> Promise:
    """With a budget the target with which least is promised. What is needed is of the target with which that is
    fewest, whichever."""
    made, budget = [], inputs.budget
    for target in targets:
        part = sample(budget, target.sample_probability) if budget is not None else None
        failure = part + target.failure if part is not None else None
        needed = None
        if inputs.failure is not None and target.failure < inputs.failure:
            needed = _least(partial(_with, sample, target), inputs.failure - target.failure, rounds)
        made.append(Promise(target, part, failure, needed))
    fewest = min(made, key=lambda each: (math.inf if each.needed is None else each.needed, each.target.failure))
    if budget is None:
        return fewest
    best = min(made, key=lambda each: math.inf if each.failure is None else each.failure)
    return dataclasses.replace(best, needed=fewest.needed)


def _with(sample: Callable[[float, float], float], target: Target, prompts: float) -> float:
    return sample(prompts, target.sample_probability)


def _least(sample: Callable[[float], float], gap: float, rounds: int) -> float | None:
    """The least whole multiple of T at which what falls with it is at most the gap."""
    low, high = 0, 1
    while sample(float(high * rounds)) > gap:
        low, high = high, 2 * high
        if low * rounds > LARGEST_BUDGET:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if sample(float(middle * rounds)) > gap:
            low = middle
        else:
            high = middle
    return float(high * rounds) if high * rounds <= LARGEST_BUDGET else None


def floor(inputs: Inputs) -> Floor | None:
    if inputs.budget is None or inputs.log_class_size is None:
        return None
    n, k = int(inputs.budget), inputs.num_samples
    size = inputs.log_kappa0, inputs.log_class_size
    one, several = (largest_hard_instance(n, *size, k, inputs.level, adaptive=adaptive) for adaptive in (False, True))
    if one is None or several is None:
        return None
    return Floor(float(one.bayes_failure(n, k)), float(several.adaptive_failure(n, k)), one.num_prompts)
