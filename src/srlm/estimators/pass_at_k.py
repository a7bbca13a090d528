"""What k of the n samples drawn for a prompt would have achieved: pass@k and maj@k, without bias."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg, stats


def pass_at_k(right: ArrayLike, k: int) -> NDArray[np.float64]:
    """[P] in [0, 1]: chance that one of k samples is right, 1 - C(n - c, k)/C(n, k), c of a prompt's n samples being
    right (Chen et al. 2021, arXiv 2107.03374, Eq. 1).

    right: [P, n], 0 or 1. Unbiased for 1 - (1 - p)^k, p being the chance that a sample is right; its mean over prompts
    is pass@k. ValueError unless 1 <= k <= n.
    """
    flags = _flags(right, k)
    # C(n - c, k)/C(n, k) as a product over c, since binomial coefficients overflow.
    missed = np.cumprod(1 - k / np.arange(flags.shape[1], 0, -1))  # stays 0 from n - c < k on
    passed: NDArray[np.float64] = 1 - np.concatenate([[1.0], missed])[flags.sum(1)]
    return passed


def maj_at_k(classes: Sequence[Sequence[Hashable | None]], right: ArrayLike, k: int) -> NDArray[np.float64]:
    """[P] in [0, 1]: chance that the answer most of k samples agree on is right (self-consistency, Wang et al. 2023).

    classes: [P][n] the answer class of each sample; right: [P, n], 0 or 1. ValueError unless 1 <= k <= n.

    The exact mean over all C(n, k) subsets of a prompt's samples, hence unbiased for k fresh ones. Classes that tie are
    equally likely to win, and a winner is spoken for by any of its samples, so it counts with the share of them that is
    right. None, no answer, never wins; where no sample of the subset has an answer, any of them speaks. So
    maj@1 = pass@1 = accuracy. O(n k^3) a prompt at most.
    """
    flags = _flags(right, k)
    n = flags.shape[1]
    if [len(row) for row in classes] != [n] * len(flags):
        raise ValueError(f"need the classes of {flags.shape} samples, got {[len(row) for row in classes]}")
    # A subset takes from each class as independent binomials would, given that they sum to k.
    taken = stats.binom.pmf(np.arange(n + 1), np.arange(n + 1)[:, None], k / n)  # [size of a class, how many of it]
    chances = [_vote(_sizes(row, hits), taken, k) for row, hits in zip(classes, flags, strict=True)]
    return np.round(np.array(chances), 12)  # equal chances that were summed differently are equal


_Size = tuple[int, float]  # of an answer class: its samples, the share of them that is right


def _sizes(answers: Sequence[Hashable | None], right: NDArray[np.bool_]) -> tuple[_Size, list[_Size]]:
    """Of the samples without an answer, and of each class."""
    hits: dict[Hashable | None, list[bool]] = {None: []}
    for answer, flag in zip(answers, right.tolist(), strict=True):
        hits.setdefault(answer, []).append(flag)
    silent, *every = ((len(flags), sum(flags) / max(len(flags), 1)) for flags in hits.values())
    return silent, every


def _vote(sizes: tuple[_Size, list[_Size]], taken: NDArray[np.float64], k: int) -> float:
    (silent, silent_right), every = sizes
    n = len(taken) - 1
    won = 0.0
    if silent >= k:
        won = silent_right * float(taken[silent, k] * np.prod([taken[size, 0] for size, _ in every]))
    for most in range(1, min(k, max((size for size, _ in every), default=0)) + 1):
        # [0, s, t]: chance that the classes so far gave s samples, t of them giving `most` and none more;
        # [1, s, t]: that, times the shares right of those t, summed.
        state = np.zeros((2, k + 1, k // most + 1))
        others = n - sum(size for size, _ in every if size >= most)  # cannot win with so many: one lot
        state[0, : others + 1, 0] = taken[others, : min(others, k) + 1]
        for size, share in every:
            if size >= most:
                below = linalg.toeplitz(np.pad(taken[size, :most], (0, k + 1 - most)), np.zeros(k + 1))
                joined = taken[size, most] * state[:, : k + 1 - most, :-1]
                joined[1] += share * joined[0]
                state = below @ state
                state[:, most:, 1:] += joined
        won += float((state[1, k, 1:] / np.arange(1, k // most + 1)).sum())
    return won / float(taken[n, k])


def _flags(right: ArrayLike, k: int) -> NDArray[np.bool_]:
    flags = np.asarray(right)
    if flags.ndim != 2 or not np.isin(flags, (0, 1)).all() or not 1 <= k <= flags.shape[1]:
        raise ValueError(f"need right [P, n] of 0 or 1 and 1 <= k <= n, got shape {flags.shape} and k = {k}")
    return flags.astype(bool)
