"""One figure of a report, for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srlm.errors import UserError
from srlm.report import read_all
from srlm.report.charts import charts
from srlm.report.drawing import plotly


def plot(folders: Sequence[str | Path], figure: str) -> Any:
    """A `plotly.graph_objects.Figure` of one folder, or of several laid over each other. figure: as a file that
    `srlm report --figures` writes is called, `kappa` or `accuracy` say.

    Raises:
        UserError: the folders have no such figure.
    """
    made = {chart.id: chart for chart in charts(read_all([Path(folder) for folder in folders]))}
    if figure not in made:
        known = ", ".join(made) or "none before the first record"
        raise UserError(f"there is no figure {figure!r} of {folders[0]}, expected one of {known}: choose one")
    from plotly.graph_objects import Figure

    found = Figure(plotly(made[figure]))
    return found.update_layout(title=made[figure].title, template="plotly_white")
