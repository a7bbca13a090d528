"""What was forecast before training against what training gave: table and figure of docs/forecast.md.

    python -m benchmarks.forecast RUN [RUN ...] --output DIR

Every round of every run is diagnosed on the run's held-out prompts (kept in DIR, so that a second call goes on);
the forecast is that of its round 0. Runs of different seeds hold out different prompts; means over runs are shown.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from benchmarks.timing import table
from srlm.console import Display
from srlm.diagnosis import diagnose
from srlm.figures import write_svg

QUANTITIES = ("kappa", "mode_mass", "failure", "accuracy")


def diagnosed(run: Path, round: int, output: Path) -> dict[str, Any]:
    folder = output / f"{run.name}-round-{round}"
    if not (folder / "diagnose.json").exists():
        diagnose(run=run, round=round, output=folder, display=Display(quiet=True))
    return dict(json.loads((folder / "diagnose.json").read_text()))


def now(diagnosis: dict[str, Any]) -> dict[str, float]:
    """Measured: the forecast for no rounds is what is."""
    (row,) = (r for r in rows(diagnosis) if r["rounds"] == 0)
    return {name: row[name]["point"] for name in QUANTITIES} | {"sampled": diagnosis["labels"]["sampled"][0]}


def rows(diagnosis: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in diagnosis["forecast"]["rows"] if row["beta"] == 1 and row["target"] == "escort"]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forecast")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    rounds = range(1 + json.loads((given.runs[0] / "manifest.json").read_text())["config"]["rounds"])
    every = [[diagnosed(run, t, given.output) for t in rounds] for run in given.runs]
    forecasts = [{row["rounds"]: row for row in rows(run[0])} for run in every]

    def predicted(t: int, name: str, end: str) -> float:
        return statistics.mean(of_run[t][name][end] for of_run in forecasts)

    measured = [[now(d) for d in run] for run in every]
    lines = []
    for t in rounds:
        cells = [str(t)]
        for name in QUANTITIES:
            own = [run[t]["sampled" if name == "accuracy" else name] for run in measured]
            low, point, high = (predicted(t, name, end) for end in ("low", "point", "high"))
            cells += [f"{point:.3f} [{low:.3f}, {high:.3f}]", spread(own)]
        lines.append(cells)
    head = ["T", *(f"{name.replace('_', ' ')}, {which}" for name in QUANTITIES for which in ("forecast", "measured"))]
    print(table(head, lines))

    def draw(name: str, logarithm: bool, label: str) -> Any:
        def axes_of(axes: Axes) -> None:
            value = (lambda x: math.log10(x)) if logarithm else (lambda x: x)
            low, point, high = ([value(predicted(t, name, end)) for t in rounds] for end in ("low", "point", "high"))
            axes.fill_between(list(rounds), low, high, alpha=0.2, label="forecast, certain")
            axes.plot(list(rounds), point, marker="s", label="forecast, with samples")
            for number, run in enumerate(measured):
                own = [value(run[t]["sampled" if name == "accuracy" else name]) for t in rounds]
                axes.plot(
                    list(rounds), own, marker="o", color="#D55E00", alpha=0.6, label="trained" if not number else None
                )
            axes.set(xlabel="rounds T", ylabel=label, xticks=list(rounds))
            axes.legend()

        return axes_of

    for name, logarithm, label in (
        ("accuracy", False, "accuracy of a sample, held-out prompts"),
        ("kappa", True, "log10 κ, held-out prompts"),
    ):
        write_svg(given.output / f"forecast-{name}.svg", draw(name, logarithm, label))


if __name__ == "__main__":
    main()
