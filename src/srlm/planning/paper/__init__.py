"""`srlm plan --paper`: Thm 4.1, 5.3 and 6.2 for a start and a budget, up to a constant and their hypotheses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from srlm.errors import UserError
from srlm.planning.diagnosis import Diagnosis
from srlm.planning.inputs import checked
from srlm.planning.paper import consequences
from srlm.planning.paper.result import Inputs, Plan
from srlm.planning.paper.view import draw, show

__all__ = ["Plan", "draw", "plan", "show"]

KNOWN = ("margin", "min_confidence")


def plan(
    diagnosis: str | Path | Mapping[str, Any] | None = None,
    *,
    budget: float | None = None,
    kappa0: float | None = None,
    log_kappa0: float | None = None,
    margin: float | None = None,
    min_confidence: float | None = None,
    beta: float | Sequence[float] = 1.0,
    log_class_size: float | None = None,
    dimension: float | None = None,
    norm_bound: float | None = None,
    eigenvalues: ArrayLike | None = None,
    level: float = 0.5,
    failure_probability: float = 0.05,
    max_rounds: int = 64,
    constant: float = 1.0,
) -> Plan:
    """What N prompts can promise, in one round (Thm 4.1) and split over T = 1..max_rounds (Thm 5.3, 6.2).

    diagnosis: a diagnose.json or what is in it; the cautious ends of its intervals stand in for kappa0, margin and
    min_confidence where these are not given.
    budget N whole [1, 1e18]: prompts in all; kappa0 [1, inf) or log_kappa0 [0, 1400] in nats; margin gamma (0, inf) in
    nats; min_confidence p (0, 1] of rounds t >= 1; beta (0, inf), or beta_0, beta_1, ... for as many rounds at most,
    where the bound takes the largest; level delta and failure_probability rho (0, 1); constant C (0, inf).
    The class is one of: log_class_size log|Pi| (0, inf) in nats; dimension d (0, inf); eigenvalues [D] in [0, inf) of
    the covariance of feature differences, whose effective dimension at ridge 1/n is then d. The last two need
    norm_bound B_theta (0, inf).

    Raises:
        UserError: an input is missing or out of range, or `diagnosis` is none.
    """
    given = {name: value for name, value in locals().items() if name != "diagnosis"}
    read = Diagnosis.read(diagnosis) if diagnosis is not None else None
    inputs = Inputs(**checked(given, read, ("budget", "kappa0", *KNOWN), KNOWN))
    rounds = inputs.all_rounds()
    try:
        with np.errstate(over="raise", invalid="raise"):
            bound = inputs.guarantee(rounds)
    except (FloatingPointError, ValueError) as error:
        raise UserError(f"the bound is beyond the range of floats ({error}): give less extreme inputs") from error
    splits = tuple(consequences.split(inputs, bound, int(t), read) for t in rounds)
    best = splits[int(np.argmin(bound.total))]
    return Plan(
        inputs=inputs,
        source=read.source if read is not None else None,
        lower_bound=consequences.lower_bound(inputs),
        splits=splits,
        best_rounds=best.rounds,
        best_rounds_iterated=int(np.argmin(bound.iterated_total)) + 1,
        iterations_to_forget=consequences.iterations_to_forget(inputs, best.guarantee.coefficient),
        remedy=consequences.remedy(inputs) if best.guarantee.vacuous else None,
        sensitivity=consequences.sensitivity(inputs, best),
    )
