from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm.estimators.consistency import Consistency, self_consistency


@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=8))
def test_counts_what_agrees(row: list[str | None]) -> None:
    [result] = self_consistency([row])
    given_ = [answer for answer in row if answer is not None]
    assert result.answer == max(given_, key=given_.count, default=None)  # max keeps the first of those that tie
    assert result.count == given_.count(result.answer) and result.responses == len(row)
    pairs = [a is not None and a == b for a, b in itertools.combinations(row, 2)]
    assert result.agreement == pytest.approx(sum(pairs) / len(pairs) if pairs else math.nan, nan_ok=True)
    assert result.majority == (result.answer if result.count > len(row) / 2 else None)
    assert result.unanimous == (len(row) == len(given_) and len(set(row)) == 1)


def test_agreement_is_unbiased() -> None:
    q = {"a": 0.5, "b": 0.3, None: 0.2}
    mean = sum(
        math.prod(map(q.get, row)) * self_consistency([row])[0].agreement for row in itertools.product(q, repeat=4)
    )
    assert mean == pytest.approx(0.5**2 + 0.3**2)


def test_no_answer_never_wins_and_prompts_stay_apart() -> None:
    assert self_consistency([[None, None, 7], [None, None], [1, 2]]) == [
        Consistency(7, 1, 3, 0.0),
        Consistency(None, 0, 2, 0.0),
        Consistency(1, 1, 2, 0.0),
    ]
    assert self_consistency([]) == []


def test_one_response_is_unanimous_and_none_is_not() -> None:
    one, silent, nothing = self_consistency([["a"], [None], []])
    assert one.unanimous and one.majority == "a" and math.isnan(one.agreement)
    assert not silent.unanimous and not nothing.unanimous
    assert (nothing.answer, nothing.count, nothing.responses) == (None, 0, 0) and math.isnan(nothing.agreement)
