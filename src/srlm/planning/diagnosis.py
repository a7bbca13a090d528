"""What a plan takes from a diagnosis."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlm.errors import UserError
from srlm.theory import sharpening_exponent

MOST_ROUNDS = 1024
"""That a plan considers, and that a forecast may be of."""


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
    failure: Bracket | None
    """P_x[pi_T(y*|x) <= 1/2]."""
    accuracy: Bracket | None


@dataclass(frozen=True)
class Source:
    """The diagnosis behind the inputs that were not given."""

    name: str
    num_prompts: int | None
    certified_share: float | None
    broken: int = 0
    """Prompts beside these that were left out, since the model's log-probs for them are not numbers."""
    distinct: int | None = None
    """Different ones among all of them; None in a diagnosis that does not say."""

    @property
    def counted(self) -> int:
        """Prompts that a limit may count: different ones, also those that were left out."""
        every = (self.num_prompts or 0) + self.broken
        return every if self.distinct is None else min(self.distinct, every)


@dataclass(frozen=True)
class Diagnosis:
    """What a plan takes from a diagnosis: the cautious ends of its intervals, and its forecasts."""

    source: Source
    log_kappa: float | None
    min_confidence: float | None
    margin: float | None
    mode_wrong: tuple[float, float] | None
    """Share of prompts whose mode is wrong, None without answers."""
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
                Source(
                    name,
                    _count(sequence.get("num_prompts")),
                    sequence.get("certified_share"),
                    _count(content.get("broken")) or 0,
                    _count(content.get("distinct")),
                ),
                log_kappa=_end(sequence["log_kappa"], 1),
                min_confidence=_end(sequence["min_confidence"], 0),
                margin=_end(sequence.get("margin"), 0),
                mode_wrong=_interval((content.get("labels") or {}).get("mode_wrong")),
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

    def sharpened_by(self, exponent: float) -> Forecast | None:
        """Of the escort at the largest exponent that is not above this one: what fails at it fails no less there."""
        rows = [(float(sharpening_exponent(known)), row) for known, row in self.forecasts if known]
        rows = [(alpha, row) for alpha, row in rows if alpha <= exponent * (1 + 1e-9) and row.target == "escort"]
        return max(rows, key=lambda pair: pair[0], default=(0.0, None))[1]


def _betas(beta: Any, rounds: int) -> tuple[float, ...]:
    """One a round; null is a round that asked for nothing."""
    if isinstance(beta, Sequence) and not isinstance(beta, str):
        found = tuple(math.inf if each is None else float(each) for each in beta)
    elif rounds > MOST_ROUNDS:
        raise ValueError(f"a forecast has {rounds} rounds, expected at most {MOST_ROUNDS}")
    else:
        found = (float(beta),) * rounds
    if not all(each > 0 for each in found):
        raise ValueError(f"a forecast has beta {beta}, expected above 0")
    return found


def _close(some: Sequence[float], others: Sequence[float]) -> bool:
    return all(math.isclose(one, other, rel_tol=1e-6) for one, other in zip(some, others, strict=True))


def _count(value: Any) -> int | None:
    if value is not None and not (isinstance(value, int) and value >= 0):
        raise ValueError(f"a number of prompts is {value!r}, expected a whole one from 0 on")
    return value


def _end(interval: Any, index: int) -> float | None:
    return None if interval is None or interval[index] is None else float(interval[index])


def _interval(values: Any) -> tuple[float, float] | None:
    return None if values is None else (float(values[0]), float(values[1]))


def _forecast(row: Mapping[str, Any]) -> Forecast:
    def bracket(values: Mapping[str, Any]) -> Bracket:
        return Bracket(*(None if values[end] is None else float(values[end]) for end in ("low", "point", "high")))

    failure, accuracy = (None if row.get(name) is None else bracket(row[name]) for name in ("failure", "accuracy"))
    return Forecast(str(row["target"]), bracket(row["kappa"]), failure, accuracy)
