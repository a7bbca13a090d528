from __future__ import annotations

import math

import pytest

from srlm.estimators.diversity import distinct_n


def test_counts_over_all_responses() -> None:
    responses = [[1, 2, 1, 2], [2, 1], [3]]
    assert distinct_n(responses, 1) == 3 / 7
    assert distinct_n(responses, 2) == 2 / 4  # 12 21 12, 21: no pair spans two responses
    assert distinct_n(responses, 4) == 1.0


def test_is_nan_without_n_grams() -> None:
    assert math.isnan(distinct_n([[1, 2], []], 3))
    assert math.isnan(distinct_n([], 1))
    with pytest.raises(ValueError, match="n >= 1"):
        distinct_n([[1]], 0)
