"""Samples of runs by round and prompt, and the rounds that are shown of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from srlm.report.folders import Folder, Sample

MOST_ROUNDS = 6


def by_round(samples: Sequence[Sample]) -> dict[int, dict[int, list[Sample]]]:
    """round -> prompt -> its samples."""
    found: dict[int, dict[int, list[Sample]]] = {}
    for sample in samples:
        found.setdefault(sample.round, {}).setdefault(sample.prompt_index, []).append(sample)
    return found


def shown_rounds(runs: Sequence[Folder], rounds: Iterable[int]) -> list[int]:
    """Of one run the first, the last and some between; of each of several the last."""
    every = sorted(rounds)
    if len(runs) > 1:
        return every[-1:]
    if len(every) <= MOST_ROUNDS:
        return every
    return [every[round(i)] for i in np.linspace(0, len(every) - 1, MOST_ROUNDS)]
