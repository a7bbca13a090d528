"""What a budget of prompts can promise from a given start, and in how many rounds to spend it: theory, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from srlm.commands.options import Parser, Shared, taken


@dataclass(frozen=True)
class Plan:
    """What is asked of `srlm plan`."""

    diagnosis: str | None = None
    """A diagnose.json: its cautious ends are kappa0, margin and min-confidence where these are not given."""
    budget: float | None = None
    """N: prompts in all rounds together."""
    kappa0: float | None = None
    """Policy condition number of the start, at least 1 (Eq. 5)."""
    log_kappa0: float | None = None
    """Its logarithm in nats, instead: that of long responses is beyond the floats."""
    margin: float | None = None
    """Gamma: nats between the mode and its best rival, the least of all prompts and rounds (Def. 5.2)."""
    min_confidence: float | None = None
    """p: least probability of a mode after the first round."""
    beta: tuple[float, ...] = (1.0,)
    """Strength of the KL term, as in training; several are those of round 0, 1, ..., as a run with --step records
    them."""
    log_class_size: float | None = None
    """log|Pi| of a finite class, in nats; or else --dimension or --eigenvalues."""
    dimension: float | None = None
    """d of a linear softmax; needs --norm-bound."""
    norm_bound: float | None = None
    """Largest norm of a linear softmax's parameters, for features of norm at most 1."""
    eigenvalues: tuple[float, ...] | None = None
    """Spectrum of the covariance of feature differences: the effective dimension at ridge 1/n is then d."""
    level: float = 0.5
    """Delta: a prompt fails if its mode has probability 1 - delta or less."""
    failure_probability: float = 0.05
    """Rho: how often the bound itself may fail."""
    max_rounds: int = 64
    """Most rounds T to consider."""
    constant: float = 1.0
    """C, which the theory leaves open."""
    plot: str | None = None
    """Also draw the bound and its parts against T into this new SVG file."""
    output: str | None = None
    """Also write the plan to this new JSON file."""


def parser() -> Parser:
    made = Parser("plan", __doc__ or "", "--budget N [options]")
    made.add("What", Plan)
    made.add("What", Shared, ("quiet",))
    return made


def run(words: Sequence[str]) -> None:
    first, rest = taken(words, "config")
    chosen = parser().parsed(rest, first["config"])
    from srlm import planning
    from srlm.console import Display

    output, plot = (Path(file) if file is not None else None for file in (chosen.pop("output"), chosen.pop("plot")))
    display = Display(chosen.pop("quiet"))
    made = planning.plan(**chosen)
    planning.keep(made, output=output, plot=plot)
    planning.show(made, display)
