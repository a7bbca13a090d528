"""`srlm plan`: what theory promises for a start and a budget of prompts, before any of them is spent."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from srlm.console import Display
from srlm.errors import UserError
from srlm.theory import (
    Guarantee,
    covering_log_size,
    effective_dimension,
    finite_class_guarantee,
    iterations_to_forget,
    sharpened_kappa_bound,
    sharpening_exponent,
    single_step_lower_bound,
    worst_case_instance,
)
from srlm.theory._check import argument

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST_BUDGET = 1e18
LARGEST_LOG_KAPPA = 700.0  # e^709 is where floats end
STEP = 1e-4  # of logarithms, for elasticities
RESPONSES = 2  # a pair per prompt, as in Eq. 3
SHOWN = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987)
RANGES = {
    "kappa0": "[1, inf)",
    "margin": "(0, inf)",
    "min_confidence": "(0, 1]",
    "beta": "(0, inf)",
    "log_class_size": "(0, inf)",
    "dimension": "(0, inf)",
    "norm_bound": "(0, inf)",
    "eigenvalues": "[0, inf)",
    "level": "(0, 1)",
    "failure_probability": "(0, 1)",
    "budget": f"[1, {LARGEST_BUDGET:g}]",
    "max_rounds": "[1, 1024]",
    "constant": "(0, inf)",
}
WHOLE = ("budget", "max_rounds")


@dataclass(frozen=True)
class Inputs:
    """What a plan was made from: the keyword arguments of `plan`, a diagnosis filled in."""

    kappa0: float
    margin: float
    min_confidence: float
    beta: float
    level: float
    failure_probability: float
    budget: float
    max_rounds: int
    constant: float
    log_class_size: float | None = None
    dimension: float | None = None
    norm_bound: float | None = None
    eigenvalues: tuple[float, ...] | None = None

    def all_rounds(self) -> NDArray[np.float64]:
        """T = 1, 2, ... with at least one prompt a round."""
        return np.arange(1.0, min(self.max_rounds, math.floor(self.budget)) + 1)

    def guarantee(self, rounds: ArrayLike) -> Guarantee:
        """Thm 5.3, or 6.2, with n = N/T prompts a round."""
        n = self.budget / np.asarray(rounds, dtype=np.float64)
        return finite_class_guarantee(
            num_samples=n,
            rounds=rounds,
            kappa0=self.kappa0,
            log_class_size=self.log_size(n),
            min_confidence=self.min_confidence,
            margin=self.margin,
            beta=self.beta,
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
class Bracket:
    low: float | None
    point: float | None
    high: float | None


@dataclass(frozen=True)
class Forecast:
    """A row of the diagnosis: pi_T if every update were exact, on the prompts that were diagnosed."""

    target: str
    """escort, or clipped where the diagnosis has no other."""
    kappa: Bracket
    accuracy: Bracket | None


@dataclass(frozen=True)
class Split:
    """The budget in T rounds of n = N/T prompts."""

    rounds: int
    num_samples: float
    log_class_size: float
    guarantee: Guarantee
    exponent: float
    """alpha_T = (1 + 1/beta)^T."""
    exact_kappa: float
    """`sharpened_kappa_bound`: realizable class, infinite samples."""
    forecast: Forecast | None


@dataclass(frozen=True)
class LowerBound:
    """What no learner is below in one round of all N prompts."""

    failure: float
    """Thm 4.1 with c = 1: up to a constant."""
    hard_failure: float | None
    """Exact Bayes failure on the worst hard instance with this kappa_0 that the class has room for (margin -> 0, two
    responses a prompt), with no constant; None if there is none, or for a linear class."""
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
class Source:
    """The diagnosis behind the inputs that were not given."""

    name: str
    num_prompts: int | None
    certified_share: float | None


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
    """Cor. 5.7, with the coefficient of the best split."""
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
        plain = _plain(dataclasses.asdict(self))
        return {"vacuous": self.vacuous, **plain}


def plan(
    diagnosis: str | Path | Mapping[str, Any] | None = None,
    *,
    budget: float | None = None,
    kappa0: float | None = None,
    margin: float | None = None,
    min_confidence: float | None = None,
    beta: float = 1.0,
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
    budget N whole [1, 1e18]: prompts in all; kappa0 [1, e^700]; margin gamma (0, inf) in nats; min_confidence p (0, 1]
    of rounds t >= 1; beta (0, inf); level delta and failure_probability rho (0, 1); constant C (0, inf).
    The class is one of: log_class_size log|Pi| (0, inf) in nats; dimension d (0, inf); eigenvalues [D] in [0, inf) of
    the covariance of feature differences, whose effective dimension at ridge 1/n is then d. The last two need
    norm_bound B_theta (0, inf).

    Raises:
        UserError: an input is missing or out of range, or `diagnosis` is none.
    """
    given = {name: value for name, value in locals().items() if name != "diagnosis"}
    read = _Diagnosis.read(diagnosis) if diagnosis is not None else None
    inputs = _inputs(given, read)
    rounds = inputs.all_rounds()
    try:
        with np.errstate(over="raise", invalid="raise"):
            bound = inputs.guarantee(rounds)
    except (FloatingPointError, ValueError) as error:
        raise UserError(f"the bound is beyond the range of floats ({error}): give less extreme inputs") from error
    splits = tuple(_split(inputs, bound, int(t), read) for t in rounds)
    best = splits[int(np.argmin(bound.total))]
    return Plan(
        inputs=inputs,
        source=read.source if read is not None else None,
        lower_bound=_lower_bound(inputs),
        splits=splits,
        best_rounds=best.rounds,
        best_rounds_iterated=int(np.argmin(bound.iterated_total)) + 1,
        iterations_to_forget=int(iterations_to_forget(inputs.kappa0, 1.0, best.guarantee.coefficient)),
        remedy=_remedy(inputs) if best.guarantee.vacuous else None,
        sensitivity=_sensitivity(inputs, best),
    )


