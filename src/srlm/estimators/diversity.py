"""How varied a set of responses is."""

from __future__ import annotations

import math
from collections.abc import Sequence


def distinct_n(token_lists: Sequence[Sequence[int]], n: int) -> float:
    """Distinct n-grams over all n-grams of the responses (Li et al. 2016, Sec. 5.2); nan if there are none."""
    if n < 1:
        raise ValueError(f"need n >= 1, got {n}")
    grams = [tuple(tokens[i : i + n]) for tokens in token_lists for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan
