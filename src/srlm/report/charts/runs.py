"""The figures of runs, in their order."""

from __future__ import annotations

from srlm.report.charts.calibration import calibration
from srlm.report.charts.chart import Chart
from srlm.report.charts.curves import AT_K, at_k, curves, flips
from srlm.report.charts.forecasts import kappa, with_forecasts
from srlm.report.charts.histograms import histograms
from srlm.report.charts.stages import loss, timings
from srlm.report.folders import Folder
from srlm.report.text import listed, number


def of_runs(runs: list[Folder]) -> list[Chart]:
    events = [event for run in runs for event in guard_events(run)]
    accuracy, *others = curves(runs)
    made = [kappa(runs), with_forecasts(accuracy, runs), *(at_k(runs, kind, what) for kind, what in AT_K), flips(runs)]
    made += [*others, loss(runs), *histograms(runs), calibration(runs), *timings(runs)]
    return [Chart(**vars(c) | {"events": events}) if c.x_label == "round" and c.kind == "line" else c for c in made]


def guard_events(run: Folder) -> list[tuple[float, str]]:
    """What the guard did, where the manifest says so."""
    guard = run.manifest.get("guard")
    events = guard.get("events") if isinstance(guard, dict) else guard
    found = [(number(event.get("round")), event) for event in listed(events) if isinstance(event, dict)]
    return [(t, str(event.get("action") or event.get("kind") or "guard")) for t, event in found if t is not None]
