"""Numbers of a plan, on a terminal and in JSON."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal
from typing import Any


def kappa(log_kappa: float) -> str:
    return short(math.exp(log_kappa)) if log_kappa < 700 else f"e^{log_kappa:.0f}"


def short(value: float, digits: int = 3) -> str:
    """Three digits: 0.31, 4.2, 3.2e4."""
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def at_most(value: float, digits: int = 3) -> str:
    """As `short`, but rounded up: a bound that is printed is none that was not proved."""
    if not 0 < value < math.inf:
        return short(value, digits)
    exact = Decimal(repr(float(value)))
    scale = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return short(float((exact / scale).to_integral_value(ROUND_CEILING) * scale), digits)


def complement(value: float) -> str:
    """1 - value, in as many digits as tell it from 1."""
    return short(1 - value, max(3, math.ceil(-math.log10(value)) + 1))


def count(value: float, *, up: bool = False) -> str:
    if value < 100:
        return short(value)
    return f"{value:,.0f}".replace(",", " ") if value < 1e7 else (at_most if up else short)(value)


def plain(value: Any) -> Any:
    """Plain values for JSON; what is beyond the floats is None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
