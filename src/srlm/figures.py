"""How every figure looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
from cycler import cycler

matplotlib.use("svg")  # before pyplot is imported: no display is needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

STYLE = {
    "figure.figsize": (6.4, 4.0),
    "figure.constrained_layout.use": True,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Okabe and Ito's colours, told apart by colour-blind readers too.
    "axes.prop_cycle": cycler(color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]),
    "svg.fonttype": "none",
    "svg.hashsalt": "srlm",
    "font.size": 10,
}


def write_svg(path: Path, draw: Callable[[Axes], object]) -> None:
    """One pair of axes, drawn on by `draw`; the same drawing gives the same bytes."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        draw(axes)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)
