from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm.theory import greedy_trap


def gap_range(vocab_size: int, p: float) -> tuple[float, float]:
    return max(0.0, (1 - vocab_size * p) / (vocab_size - 1)), min(p, 1 - 2 * p)


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 5), st.integers(2, 4), st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_greedy_misses_the_mode_by_brute_force(vocab_size: int, length: int, where: float, gap_where: float) -> None:
    least = 1 / (2 * vocab_size - 1)
    p = least + where * (0.5 - least)
    low, high = gap_range(vocab_size, p)
    trap = greedy_trap(vocab_size, length, p, gap=low + gap_where * (high - low))
    sequences = list(itertools.product(range(vocab_size), repeat=length))
    log_prob = np.array([trap.sequence_log_prob(sequence) for sequence in sequences])
    assert np.exp(log_prob).sum() == pytest.approx(1)
    first, second = np.sort(log_prob)[:-3:-1]
    assert sequences[log_prob.argmax()] == trap.mode
    assert trap.mode_log_prob == pytest.approx(first) == pytest.approx(math.log(p))
    assert second < first  # the only mode
    assert trap.greedy() != trap.mode
    assert trap.greedy()[0] == 1
    # what Prop. 4.3 asks for: behind the trap no token has p*/(p* + gap)
    assert math.exp(trap.next_log_prob((1,)).max()) < p / (p + trap.gap)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.integers(1, 4), st.floats(0.5001, 0.999), st.integers(0, 2**32 - 1))
def test_greedy_never_misses_a_mode_above_one_half(vocab_size: int, length: int, p: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = rng.dirichlet(np.full(length, 0.5))  # p = prod of p^steps along a random path
    path = rng.integers(vocab_size, size=length)
    table: dict[tuple[int, ...], np.ndarray] = {}
    for t in range(length):
        for prefix in itertools.product(range(vocab_size), repeat=t):
            row = rng.dirichlet(np.full(vocab_size, 0.3))
            if prefix == tuple(path[:t]):
                step = p ** steps[t]
                row[path[t]] = 0
                row = (1 - step) * row / max(row.sum(), 1e-300)
                row[path[t]] = step
            table[prefix] = row
    prefix: tuple[int, ...] = ()
    while len(prefix) < length:
        prefix = (*prefix, int(table[prefix].argmax()))
    probabilities = {
        sequence: math.prod(table[sequence[:t]][token] for t, token in enumerate(sequence))
        for sequence in itertools.product(range(vocab_size), repeat=length)
    }
    assert max(probabilities.values()) > 0.5
    assert prefix == max(probabilities, key=lambda sequence: probabilities[sequence])


@given(st.integers(3, 60), st.floats(0.05, 0.45))
def test_the_default_gap_is_inside_its_range(vocab_size: int, p: float) -> None:
    if p <= 1 / (2 * vocab_size - 1):
        with pytest.raises(ValueError, match="mode_prob"):
            greedy_trap(vocab_size, 3, p)
        return
    trap = greedy_trap(vocab_size, 3, p)
    low, high = gap_range(vocab_size, p)
    assert low < trap.gap < high
    assert trap.greedy()[0] == 1


def test_large_traps_are_cheap() -> None:
    trap = greedy_trap(50_000, 2_000, 0.4)
    assert trap.next_log_prob(trap.mode[:1999])[0] == 0
    assert trap.next_log_prob((1,) * 1999).shape == (50_000,)
    assert greedy_trap(50_000, 50, 0.4).greedy()[0] == 1


def test_rows_are_distributions() -> None:
    trap = greedy_trap(4, 3, 0.3)
    for prefix in [(), (0,), (1,), (2,), (0, 0), (0, 1), (3, 0)]:
        assert np.exp(trap.next_log_prob(prefix)).sum() == pytest.approx(1)
    assert trap.sequence_log_prob((0, 1, 0)) == -math.inf


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", 2),
        ("vocab_size", 3.5),
        ("vocab_size", math.nan),
        ("length", 1),
        ("length", 2.5),
        ("length", math.nan),
        ("mode_prob", 0.5),
        ("mode_prob", 1 / 7),
        ("mode_prob", math.nan),
        ("gap", 0.3),
        ("gap", 0),
        ("gap", math.nan),
    ],
)
def test_what_is_out_of_range_is_refused(name: str, value: float) -> None:
    valid = {"vocab_size": 4, "length": 3, "mode_prob": 0.3, "gap": 0.1}
    greedy_trap(**valid)
    with pytest.raises(ValueError, match=rf"^{name} must be .*[\[(].*got {value}"):
        greedy_trap(**{**valid, name: value})


def test_a_gap_that_leaves_the_trap_behind_another_token_is_refused() -> None:
    # 0 < 0.05 < min(0.21, 0.58) is the range of the paper; the third token would have 0.53 and be what greedy takes.
    with pytest.raises(ValueError, match="gap"):
        greedy_trap(3, 3, 0.21, gap=0.05)


@pytest.mark.parametrize("prefix", [(0, 0, 0), (4,), (-1,), (0.5,), ((0,),)])
def test_what_is_no_prefix_is_refused(prefix) -> None:
    with pytest.raises(ValueError, match="prefix must"):
        greedy_trap(4, 3, 0.3).next_log_prob(prefix)


@pytest.mark.parametrize("sequence", [(0, 0), (0, 0, 0, 0), (0, 0, 4)])
def test_what_is_no_sequence_is_refused(sequence) -> None:
    with pytest.raises(ValueError, match="sequence must"):
        greedy_trap(4, 3, 0.3).sequence_log_prob(sequence)
