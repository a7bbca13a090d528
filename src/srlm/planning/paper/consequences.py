"""What follows from the inputs: splits, a lower bound, what would help, and what matters most."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from srlm import theory
from srlm.planning.diagnosis import Diagnosis
from srlm.planning.floor import largest_hard_instance
from srlm.planning.inputs import LARGEST_BUDGET
from srlm.planning.paper.result import Elasticity, Inputs, LowerBound, Remedy, Split
from srlm.theory import (
    Guarantee,
    effective_dimension,
    sharpened_kappa_bound,
    sharpening_exponent,
    single_step_lower_bound,
)

STEP = 1e-4  # of logarithms, for elasticities
RESPONSES = 2  # a pair per prompt, as in Eq. 3


def split(inputs: Inputs, bound: Guarantee, rounds: int, read: Diagnosis | None) -> Split:
    """bound: of T = 1, 2, ..., `rounds` among them."""
    n, beta, betas = inputs.budget / rounds, inputs.beta, inputs.betas(rounds)
    alpha = float(sharpening_exponent(beta, rounds) if isinstance(beta, float) else sharpening_exponent(betas))
    parts = {f.name: np.asarray(getattr(bound, f.name))[rounds - 1].item() for f in dataclasses.fields(bound)}
    return Split(
        rounds=rounds,
        num_samples=n,
        log_class_size=float(inputs.log_size(n)),
        guarantee=Guarantee(**parts),
        exponent=alpha,
        exact_log_kappa=float(sharpened_kappa_bound(None, inputs.margin, alpha, log_kappa0=inputs.log_kappa0)),
        forecast=read.forecast(betas) if read is not None else None,
    )


def lower_bound(inputs: Inputs) -> LowerBound:
    size = float(inputs.log_size(inputs.budget))
    failure = float(single_step_lower_bound(inputs.budget, inputs.log_kappa0, size))
    if inputs.log_class_size is None:
        return LowerBound(failure, None, None)
    n = int(inputs.budget)
    instance = largest_hard_instance(n, inputs.log_kappa0, size, RESPONSES, inputs.level)
    if instance is None:
        return LowerBound(failure, None, None)
    return LowerBound(failure, float(instance.bayes_failure(n, RESPONSES)), instance.num_prompts)


def iterations_to_forget(inputs: Inputs, coefficient: float) -> int:
    """Cor. 5.7 from kappa_0, or from kappa_1 <= 1/p and a round later, whichever is sooner."""
    starts = inputs.log_kappa0, -math.log(inputs.min_confidence)
    rounds: Any = theory.iterations_to_forget(None, 1.0, coefficient, log_kappa0=starts)
    return int(min(rounds[0], 1 + rounds[1]))


def _is_vacuous(inputs: Inputs, **changes: Any) -> bool:
    changed = dataclasses.replace(inputs, **changes)
    return bool(np.min(changed.guarantee(changed.all_rounds()).total) >= 1)


def remedy(inputs: Inputs) -> Remedy:
    """Of inputs whose bound is vacuous at any split."""
    budget = _smallest_budget(inputs)
    if budget is not None:
        return Remedy(budget, None, None)
    without = _smallest_budget(dataclasses.replace(inputs, beta=0.0))
    if without is None:
        return Remedy(None, None, None)
    enough, too_much = 1e-30 * inputs.largest_beta, inputs.largest_beta
    for _ in range(17):  # 69 nats, halved to a relative 0.001
        middle = math.sqrt(enough) * math.sqrt(too_much)
        if _is_vacuous(inputs, beta=middle, budget=LARGEST_BUDGET):
            too_much = middle
        else:
            enough = middle
    return Remedy(None, without, enough)


def _smallest_budget(inputs: Inputs) -> float | None:
    """From the vacuous budget upwards in factors of 2, then by bisection."""
    low = high = inputs.budget
    while _is_vacuous(inputs, budget=high):
        if high == LARGEST_BUDGET:
            return None
        low, high = high, min(2 * high, LARGEST_BUDGET)
    while high - low > max(1, 1e-3 * low):
        middle = math.floor((low + high) / 2)
        if _is_vacuous(inputs, budget=middle):
            low = middle
        else:
            high = middle
    return float(high)


def sensitivity(inputs: Inputs, best: Split) -> tuple[Elasticity, ...]:
    names = ["kappa0", "margin", "min_confidence", "beta", "level", "failure_probability", "budget", "constant"]
    names += ["log_class_size"] if inputs.norm_bound is None else ["dimension", "norm_bound"]
    found = [Elasticity(name, _elasticity(inputs, name, best)) for name in names]
    return tuple(sorted(found, key=lambda elasticity: -abs(elasticity.value)))


def _elasticity(inputs: Inputs, name: str, best: Split) -> float:
    if name == "dimension" and inputs.eigenvalues is not None:
        effective = float(effective_dimension(inputs.eigenvalues, 1 / best.num_samples))
        inputs = dataclasses.replace(inputs, eigenvalues=None, dimension=effective)
    value: Any = inputs.largest_beta if name == "beta" else getattr(inputs, "log_kappa0" if name == "kappa0" else name)
    ends = []
    for step in (-STEP, 0.0, STEP):
        try:
            moved = {"log_kappa0": value + step} if name == "kappa0" else {name: value * math.exp(step)}
            changed = dataclasses.replace(inputs, **moved)
            ends.append((step, math.log(changed.guarantee(best.rounds).total)))
        except ValueError:  # out of the input's range: what is left is a one-sided difference
            continue
    (low, before), (high, after) = ends[0], ends[-1]
    return (after - before) / (high - low)
