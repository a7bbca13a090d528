"""What a round tells of the settings: round 0 before anything is trained, later ones of the update behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from srlm.guard.signals import figure
from srlm.objectives.settings import ObjectiveSettings, ShapingSettings
from srlm.types import Record

MOST_TRUNCATED = 0.5
LEAST_EFFECTIVE = 2.0  # or half of K, where that is less


def advice(record: Record, objective: ObjectiveSettings, shaping: ShapingSettings) -> list[str]:
    """Sentences."""
    return list(_update(record) if figure(record, "round") else _start(record, objective, shaping))


def _start(record: Record, objective: ObjectiveSettings, shaping: ShapingSettings) -> Iterator[str]:
    truncated, effective = figure(record, "truncation_rate"), figure(record, "effective_samples")
    if truncated is not None and truncated > MOST_TRUNCATED:
        other = ", or leave it out with --truncated drop" if shaping.truncated == "keep" else ""
        yield (
            f"{truncated:.0%} of the responses are cut off at {objective.max_new_tokens} tokens, and what is cut tells "
            f"little: raise --max-new-tokens{other}"
        )
    samples = objective.num_samples
    if objective.objective != "regression" or effective is None:  # others have no target that a step could make smaller
        return
    if effective < min(LEAST_EFFECTIVE, samples / 2):
        now, step = figure(record, "step"), math.log(samples) / 2
        step = now / 2 if now is not None and now < 1.1 * step else step  # which that is already
        yield (
            f"the update rests on {effective:.2f} effective samples of {samples}, so nearly on the best response of "
            f"each prompt alone: give --step {step:.1f}, or a reward of smaller spread"
        )


def _update(record: Record) -> Iterator[str]:
    fit = figure(record, "fidelity_r2")
    if fit is not None and fit < 0 and "achieved" in record:  # otherwise next to nothing was asked for
        yield (
            f"R² of the update is {fit:.2g}, so its own step was larger than what it was asked for, and the new policy "
            "is further from the exact one than the old was: lower --learning-rate, or raise --prompts-per-step"
        )
