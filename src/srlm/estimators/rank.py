"""Agreement of two rankings, and which of two samples ranks higher."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def kendall_tau(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-b within each row of a, b [P, K], averaged over the rows where it is defined; nan where none is.

    tau_b = sum_{i<j} s_ij t_ij / sqrt(sum_{i<j} s_ij^2 sum_{i<j} t_ij^2) with s_ij = sign(a_i - a_j) and t_ij
    of b likewise: undefined where all of a row ties or it holds a nan.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"need two arrays [P, K], got shapes {a.shape} and {b.shape}")
    i, j = np.triu_indices(a.shape[1], k=1)
    # Comparisons, not the sign of a difference: log-probabilities may be -inf.
    s = (a[:, i] > a[:, j]).astype(np.int64) - (a[:, i] < a[:, j])
    t = (b[:, i] > b[:, j]).astype(np.int64) - (b[:, i] < b[:, j])
    scale = np.sqrt((s * s).sum(1) * (t * t).sum(1))
    defined = (scale > 0) & ~(np.isnan(a) | np.isnan(b)).any(1)
    if not defined.any():
        return math.nan
    return float(((s * t).sum(1)[defined] / scale[defined]).mean())


def superiority(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """[P] P(a > b) + P(a = b)/2 of the values in each row of a [P, K] and b [P, J], Mann and Whitney's U over K J
    (1947); in [0, 1], unbiased for two samples of any distributions, 1/2 for equal ones. O((K + J) log J) a row.

    ValueError for a nan or other shapes.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or not a.shape[1] or not b.shape[1]:
        raise ValueError(f"need arrays [P, K] and [P, J] with K, J >= 1, got shapes {a.shape} and {b.shape}")
    if np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("need values that are not nan")
    found = []
    for row, other in zip(a, np.sort(b, axis=1), strict=True):
        below = np.searchsorted(other, row, "left") + np.searchsorted(other, row, "right")
        found.append(below.mean() / (2 * other.size))
    return np.array(found, dtype=np.float64)
