"""`srlm plan`: what theory promises for a start and a budget of prompts, before any of them is spent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from srlm.errors import UserError
from srlm.planning import consequences
from srlm.planning.inputs import LARGEST_BUDGET, Diagnosis, inputs_of
from srlm.planning.result import Plan
from srlm.planning.view import draw, show

__all__ = ["LARGEST_BUDGET", "Plan", "draw", "keep", "plan", "show"]


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
    inputs = inputs_of(given, read)
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


def keep(made: Plan, *, output: Path | None = None, plot: Path | None = None) -> None:
    """Write the plan (JSON) and its figure (SVG) to new files.

    Raises:
        UserError: a file is there already or cannot be written; nothing is written then.
    """
    if output is None and plot is None:
        return
    from srlm.run.files import check_new_file, write_atomically  # imports torch

    if plot is not None and plot.suffix != ".svg":
        raise UserError(f"--plot is {plot}, expected a name that ends in .svg: correct it")
    if plot is not None and plot == output:
        raise UserError(f"--plot and --output are both {plot}: choose another name for one")
    for path, option in ((output, "--output"), (plot, "--plot")):
        if path is not None:
            check_new_file(path, option)
    if output is not None:
        text = json.dumps(made.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(output, lambda path: path.write_text(text, encoding="utf-8"))
    if plot is not None:
        from srlm.figures import write_svg

        write_atomically(plot, lambda path: write_svg(path, lambda axes: draw(made, axes)))