# Inputs


@dataclass(frozen=True)
class _Diagnosis:
    source: Source
    log_kappa: float | None
    min_confidence: float | None
    margin: float | None
    forecasts: Sequence[tuple[float, int, Forecast]]
    """(beta, T, what is forecast)."""

    @classmethod
    def read(cls, diagnosis: str | Path | Mapping[str, Any]) -> _Diagnosis:
        if isinstance(diagnosis, Mapping):
            name, content = "the diagnosis", diagnosis
        else:
            name = str(diagnosis)
            try:
                content = json.loads(Path(diagnosis).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{name} cannot be read ({error}): give --diagnosis the diagnose.json of srlm diagnose"
                ) from error
        try:
            sequence = content["sequence"]
            found = cls(
                Source(name, sequence.get("num_prompts"), sequence.get("certified_share")),
                log_kappa=_end(sequence["log_kappa"], 1),
                min_confidence=_end(sequence["min_confidence"], 0),
                margin=_end(sequence.get("margin"), 0),
                forecasts=[
                    (float(row["beta"]), int(row["rounds"]), _forecast(row))
                    for row in (content.get("forecast") or {}).get("rows", ())
                ],
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{name} is not a diagnosis ({type(error).__name__}: {error}): give --diagnosis the diagnose.json of "
                "srlm diagnose"
            ) from error
        return found

    def forecast(self, beta: float, rounds: int) -> Forecast | None:
        rows = [f for b, t, f in self.forecasts if t == rounds and math.isclose(b, beta, rel_tol=1e-6)]
        return min(rows, key=lambda row: row.target != "escort", default=None)


def _end(interval: Any, index: int) -> float | None:
    return None if interval is None or interval[index] is None else float(interval[index])


def _forecast(row: Mapping[str, Any]) -> Forecast:
    def bracket(values: Mapping[str, Any]) -> Bracket:
        return Bracket(*(None if values[end] is None else float(values[end]) for end in ("low", "point", "high")))

    accuracy = row.get("accuracy")
    return Forecast(str(row["target"]), bracket(row["kappa"]), None if accuracy is None else bracket(accuracy))


def _inputs(given: dict[str, Any], read: _Diagnosis | None) -> Inputs:
    origin = {}
    if read is not None:
        if given["kappa0"] is None and read.log_kappa is not None:
            given["kappa0"] = _kappa(read.log_kappa, f"sequence level of {read.source.name}")
            origin["kappa0"] = f"the sequence-level kappa of {read.source.name}"
        for name in ("margin", "min_confidence"):
            if given[name] is None:
                given[name] = getattr(read, name)
                origin[name] = f"the {name.replace('_', ' ')} of {read.source.name}"
    for name in ("budget", "kappa0", "margin", "min_confidence"):
        if given[name] is None:
            where = "" if read is None or name == "budget" else f" and {read.source.name} does not know it"
            raise UserError(f"{_option(name)} was not given{where}: give a number in {RANGES[name]}")
    classes = [name for name in ("log_class_size", "dimension", "eigenvalues") if given[name] is not None]
    if len(classes) != 1:
        found = " and ".join(map(_option, classes)) or "none"
        raise UserError(
            "expected the size of the class in one of --log-class-size, --dimension and --eigenvalues, got "
            f"{found}: give one of them"
        )
    if (classes == ["log_class_size"]) != (given["norm_bound"] is None):
        wanted = "does not go with" if given["norm_bound"] is not None else "is needed with"
        change = "leave it out" if given["norm_bound"] is not None else "give a number in (0, inf)"
        raise UserError(f"--norm-bound {wanted} {_option(classes[0])}: {change}")
    values = {name: _checked(name, value, origin.get(name, _option(name))) for name, value in given.items()}
    _kappa(math.log(values["kappa0"]), "--kappa0")
    return Inputs(**values)


