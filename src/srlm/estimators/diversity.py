"""How varied a set of responses is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence


def distinct_n(token_lists: Sequence[Sequence[int]], n: int) -> float:
    """Distinct n-grams over all n-grams of the responses (Li et al. 2016, Sec. 5.2); nan if there are none."""
    if n < 1:
        raise ValueError(f"need n >= 1, got {n}")
    grams = [tuple(tokens[i : i + n]) for tokens in token_lists for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repeated_ngrams(token_lists: Sequence[Sequence[int]], n: int) -> float:
    """Share of a response's n-grams that stood earlier in the same response, averaged over those that have one; nan if
    none has."""
    grams = [[tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)] for tokens in token_lists]
    shares = [1 - len(set(some)) / len(some) for some in grams if some]
    return sum(shares) / len(shares) if shares else math.nan


def commonest_share(values: Sequence[Hashable]) -> float:
    """Share of the most frequent value, in (0, 1]; nan if there is none."""
    return Counter(values).most_common(1)[0][1] / len(values) if values else math.nan
