"""From folders to figures: what each shows. How it is drawn is `report/drawing.py`'s affair."""

from __future__ import annotations

from collections.abc import Sequence

from srlm.report.charts.chart import Chart
from srlm.report.charts.diagnoses import of_diagnoses
from srlm.report.charts.runs import of_runs
from srlm.report.folders import Folder


def charts(folders: Sequence[Folder]) -> list[Chart]:
    """All figures of folders of one kind."""
    runs = [folder for folder in folders if folder.kind == "run" and folder.records]
    diagnoses = [folder for folder in folders if folder.kind == "diagnosis"]
    every = (of_runs(runs) if runs else []) + (of_diagnoses(diagnoses) if diagnoses else [])
    return [chart for chart in every if any(y is not None for one in chart.series for y in one.y)]
