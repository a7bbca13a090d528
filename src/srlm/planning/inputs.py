"""What was given, and what a diagnosis knows -> checked inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from srlm.errors import UserError
from srlm.planning.diagnosis import MOST_ROUNDS, Diagnosis
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
    "level": "[1e-12, 1)",
    "failure_probability": "[1e-12, 1)",  # 1 minus less is 1
    "budget": f"[1, {LARGEST_BUDGET:g}]",
    "failure": "(0, 1)",
    "num_samples": "[1, 1e6]",
    "max_rounds": f"[1, {MOST_ROUNDS}]",
    "constant": "(0, inf)",
}
WHOLE = ("budget", "max_rounds", "num_samples")


def checked(
    given: dict[str, Any], read: Diagnosis | None, needed: Sequence[str], known: Sequence[str] = ()
) -> dict[str, Any]:
    """given, with what a diagnosis knows in the place of None, in range, kappa0 by its logarithm; beta is one number or
    several, and max_rounds no more than those. needed: what may not be None, beside the size of the class. known: what
    is taken from a diagnosis beside kappa0.

    Raises:
        UserError: something is missing or out of range, in one sentence.
    """
    origin = {}
    if read is not None:
        if given["kappa0"] is None and given["log_kappa0"] is None and read.log_kappa is not None:
            given["log_kappa0"] = read.log_kappa
            origin["log_kappa0"] = f"the sequence-level log kappa of {read.source.name}"
        for name in known:
            if given[name] is None:
                given[name] = getattr(read, name)
                origin[name] = f"the {name.replace('_', ' ')} of {read.source.name}"
    if given["kappa0"] is not None and given["log_kappa0"] is not None:
        raise UserError("--kappa0 and --log-kappa0 are both given, expected one of them: leave the other out")
    for name in needed:
        if given[name] is None and (name != "kappa0" or given["log_kappa0"] is None):
            where = "" if read is None or name == "budget" else f" and {read.source.name} does not know it"
            raise UserError(f"{option(name)} was not given{where}: give a number in {RANGES[name]}")
    kinds = [name for name in ("log_class_size", "dimension", "eigenvalues") if name in given]
    classes = [name for name in kinds if given[name] is not None]
    if len(classes) != 1:
        wanted = f"{', '.join(map(option, kinds[:-1]))} and {option(kinds[-1])}"
        found = " and ".join(map(option, classes)) or "none"
        raise UserError(f"expected the size of the class in one of {wanted}, got {found}: give one of them")
    if (classes == ["log_class_size"]) != (given["norm_bound"] is None):
        wanted = "does not go with" if given["norm_bound"] is not None else "is needed with"
        change = "leave it out" if given["norm_bound"] is not None else "give a number in (0, inf)"
        raise UserError(f"--norm-bound {wanted} {option(classes[0])}: {change}")
    values = {name: _checked(name, value, origin.get(name, option(name))) for name, value in given.items()}
    if isinstance(values["beta"], tuple):
        values["max_rounds"] = min(values["max_rounds"], len(values["beta"]))
    kappa0 = values.pop("kappa0")
    if kappa0 is not None:
        values["log_kappa0"] = math.log(kappa0)
    return values


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
        advice = "correct it" if what == option(name) else f"give {option(name)}"
        raise UserError(f"{what} is {value}, expected {kind} in {RANGES[name]}: {advice}") from None
    if name == "eigenvalues":
        if not values.any():
            raise UserError("--eigenvalues are all 0 or none, expected at least one above 0: correct them")
        return tuple(values.tolist())
    return int(values) if name in ("max_rounds", "num_samples") else float(values)


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
