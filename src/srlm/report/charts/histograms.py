"""How sure a policy is of each prompt: histograms over prompts, of some rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from srlm.report.charts.chart import Chart, Series, Style
from srlm.report.charts.legend import named, solid
from srlm.report.charts.samples import by_round, shown_rounds
from srlm.report.folders import HELD_OUT, TRAINING, Folder, Sample


def histograms(runs: list[Folder]) -> list[Chart]:
    parts = [HELD_OUT if any(s.part == HELD_OUT for s in run.samples) else TRAINING for run in runs]
    groups = [by_round([s for s in run.samples if s.part == part]) for run, part in zip(runs, parts, strict=True)]
    confidence: list[tuple[str, list[float], Style]] = []
    margin: list[tuple[str, list[float], Style]] = []
    alike = 0
    for i, (run, rounds) in enumerate(zip(runs, groups, strict=True)):
        shown = shown_rounds(runs, rounds)
        for j, t in enumerate(shown):
            style = solid(runs, i, j)
            name = named(runs, run, f"round {t}")
            best = [two_best(samples) for samples in rounds[t].values()]
            confidence.append((name, [two[0] for two in best if two], style))
            margin.append((name, [two[0] - two[1] for two in best if len(two) == 2], style))
            alike += sum(len(two) == 1 for two in best)
    where = " and ".join(sorted(set(parts)))
    said = f"{where.capitalize()} prompts."
    one = f" {alike} groups (of a prompt and a round) whose samples are all alike have no margin." if alike else ""
    return [
        Chart(
            "confidence",
            "Confidence",
            f"{said} The most probable sample of each prompt; a prompt under its mode's probability at most.",
            "largest log-prob (nats)",
            "prompts",
            _steps(confidence),
            "step",
        ),
        Chart(
            "margin",
            "Margin",
            f"{said} Log-prob of the most probable sample over that of the next different one.{one}",
            "margin (nats)",
            "prompts",
            _steps(margin),
            "step",
        ),
    ]


def two_best(samples: Sequence[Sample]) -> list[float]:
    """Log-probs of the most probable response and of the next different one, as far as there are such."""
    different = {s.response: s.log_prob for s in samples if s.log_prob is not None}
    return sorted(different.values(), reverse=True)[:2]


def _steps(groups: list[tuple[str, list[float], Style]], bins: int = 24) -> list[Series]:
    """Histograms with common bins; empty series where there is nothing to count."""
    values = [value for _, group, _ in groups for value in group]
    if not values:
        return []
    low, high = min(values), max(values)
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    made = []
    for name, group, style in groups:
        counts = np.histogram(group, edges)[0].tolist()
        made.append(Series(name, edges.tolist(), [*map(float, counts), 0.0], **style))
    return made
