"""A plan by the paper's bound: its inputs, its splits, and what is said about them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from srlm.planning.diagnosis import Forecast, Source
from srlm.planning.words import plain
from srlm.theory import Guarantee, covering_log_size, effective_dimension, finite_class_guarantee


@dataclass(frozen=True)
class Inputs:
    """What a plan was made from: the keyword arguments of `plan`, a diagnosis filled in, kappa0 by its logarithm.
    max_rounds: at most as many as there are betas, where every round has its own."""

    log_kappa0: float
    margin: float
    min_confidence: float
    beta: float | tuple[float, ...]
    level: float
    failure_probability: float
    budget: float
    max_rounds: int
    constant: float
    log_class_size: float | None = None
    dimension: float | None = None
    norm_bound: float | None = None
    eigenvalues: tuple[float, ...] | None = None

    @property
    def largest_beta(self) -> float:
        """Of all rounds: what a bound on every one of them takes."""
        return self.beta if isinstance(self.beta, float) else max(self.beta)

    def betas(self, rounds: int) -> tuple[float, ...]:
        """Of the first T rounds."""
        return (self.beta,) * rounds if isinstance(self.beta, float) else self.beta[:rounds]

    def all_rounds(self) -> NDArray[np.float64]:
        """T = 1, 2, ... with at least one prompt a round."""
        return np.arange(1.0, min(self.max_rounds, math.floor(self.budget)) + 1)

    def guarantee(self, rounds: ArrayLike) -> Guarantee:
        """Thm 5.3, or 6.2, with n = N/T prompts a round."""
        n = self.budget / np.asarray(rounds, dtype=np.float64)
        return finite_class_guarantee(
            num_samples=n,
            rounds=rounds,
            log_kappa0=self.log_kappa0,
            log_class_size=self.log_size(n),
            min_confidence=self.min_confidence,
            margin=self.margin,
            beta=self.largest_beta,
            level=self.level,
            failure_probability=self.failure_probability,
            constant=self.constant,
        )

    def log_size(self, num_samples: ArrayLike) -> Any:
        """log|Pi| in nats; of a linear class that of its net of resolution 1/n."""
        if self.log_class_size is not None:
            return self.log_class_size
        resolution = 1 / np.asarray(num_samples, dtype=np.float64)
        d = self.dimension if self.eigenvalues is None else effective_dimension(self.eigenvalues, resolution)
        assert d is not None and self.norm_bound is not None  # or plan() had refused
        return covering_log_size(d, self.norm_bound, resolution)


@dataclass(frozen=True)
class Split:
    """The budget in T rounds of n = N/T prompts."""

    rounds: int
    num_samples: float
    log_class_size: float
    guarantee: Guarantee
    exponent: float
    """alpha_T = (1 + 1/beta)^T, or the product of 1 + 1/beta_t."""
    exact_log_kappa: float
    """log of `sharpened_kappa_bound`: realizable class, infinite samples."""
    forecast: Forecast | None


@dataclass(frozen=True)
class LowerBound:
    """What no learner is below in one round of all N prompts."""

    failure: float
    """Thm 4.1 with c = 1: up to a constant."""
    hard_failure: float | None
    """Exact Bayes failure on the worst hard instance with this kappa_0 that the class has room for (margin -> 0, two
    responses a prompt), with no constant; None if there is none, for a linear class, or for delta > 1/2."""
    hard_prompts: int | None
    """d, the informative prompts of that instance."""


@dataclass(frozen=True)
class Remedy:
    """What would make a vacuous bound say something; None: nothing up to 1e18 prompts would."""

    budget: float | None
    """The smallest N, from the given one upwards, whose best split has a bound below 1; to a relative 0.001."""
    budget_without_beta: float | None
    """The same for beta -> 0; only where `budget` is None."""
    largest_beta: float | None
    """Up to it, 1e18 prompts are enough, to a relative 0.001; only where `budget` is None."""


@dataclass(frozen=True)
class Elasticity:
    """d log(total)/d log(input) at the best split, T held: 0.5 means 1 % more of the input is 0.5 % more failure."""

    name: str
    value: float


@dataclass(frozen=True)
class Plan:
    inputs: Inputs
    source: Source | None
    lower_bound: LowerBound
    splits: tuple[Split, ...]
    """T = 1, 2, ..., max_rounds, as far as there is a prompt for each round."""
    best_rounds: int
    """The T of the least `Guarantee.total`."""
    best_rounds_iterated: int
    """The T of the least `Guarantee.iterated_total`."""
    iterations_to_forget: int
    """Cor. 5.7, with the coefficient of the best split and kappa_1 <= 1/p."""
    remedy: Remedy | None
    """Only for a vacuous bound."""
    sensitivity: tuple[Elasticity, ...]
    """The strongest first."""

    @property
    def best(self) -> Split:
        return self.splits[self.best_rounds - 1]

    @property
    def vacuous(self) -> bool:
        """At every split."""
        return bool(self.best.guarantee.vacuous)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is beyond the floats is None."""
        return {"vacuous": self.vacuous, **plain(dataclasses.asdict(self))}
