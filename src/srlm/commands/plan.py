"""How many prompts and rounds for which failure? What theory promises from a given start, before any is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlm.commands.options import Parser, Shared, taken
from srlm.errors import UserError


@dataclass(frozen=True)
class Plan:
    """What is asked of `srlm plan`."""

    diagnosis: str | None = None
    """A diagnose.json: its forecasts, and the cautious end of its kappa0 where none is given; with --paper those of its
    margin and min-confidence, too."""
    budget: float | None = None
    """N: prompts in all rounds together; what they promise."""
    failure: float | None = None
    """The share of prompts that may fail; how many prompts and rounds that takes."""
    kappa0: float | None = None
    """Policy condition number of the start, at least 1 (Eq. 5)."""
    log_kappa0: float | None = None
    """Its logarithm in nats, instead: that of long responses is beyond the floats."""
    margin: float | None = None
    """Gamma: nats between the mode and its best rival, the least of all prompts (Def. 5.2)."""
    beta: tuple[float, ...] = (1.0,)
    """Strength of the KL term, as in training; several are those of round 0, 1, ..., as a run with --step records
    them."""
    num_samples: int = 8
    """K: responses per prompt, as in training."""
    log_class_size: float | None = None
    """log|Pi| of a finite class, in nats: D trained numbers of b bits are .69 D b; or else --dimension."""
    dimension: float | None = None
    """d of a linear softmax; needs --norm-bound."""
    norm_bound: float | None = None
    """Largest norm of a linear softmax's parameters, for features of norm at most 1."""
    level: float = 0.5
    """Delta: a prompt fails if its mode has probability 1 - delta or less."""
    failure_probability: float = 0.05
    """Rho: how often the promise itself may fail, for each number of rounds by itself."""
    max_rounds: int = 64
    """Most rounds T to consider."""
    plot: str | None = None
    """Also draw failure against prompts (with --paper: the bound's parts against T) into this new SVG file."""
    output: str | None = None
    """Also write the plan to this new JSON file."""


@dataclass(frozen=True)
class Paper:
    """What only the paper's bound asks."""

    paper: bool = False
    """The paper's bound instead (Thm 4.1, 5.3, 6.2), taken apart: up to a constant, and under more hypotheses."""
    min_confidence: float | None = None
    """p: least probability of a mode after the first round."""
    eigenvalues: tuple[float, ...] | None = None
    """Spectrum of the covariance of feature differences: the effective dimension at ridge 1/n is then d."""
    constant: float = 1.0
    """C, which the theory leaves open."""


ONLY_HERE = ("failure", "num_samples")  # options that the paper's bound has no use for


def parser() -> Parser:
    made = Parser("plan", __doc__ or "", "--budget N | --failure X [options]")
    made.add("What", Plan)
    made.add("What", Shared, ("quiet",))
    made.add("The paper's bound", Paper)
    return made


def run(words: Sequence[str]) -> None:
    first, rest = taken(words, "config")
    chosen = parser().parsed(rest, first["config"])
    from srlm import planning
    from srlm.console import Display
    from srlm.planning import paper

    output, plot = (Path(file) if file is not None else None for file in (chosen.pop("output"), chosen.pop("plot")))
    display = Display(chosen.pop("quiet"))
    by_paper = chosen.pop("paper")
    unused = (
        _apart(chosen, Plan, ONLY_HERE)
        if by_paper
        else _apart(chosen, Paper, ("min_confidence", "eigenvalues", "constant"))
    )
    if unused:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in unused)
        verb = "do" if len(unused) > 1 else "does"
        wanted = "not go with --paper: leave one of them out" if by_paper else "not go without --paper: add it"
        raise UserError(f"{names} {verb} {wanted}")
    if by_paper:
        plan = paper.plan(**chosen)
        planning.keep(plan, paper.draw, output=output, plot=plot)
        paper.show(plan, display)
    else:
        made = planning.plan(**chosen)
        planning.keep(made, planning.draw, output=output, plot=plot)
        planning.show(made, display)


def _apart(chosen: dict[str, Any], of: type, names: Sequence[str]) -> list[str]:
    """Takes these options out; those that are not at their default."""
    return [name for name in names if chosen.pop(name) != getattr(of, name)]
