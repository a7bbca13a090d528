from __future__ import annotations

import math

import numpy as np
import pytest

from srlm.estimators.exponent import effective_exponent


def world(seed, prompts=40, samples=8, exponent=1.4, noise=0.6, responses=200, scale=2.0):
    """log pi_t and log pi_{t+1} [P, K] of samples of pi_t, from tables where the next policy is
    pi_t^exponent e^noise / Z."""
    generator = np.random.default_rng(seed)
    logits = scale * generator.standard_normal((prompts, responses))
    before = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    after = exponent * before + noise * generator.standard_normal(before.shape)
    after -= np.log(np.exp(after).sum(-1, keepdims=True))
    drawn = np.array([generator.choice(responses, size=samples, p=np.exp(row) / np.exp(row).sum()) for row in before])
    return np.take_along_axis(before, drawn, -1), np.take_along_axis(after, drawn, -1)


@pytest.mark.parametrize(("exponent", "noise"), [(1.4, 0.6), (1.0, 1.0), (2.0, 0.1), (0.5, 0.3)])
def test_exponent_and_noise_are_recovered_and_the_error_is_what_it_says(exponent, noise):
    found = [effective_exponent(*world(seed, exponent=exponent, noise=noise)) for seed in range(150)]
    values, errors = (np.array([getattr(one, name) for one in found]) for name in ("exponent", "standard_error"))
    assert abs(values.mean() - exponent) < 4 * values.std() / math.sqrt(len(values))
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)
    assert np.mean([one.noise for one in found]) == pytest.approx(noise, rel=0.02)


def test_without_noise_it_is_exact():
    found = effective_exponent(*world(0, exponent=1.7, noise=0.0))
    assert (found.exponent, found.standard_error, found.noise) == pytest.approx((1.7, 0.0, 0.0), abs=1e-9)


def test_constants_of_prompts_cancel():
    before, after = world(1)
    constants = np.random.default_rng(0).standard_normal((len(before), 1)) * 50
    one, other = effective_exponent(before, after), effective_exponent(before, after + constants)
    assert (one.exponent, one.noise) == pytest.approx((other.exponent, other.noise))


def test_samples_of_the_next_policy_would_make_it_too_small():
    """They are chosen by the errors: the reason why the round before is asked for its own samples."""
    generator = np.random.default_rng(3)
    chosen = []
    for _ in range(100):
        before = np.log(generator.dirichlet(np.full(100, 0.2), size=30).clip(1e-12))
        after = 1.4 * before + 1.5 * generator.standard_normal(before.shape)
        weight = np.exp(after) / np.exp(after).sum(-1, keepdims=True)
        drawn = np.array([generator.choice(100, size=8, p=row) for row in weight])
        chosen.append(effective_exponent(*(np.take_along_axis(v, drawn, -1) for v in (before, after))).exponent)
    assert np.mean(chosen) < 1.4 - 0.1


def test_a_response_sampled_twice_counts_once():
    before, after = world(2)
    twice = effective_exponent(np.repeat(before, 2, -1), np.repeat(after, 2, -1))
    assert twice == effective_exponent(before, after)


def test_a_response_that_arithmetic_moved_is_one_response_still():
    """Log-probs of bf16 move with the batch: four copies of each are no four errors."""
    before, after = world(2)
    copies = [np.repeat(table, 4, -1) for table in (before, after)]
    moved = [table + 1e-3 * np.random.default_rng(0).standard_normal(table.shape) for table in copies]
    same = np.stack([np.unique(row, return_inverse=True)[1] for row in copies[0]])
    found, once = effective_exponent(*moved, same=same), effective_exponent(before, after)
    assert found.responses == once.responses < effective_exponent(*moved).responses
    assert found.noise == pytest.approx(once.noise, rel=0.01) and found.exponent == pytest.approx(
        once.exponent, abs=0.01
    )
    assert effective_exponent(*moved).noise < 0.95 * once.noise
    with pytest.raises(ValueError, match="same must be numbers"):
        effective_exponent(before, after, same=same)


def test_only_what_is_near_the_best_is_asked():
    before, after = world(4, scale=4.0)
    far = before < before.max(-1, keepdims=True) - 3
    bent = np.where(far, after + 100, after)
    near = effective_exponent(before, bent, 3.0)
    assert near == effective_exponent(before, after, 3.0) and near.responses < before.size
    assert effective_exponent(before, bent).exponent != pytest.approx(near.exponent, abs=0.5)
    higher = effective_exponent(before, after, 3.0, best=before.max(-1) + 1)
    expected = effective_exponent(before, after, 2.0)
    assert (higher.exponent, higher.responses) == pytest.approx((expected.exponent, expected.responses))


def test_clipped_rewards_ask_the_same_of_all_that_lie_below():
    before, _ = world(5, scale=4.0)
    level = before.max(-1, keepdims=True) - 2
    after = before + 0.4 * np.maximum(before, level)
    assert (before < level).mean() > 0.1
    found = effective_exponent(before, after, clip=2.0)
    assert (found.exponent, found.noise) == pytest.approx((1.4, 0.0), abs=1e-9)
    assert effective_exponent(before, after).exponent < 1.39


@pytest.mark.parametrize(
    "before",
    [[[-1.0, -2.0]], [[-1.0, -1.0], [-2.0, -2.0]], [[-1.0, -2.0], [-1.0, -1.0], [-3.0, -3.0]], np.zeros((0, 4))],
    ids=["one prompt", "all alike", "one that differs", "none"],
)
def test_where_nothing_can_be_known_there_is_none(before):
    before = np.asarray(before)
    assert effective_exponent(before, 1.5 * before) is None


@pytest.mark.parametrize(
    ("before", "after", "options", "said"),
    [
        ([-1.0], [-1.0], {}, r"\[P, K\]"),
        ([[-1.0, -2.0]], [[-1.0]], {}, "one shape"),
        ([[-1.0, math.nan]], [[-1.0, -2.0]], {}, "finite"),
        ([[-1.0, -2.0]], [[-1.0, -math.inf]], {}, "finite"),
        ([[-1.0, -2.0]], [[-1.0, -2.0]], {"within": 0.0}, "within"),
        ([[-1.0, -2.0]], [[-1.0, -2.0]], {"within": math.nan}, "within"),
        ([[-1.0, -2.0]], [[-1.0, -2.0]], {"clip": 0.0}, "clip"),
        ([[-1.0, -2.0]], [[-1.0, -2.0]], {"best": [0.0, 0.0]}, "best"),
    ],
)
def test_bad_arguments(before, after, options, said):
    with pytest.raises(ValueError, match=said):
        effective_exponent(before, after, **options)
