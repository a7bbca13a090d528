from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm.forecast import Evidence, forecast, limit
from srlm.search import Found
from srlm.theory import log_condition_number, sharpen, sharpened_mode_bracket, sharpening_exponent


def table(seed: int, prompts: int, responses: int, scale: float) -> np.ndarray:
    logits = scale * np.random.default_rng(seed).standard_normal((prompts, responses))
    return np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))


def target(log_prob: np.ndarray, beta: float, rounds: int, clip: float) -> np.ndarray:
    """pi_T by T exact updates of the table, the clip being measured from the mode."""
    for _ in range(rounds):
        reward = np.maximum(log_prob, log_prob.max(-1, keepdims=True) - clip)
        log_prob = log_prob + reward / beta
        log_prob -= np.log(np.exp(log_prob).sum(-1, keepdims=True))
    return log_prob


def evidence(
    log_prob: np.ndarray, right: np.ndarray, samples: int, known: int, loose: float, seed: int
) -> list[Evidence]:
    """The `known` best responses and one more of each prompt, K samples of it, and an open prefix that may be less
    probable than it could be but not more."""
    generator = np.random.default_rng(seed)
    result = []
    for row, flags in zip(log_prob, right, strict=True):
        order = np.argsort(-row)
        chosen = order[:known].tolist()
        rest = order[known:].tolist()
        extra = [rest[-1]] if len(rest) > 1 else []
        unseen = rest[:-1] if extra else rest
        found = Found(
            [(y,) for y in chosen + extra],
            row[chosen + extra].tolist(),
            row[unseen].max() + loose if unseen else -math.inf,
            0,
        )
        drawn = generator.choice(len(row), size=samples, p=np.exp(row) / np.exp(row).sum())
        result.append(Evidence(found, [(y,) for y in drawn.tolist()], row[drawn], flags[chosen + extra], flags[drawn]))
    return result


cells = st.tuples(st.floats(0.3, 3), st.integers(0, 4), st.sampled_from([math.inf, 0.5, 2.0, 8.0]))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30), st.floats(0.1, 3), st.integers(1, 8), st.floats(0, 1.5), cells)
def test_brackets_hold_the_truth(seed, responses, scale, known, loose, cell):
    beta, rounds, clip = cell
    log_prob = table(seed, 3, responses, scale)
    right = np.random.default_rng(seed + 1).random(log_prob.shape) < 0.4
    known_of = evidence(log_prob, right, 5, min(known, responses), loose, seed)
    row = forecast(known_of, beta, rounds, clip)
    truth = target(log_prob, beta, rounds, clip)
    mode = np.exp(np.take_along_axis(truth, log_prob.argmax(-1)[:, None], -1)[:, 0])
    for estimate, value in (
        (row.kappa, (1 / mode).mean()),
        (row.mode_mass, mode.mean()),
        (row.accuracy, (np.exp(truth) * right).sum(-1).mean()),
    ):
        slack = 1e-9 * max(1, value)
        assert estimate.low - slack <= value <= estimate.high + slack
        assert math.isnan(estimate.point) or estimate.low - slack <= estimate.point <= estimate.high + slack
    assert (
        math.isnan(row.failure.point)
        == math.isnan(row.kappa.point)
        == (not all(e.found.num_certified for e in known_of))
    )
    share = (mode * (1 + 1e-12) <= 0.5).mean(), (mode * (1 - 1e-12) <= 0.5).mean()
    assert row.failure.low <= max(share) and row.failure.high >= min(share)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.floats(0.3, 3) | st.just(math.inf), max_size=4),
    st.sampled_from([math.inf, 2.0]),
    st.integers(1, 8),
)
def test_brackets_hold_the_truth_with_a_beta_a_round(seed, betas, clip, known):
    log_prob = table(seed, 3, 12, 1.5)
    right = np.random.default_rng(seed + 1).random(log_prob.shape) < 0.4
    row = forecast(evidence(log_prob, right, 5, known, 0.3, seed), betas, clip=clip)
    assert (row.beta, row.rounds) == (tuple(betas), len(betas))
    truth = log_prob
    for beta in betas:
        truth = target(truth, beta, 1, clip)
    mode = np.exp(np.take_along_axis(truth, log_prob.argmax(-1)[:, None], -1)[:, 0])
    for estimate, value in ((row.mode_mass, mode.mean()), (row.accuracy, (np.exp(truth) * right).sum(-1).mean())):
        assert estimate.low - 1e-9 <= value <= estimate.high + 1e-9
        assert math.isnan(estimate.point) or estimate.low - 1e-9 <= estimate.point <= estimate.high + 1e-9
    everything = forecast(evidence(log_prob, right, 5, 12, 0.0, seed), betas, clip=clip)
    assert everything.mode_mass.point == pytest.approx(mode.mean())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 3), st.integers(1, 4), st.integers(2, 6))