def _checked(name: str, value: Any, what: str) -> Any:
    if value is None:
        return None
    whole = "whole " if name in WHOLE else ""
    try:
        values = argument(name, value, RANGES[name], whole=bool(whole))
        if values.ndim != (name == "eigenvalues"):
            raise ValueError
    except ValueError:
        kind = "numbers" if name == "eigenvalues" else f"a {whole}number"
        advice = "correct it" if what == _option(name) else f"give {_option(name)}"
        raise UserError(f"{what} is {value}, expected {kind} in {RANGES[name]}: {advice}") from None
    if name == "eigenvalues":
        if not values.any():
            raise UserError("--eigenvalues are all 0 or none, expected at least one above 0: correct them")
        return tuple(values.tolist())
    return int(values) if name == "max_rounds" else float(values)


def _kappa(log_kappa: float, origin: str) -> float:
    if log_kappa > LARGEST_LOG_KAPPA:
        raise UserError(
            f"kappa_0 = e^{log_kappa:.0f} ({origin}) is astronomically large, expected at most "
            f"e^{LARGEST_LOG_KAPPA:.0f}: give --kappa0 of answers, or of shorter responses"
        )
    return math.exp(log_kappa)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# What follows from them


def _split(inputs: Inputs, bound: Guarantee, rounds: int, read: _Diagnosis | None) -> Split:
    n, alpha = inputs.budget / rounds, float(sharpening_exponent(inputs.beta, rounds))
    parts = {f.name: np.asarray(getattr(bound, f.name))[rounds - 1].item() for f in dataclasses.fields(bound)}
    return Split(
        rounds=rounds,
        num_samples=n,
        log_class_size=float(inputs.log_size(n)),
        guarantee=Guarantee(**parts),
        exponent=alpha,
        exact_kappa=float(sharpened_kappa_bound(inputs.kappa0, inputs.margin, alpha)),
        forecast=read.forecast(inputs.beta, rounds) if read is not None else None,
    )


def _lower_bound(inputs: Inputs) -> LowerBound:
    size = float(inputs.log_size(inputs.budget))
    failure = float(single_step_lower_bound(inputs.budget, math.log(inputs.kappa0), size))
    if inputs.log_class_size is None or inputs.kappa0 == 1:
        return LowerBound(failure, None, None)
    n = int(inputs.budget)
    # d log M grows with d, and M >= kappa_0: the largest d whose worst instance has at most log|Pi|
    fits, too_many = 0, int(size / math.log(max(inputs.kappa0, 2))) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if worst_case_instance(n, inputs.kappa0, middle, RESPONSES).log_class_size <= size:
            fits = middle
        else:
            too_many = middle
    if not fits:
        return LowerBound(failure, None, None)
    instance = worst_case_instance(n, inputs.kappa0, fits, RESPONSES)
    return LowerBound(failure, float(instance.bayes_failure(n, RESPONSES)), fits)


def _is_vacuous(inputs: Inputs, **changes: Any) -> bool:
    changed = dataclasses.replace(inputs, **changes)
    return bool(np.min(changed.guarantee(changed.all_rounds()).total) >= 1)


def _remedy(inputs: Inputs) -> Remedy:
    budget = _smallest_budget(inputs)
    if budget is not None:
        return Remedy(budget, None, None)
    without = _smallest_budget(dataclasses.replace(inputs, beta=0.0))
    if without is None:
        return Remedy(None, None, None)
    enough, too_much = 1e-30 * inputs.beta, inputs.beta
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


def _sensitivity(inputs: Inputs, best: Split) -> tuple[Elasticity, ...]:
    names = ["kappa0", "margin", "min_confidence", "beta", "level", "failure_probability", "budget", "constant"]
    names += ["log_class_size"] if inputs.norm_bound is None else ["dimension", "norm_bound"]
    found = [Elasticity(name, _elasticity(inputs, name, best)) for name in names]
    return tuple(sorted(found, key=lambda elasticity: -abs(elasticity.value)))


