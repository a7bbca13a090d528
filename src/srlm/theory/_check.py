"""What every function here does with its arguments first, and with its result last."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A float for scalar arguments, an array otherwise. The Any spares callers who know which one a cast.
Number: TypeAlias = float | Any


def argument(name: str, value: ArrayLike, interval: str, *, whole: bool = False) -> NDArray[np.float64]:
    """value as float64 with every entry inside an interval such as "[0, 1)", or ValueError; NaN is inside none, and
    text is no number."""
    wanted = f"{name} must be {'whole and ' if whole else ''}in {interval}"
    try:
        given = np.asarray(value)
        if given.dtype.kind not in "biufO" or any(
            isinstance(each, str) for each in given.flat if given.dtype == object
        ):
            raise TypeError
        values = given.astype(np.float64)
    except (OverflowError, TypeError, ValueError):
        raise ValueError(f"{wanted}, got {_short(value)}") from None
    low, high = (float(end) for end in interval[1:-1].split(","))
    inside = (values >= low if interval[0] == "[" else values > low) & (
        values <= high if interval[-1] == "]" else values < high
    )
    if whole:
        inside &= values == np.floor(values)
    if not inside.all():
        raise ValueError(f"{wanted}, got {np.extract(~inside, values)[0]!s}")
    return values


def scalar(name: str, value: ArrayLike, interval: str, *, whole: bool = False) -> float:
    """`argument` of no axes, as a float."""
    values = argument(name, value, interval, whole=whole)
    if values.ndim:
        raise ValueError(f"{name} must be one number in {interval}, got {_short(value)}")
    return float(values)


def whole_number(name: str, value: Any, interval: str) -> int:
    """One whole number, as Python's, which knows no overflow."""
    scalar(name, value, interval, whole=True)
    return int(value)


def either(one: str, first: ArrayLike | None, other: str, second: ArrayLike | None) -> None:
    """ValueError unless exactly one of two arguments is given."""
    if (first is None) == (second is None):
        raise ValueError(f"{one} or {other} must be given, got {'neither' if first is None else 'both'}")


def log_start(kappa0: ArrayLike | None, log_kappa0: ArrayLike | None) -> NDArray[np.float64]:
    """log kappa_0 from one of both: kappa0 in [1, inf), log_kappa0 in [0, inf)."""
    either("kappa0", kappa0, "log_kappa0", log_kappa0)
    if log_kappa0 is not None:
        return argument("log_kappa0", log_kappa0, "[0, inf)")
    assert kappa0 is not None
    return np.log(argument("kappa0", kappa0, "[1, inf)"))


def as_given(log_kappa: NDArray[np.float64], log_kappa0: ArrayLike | None) -> NDArray[np.float64]:
    """Logarithms where the start was given by its logarithm, and kappa (inf beyond the floats) where it was not."""
    with np.errstate(over="ignore"):
        return log_kappa if log_kappa0 is not None else np.exp(log_kappa)


def per_round(name: str, value: ArrayLike, interval: str, *, most: int | None = None) -> NDArray[np.float64]:
    """`argument` [..., T] with one entry a round, of at most so many axes."""
    values = argument(name, value, interval)
    if not values.ndim or (most is not None and values.ndim > most):
        shape = "[T]" if most == 1 else "[..., T]"
        raise ValueError(f"{name} must be {shape} where rounds are not given, got {value!r}")
    return values


def number(values: ArrayLike) -> Number:
    """A float where there is one value, the array itself otherwise."""
    return float(np.asarray(values)) if np.ndim(values) == 0 else values


def _short(value: Any) -> str:
    """A number of thousands of digits has no repr."""
    try:
        text = repr(value)
    except ValueError:
        return "a number beyond the floats"
    return text if len(text) <= 60 else f"{text[:57]}..."