def test_the_mode_bracket_of_the_escort_is_that_of_the_theory(seed, beta, rounds, known):
    log_prob = table(seed, 1, 12, 1.0)
    (one,) = evidence(log_prob, log_prob < 0, 3, known, 0.0, seed)
    row = forecast([one], beta, rounds)
    found = one.found
    low, _ = sharpened_mode_bracket(
        found.log_prob, 1 - np.exp(found.log_prob).sum(), found.open_log_prob, sharpening_exponent(beta, rounds)
    )
    assert row.mode_mass.low == pytest.approx(low)
    (truth,) = np.exp(sharpen(log_prob, sharpening_exponent(beta, rounds)).max(-1))
    assert row.mode_mass.low - 1e-12 <= truth <= row.mode_mass.high + 1e-12


@pytest.mark.parametrize("clip", [math.inf, 3.0])
def test_before_the_first_round_all_is_known_if_the_mode_is(clip):
    log_prob = table(0, 4, 20, 1.5)
    row = forecast(evidence(log_prob, log_prob > -3, 4, 2, 0.0, 0), 1.0, 0, clip)
    kappa = math.exp(log_condition_number(log_prob.max(-1)))
    assert (row.kappa.low, row.kappa.point, row.kappa.high) == pytest.approx((kappa,) * 3)
    assert row.mode_mass.low == row.mode_mass.high == pytest.approx(np.exp(log_prob.max(-1)).mean())


@pytest.mark.parametrize(("rounds", "clip"), [(1, math.inf), (2, math.inf), (1, 1.0), (2, 2.0)])
def test_the_estimate_of_kappa_is_unbiased_and_its_error_is_that_of_the_samples(rounds, clip):
    log_prob = table(3, 2, 40, 1.0)
    right = np.random.default_rng(5).random(log_prob.shape) < 0.5
    rows = [forecast(evidence(log_prob, right, 16, 3, 0.0, seed), 1.0, rounds, clip) for seed in range(400)]
    points = np.array([row.kappa.point for row in rows])
    truth = target(log_prob, 1.0, rounds, clip)
    kappa = np.exp(-truth.max(-1)).mean()
    z = (points.mean() - kappa) / (points.std() / math.sqrt(len(points)))
    assert abs(z) < 4
    errors = np.array([row.kappa.standard_error for row in rows])
    assert errors.mean() == pytest.approx(points.std(), rel=0.15)
    accuracy = np.array([row.accuracy.point for row in rows])
    own = (np.exp(truth) * right).sum(-1).mean()
    assert accuracy.mean() == pytest.approx(own, abs=0.02)  # a ratio: biased, by less than this for 16 samples
    assert np.mean([row.accuracy.standard_error for row in rows]) == pytest.approx(accuracy.std(), rel=0.3)


def test_a_search_that_found_everything_leaves_no_doubt():
    log_prob = table(1, 3, 6, 1.0)
    right = log_prob > -2
    row = forecast(evidence(log_prob, right, 2, 6, 0.0, 1), 1.0, 2)
    truth = np.exp(target(log_prob, 1.0, 2, math.inf))
    accuracy = (truth * right).sum(-1).mean()
    assert (row.accuracy.low, row.accuracy.point, row.accuracy.high) == pytest.approx((accuracy,) * 3)
    assert row.accuracy.standard_error == pytest.approx(0, abs=1e-9)


def test_without_labels_there_is_no_accuracy():
    log_prob = table(0, 2, 5, 1.0)
    bare = [Evidence(e.found, e.samples, e.sample_log_prob) for e in evidence(log_prob, log_prob < 0, 3, 2, 0.0, 0)]
    assert forecast(bare, 1.0, 1).accuracy is None


def test_long_responses_do_not_overflow():
    found = Found([(1, 2), (3,)], [-900.0, -950.0], -3.0, 10)
    one = Evidence(
        found, [(1, 2), (4, 4)], np.array([-900.0, -990.0]), np.array([True, False]), np.array([True, False])
    )
    assert forecast([one], 1.0, 0).accuracy.point == 0.5
    row = forecast([one], 1.0, 5)
    assert row.kappa.low == 1.0 and row.kappa.high == pytest.approx(math.inf)
    assert row.accuracy.low == 0.0 and row.accuracy.high == 1.0


