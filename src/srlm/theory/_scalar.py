"""An argument that is one number."""

from __future__ import annotations

from numpy.typing import ArrayLike

from srlm.theory._check import argument


def scalar(name: str, value: ArrayLike, interval: str, *, whole: bool = False) -> float:
    """`argument` without axes, as a float."""
    values = argument(name, value, interval, whole=whole)
    if values.ndim:
        raise ValueError(f"{name} must be one number in {interval}, got {value!r}")
    return float(values)
