"""A figure, drawn by Plotly on the page and by matplotlib in an SVG file for a paper."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from srlm.plain import visible
from srlm.report.charts.chart import Chart, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's, as in srlm.figures, which would import matplotlib; and a grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
DASHES = ("solid", "dash", "dot", "dashdot")
LINESTYLES = ("-", "--", ":", "-.")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
MARKERS = ("o", "s", "D", "^", "X", "*", "P")


def plotly(chart: Chart) -> dict[str, Any]:
    """{data, layout} in Plotly's schema, without the page's theme. Plotly reads names as a kind of HTML."""
    data = [_trace(chart, one) for one in chart.series]
    x_axis: dict[str, Any] = {"title": {"text": chart.x_label}}
    y_axis: dict[str, Any] = {"title": {"text": chart.y_label}}
    if chart.log:
        y_axis |= {"type": "log", "exponentformat": "power", "nticks": 7}
    elif chart.y_label.startswith("share"):
        y_axis["range"] = [0, 1.03]
    if chart.x_label.startswith("round"):
        x_axis |= {"tickformat": "d"} | ({"dtick": 1} if len(chart.series[0].x) <= 12 else {})
    layout: dict[str, Any] = {"xaxis": x_axis, "yaxis": y_axis, "showlegend": len(data) > 1}
    if chart.kind == "bar":
        layout["barmode"] = "stack"
    if chart.events:
        line = {"dash": "dot", "width": 1.5, "color": COLOURS[1]}
        layout["shapes"] = [
            {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line} for x, _ in chart.events
        ]
        layout["annotations"] = [
            {"x": x, "y": 1, "yref": "paper", "text": _plain(text), "showarrow": False} for x, text in chart.events
        ]
    return {"data": data, "layout": layout}


def _trace(chart: Chart, series: Series) -> dict[str, Any]:
    colour = COLOURS[series.colour % len(COLOURS)]
    trace: dict[str, Any] = {"name": _plain(series.name), "x": list(series.x), "y": list(series.y)}
    if chart.kind == "bar":
        return trace | {"type": "bar", "marker": {"color": colour}}
    trace |= {"type": "scatter", "line": {"color": colour, "dash": DASHES[series.dash % len(DASHES)]}}
    if chart.kind == "step":
        trace["line"]["shape"] = "hv"
        return trace | {"mode": "lines"}
    trace |= {"mode": "lines+markers", "marker": {"symbol": SYMBOLS[series.colour % len(SYMBOLS)], "size": 7}}
    if series.low is not None and series.high is not None:
        reach = {
            "array": [_apart(high, y) for y, high in zip(series.y, series.high, strict=True)],
            "arrayminus": [_apart(y, low) for y, low in zip(series.y, series.low, strict=True)],
        }
        trace["error_y"] = {"type": "data", "symmetric": False, "thickness": 1.2, "width": 4, "color": colour} | reach
    return trace


def _apart(high: float | None, low: float | None) -> float:
    return 0.0 if high is None or low is None else max(0.0, high - low)


def _plain(text: str) -> str:
    return html.escape(visible(text), quote=False)


def draw(chart: Chart, axes: Axes) -> None:
    """For `srlm.figures.write_svg`; text is drawn as it is, dollar signs included."""
    from matplotlib.ticker import MaxNLocator

    below: list[float] = []
    for series in chart.series:
        x, y = (np.array([math.nan if v is None else v for v in values]) for values in (series.x, series.y))
        colour, name = COLOURS[series.colour % len(COLOURS)], visible(series.name).replace("$", r"\$")
        if chart.kind == "bar":
            height = np.nan_to_num(y)
            bottom = np.array(below) if below else np.zeros(len(y))
            axes.bar(x, height, bottom=bottom, color=colour, label=name)
            below = (bottom + height).tolist()
            continue
        style = LINESTYLES[series.dash % len(LINESTYLES)]
        if chart.kind == "step":
            axes.step(x, y, where="post", color=colour, linestyle=style, label=name)
            continue
        reach = None
        if series.low is not None and series.high is not None:
            reach = [
                [_apart(b, a) for a, b in zip(series.low, series.y, strict=True)],
                [_apart(b, a) for a, b in zip(series.y, series.high, strict=True)],
            ]
        marker = MARKERS[series.colour % len(MARKERS)]
        axes.errorbar(
            x, y, yerr=reach, color=colour, linestyle=style, marker=marker, markersize=5, capsize=2, label=name
        )
    if chart.log:
        axes.set_yscale("log")
    elif chart.y_label.startswith("share"):
        axes.set_ylim(0, 1.03)
    if chart.x_label.startswith("round"):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for x_event, text in chart.events:
        axes.axvline(x_event, color=COLOURS[1], linestyle=":", linewidth=1.5)
        axes.annotate(visible(text).replace("$", r"\$"), (x_event, 1), xycoords=("data", "axes fraction"), fontsize=8)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if len(chart.series) > 1:
        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if len(chart.series) > 4 else {}
        axes.legend(frameon=False, fontsize=8, **beside)