def _elasticity(inputs: Inputs, name: str, best: Split) -> float:
    if name == "dimension" and inputs.eigenvalues is not None:
        effective = float(effective_dimension(inputs.eigenvalues, 1 / best.num_samples))
        inputs = dataclasses.replace(inputs, eigenvalues=None, dimension=effective)
    value = getattr(inputs, name)
    ends = []
    for step in (-STEP, 0.0, STEP):
        try:
            changed = dataclasses.replace(inputs, **{name: value * math.exp(step)})
            ends.append((step, math.log(changed.guarantee(best.rounds).total)))
        except ValueError:  # out of the input's range: what is left is a one-sided difference
            continue
    (low, before), (high, after) = ends[0], ends[-1]
    return (after - before) / (high - low)


# What a person sees


def show(made: Plan, display: Display) -> None:
    """The verdict, a table of splits, elasticities, and what is proved."""
    changes = ", ".join(f"{e.name.replace('_', ' ')} {e.value:+.2f}" for e in made.sensitivity)
    sensitivity = ["1 % more of an input changes the bound at the best split by so many %:", f"  {changes}"]
    for line in (*_verdict(made), "", *_table(made), "", *sensitivity, "", *(f"- {line}" for line in _proved(made))):
        display.say(line)


def _verdict(made: Plan) -> list[str]:
    best, given, remedy = made.best, made.inputs, made.remedy
    total = best.guarantee.total
    plural = "s" if best.rounds > 1 else ""
    split = f"T = {best.rounds} round{plural} of {_count(best.num_samples)} prompts"
    forget = made.iterations_to_forget
    lines = []
    if remedy is None:
        lines.append(f"bound at the best split, {split}: failure <= {_short(total)}")
        one = made.splits[0].guarantee
        if best.rounds > 1:
            empty = ", which is vacuous" if one.vacuous else ""
            lines.append(f"one round of all {_count(given.budget)} prompts: failure <= {_short(one.total)}{empty}")
    else:
        lines.append(
            f"the bound is vacuous ({_short(total)} >= 1) at any split of {_count(given.budget)} prompts (the best: "
            f"{split})"
        )
        lines.append(_advice(remedy, given))
    if made.best_rounds_iterated != made.best_rounds:
        value = made.splits[made.best_rounds_iterated - 1].guarantee.iterated_total
        lines.append(
            f"by its recursion, sharper but not taken apart, T = {made.best_rounds_iterated} is best: failure <= "
            f"{_short(value)}"
        )
    lines.append(
        f"failure: the share of prompts whose mode has probability <= {_short(1 - given.level)}; the bound holds with "
        f"probability {_short(1 - given.failure_probability)}, up to its constant (C = {_short(given.constant)}"
        f"{', by convention' if given.constant == 1 else ''})"
    )
    if best.guarantee.kappa_infinity < given.kappa0:
        lines.append(
            f"the start (kappa_0 = {_short(given.kappa0)}) is forgotten after {forget} round{'s' * (forget > 1)} "
            f"(contraction {_short(best.guarantee.contraction)} a round, towards kappa = "
            f"{_short(best.guarantee.kappa_infinity)})"
        )
    else:
        lines.append(
            f"no start to forget: kappa_0 = {_short(given.kappa0)} is not above the limit of the bound's recursion, "
            f"kappa = {_short(best.guarantee.kappa_infinity)}"
        )
    lower = made.lower_bound
    lines.append(f"one round cannot do better than about {_short(lower.failure)} in the worst case (up to a constant)")
    if lower.hard_failure is not None:
        lines.append(
            f"and on some start with this kappa_0 in a class of this size, {_short(lower.hard_failure)} exactly "
            f"({RESPONSES} responses a prompt, margin near 0, {lower.hard_prompts} informative prompts)"
        )
    return lines


def _advice(remedy: Remedy, given: Inputs) -> str:
    if remedy.budget is not None:
        return f"it says something from about {_count(remedy.budget)} prompts on"
    if remedy.budget_without_beta is None:
        return f"it would take more than {_count(LARGEST_BUDGET)} prompts to say something"
    return (
        f"it would take more than {_count(LARGEST_BUDGET)} prompts to say something, because of the part with beta = "
        f"{_short(given.beta)}: it needs beta below {_short(remedy.largest_beta or 0)}, and with beta near 0 about "
        f"{_count(remedy.budget_without_beta)} prompts"
    )


