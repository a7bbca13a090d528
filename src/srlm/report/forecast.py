"""The forecast that a diagnosis made of a run, its rounds counted as the run counts them; and what bounds it."""

from __future__ import annotations

import math
from typing import Any

from srlm.objectives.sharpening import departure
from srlm.report.folders import Folder
from srlm.report.text import listed, number

MOST_BOUNDED = 1000  # rounds: what a file says of them is not to be believed


def not_forecast(run: Folder) -> str | None:
    """Why the forecast of its diagnosis is not one of this run; None where it is, or where there is none."""
    other = departure(_config(run))
    return other if other is not None and forecast_rows(run) else None


def own_rows(run: Folder) -> list[dict[str, Any]]:
    """Rows of a forecast with the run's own β and clipping, rounds counted as the run does."""
    config, start = _config(run), _diagnosed_round(run)
    if departure(config) is not None:
        return []
    own_beta = number(config.get("beta"))
    target = "clipped" if number(config.get("clip")) and config.get("step") is None else "escort"
    solved = [record.get("beta") for record in run.records[start:]]

    def own(row: dict[str, Any]) -> bool:
        beta = row.get("beta")
        if config.get("step") is None:
            return own_beta is not None and number(beta) == own_beta
        return beta == solved[: len(beta)] if isinstance(beta, list) else row.get("rounds") == 0 and beta == 1

    last = max([number(config.get("rounds")) or 0, *(number(record.get("round")) or 0 for record in run.records)])
    rows = [row for row in forecast_rows(run) if own(row) and row.get("target") == target]
    shifted = [row | {"rounds": (number(row.get("rounds")) or 0) + start} for row in rows]
    return [row for row in shifted if row["rounds"] <= last]


def forecast_rows(folder: Folder) -> list[dict[str, Any]]:
    found = folder.diagnosis.get("forecast")
    rows = found.get("rows") if isinstance(found, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def trained_rows(folder: Folder) -> list[dict[str, Any]]:
    """Rows of the forecast of rounds like the one before the diagnosed one, rounds counted as the run does; first what
    was diagnosed."""
    if folder.kind == "run" and departure(_config(folder)) is not None:
        return []
    found = folder.diagnosis.get("forecast")
    trained = found.get("trained") if isinstance(found, dict) else None
    rows = [row for row in listed(trained.get("rows")) if isinstance(row, dict)] if isinstance(trained, dict) else []
    now = [row | {"rounds": 0} for row in forecast_rows(folder) if row.get("rounds") == 0][:1]
    start = _diagnosed_round(folder) if folder.kind == "run" else 0
    return [row | {"rounds": (number(row.get("rounds")) or 0) + start} for row in now + rows] if rows else []


def _diagnosed_round(run: Folder) -> int:
    _, comma, rest = str(run.diagnosis.get("model", "")).rpartition(", round ")
    digits = rest.split(" ")[0]
    return int(digits) if comma and digits.isdecimal() and len(digits) < 6 else 0


def bound_of(rows: list[dict[str, Any]], run: Folder) -> tuple[list[float], str]:
    """`sharpened_kappa_bound` from the certain ends of kappa and margin, and what to say of it. Clipped rewards stretch
    odds D by g_T(D) - D, which never falls in D: at the margin it bounds them all."""
    from srlm.theory import sharpened_kappa_bound, sharpened_log_odds

    found, config = run.diagnosis.get("sequence"), _config(run)
    found = found if isinstance(found, dict) else {}
    (_, log_kappa), (margin, _) = (_pair(found.get(key)) for key in ("log_kappa", "margin"))
    clip = number(config.get("clip")) if config.get("step") is None else None  # beside a step each round has its own
    rounds = [row["rounds"] - _diagnosed_round(run) for row in rows]
    betas = _betas(run, max(rounds, default=0)) if all(t in range(MOST_BOUNDED) for t in rounds) else None
    if margin is None or margin <= 0:
        return [], "The bound on exact updates is vacuous: a margin may be 0."
    if log_kappa is None or not 0 <= log_kappa < 700 or betas is None:
        return [], "The bound on exact updates is not known."
    stretched = [float(sharpened_log_odds(margin, betas[: int(t)], clip=clip or math.inf)) / margin for t in rounds]
    bound = [float(sharpened_kappa_bound(math.exp(log_kappa), margin, exponent)) for exponent in stretched]
    return bound, f"Bound: where they end at worst, all that is known being margins of {margin:.2g} nats or more."


def _betas(run: Folder, rounds: float) -> list[float] | None:
    """Of so many rounds from the diagnosed one on: the run's own, or those that it solved."""
    config, start = _config(run), _diagnosed_round(run)
    if config.get("step") is None:
        betas = [number(config.get("beta"))] * int(rounds)
    else:
        betas = [number(record.get("beta")) for record in run.records[start : start + int(rounds)]]
    known = [beta for beta in betas if beta is not None and beta > 0]
    return known if len(known) == rounds else None


def _config(run: Folder) -> dict[str, Any]:
    found = run.manifest.get("config")
    return found if isinstance(found, dict) else {}


def _pair(value: Any) -> tuple[float | None, float | None]:
    low, high = value if isinstance(value, list) and len(value) == 2 else (None, None)
    return number(low), number(high)
