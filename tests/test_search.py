from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srlm.search import Found, most_probable

EOS = 0


class Tables:
    """Prefix trees over n-gram tables: what a response goes on with depends on its last word and its length."""

    def __init__(self, logits: np.ndarray) -> None:  # [P, L, V + 1, V], the last "word" stands for none
        self.table = torch.log_softmax(torch.from_numpy(logits), -1)
        self.paths: list[list[tuple[int, ...]]] = [[()] for _ in logits]
        self.answered = [0] * len(logits)
        self.evaluated: list[list[tuple[int, ...]]] = [[] for _ in logits]

    def after(self, row: int, prefix: tuple[int, ...]) -> Tensor:
        return self.table[row, len(prefix), prefix[-1] if prefix else -1]

    def grow(self, new: Mapping[int, Sequence[tuple[int, int]]]) -> Iterator[tuple[int, Tensor]]:
        for row, nodes in new.items():
            for parent, token in nodes:
                self.paths[row].append((*self.paths[row][parent], token))
            fresh = self.paths[row][self.answered[row] :]
            self.answered[row] += len(fresh)
            self.evaluated[row] += fresh
            yield row, torch.stack([self.after(row, prefix) for prefix in fresh])

    def log_prob(self, row: int, response: Sequence[int]) -> float:
        return float(sum(self.after(row, tuple(response[:n]))[word] for n, word in enumerate(response)))

    def brute_force(self, row: int, words: int, length: int) -> list[tuple[float, tuple[int, ...]]]:
        """Every response with its log-prob, most probable first."""
        every = [
            (*middle, EOS) for n in range(length) for middle in itertools.product(range(1, words), repeat=n)
        ] + list(itertools.product(range(1, words), repeat=length))
        return sorted(((self.log_prob(row, y), y) for y in every), reverse=True)


def ended(response: tuple[int, ...]) -> bool:
    return response[-1] == EOS


def random_tables(seed: int, prompts: int, words: int, length: int, scale: float) -> Tables:
    generator = np.random.default_rng(seed)
    return Tables(scale * generator.standard_normal((prompts, length, words + 1, words)))


def random_starts(tables: Tables, seed: int, number: int, length: int) -> list[list[tuple[int, ...]]]:
    generator = np.random.default_rng(seed)
    words = tables.table.shape[-1]
    starts = []
    for _ in range(len(tables.table)):
        own = []
        for _ in range(number):
            response: tuple[int, ...] = ()
            while len(response) < length and (not response or not ended(response)):
                response = (*response, int(generator.integers(words)))
            own.append(response)
        starts.append(own)
    return starts


spaces = st.sampled_from([(2, 8), (3, 6), (4, 5), (5, 4), (8, 3), (40, 2), (60, 1)])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), spaces, st.floats(0.1, 4), st.integers(0, 3), st.integers(1, 4), st.integers(1, 20))
def test_equals_brute_force(seed, space, scale, num_starts, num_best, width):
    words, length = space
    tables = random_tables(seed, 2, words, length, scale)
    starts = random_starts(tables, seed, num_starts, length)
    found = most_probable(
        tables, starts, ended=ended, eos=[EOS], max_tokens=length, num_best=num_best, budget=10**6, width=width
    )
    for row, one in enumerate(found):
        every = tables.brute_force(row, words, length)
        number = min(num_best, len(every))
        assert one.num_certified >= number
        assert one.log_prob[:number] == pytest.approx([value for value, _ in every[:number]], abs=1e-9)
        assert one.responses[:number] == [y for _, y in every[:number]]
        assert one.mode_log_prob == (one.log_prob[0], one.log_prob[0])
        if number >= 2:
            assert one.margin == pytest.approx((every[0][0] - every[1][0],) * 2, abs=1e-9)
        prefixes = sum((words - 1) ** n for n in range(length))  # what brute force must evaluate
        assert one.prefixes == len(tables.evaluated[row]) == len(set(tables.evaluated[row])) <= prefixes


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), spaces, st.floats(0.1, 3), st.integers(0, 2), st.integers(1, 30), st.integers(1, 8))
def test_a_budget_leaves_an_interval_that_holds(seed, space, scale, num_starts, budget, width):
    words, length = space
    tables = random_tables(seed, 2, words, length, scale)
    starts = random_starts(tables, seed, num_starts, length)
    found = most_probable(tables, starts, ended=ended, eos=[EOS], max_tokens=length, budget=budget, width=width)
    for row, one in enumerate(found):
        assert one.prefixes <= budget
        every = tables.brute_force(row, words, length)
        low, high = one.mode_log_prob
        assert low - 1e-9 <= every[0][0] <= high + 1e-9
        gap = every[0][0] - every[1][0]
        assert one.margin[0] - 1e-9 <= gap <= one.margin[1] + 1e-9
        certified = one.num_certified
        assert one.log_prob[:certified] == pytest.approx([value for value, _ in every[:certified]], abs=1e-9)
        known = set(one.responses)
        unseen = max((value for value, y in every if y not in known), default=-math.inf)
        assert unseen <= one.open_log_prob + 1e-9
        for y, value in zip(one.responses, one.log_prob, strict=True):
            assert value == pytest.approx(tables.log_prob(row, y), abs=1e-9)