def _table(made: Plan) -> list[str]:
    """Lines, not a rich table: that would cut cells off where the terminal is narrow."""
    forecast = any(split.forecast is not None for split in made.splits)
    headings = ["T", "n", "factor", "stable", "transient", "β part", "total", "exact κ_T ≤"]
    rows = [headings + ["forecast κ_T", "accuracy"] * forecast + [""]]
    chosen = {*SHOWN, made.best_rounds, made.best_rounds_iterated, len(made.splits)}
    for split in made.splits:
        if split.rounds not in chosen:
            continue
        g = split.guarantee
        parts = (g.statistical_factor, g.stable_part, g.transient_part, g.beta_part, g.total, split.exact_kappa)
        cells = [str(split.rounds), _count(split.num_samples), *map(_short, parts)]
        beside = _forecast_cells(split.forecast) if forecast else []
        rows.append([*cells, *beside, "best" if split is made.best else ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _forecast_cells(forecast: Forecast | None) -> list[str]:
    if forecast is None:
        return ["–", "–"]
    target = "" if forecast.target == "escort" else f" ({forecast.target})"
    return [_range(forecast.kappa) + target, "–" if forecast.accuracy is None else _range(forecast.accuracy)]


def _range(bracket: Bracket) -> str:
    low, high = ("?" if end is None else _short(end) for end in (bracket.low, bracket.high))
    return f"{low} to {high}"


def _proved(made: Plan) -> list[str]:
    theorem = "5.3" if made.inputs.norm_bound is None else "6.2"
    lines = [
        f"total = stable + transient + β part: proved up to C (Thm {theorem}), for a realizable class, fresh prompts "
        "in every round, and a margin and min-confidence that hold in every round",
        "exact κ_T: proved with no constant, for a realizable class and infinite samples, if the margin holds at the "
        "start on every prompt; not a bound for a sampled run",
        "the single round's bound (Thm 4.1) has a constant of its own (c = 1 by convention)",
        "a bound that falls with T is not a forecast that rounds pay: where self-rewards are exact, one round was not "
        "beaten (srlm verify single-vs-iterated)",
    ]
    if made.source is not None:
        source = made.source
        share = "" if source.certified_share is None else f", {100 * source.certified_share:.0f} % of them certified"
        prompts = "its prompts" if source.num_prompts is None else f"{source.num_prompts} prompts"
        lines.append(f"from {source.name}: the cautious ends on {prompts}{share}; other prompts may be worse")
    return lines


def _short(value: float) -> str:
    """Three digits: 0.31, 4.2, 3.2e4."""
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def _count(value: float) -> str:
    if value < 100:
        return _short(value)
    return f"{value:,.0f}".replace(",", " ") if value < 1e7 else _short(value)


# Files


def keep(made: Plan, *, output: Path | None = None, plot: Path | None = None) -> None:
    """Write the plan (JSON) and its figure (SVG) to new files.

    Raises:
        UserError: a file is there already or cannot be written; nothing is written then.
    """
    if output is None and plot is None:
        return
    from srlm.runs import check_new_file, write_atomically  # imports torch

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


def draw(made: Plan, axes: Axes) -> None:
    """The bound and its parts against T, on logarithmic axes."""
    rounds = [split.rounds for split in made.splits]
    series = {
        "bound": "total",
        "stable part": "stable_part",
        "transient part": "transient_part",
        "β part": "beta_part",
    }
    for label, name in series.items():
        values = [getattr(split.guarantee, name) for split in made.splits]
        axes.plot(rounds, values, label=label, marker="." if len(rounds) == 1 else None, lw=2 if name == "total" else 1)
    total = [split.guarantee.total for split in made.splits]
    floor = made.lower_bound.failure
    axes.axhline(floor, color="black", ls="--", lw=1, label="one round at least (up to a constant)")
    axes.plot(made.best_rounds, made.best.guarantee.total, "o", color="C0", label=f"best: T = {made.best_rounds}")
    bottom, top = min(*total, floor) / 30, 3 * max(*total, 3.0)
    axes.axhspan(1, top, color="grey", alpha=0.15, lw=0)
    axes.text(0.99, 1.1, "vacuous", transform=axes.get_yaxis_transform(), ha="right", va="bottom", color="dimgrey")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(yscale="log", ylim=(bottom, top), xlabel="rounds T", ylabel="failure")
    axes.set_title(f"{_count(made.inputs.budget)} prompts in T rounds, C = {_short(made.inputs.constant)}", fontsize=10)
    axes.figure.legend(loc="outside lower center", ncols=3, fontsize=8)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
