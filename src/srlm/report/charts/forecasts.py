"""What a diagnosis forecast of a run, laid over what came of it."""

from __future__ import annotations

from typing import Any

from srlm.report.charts.chart import Chart, Series
from srlm.report.charts.curves import lines_of
from srlm.report.charts.legend import colour_of, named
from srlm.report.folders import Folder
from srlm.report.forecast import bound_of, not_forecast, own_rows, trained_rows
from srlm.report.text import number

SAMPLED_BOUND = "A sampled run's bound needs the size of its class, unknown for a transformer: it is not drawn."
AS_TRAINED = "As trained: rounds with the exponent and the errors of the update before the diagnosed round, 95 %."


def kappa(runs: list[Folder]) -> Chart:
    lines = (("log10_kappa_upper", "training prompts"), ("log10_kappa_upper_held_out", "held-out prompts"))
    series = lines_of(runs, lines, power=True)
    caption = "Upper estimates: the best of K samples stands in for the mode. κ falls in collapsing runs too."
    for i, run in enumerate(runs):
        if rows := own_rows(run):
            series.append(forecast_of(rows, named(runs, run, "forecast"), "kappa", colour_of(runs, i, 2)["colour"], 2))
            caption += " Forecast: exact updates from the diagnosed start, with the certain interval."
            bound, said = bound_of(rows, run)
            caption += f" {said} {SAMPLED_BOUND}"
            if bound:
                name, colour = named(runs, run, "bound, exact updates"), colour_of(runs, i, 3)["colour"]
                series.append(Series(name, [number(row["rounds"]) for row in rows], bound, colour=colour, dash=3))
        if trained := trained_rows(run):
            name, colour = named(runs, run, "forecast, rounds as trained"), colour_of(runs, i, 4)["colour"]
            series.append(forecast_of(trained, name, "kappa", colour, 1))
            caption += f" {AS_TRAINED}"
        caption += _left_out(runs, run)
    return Chart("kappa", "Condition number κ", caption, "round", "κ", series, log=True)


def with_forecasts(chart: Chart, runs: list[Folder]) -> Chart:
    """Accuracy, and what was forecast of it: of exact rounds, and of rounds as they were trained before."""
    series, caption = [], chart.caption
    for i, run in enumerate(runs):
        exact, trained = own_rows(run), trained_rows(run)
        colours = [colour_of(runs, i, line)["colour"] for line in (2, 4)]
        if any(isinstance(row.get("accuracy"), dict) for row in exact):
            series.append(forecast_of(exact, named(runs, run, "forecast, exact"), "accuracy", colours[0], 2))
            caption += " Forecast: exact updates from the diagnosed start, with the certain interval."
        if any(isinstance(row.get("accuracy"), dict) for row in trained):
            name = named(runs, run, "forecast, rounds as trained")
            series.append(forecast_of(trained, name, "accuracy", colours[1], 1))
            caption += f" {AS_TRAINED}"
        caption += _left_out(runs, run)
    return Chart(**vars(chart) | {"series": chart.series + series, "caption": caption})


def _left_out(runs: list[Folder], run: Folder) -> str:
    other, which = not_forecast(run), named(runs, run, "The diagnosis")
    return "" if other is None else f" {which} forecasts sharpening and is left out: {other}."


def forecast_of(rows: list[dict[str, Any]], name: str, key: str, colour: int, dash: int) -> Series:
    cells = [row[key] if isinstance(row.get(key), dict) else {} for row in rows]
    low, y, high = ([number(cell.get(end)) for cell in cells] for end in ("low", "point", "high"))
    return Series(name, [number(row.get("rounds")) for row in rows], y, low, high, colour, dash)
