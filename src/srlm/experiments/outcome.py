"""What an experiment is: run() -> rows, check(rows) -> verdict, draw(rows, axes)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

Row: TypeAlias = dict[str, Any]
Report: TypeAlias = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class Verdict:
    """holds: no bound was crossed and every check came out. findings: sentences with the numbers behind it."""

    holds: bool
    findings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, *checks: tuple[bool, str]) -> Verdict:
        """From (came out, sentence) pairs; what failed says so."""
        return cls(all(ok for ok, _ in checks), [text if ok else f"FAILED: {text}" for ok, text in checks])


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean over replicas [R] and its standard error."""
    values = values.double().flatten()
    return float(values.mean()), float(values.std() / max(len(values), 1) ** 0.5)


def power_law(name: str, slope: tuple[float, float, float], theory: float) -> tuple[bool, str]:
    """A check of (slope, low, high): the interval reaches the exponent of the theory to within .05, and tells it from
    none (0) and from twice as fast."""
    value, low, high = slope
    least, most = sorted((0.0, 2 * theory))
    return least < low <= theory + 0.05 and theory - 0.05 <= high < most, (
        f"{name}: exponent {value:.2f} [{low:.2f}, {high:.2f}], theory {theory:+g}"
    )


def mode_log_prob(table: Tensor) -> Tensor:
    """max_y log pi(y|x) [..., X]."""
    return table.amax(-1)


def log_kappa(table: Tensor, weight: Tensor) -> Tensor:
    """log E_x[1 / max_y pi(y|x)] (Eq. 5) for tables [..., X, Y], weight [X]: [...]."""
    return torch.logsumexp(weight.double().log() - mode_log_prob(table), -1)


def failure(table: Tensor, weight: Tensor, best: Tensor | None = None, level: float = 0.5) -> Tensor:
    """P_x[pi(y*|x) <= 1 - level] [...], with y* [..., X] the policy's own mode unless given."""
    chosen = mode_log_prob(table) if best is None else table.gather(-1, best[..., None])[..., 0]
    return (weight * (chosen.exp() <= 1 - level)).sum(-1)


def columns(rows: Sequence[Row], *names: str) -> Any:
    """One list per name, in the order of the rows."""
    return [[row[name] for row in rows] for name in names]