def test_where_the_mode_is_not_certified_the_limit_is_open():
    sure = Found([(1,), (2,)], [-1.0, -2.0], -2.0, 5)
    open_ = Found([(1,), (2,)], [-3.0, -4.0], -2.0, 5)
    flags = [np.array([True, False]), np.array([False, True]), np.array([True, False])]
    every = [
        Evidence(found, [(1,)], np.array([-1.0]), right, right[:1])
        for found, right in zip((sure, sure, open_), flags, strict=True)
    ]
    end = limit(every)
    assert (end.accuracy.low, end.accuracy.high) == pytest.approx((1 / 3, 2 / 3)) and math.isnan(end.accuracy.point)
    assert limit(every[:2]).accuracy.point == 0.5
    ends = [(one.low, one.high) for one in (end.kappa, end.mode_mass, end.failure)]
    assert ends == [pytest.approx(one) for one in ((1, (2 + math.exp(3)) / 3), ((2 + math.exp(-3)) / 3, 1), (0, 1 / 3))]


@pytest.mark.parametrize("rounds", [None, 8, 40])
def test_modes_that_tie_share_the_limit(rounds):
    """Two modes of .3, the first right, the second wrong; what is left may hold another, where a search saw no more."""
    log_prob = np.log([0.3, 0.3, 0.1])
    sure, more = (Found([(1,), (2,), (3,)], log_prob.tolist(), math.log(last), 5) for last in (0.1, 0.3))
    flags = np.array([True, False, False])
    tied, open_ = ([Evidence(one, [(1,), (3,)], log_prob[::2], flags, flags[::2])] for one in (sure, more))
    end = limit(tied) if rounds is None else forecast(tied, 1.0, rounds)
    for estimate, value in ((end.kappa, 2), (end.mode_mass, 0.5), (end.failure, 1), (end.accuracy, 0.5)):
        assert (estimate.low, estimate.point, estimate.high) == pytest.approx((value,) * 3)
    end = limit(open_) if rounds is None else forecast(open_, 1.0, rounds)
    assert (end.kappa.low, end.kappa.high) == pytest.approx((2, 3))
    assert (end.accuracy.low, end.accuracy.high) == pytest.approx((1 / 3, 2 / 3))


def long_answers(prompts=10, samples=16, labelled=True):
    """What a search of 1024 prefixes leaves of 64 tokens, each .5, .45 or .05: the greedy response, which is the mode,
    and the best samples that it began with. Likelier responses are right."""
    generator, tokens = np.random.default_rng(0), np.log([0.5, 0.45, 0.05])
    mode, result = 64 * tokens[0], []
    for _ in range(prompts):
        drawn = generator.choice(3, p=np.exp(tokens), size=(samples, 64))
        log_prob = tokens[drawn].sum(-1)
        best = np.argsort(-log_prob)[:3]
        known = [(0,) * 64, *(tuple(drawn[i].tolist()) for i in best)]
        found = Found(known, [mode, *log_prob[best].tolist()], mode / 2, 1024)
        right = log_prob > np.median(log_prob)
        flags = (np.array([True, *right[best]]), right) if labelled else (None, None)
        result.append(Evidence(found, [tuple(row) for row in drawn.tolist()], log_prob, *flags))
    return result


@pytest.mark.parametrize("rounds", [0, 1, 3, 5])
def test_without_a_certified_mode_there_is_an_interval_and_no_point(rounds):
    """K samples are none of the responses that 3^64 leave, so nothing made of them comes near the truth."""
    every = long_answers()
    row = forecast(every, 1.0, rounds)
    exponent = 2.0**rounds
    truth = (0.5**exponent / (0.5**exponent + 0.45**exponent + 0.05**exponent)) ** 64
    assert row.mode_mass.low <= truth * (1 + 1e-9) and truth <= row.mode_mass.high
    assert row.kappa.low <= 1 / truth <= row.kappa.high * (1 + 1e-9)
    for estimate in (row.kappa, row.mode_mass, row.failure):
        assert math.isnan(estimate.point) and math.isnan(estimate.standard_error)
    sampled = np.mean([one.sample_right for one in every])
    if rounds:
        assert math.isnan(row.accuracy.point)
    else:
        assert row.accuracy.point == pytest.approx(sampled) and 0 < row.accuracy.standard_error < 0.1


def test_one_mode_that_is_not_certified_leaves_no_mean_over_prompts():
    log_prob = table(0, 4, 20, 1.5)
    sure = evidence(log_prob, log_prob > -3, 16, 4, 0.0, 0)
    unsure = long_answers(1)
    row, of_sure = forecast(sure + unsure, 1.0, 2), forecast(sure, 1.0, 2)
    assert math.isnan(row.mode_mass.point) and not math.isnan(of_sure.mode_mass.point)
    assert (row.mode_mass.low, row.mode_mass.high) == pytest.approx(
        (0.8 * of_sure.mode_mass.low, 0.8 * of_sure.mode_mass.high + 0.2)
    )
