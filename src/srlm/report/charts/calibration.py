"""Does the reward tell right from wrong? Of rounds of runs, and as diagnoses found it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from srlm.report.charts.chart import Chart, Series, Style
from srlm.report.charts.legend import colour_of, named, solid
from srlm.report.charts.samples import by_round, shown_rounds
from srlm.report.folders import HELD_OUT, Folder
from srlm.report.text import listed, number

CALIBRATION = "Samples in ten groups of rising reward, equal rewards together; 95 % intervals. A useful reward climbs."
REWARD_RANK = "rank of the reward (%)"
TELLS = "Does the reward tell right from wrong?"


def calibration(runs: list[Folder]) -> Chart:
    from srlm.estimators.calibration import reliability

    series = []
    for i, run in enumerate(runs):
        rounds = by_round([s for s in run.samples if s.part == HELD_OUT])
        shown = shown_rounds(runs, rounds)
        for j, t in enumerate(shown):
            every = [
                (s.reward, s.right)
                for group in rounds[t].values()
                for s in group
                if s.reward is not None and s.right is not None
            ]
            scores, rights = [score for score, _ in every], [right for _, right in every]
            bins = [vars(b) for b in reliability(scores, rights)] if every else []
            name = named(runs, run, f"round {t}")
            series.append(_reliability(name, bins, solid(runs, i, j)))
    return Chart("calibration", TELLS, CALIBRATION, REWARD_RANK, "share right", series)


def diagnosed_calibration(folders: list[Folder]) -> Chart:
    series = []
    for i, folder in enumerate(folders):
        labels = folder.diagnosis.get("labels")
        scores = labels.get("calibration") if isinstance(labels, dict) else None
        for j, (name, facts) in enumerate(scores.items() if isinstance(scores, dict) else ()):
            bins = listed(facts.get("reliability")) if isinstance(facts, dict) else []
            series.append(_reliability(named(folders, folder, name), bins, colour_of(folders, i, j)))
    return Chart("diagnosed-calibration", TELLS, CALIBRATION, REWARD_RANK, "share right", series)


def _reliability(name: str, bins: Sequence[Any], style: Style) -> Series:
    rows = [row for row in bins if isinstance(row, dict)]
    y, low, high = ([number(row.get(key)) for row in rows] for key in ("share_right", "low", "high"))
    counts = np.array([number(row.get("count")) or 0.0 for row in rows])
    x = (100 * (counts.cumsum() - counts / 2) / max(counts.sum(), 1)).tolist()
    return Series(name, x, y, low, high, **style)
