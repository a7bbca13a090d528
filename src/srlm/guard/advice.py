"""What round 0 tells before anything is trained."""

from __future__ import annotations

import math

from srlm.guard.signals import figure
from srlm.sizes import Sizes
from srlm.types import Record

MOST_TRUNCATED = 0.5
LEAST_EFFECTIVE = 2.0


def advice(record: Record, sizes: Sizes) -> list[str]:
    """Sentences, of round 0's record."""
    said = []
    truncated, effective = figure(record, "truncation_rate"), figure(record, "effective_samples")
    if truncated is not None and truncated > MOST_TRUNCATED:
        said.append(
            f"{truncated:.0%} of the responses are cut off at {sizes.max_new_tokens} tokens, and what is cut tells "
            "little: raise --max-new-tokens, or leave it out with --truncated drop"
        )
    if effective is not None and effective < LEAST_EFFECTIVE:
        now, step = figure(record, "step"), math.log(sizes.num_samples) / 2
        step = now / 2 if now is not None and now < 1.1 * step else step  # which that is already
        said.append(
            f"the update rests on {effective:.2f} effective samples of {sizes.num_samples}, so nearly on the best "
            f"response of each prompt alone: give --step {step:.1f}, or a reward of smaller "
            "spread"
        )
    return said
