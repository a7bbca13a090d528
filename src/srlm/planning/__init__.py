"""`srlm plan`: what theory promises for a start and a number of prompts, before any of them is spent.

What is proved without a constant comes first, `srlm.planning.anchored`; the paper's own bound is `srlm.planning.paper`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from srlm.errors import UserError
from srlm.planning import anchored
from srlm.planning.diagnosis import Diagnosis
from srlm.planning.inputs import LARGEST_BUDGET, RANGES, checked
from srlm.planning.result import Inputs, Plan
from srlm.planning.view import draw, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LARGEST_BUDGET", "Plan", "draw", "keep", "plan", "show"]


def plan(
    diagnosis: str | Path | Mapping[str, Any] | None = None,
    *,
    budget: float | None = None,
    failure: float | None = None,
    kappa0: float | None = None,
    log_kappa0: float | None = None,
    margin: float | None = None,
    beta: float | Sequence[float] = 1.0,
    num_samples: int = 8,
    log_class_size: float | None = None,
    dimension: float | None = None,
    norm_bound: float | None = None,
    level: float = 0.5,
    failure_probability: float = 0.05,
    max_rounds: int = 64,
) -> Plan:
    """What N prompts promise, or how many are enough, in one round and in T = 1..max_rounds; no constant is hidden.

    With probability 1 - rho, for each T by itself, P_x[pi(y*_0|x) <= 1 - delta] is at most sample + target:
    `anchored_failure_bound` (for T rounds `anchored_rounds_bound`), plus what exact updates leave. That is what the
    diagnosis forecasts of its prompts (a Clopper-Pearson limit for others like them), or `sharpened_failure_bound`,
    whichever promises more; where there is a forecast its limit takes half of rho, from either. Of a T that is chosen
    because these prompts promise most there, it is somewhat less sure. Prompts that the diagnosis left out count as
    failing in what it forecasts, and copies of one as one; kappa0 is of the others.

    diagnosis: a diagnose.json or what is in it: its forecasts (for delta = 1/2), and the cautious end of its kappa0
    where none is given. Its margin is not used: it is the least of the diagnosed prompts, and others may have less.
    budget N whole [1, 1e18]: prompts in all; failure x (0, 1): what to reach; one of both at least. kappa0 [1, inf) or
    log_kappa0 [0, 1400] in nats; margin gamma (0, inf) in nats, of every prompt, not needed with forecasts; beta
    (0, inf), or beta_0, beta_1, ... for as many rounds at most; num_samples K whole [1, 1e6]; level delta and
    failure_probability rho [1e-12, 1). The class is one of: log_class_size log|Pi| (0, inf) in nats; dimension d
    (0, inf) of a linear softmax with norm_bound B_theta (0, inf), whose net of resolution 1/n makes it
    P_x[pi(y*_0|x) <= (1 - delta) e^{-2/n}].

    Raises:
        UserError: an input is missing or out of range, or `diagnosis` is none.
    """
    given = {name: value for name, value in locals().items() if name != "diagnosis"}
    read = Diagnosis.read(diagnosis) if diagnosis is not None else None
    if budget is None and failure is None:
        raise UserError(
            f"--budget was not given: give a number in {RANGES['budget']}, or a --failure to reach in "
            f"{RANGES['failure']}"
        )
    inputs = Inputs(**checked(given, read, ("kappa0",)))
    rows = anchored.rows(inputs, read)
    if not rows:
        where = "" if read is None else f" and {read.source.name} has no forecast for this beta and level"
        raise UserError(f"--margin was not given{where}: give a number in {RANGES['margin']}")
    # T rounds never promise more than one at the beta of the same update.
    best = _smallest({row.rounds: row.one.failure for row in rows})
    least = _smallest({row.rounds: row.one.needed for row in rows})
    return Plan(
        inputs=inputs,
        source=read.source if read is not None else None,
        log_group_condition=anchored.log_group_condition(inputs),
        rows=rows,
        best_rounds=best,
        needed_rounds=least,
        floor=anchored.floor(inputs),
        mode_wrong=read.mode_wrong if read is not None else None,
        kappa_diagnosed=kappa0 is None and log_kappa0 is None,
    )


def _smallest(values: Mapping[int, float | None]) -> int | None:
    """The smallest T within 1 % of the least: what sharpens further for less than that is no better."""
    known = {rounds: value for rounds, value in values.items() if value is not None}
    return min((rounds for rounds, value in known.items() if value <= 1.01 * min(known.values())), default=None)


class _Made(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=_Made)


def keep(made: T, draw: Callable[[T, Axes], object], *, output: Path | None = None, plot: Path | None = None) -> None:
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
