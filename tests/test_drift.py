"""How far a policy is from where it began: each number by its definition, and that sharpening moves it one way only."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srlm.estimators.intervals import mean_and_error, student_bounds
from srlm.estimators.rank import superiority
from srlm.measure import HeldOut, drift_record, length_record, log_lengths
from srlm.measure.drift import agreement_change
from srlm.policies.transformer.responses import Responses
from srlm.types import Prompts, Rollouts


def held_out(tokens, finished, initial, classes) -> HeldOut:
    """tokens: [P][K] lists of ids."""
    widest = max(len(ids) for row in tokens for ids in row)
    padded = torch.tensor([[[*ids, *[0] * (widest - len(ids))] for ids in row] for row in tokens], dtype=torch.int32)
    length = torch.tensor([[len(ids) for ids in row] for row in tokens])
    log_prob = torch.tensor(initial, dtype=torch.float64)
    responses = Responses(padded, length, torch.tensor(finished))
    rollouts = Rollouts(0, Prompts.uniform(range(len(tokens))), responses, log_prob, torch.full_like(log_prob, 0.5))
    return HeldOut(rollouts, None, None, classes, log_prob, log_prob.amax(-1), log_prob.amax(-1))


def test_by_its_definitions() -> None:
    start = held_out(
        [[[1, 2], [1, 2, 3, 4]], [[5, 5, 5, 5], [6]], [[7], [8]]],
        [[True, True], [False, True], [False, False]],
        [[-2.0, -8.0], [-4.0, -1.0], [-3.0, -3.0]],
        [["a", "b"], ["c", "c"], [None, "d"]],
    )
    now = held_out(
        [[[1], [1, 2]], [[5, 5, 5, 5, 5], [6]], [[7], [7]]],
        [[True, True], [True, True], [False, True]],
        [[-3.0, -1.0], [-10.0, -1.0], [-4.0, -2.0]],
        [["a", "a"], ["c", "x"], ["d", None]],
    )
    found = drift_record(start, now)

    def expected(name, values):
        values = np.array(values)
        assert found[name] == pytest.approx(values.mean())
        assert found[f"{name}_error"] == pytest.approx(values.std(ddof=1) / math.sqrt(len(values)))
        assert found[f"{name}_prompts"] == len(values)

    expected("likelihood_rank", [3 / 4, (0 + 0 + 1 + 0.5) / 4, 2 / 4])
    # per token -3, -.5 against -1, -2; -2, -1 against -1, -1; -4, -2 against -3, -3
    expected("token_likelihood_rank", [2 / 4, (0 + 0 + 0.5 + 0.5) / 4, 2 / 4])
    expected("agreement_change", [2 / 4 - 0, 2 / 4 - 1, 1 / 4 - 0])
    # the third ended nothing at first
    expected("length_change_held_out", [math.log(5 * 6) / 2 - math.log(6 * 8) / 2, math.log(9 * 5) / 2 - math.log(5)])
    lengths = [log_lengths(table.rollouts.responses) for table in (start, now)]
    assert length_record(*lengths)["length_change"] == found["length_change_held_out"]
    expected("truncation_change", [0.0, -0.5, -0.5])
    expected("repetition_change", [0.0, 2 / 3 / 2 - 1 / 2 / 2, 0.0])


def test_one_sample_says_nothing_of_agreement() -> None:
    assert np.isnan(agreement_change([["a"]], [["a"]])).all()
    one = held_out([[[1]]], [[True]], [[-1.0]], [["a"]])
    found = drift_record(one, one)
    assert math.isnan(found["agreement_change"]) and found["agreement_change_prompts"] == 0
    assert found["likelihood_rank"] == 0.5 and math.isinf(found["likelihood_rank_error"])


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6), st.floats(0, 5), st.booleans())
def test_sharpening_never_lowers_rank_or_agreement(mass, exponent, steep) -> None:
    """Exactly, by enumeration: pi_0^alpha/Z, and pi_0 tilted by another function of it that never falls."""
    start = np.array(mass) / sum(mass)
    tilt = start**exponent if not steep else 1.0 + exponent * (start >= np.median(start))
    now = start * tilt / (start * tilt).sum()
    pairs = list(itertools.product(range(len(mass)), repeat=2))
    rank = sum(now[i] * start[j] * ((start[i] > start[j]) + (start[i] == start[j]) / 2) for i, j in pairs)
    assert rank >= 0.5 - 1e-12
    assert now @ start >= start @ start - 1e-12


def test_estimates_are_unbiased() -> None:
    """Of a policy of four responses that says what it says; 20,000 prompts of 3 samples each."""
    generator = np.random.default_rng(0)
    start, now = np.array([0.5, 0.3, 0.1, 0.1]), np.array([0.2, 0.2, 0.5, 0.1])
    before, after = (generator.choice(4, (20_000, 3), p=p) for p in (start, now))
    change, error = mean_and_error(agreement_change(before.tolist(), after.tolist()))
    assert change == pytest.approx(now @ start - start @ start, abs=4 * error)
    score = np.log(start)
    rank, error = mean_and_error(superiority(score[after], score[before]))
    exact = sum(
        now[i] * start[j] * ((start[i] > start[j]) + (start[i] == start[j]) / 2) for i in range(4) for j in range(4)
    )
    assert rank == pytest.approx(exact, abs=4 * error)


def test_superiority_refuses_what_has_no_order() -> None:
    assert superiority([[1.0, -math.inf]], [[-math.inf]]).tolist() == [0.75]
    for a, b in (([[math.nan]], [[1.0]]), ([1.0], [1.0]), ([[1.0]], [[1.0], [2.0]]), ([[]], [[1.0]])):
        with pytest.raises(ValueError, match="need"):
            superiority(a, b)


def test_student_bounds() -> None:
    low, high = student_bounds(1.0, 0.5, 5, 0.025)
    assert (low, high) == (pytest.approx(1 - 2.7764451 * 0.5), pytest.approx(1 + 2.7764451 * 0.5))  # tables, 4 d.f.
    assert student_bounds(1.0, 0.0, 5, 0.025) == (1.0, 1.0)
    assert student_bounds(1.0, math.inf, 1, 0.025) == (-math.inf, math.inf)
    for arguments in ((1.0, -1.0, 5, 0.1), (1.0, 1.0, 5, 0.0), (1.0, 1.0, 5, 0.6), (1.0, math.nan, 5, 0.1)):
        with pytest.raises(ValueError, match="need"):
            student_bounds(*arguments)
    assert mean_and_error([2.0]) == (2.0, math.inf)
    with pytest.raises(ValueError, match="need values"):
        mean_and_error([[1.0]])
