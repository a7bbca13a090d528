"""What was given, and what a diagnosis knows -> checked inputs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlm.errors import UserError
from srlm.planning.result import Bracket, Forecast, Inputs, Source
from srlm.theory._check import argument

LARGEST_BUDGET = 1e18
LARGEST_LOG_KAPPA = 1400.0  # the root of e^1419 is where floats end
RANGES = {
    "kappa0": "[1, inf)",
    "log_kappa0": f"[0, {LARGEST_LOG_KAPPA:g}]",
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
class Diagnosis:
    """What a plan takes from a diagnosis: the cautious ends of its intervals, and its forecasts."""

    source: Source
    log_kappa: float | None
    min_confidence: float | None
    margin: float | None
    forecasts: Sequence[tuple[tuple[float, ...], Forecast]]
    """(beta_0, ..., beta_{T-1}), and what is forecast."""

    @classmethod
    def read(cls, diagnosis: str | Path | Mapping[str, Any]) -> Diagnosis:
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
                    (_betas(row["beta"], int(row["rounds"])), _forecast(row))
                    for row in (content.get("forecast") or {}).get("rows", ())
                ],
            )
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise UserError(
                f"{name} is not a diagnosis ({type(error).__name__}: {error}): give --diagnosis the diagnose.json of "
                "srlm diagnose"
            ) from error
        return found

    def forecast(self, betas: Sequence[float]) -> Forecast | None:
        rows = [row for known, row in self.forecasts if len(known) == len(betas) and _close(known, betas)]
        return min(rows, key=lambda row: row.target != "escort", default=None)


def _betas(beta: Any, rounds: int) -> tuple[float, ...]:
    """One a round; null is a round that asked for nothing."""
    if isinstance(beta, Sequence) and not isinstance(beta, str):
        return tuple(math.inf if each is None else float(each) for each in beta)
    return (float(beta),) * rounds


def _close(some: Sequence[float], others: Sequence[float]) -> bool:
    return all(math.isclose(one, other, rel_tol=1e-6) for one, other in zip(some, others, strict=True))


def _end(interval: Any, index: int) -> float | None:
    return None if interval is None or interval[index] is None else float(interval[index])


def _forecast(row: Mapping[str, Any]) -> Forecast:
    def bracket(values: Mapping[str, Any]) -> Bracket:
        return Bracket(*(None if values[end] is None else float(values[end]) for end in ("low", "point", "high")))

    accuracy = row.get("accuracy")
    return Forecast(str(row["target"]), bracket(row["kappa"]), None if accuracy is None else bracket(accuracy))


def inputs_of(given: dict[str, Any], read: Diagnosis | None) -> Inputs:
    origin = {}
    if read is not None:
        if given["kappa0"] is None and given["log_kappa0"] is None and read.log_kappa is not None:
            given["log_kappa0"] = read.log_kappa
            origin["log_kappa0"] = f"the sequence-level log kappa of {read.source.name}"
        for name in ("margin", "min_confidence"):
            if given[name] is None:
                given[name] = getattr(read, name)
                origin[name] = f"the {name.replace('_', ' ')} of {read.source.name}"
    if given["kappa0"] is not None and given["log_kappa0"] is not None:
        raise UserError("--kappa0 and --log-kappa0 are both given, expected one of them: leave the other out")
    for name in ("budget", "kappa0", "margin", "min_confidence"):
        if given[name] is None and (name != "kappa0" or given["log_kappa0"] is None):
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
    if isinstance(values["beta"], tuple):
        values["max_rounds"] = min(values["max_rounds"], len(values["beta"]))
    kappa0 = values.pop("kappa0")
    if kappa0 is not None:
        values["log_kappa0"] = math.log(kappa0)
    return Inputs(**values)


def _checked(name: str, value: Any, what: str) -> Any:
    if value is None:
        return None
    if name == "beta" and isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise UserError(f"--beta has no number, expected one, or one a round, in {RANGES['beta']}: give it")
        each = tuple(_checked(name, one, what) for one in value)
        return each if len(each) > 1 else each[0]
    whole = "whole " if name in WHOLE else ""
    try:
        values = argument(name, value, RANGES[name], whole=bool(whole))
        if values.ndim != (name == "eigenvalues"):
            raise ValueError
    except ValueError:
        if name == "log_kappa0" and isinstance(value, (int, float)) and value > LARGEST_LOG_KAPPA:
            raise UserError(
                f"kappa_0 = e^{value:.0f} ({what}) is astronomically large, expected at most "
                f"e^{LARGEST_LOG_KAPPA:.0f}: give --kappa0 of answers, or of shorter responses"
            ) from None
        kind = "numbers" if name == "eigenvalues" else f"a {whole}number"
        advice = "correct it" if what == _option(name) else f"give {_option(name)}"
        raise UserError(f"{what} is {value}, expected {kind} in {RANGES[name]}: {advice}") from None
    if name == "eigenvalues":
        if not values.any():
            raise UserError("--eigenvalues are all 0 or none, expected at least one above 0: correct them")
        return tuple(values.tolist())
    return int(values) if name == "max_rounds" else float(values)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
