"""From what a run knows of its last update to a forecast of more rounds like it."""

from __future__ import annotations

from collections.abc import Sequence

from srlm.diagnosis.history import History
from srlm.diagnosis.result import Proportion, Trained
from srlm.forecast import Evidence, trained_forecast
from srlm.types import Record

ROUNDS = (1, 2, 3)  # beyond, that rounds stay alike is a guess


def trained_rounds(every: Sequence[Evidence], known: History) -> Trained | None:
    """None where nothing is known of an update, or where it turned the order of responses round."""
    update = known.update
    if update is None or update.exponent <= 0:
        return None
    rows = [trained_forecast(every, update, rounds, known.clip) for rounds in ROUNDS]
    measured = [_accuracy(known.after[t - 1]) if t <= len(known.after) else None for t in ROUNDS]
    return Trained(update, known.asked, rows, measured)


def untold(known: History) -> str | None:
    """Why `trained_rounds` says nothing, None where it does or no run was asked."""
    if known.update is not None and known.update.exponent <= 0:
        return f"the update turned the order of responses round (exponent {known.update.exponent:.2f})"
    return known.unknown


def _accuracy(record: Record) -> Proportion | None:
    value, low, high = (record.get(f"accuracy_sampled{end}") for end in ("", "_low", "_high"))
    if not isinstance(value, float | int) or not isinstance(low, float | int) or not isinstance(high, float | int):
        return None
    return float(value), float(low), float(high)
