from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm.estimators import diversity
from srlm.estimators.diversity import commonest_share, distinct_n, repeated_ngrams


def grams(ids: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def test_counts_over_all_responses() -> None:
    responses = [[1, 2, 1, 2], [2, 1], [3]]
    assert distinct_n(responses, 1) == 3 / 7
    assert distinct_n(responses, 2) == 2 / 4  # 12 21 12, 21: no pair spans two responses
    assert distinct_n(responses, 4) == 1.0


def test_is_nan_without_n_grams() -> None:
    assert math.isnan(distinct_n([[1, 2], []], 3))
    assert math.isnan(distinct_n([], 1))
    assert math.isnan(repeated_ngrams([[1], []], 2)) and math.isnan(repeated_ngrams([], 1))
    with pytest.raises(ValueError, match="n >= 1"):
        distinct_n([[1]], 0)


ids = st.lists(st.one_of(st.integers(0, 3), st.sampled_from([0, 7, 150_000, 2**31 - 1])), max_size=9)


@given(st.lists(ids, min_size=1, max_size=8), st.integers(1, 5), st.booleans())
def test_counts_are_those_of_tuples(responses: list[list[int]], n: int, arrays: bool) -> None:
    """Also in parts and pieces, and where an n-gram does not fit one integer."""
    given_as = [np.array(one, np.int32) for one in responses] if arrays else responses
    every = [grams(one, n) for one in responses]
    flat = [gram for some in every for gram in some]
    shares = [1 - len(set(some)) / len(some) for some in every if some]
    with pytest.MonkeyPatch.context() as patch:
        for most, read in ((2**24, 2**20), (3, 4)):
            patch.setattr(diversity, "MOST_GRAMS", most)
            patch.setattr(diversity, "READ_GRAMS", read)
            assert flat == [] or distinct_n(given_as, n) == len(set(flat)) / len(flat)
        assert shares == [] or repeated_ngrams(given_as, n) == sum(shares) / len(shares)


def test_the_commonest_value_of_all() -> None:
    assert commonest_share(["a", "b", "a", None]) == 0.5 and commonest_share("ab") == 0.5 and commonest_share([3]) == 1
    assert math.isnan(commonest_share([]))


def test_of_two_parts_each_n_gram_is_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "MOST_GRAMS", 4)
    assert distinct_n([[0, 1, 2, 3, 4, 5, 6, 7]], 1) == 1.0 and distinct_n([[0, 1, 2, 3, 0, 1, 2]], 1) == 4 / 7
