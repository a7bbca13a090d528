"""Does a score tell right from wrong, and how far can it be read as a probability?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from srlm.estimators.intervals import score_interval, wilson


def auroc(score: ArrayLike, label: ArrayLike) -> float:
    """P(a random right response scores above a random wrong one), ties half (Hanley & McNeil 1982); nan without both.

    score: any shape, -inf allowed; label: the same shape, true for right. In [0, 1], 1/2 for a score that tells
    nothing; O(n log n). ValueError for a score that is nan or a label that is neither 0 nor 1.
    """
    scores, right = _arguments(score, label)
    return _auroc(scores, right)


def grouped_auroc(score: ArrayLike, label: ArrayLike) -> tuple[float, int]:
    """Mean of `auroc` over the rows of score, label [P, K] that hold both kinds, and the number of these rows.

    This is what choosing among the responses to one prompt needs; the pooled value also rewards a score that only
    tells easy prompts from hard ones. (nan, 0) without such rows.
    """
    defined = _within_rows(score, label)
    return (float(defined.mean()), defined.size) if defined.size else (math.nan, 0)


def grouped_auroc_interval(score: ArrayLike, label: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """The mean A of `grouped_auroc` and its interval (A, low, high), from the spread s of the n rows with both kinds.

    Wilson's at A(1 - A)/Var(A) rows, Var(A) = s^2/n, or at n where all rows have one value, with Student's quantile for
    n - 1 degrees of freedom. (A, 0, 1) for n < 2, A nan for n = 0.
    """
    if not 0 < level < 1:
        raise ValueError(f"need 0 < level < 1, got {level}")
    values = _within_rows(score, label)
    if values.size < 2:
        return float(values.mean()) if values.size else math.nan, 0.0, 1.0
    value, variance = float(values.mean()), float(values.var(ddof=1)) / values.size
    size = min(value * (1 - value) / variance, np.size(score)) if np.ptp(values) > 0 else float(values.size)
    return value, *score_interval(value * size, size, float(special.stdtrit(values.size - 1, (1 + level) / 2)))


def auroc_interval(score: ArrayLike, label: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """AUROC A of all responses pooled, and its interval (A, low, high), where the K responses of a prompt depend.

    score, label: [P, K]. Each response has a placement, the share of the other kind that it is on the right side of
    (DeLong et al. 1988). With r_i, w_i the excess over A of the placements of prompt i's right, wrong responses, summed
    and over the number of all right, wrong ones (Obuchowski 1997):
        Var(A) = R/(R - 1) sum_i r_i^2 + W/(W - 1) sum_i w_i^2 + 2 P/(P - 1) sum_i r_i w_i,
    R, W the numbers of prompts with a right, a wrong response; DeLong's for K = 1. The interval is Wilson's at
    n = A(1 - A)/Var(A) <= P K, so that it stays in [0, 1], with Student's quantile for min(R, W) - 1 degrees of
    freedom. Where Var(A) = 0 (A of 0 or 1, equal scores) n is the number of pairs of different prompts, each prompt in
    one pair, that hold a right and a wrong response: min(R, W, P/2). (A, 0, 1) for R or W < 2, A nan if either is 0.
    """
    if not 0 < level < 1:
        raise ValueError(f"need 0 < level < 1, got {level}")
    scores, right = _arguments(score, label, ndim=2)
    value = _auroc(scores, right)
    holds_right, holds_wrong = int(right.any(1).sum()), int((~right).any(1).sum())
    if min(holds_right, holds_wrong) < 2:
        return value, 0.0, 1.0
    excess = np.empty(scores.shape)
    excess[right] = (_share_below(scores[right], scores[~right]) - value) / right.sum()
    excess[~right] = (1 - _share_below(scores[~right], scores[right]) - value) / (~right).sum()
    r, w = np.where(right, excess, 0).sum(1), np.where(right, 0, excess).sum(1)
    variance = float(_unbiased(holds_right) * r @ r + _unbiased(holds_wrong) * w @ w + 2 * _unbiased(len(r)) * r @ w)
    if variance > 0:
        size = min(value * (1 - value) / variance, right.size)
    else:
        size = min(holds_right, holds_wrong, len(r) // 2)
    quantile = float(special.stdtrit(min(holds_right, holds_wrong) - 1, (1 + level) / 2))
    return value, *score_interval(value * size, size, quantile)


@dataclass(frozen=True)
class Bin:
    """Responses of neighbouring scores."""

    count: int
    mean_score: float
    share_right: float
    low: float
    """Ends of Wilson's 95% interval of the share, as if the responses were independent."""
    high: float


def reliability(score: ArrayLike, label: ArrayLike, bins: int = 10) -> list[Bin]:
    """The share of right responses in up to `bins` bins of equal count, from the lowest scores to the highest.

    Equal scores share a bin, so that no order of the input shows; bins left empty by this are omitted.
    score, label: as for `auroc`.
    """
    if bins < 1:
        raise ValueError(f"need bins >= 1, got {bins}")
    scores, right = (values.ravel() for values in _arguments(score, label))
    order = np.sort(scores)
    middle = np.searchsorted(order, scores, "left") + np.searchsorted(order, scores, "right")  # twice the mean rank
    place = bins * middle // max(2 * scores.size, 1)
    result = []
    for inside in (place == i for i in np.unique(place)):
        count, hits = int(inside.sum()), int(right[inside].sum())
        result.append(Bin(count, float(scores[inside].mean()), hits / count, *wilson(hits, count)))
    return result


def expected_calibration_error(probability: ArrayLike, label: ArrayLike, bins: int = 10) -> float:
    """sum_b n_b/N |share right - mean probability| over the bins b of `reliability` (Naeini et al. 2015).

    probability: in [0, 1]. In [0, 1]; nan without responses. Noise keeps it above 0 for a calibrated score too.
    """
    values = np.asarray(probability, dtype=np.float64)
    if not np.all((values >= 0) & (values <= 1)):
        raise ValueError("need probabilities in [0, 1]; an order of scores is judged by auroc")
    every = reliability(values, label, bins)
    if not every:
        return math.nan
    return sum(b.count * abs(b.share_right - b.mean_score) for b in every) / values.size


def _arguments(
    score: ArrayLike, label: ArrayLike, ndim: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    scores, labels = np.asarray(score, dtype=np.float64), np.asarray(label)
    if scores.shape != labels.shape or ndim not in (None, scores.ndim):
        wanted = "of one shape" if ndim is None else "[P, K]"
        raise ValueError(f"need score and label {wanted}, got shapes {scores.shape} and {labels.shape}")
    if np.isnan(scores).any() or not np.isin(labels, (0, 1)).all():
        raise ValueError("need scores that are not nan and labels that are 0 or 1")
    return scores, labels.astype(bool)


def _within_rows(score: ArrayLike, label: ArrayLike) -> NDArray[np.float64]:
    """Of the rows with both kinds."""
    scores, right = _arguments(score, label, ndim=2)
    values = np.array([_auroc(*row) for row in zip(scores, right, strict=True)], dtype=np.float64)
    return values[~np.isnan(values)]


def _auroc(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    if right.all() or not right.any():
        return math.nan
    return float(_share_below(scores[right], scores[~right]).mean())


def _share_below(scores: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    order = np.sort(others)
    below = np.searchsorted(order, scores, "left") + np.searchsorted(order, scores, "right")
    share: NDArray[np.float64] = below / (2 * others.size)
    return share


def _unbiased(clusters: int) -> float:
    return clusters / (clusters - 1)
