"""How varied a set of responses is. Exact counts, a bounded number of n-grams at a time; token ids are 0 or more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = Sequence[int] | NDArray[np.int32]

MOST_GRAMS = 2**24  # n-grams that are held to be counted
READ_GRAMS = 2**20  # tokens that are read at a time


def distinct_n(responses: Sequence[Ids], n: int) -> float:
    """Distinct n-grams over all n-grams of the responses (Li et al. 2016, Sec. 5.2); nan if there are none."""
    if n < 1:
        raise ValueError(f"need n >= 1, got {n}")
    total = sum(max(len(ids) - n + 1, 0) for ids in responses)
    if not total:
        return math.nan
    words = _words(responses)
    parts = -(-min(total, words**n) // MOST_GRAMS)
    return sum(_distinct(responses, n, words, part, parts) for part in range(parts)) / total


def repeated_ngrams(responses: Sequence[Ids], n: int) -> float:
    """Share of a response's n-grams that stood earlier in the same response, averaged over those that have one; nan if
    none has."""
    words = _words(responses)
    grams = (_grams([ids], n, words) for ids in responses if len(ids) >= n)
    shares = [1 - len(_unique(some)) / len(some) for some in grams]
    return sum(shares) / len(shares) if shares else math.nan


def commonest_share(values: Sequence[Hashable]) -> float:
    """Share of the most frequent value, in (0, 1]; nan if there is none."""
    return Counter(values).most_common(1)[0][1] / len(values) if values else math.nan


def _words(responses: Sequence[Ids]) -> int:
    """More than the largest id."""
    return 1 + max((int(np.max(ids)) for ids in responses if len(ids)), default=0)


def _distinct(responses: Sequence[Ids], n: int, words: int, part: int, parts: int) -> int:
    """Distinct n-grams whose ids add up to `part` modulo `parts`: equal ones fall into one part, others spread."""
    held: list[NDArray[Any]] = []
    size = 0
    for some in _read(responses):
        grams = _grams(some, n, words, part, parts)
        held.append(grams)
        size += len(grams)
        if size > 2 * MOST_GRAMS:
            held = [_unique(np.concatenate(held))]
            size = len(held[0])
    return len(_unique(np.concatenate(held)))


def _unique(values: NDArray[Any]) -> NDArray[Any]:
    """Sorts in place, which for integers is several times as fast as the hash table of numpy's own."""
    if values.dtype != np.int64:
        return np.unique(values)
    values.sort()
    first = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return np.compress(first, values)


def _read(responses: Sequence[Ids]) -> Iterator[list[Ids]]:
    some: list[Ids] = []
    size = 0
    for ids in responses:
        some.append(ids)
        size += len(ids)
        if size >= READ_GRAMS:
            yield some
            some, size = [], 0
    if some:
        yield some


def _grams(responses: Sequence[Ids], n: int, words: int, part: int = 0, parts: int = 1) -> NDArray[Any]:
    """The n-grams of a part, each as one value; none spans two responses."""
    flat = np.concatenate([np.asarray(ids, np.int64) for ids in responses])
    ends = np.cumsum([len(ids) for ids in responses])
    size = max(len(flat) - n + 1, 0)
    columns = [flat[i : i + size] for i in range(n)]
    chosen = np.ones(len(flat), bool)
    if parts > 1:
        chosen[:size] = sum(columns[1:], columns[0]) % parts == part
    for short in range(1, n):
        chosen[np.maximum(ends - short, 0)[ends > 0]] = False
    chosen = chosen[:size]
    if words**n < 2**63:
        grams = columns[0]
        for column in columns[1:]:
            grams = grams * words + column
        return grams[chosen]
    packed = np.stack(columns, -1)[chosen]
    return packed.view(np.dtype((np.void, packed.itemsize * n)))[:, 0]
