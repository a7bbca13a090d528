"""What a round tells of the settings: round 0 before anything is trained, later ones of the update behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from srlm.guard.signals import figure
from srlm.sizes import Sizes
from srlm.types import Record

MOST_TRUNCATED = 0.5
LEAST_EFFECTIVE = 2.0


def advice(record: Record, sizes: Sizes) -> list[str]:
    """Sentences."""
    return list(_update(record) if figure(record, "round") else _start(record, sizes))


def _start(record: Record, sizes: Sizes) -> Iterator[str]:
    truncated, effective = figure(record, "truncation_rate"), figure(record, "effective_samples")
    if truncated is not None and truncated > MOST_TRUNCATED:
        yield (
            f"{truncated:.0%} of the responses are cut off at {sizes.max_new_tokens} tokens, and what is cut tells "
            "little: raise --max-new-tokens, or leave it out with --truncated drop"
        )
    if effective is not None and effective < LEAST_EFFECTIVE:
        now, step = figure(record, "step"), math.log(sizes.num_samples) / 2
        step = now / 2 if now is not None and now < 1.1 * step else step  # which that is already
        yield (
            f"the update rests on {effective:.2f} effective samples of {sizes.num_samples}, so nearly on the best "
            f"response of each prompt alone: give --step {step:.1f}, or a reward of smaller "
            "spread"
        )


def _update(record: Record) -> Iterator[str]:
    fit = figure(record, "fidelity_r2")
    if fit is not None and fit < 0 and "achieved" in record:  # otherwise next to nothing was asked for
        yield (
            f"R² of the update is {fit:.2g}, so its own step was larger than what it was asked for, and the new policy "
            "is further from the exact one than the old was: lower --learning-rate, or raise --prompts-per-step"
        )
