"""Agreement of two rankings."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


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
    defined = (scale > 0) & ~np.isnan(a + b).any(1)
    if not defined.any():
        return math.nan
    return float(((s * t).sum(1)[defined] / scale[defined]).mean())
