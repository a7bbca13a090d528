"""A plan: its inputs, what each number of rounds promises, and what is said about them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from srlm.planning.diagnosis import Source
from srlm.planning.words import plain


@dataclass(frozen=True)
class Inputs:
    """What a plan was made from: the keyword arguments of `plan`, kappa0 by its logarithm, if not given that of a
    diagnosis."""

    log_kappa0: float
    margin: float | None
    beta: float | tuple[float, ...]
    level: float
    failure_probability: float
    budget: float | None
    failure: float | None
    num_samples: int
    max_rounds: int
    log_class_size: float | None = None
    dimension: float | None = None
    norm_bound: float | None = None

    def betas(self, rounds: int) -> tuple[float, ...]:
        """Of the first T rounds."""
        return (self.beta,) * rounds if isinstance(self.beta, float) else self.beta[:rounds]


@dataclass(frozen=True)
class Target:
    """P_x[pi*(y*_0|x) <= 1 - delta], pi* = pi_0^alpha/Z: what an exact update leaves, and no sample helps with."""

    failure: float
    """At most, for prompts from where the diagnosed ones came; up to 1."""
    failing: int | None
    """Of the diagnosed prompts (`Source.counted`), at most, as the diagnosis forecasts, those that it left out among
    them; None where the failure is that of `sharpened_failure_bound`."""
    sample_probability: float
    """How often the sample may fail it: rho, or the half that a forecast leaves of it, whichever target is used."""


@dataclass(frozen=True)
class Promise:
    """Of one way to run: failure <= sample + target."""

    target: Target
    sample: float | None
    """With the budget; None without one."""
    failure: float | None
    needed: float | None
    """The least number of prompts, all rounds together, with failure <= x, by the target with which that is fewest;
    None if 1e18 are not enough, or none is asked for."""


@dataclass(frozen=True)
class Row:
    rounds: int
    exponent: float
    """alpha_T of T exact rounds."""
    one_beta: float
    """1/(alpha_T - 1): the beta with which one round has the exact update of T; 0 beyond the floats."""
    one: Promise
    """One round of all prompts at that beta."""
    several: Promise | None
    """T rounds of N/T prompts at the beta given; None for a linear class."""


@dataclass(frozen=True)
class Floor:
    """No learner fails less on some start with this kappa_0 in a class of this size, the margin near 0: exactly, for
    delta <= 1/2."""

    one: float
    """One round of N prompts, K draws each."""
    any: float
    """Any number of rounds, N prompts in all, whatever it draws from."""
    hard_prompts: int
    """d, the informative prompts of the first of both instances."""


@dataclass(frozen=True)
class Plan:
    inputs: Inputs
    source: Source | None
    log_group_condition: float
    """log(1 + (kappa_0 - 1)/K), at least log kappa^(K)."""
    rows: tuple[Row, ...]
    """T = 1, 2, ..., max_rounds, as far as there is a prompt a round and something known of the target."""
    best_rounds: int | None
    """The T of the least failure with the budget; None without one."""
    needed_rounds: int | None
    """The T of the fewest prompts with failure <= x; None where no number is enough, or none is asked for."""
    floor: Floor | None
    mode_wrong: tuple[float, float] | None
    """Of the diagnosed prompts: what sharpening makes worse, whatever is spent."""
    kappa_diagnosed: bool = field(default=False, compare=False)
    """Is kappa_0 that of the diagnosed prompts, rather than given?"""

    def row(self, rounds: int) -> Row:
        return next(row for row in self.rows if row.rounds == rounds)

    @property
    def vacuous(self) -> bool:
        """The budget promises no failure below 1, or no number of prompts the failure that is asked for."""
        if self.inputs.failure is not None and self.needed_rounds is None:
            return True
        return self.best_rounds is not None and (self.row(self.best_rounds).one.failure or 0.0) >= 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is beyond the floats is None."""
        return {"vacuous": self.vacuous, **plain(dataclasses.asdict(self))}
