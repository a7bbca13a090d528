"""Slopes of power laws with their uncertainty."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def log_log_slope(
    x: ArrayLike, y: ArrayLike, standard_error: ArrayLike, confidence: float = 0.95
) -> tuple[float, float, float]:
    """b of y = a x^b by least squares in logarithms, weighed by (y / standard error)^2, with its interval.

    x, y, standard_error: [N >= 3], positive; the error of log y is standard_error / y to first order. The interval is
    the wider of two: normal, from the stated errors; Student's t with N - 2 degrees of freedom, from the scatter about
    the line. A curve that is no power law widens it.
    """
    xs, ys, errors = (np.asarray(v, dtype=np.float64) for v in (x, y, standard_error))
    if xs.shape != ys.shape or xs.shape != errors.shape or xs.ndim != 1 or len(xs) < 3:
        raise ValueError(
            f"x, y and standard_error must be vectors of one length >= 3, got {xs.shape}, {ys.shape}, {errors.shape}"
        )
    if not (xs > 0).all() or not (ys > 0).all() or not (errors > 0).all():
        raise ValueError("x, y and standard_error must be positive for a fit in logarithms")
    weight = (ys / errors) ** 2
    lx, ly = np.log(xs), np.log(ys)
    mean_x, mean_y = np.average(lx, weights=weight), np.average(ly, weights=weight)
    sxx = np.sum(weight * (lx - mean_x) ** 2)
    slope = np.sum(weight * (lx - mean_x) * (ly - mean_y)) / sxx
    residual = ly - mean_y - slope * (lx - mean_x)
    scatter = np.sum(weight * residual**2) / (len(xs) - 2)
    tail = 0.5 + confidence / 2
    half = max(stats.norm.ppf(tail), stats.t.ppf(tail, len(xs) - 2) * np.sqrt(scatter)) / np.sqrt(sxx)
    return float(slope), float(slope - half), float(slope + half)