def test_only_prefixes_above_the_runner_up_are_evaluated_after_good_starts():
    tables = random_tables(3, 1, 4, 5, 2.0)
    every = tables.brute_force(0, 4, 5)
    most_probable(tables, [[y for _, y in every[:2]]], ended=ended, eos=[EOS], max_tokens=5, budget=10**6)
    of_starts = {y[:n] for _, y in every[:2] for n in range(len(y))}
    assert all(tables.log_prob(0, prefix) > every[1][0] or prefix in of_starts for prefix in tables.evaluated[0])


def test_prompts_searched_together_are_searched_alone():
    together = random_tables(5, 4, 5, 4, 1.0)
    options = {"ended": ended, "eos": [EOS], "max_tokens": 4, "num_best": 3, "budget": 10**6}
    found = most_probable(together, [[]] * 4, **options)
    for row in range(4):
        alone = Tables(together.table[row : row + 1].numpy())
        (other,) = most_probable(alone, [[]], **options)
        assert other.responses == found[row].responses
        assert other.log_prob == pytest.approx(found[row].log_prob, abs=1e-12)
        assert other.prefixes == found[row].prefixes


def test_a_response_that_ends_at_once():
    logits = np.full((1, 3, 4, 3), -5.0)
    logits[..., EOS] = 5.0
    found = most_probable(Tables(logits), [[]], ended=ended, eos=[EOS], max_tokens=3)[0]
    assert found.responses[0] == (EOS,)
    assert found.num_certified >= 2


def test_log_probs_that_are_not_numbers_break_their_prompt_alone():
    tables = random_tables(1, 2, 4, 4, 1.0)
    tables.table[1, 1] = math.nan
    good, broken = most_probable(tables, [[], []], ended=ended, eos=[EOS], max_tokens=4)
    assert good.num_certified >= 2
    assert broken.broken
    assert broken.num_certified == 0


def test_impossible_words_are_never_found():
    logits = np.zeros((1, 3, 4, 3))
    logits[..., 1] = -math.inf
    found = most_probable(Tables(logits), [[(1, EOS)]], ended=ended, eos=[EOS], max_tokens=3, num_best=50)[0]
    assert all(1 not in y for y in found.responses)
    assert found.open_log_prob == -math.inf
    assert math.exp(found.log_prob[0]) == pytest.approx(1 / 2)
    assert sum(map(math.exp, found.log_prob)) == pytest.approx(1)


def test_stop_rules_end_responses_like_eos():
    tables = random_tables(2, 1, 4, 4, 1.0)

    def stops(response: tuple[int, ...]) -> bool:
        return response[-1] == EOS or response[-2:] == (1, 2)

    found = most_probable(tables, [[]], ended=stops, eos=[EOS], max_tokens=4, num_best=200, budget=10**6)[0]
    assert sum(map(math.exp, found.log_prob)) == pytest.approx(1)
    assert any(y[-2:] == (1, 2) and len(y) < 4 for y in found.responses)
    assert not any(y[i : i + 2] == (1, 2) for y in found.responses for i in range(len(y) - 2))


def test_what_is_known_without_a_certificate():
    unfinished = Found([(1,), (2,)], [-1.0, -2.0], -0.5, 3)
    assert unfinished.num_certified == 0
    assert unfinished.mode_log_prob == (-1.0, -0.5)
    assert unfinished.margin == (0.0, math.inf)
    half = Found([(1,), (2,)], [-1.0, -2.0], -1.5, 3)
    assert half.num_certified == 1
    assert half.margin == (0.5, 1.0)


@pytest.mark.parametrize("option", ["budget", "num_best", "width"])
def test_values_that_leave_nothing_to_do(option):
    with pytest.raises(ValueError, match="at least 1"):
        most_probable(random_tables(0, 1, 3, 2, 1.0), [[]], ended=ended, eos=[EOS], max_tokens=2, **{option: 0})
