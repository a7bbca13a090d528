"""What was forecast against what training gave, before training and after its first round: tables and figures of
docs/forecast.md.

    python -m benchmarks.forecast RUN [RUN ...] --output DIR

Every round of every run is diagnosed on the run's held-out prompts (kept in DIR, so that a second call goes on). The
forecast of exact rounds is that of its round 0, that of rounds as trained the one of round 1, of which each run has a
row. Runs of different seeds hold out different prompts; means over runs are shown.
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


def as_trained(runs: list[str], every: list[list[dict[str, Any]]], rounds: range) -> str:
    """A row for each run and T: exact forecast from round 0, that of rounds like the first from round 1, measured."""
    lines: list[list[str]] = []
    missed: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in QUANTITIES}
    for t in rounds[2:]:
        for run, diagnoses in zip(runs, every, strict=True):
            found = diagnoses[1]["forecast"]["trained"]
            (trained,) = [row for row in found["rows"] if row["rounds"] == t - 1]
            (exact,) = [row for row in rows(diagnoses[0]) if row["rounds"] == t]
            measured = now(diagnoses[t])
            cells = [run, str(t), f"{found['update']['exponent']:.2f}"]
            for name in QUANTITIES:
                own = measured["sampled" if name == "accuracy" else name]
                low, point, high = (trained[name][end] for end in ("low", "point", "high"))
                cells.append(f"{exact[name]['point']:.3f} · {point:.3f} [{low:.3f}, {high:.3f}] · {own:.3f}")
                missed[name].append((abs(exact[name]["point"] - own), abs(point - own), low <= own <= high))
            lines.append(cells)
    for label, pick in (("mean error", statistics.mean), ("largest error", max)):
        cells = [label, "", ""]
        for name in QUANTITIES:
            exact_error, error = (pick([one[i] for one in missed[name]]) for i in (0, 1))
            cells.append(f"{exact_error:.3f} · {error:.3f}")
        lines.append(cells)
    inside = [f"{sum(one[2] for one in missed[name])} of {len(missed[name])}" for name in QUANTITIES]
    lines.append(["inside the interval", "", "", *inside])
    heads = [f"{name.replace('_', ' ')}: exact · as trained · measured" for name in QUANTITIES]
    return table(["run", "T", "exponent", *heads], lines)


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
    print()
    print(as_trained([run.name for run in given.runs], every, rounds))

    def after_one(t: int, name: str, end: str) -> float:
        """As forecast from round 1; there, what it is."""
        if t == 1:
            return statistics.mean(now(run[1])[name] for run in every)
        return statistics.mean(run[1]["forecast"]["trained"]["rows"][t - 2][name][end] for run in every)

    def draw(name: str, logarithm: bool, label: str) -> Any:
        def axes_of(axes: Axes) -> None:
            value = (lambda x: math.log10(x)) if logarithm else (lambda x: x)
            low, point, high = ([value(predicted(t, name, end)) for t in rounds] for end in ("low", "point", "high"))
            axes.fill_between(list(rounds), low, high, alpha=0.2, label="exact forecast, certain")
            axes.plot(list(rounds), point, marker="s", label="exact forecast, with samples")
            ends = ([value(after_one(t, name, end)) for t in rounds[1:]] for end in ("low", "point", "high"))
            low, point, high = ends
            axes.fill_between(list(rounds[1:]), low, high, alpha=0.2, color="#009E73")
            axes.plot(list(rounds[1:]), point, marker="D", color="#009E73", label="forecast, as trained")
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
