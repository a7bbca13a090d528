"""Confidence intervals for proportions."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike


def wilson(successes: float, trials: float, level: float = 0.95) -> tuple[float, float]:
    """The p with |p - s/n| <= z sqrt(p(1 - p)/n) (Wilson 1927); n need not be whole, and no trials leave (0, 1)."""
    if not 0 <= successes <= trials or not 0 < level < 1:
        raise ValueError(f"need 0 <= successes <= trials and 0 < level < 1, got {successes}, {trials} and {level}")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (successes + z * z / 2) / (trials + z * z)
    half = z * math.sqrt(successes * (trials - successes) / trials + z * z / 4) / (trials + z * z)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def clustered_proportion(rates: ArrayLike, samples_per_cluster: int, level: float = 0.95) -> tuple[float, float, float]:
    """Mean m of the success rates [P] of P prompts with K samples each, and its interval (m, low, high).

    Samples of one prompt are not independent, so this is Wilson's interval at n = m(1 - m) / Var(m), the number of
    independent samples that would know m as well. Var(m) = s^2/P comes from the spread between prompts, and n is held
    to [P, P K]. Where the spread says nothing (one prompt, or all rates equal) n is P, the cautious end.
    """
    rates = np.asarray(rates, dtype=np.float64)
    clusters = rates.size
    if rates.ndim != 1 or samples_per_cluster < 1 or not np.all((rates >= 0) & (rates <= 1)):
        raise ValueError(f"need rates [P] in [0, 1] and K >= 1, got shape {rates.shape} and K = {samples_per_cluster}")
    if clusters == 0:
        return math.nan, 0.0, 1.0
    mean = min(float(rates.mean()), 1.0)
    size = float(clusters)
    if np.ptp(rates) > 0:
        variance = float(rates.var(ddof=1)) / clusters
        size = min(max(mean * (1 - mean) / variance, clusters), clusters * samples_per_cluster)
    return mean, *wilson(mean * size, size, level)
