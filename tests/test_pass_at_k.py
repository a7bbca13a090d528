from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm.estimators.pass_at_k import maj_at_k, pass_at_k

Sample = tuple[str | None, bool]
samples = st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", None]), st.booleans()), min_size=1, max_size=7)


def vote(subset: tuple[Sample, ...]) -> Fraction:
    """Chance that a vote among these is right: every winner, and every sample of it, is equally likely."""
    counts = Counter(answer for answer, _ in subset if answer is not None)
    if not counts:
        return Fraction(sum(right for _, right in subset), len(subset))
    winners = [answer for answer, count in counts.items() if count == max(counts.values())]
    of = {answer: [right for other, right in subset if other == answer] for answer in winners}
    return sum((Fraction(sum(flags), len(flags)) for flags in of.values()), Fraction(0)) / len(winners)


def both(row: list[Sample], k: int) -> tuple[float, float]:
    right = [[flag for _, flag in row]]
    return float(pass_at_k(right, k)[0]), float(maj_at_k([[answer for answer, _ in row]], right, k)[0])


@given(samples, st.data())
def test_means_over_all_subsets(row: list[Sample], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(row)))
    subsets = list(combinations(row, k))
    passed = sum(any(right for _, right in subset) for subset in subsets)
    voted = sum(map(vote, subsets), Fraction(0))
    assert both(row, k) == pytest.approx((passed / len(subsets), float(voted / len(subsets))), abs=1e-12)


@given(samples)
def test_with_one_sample_both_are_the_accuracy(row: list[Sample]) -> None:
    accuracy = sum(right for _, right in row) / len(row)
    assert both(row, 1) == pytest.approx((accuracy, accuracy), abs=1e-12)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_pass_at_k_never_falls_and_ends_with_any(right: list[bool]) -> None:
    values = [float(pass_at_k([right], k)[0]) for k in range(1, len(right) + 1)]
    assert (np.diff(values) >= 0).all() and values[-1] == any(right)


@pytest.mark.parametrize(("flag", "said"), [(True, 1.0), (False, 0.0)])
def test_constants(flag: bool, said: float) -> None:
    for k in (1, 2, 3, 5):
        assert both([("a", flag), ("b", flag), ("a", flag), (None, flag), ("c", flag)], k) == (said, said)


def test_by_hand() -> None:
    """Two of six are right: 1 - C(4, 3)/C(6, 3). Of the three classes, 3 + 2 + 1, the second is right."""
    row = [("a", False)] * 3 + [("b", True)] * 2 + [("c", False)]
    # Of 20 subsets of three: b twice in 1 * 4, and one of each class, a tie of three, in 3 * 2 * 1.
    assert both(row, 3) == pytest.approx((1 - 4 / 20, (4 + 6 / 3) / 20), abs=1e-12)
    assert both(row, 6) == (1.0, 0.0)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_both_are_unbiased(k: int) -> None:
    """Over all draws of n = 4, with their probabilities, the means are those of fresh draws of k."""
    law = {("a", True): 0.35, ("a", False): 0.05, ("b", False): 0.4, (None, True): 0.2}

    def mean(n: int, value) -> float:
        return sum(np.prod([law[one] for one in row]) * float(value(row)) for row in product(law, repeat=n))

    fresh = mean(k, lambda row: any(right for _, right in row)), mean(k, vote)
    of_four = mean(4, lambda row: both(list(row), k)[0]), mean(4, lambda row: both(list(row), k)[1])
    assert of_four == pytest.approx(fresh)


def test_prompts_stay_apart() -> None:
    right = np.array([[True, False, False], [False, False, False], [True, True, False]])
    classes = [["a", "b", "b"], ["a", "b", "c"], ["a", "a", "b"]]
    assert pass_at_k(right, 2) == pytest.approx([2 / 3, 0, 1])
    assert maj_at_k(classes, right, 3).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(("n", "ks"), [(128, (2, 15, 16, 128)), (2000, (2, 15, 16))])
def test_many_samples_neither_overflow_nor_lose_digits(n: int, ks: tuple[int, ...]) -> None:
    """Two classes of equal size, one of them right: k draws are as likely to elect either."""
    c = n // 2
    right, answers = [[True] * c + [False] * (n - c)], [["a"] * c + ["b"] * (n - c)]
    assert pass_at_k(right, 16)[0] == pytest.approx(1 - comb(n - c, 16) / comb(n, 16), rel=1e-12)
    for k in ks:
        assert maj_at_k(answers, right, k)[0] == pytest.approx(0.5, abs=1e-11)


def test_equal_chances_are_equal_numbers() -> None:
    """Half of each class is right, so is half of the votes; an interval over prompts sees no spread."""
    classes = [[*"aabbccdd"], [*"aaaaaabb"], [*"aabbaabb"], ["a", "a", None, None] * 2, [*"aaaaaaaa"]]
    for k in (1, 2, 4, 8):
        assert maj_at_k(classes, [[1, 0] * 4] * 5, k).tolist() == [0.5] * 5


def test_nonsense_is_refused() -> None:
    for right, k in (([[1, 0]], 0), ([[1, 0]], 3), ([1, 0], 1), ([[0.5, 1]], 1)):
        with pytest.raises(ValueError, match="1 <= k <= n"):
            pass_at_k(right, k)
    with pytest.raises(ValueError, match=r"need the classes of \(1, 2\) samples"):
        maj_at_k([["a"]], [[1, 0]], 1)
