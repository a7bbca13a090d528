"""The figures of diagnoses."""

from __future__ import annotations

from srlm.report.charts.calibration import diagnosed_calibration
from srlm.report.charts.chart import Chart, Series
from srlm.report.charts.forecasts import AS_TRAINED, forecast_of
from srlm.report.charts.legend import colour_of, named
from srlm.report.folders import Folder
from srlm.report.forecast import forecast_rows, trained_rows
from srlm.report.text import number


def of_diagnoses(folders: list[Folder]) -> list[Chart]:
    kappa: list[Series] = []
    right: list[Series] = []
    said = ""
    for i, folder in enumerate(folders):
        rows = [row for row in forecast_rows(folder) if row.get("target") == "escort"]
        betas = sorted({beta for row in rows if (beta := number(row.get("beta"))) is not None})
        for j, beta in enumerate(betas if len(folders) == 1 else [b for b in betas if b == 1] or betas[:1]):
            mine = [row for row in rows if number(row.get("beta")) == beta]
            name = named(folders, folder, f"β = {beta:g}")
            style = colour_of(folders, i, j)
            kappa.append(forecast_of(mine, name, "kappa", style["colour"], 0))
            right.append(forecast_of(mine, name, "accuracy", style["colour"], 0))
        if trained := trained_rows(folder):
            name, colour = named(folders, folder, "rounds as trained"), colour_of(folders, i, 3)["colour"]
            kappa.append(forecast_of(trained, name, "kappa", colour, 1))
            right.append(forecast_of(trained, name, "accuracy", colour, 1))
            said = f" {AS_TRAINED}"
    certain = f"Exact updates from this start, with what search and samples leave open as the interval.{said}"
    if any(y is None for one in kappa for y in one.y):
        certain += " Where a mode is not certified there is no point: the table has the interval."
    return [
        Chart("forecast-kappa", "Forecast of κ", certain, "rounds T", "κ", kappa, log=True),
        Chart("forecast-accuracy", "Forecast of sampled accuracy", certain, "rounds T", "share right", right),
        diagnosed_calibration(folders),
    ]
