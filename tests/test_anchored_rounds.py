"""T anchored rounds: the formulas, what is proved of one prompt, and adversarial minimisers round after round."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binom

from srlm.theory import (
    anchored_exponent,
    anchored_failure_bound,
    anchored_rounds_bound,
    condition_number,
    log_condition_number,
    sharpen,
    sharpened_failure_bound,
    sharpened_kappa_bound,
    sharpening_exponent,
)

RUN = {"num_samples": 1e4, "log_class_size": 5.0, "failure_probability": 0.05, "margin": 0.5, "samples_per_prompt": 4}
betas = st.floats(-3, 3).map(math.exp)
RHO = 0.1


@given(st.lists(betas, min_size=1, max_size=6))
def test_the_exponent_by_its_sum(each: list[float]) -> None:
    expected = 1 + sum(math.prod(1 / beta for beta in each[: t + 1]) for t in range(len(each)))
    assert anchored_exponent(each) == pytest.approx(expected, rel=1e-12)
    assert anchored_exponent(each[0], len(each)) == pytest.approx(anchored_exponent([each[0]] * len(each)), rel=1e-9)
    assert anchored_exponent(each[:1]) == pytest.approx(sharpening_exponent(each[:1]), rel=1e-12)
    assert anchored_exponent(each) <= sharpening_exponent(each) * (1 + 1e-12)


def test_the_exponent_of_beta_one_and_at_the_ends() -> None:
    assert anchored_exponent(1.0, [0, 1, 5]).tolist() == [1, 2, 6]
    assert anchored_exponent(1 + 1e-9, 5) == pytest.approx(6, rel=1e-8)
    assert anchored_exponent(1e-300, 2) == math.inf and anchored_exponent(1e300, 3) == pytest.approx(1)
    assert anchored_exponent([[1.0], [0.5]], [1, 2, 3]) == pytest.approx(np.array([[2, 3, 4], [3, 7, 15]]))
    assert type(anchored_exponent(1.0, 1)) is float


@given(st.floats(0, 8), st.integers(1, 9), st.integers(1, 8), betas, st.floats(0.01, 3))
def test_the_bound_by_its_sum(log_kappa: float, k: int, rounds: int, beta: float, margin: float) -> None:
    def condition(t: int) -> float:
        exponent = 1 + sum(beta ** -(s + 1) for s in range(t))
        return 1 + math.expm1(log_kappa) * math.exp(-(exponent - 1) * margin) / k

    complexity = (5 + math.log(rounds) + math.log(20)) / 1e4
    expected = sum(math.sqrt(condition(t) * complexity) for t in range(rounds))
    run = RUN | {"samples_per_prompt": k, "margin": margin, "log_kappa0": log_kappa}
    assert anchored_rounds_bound(**run, rounds=rounds, beta=beta) == pytest.approx(expected, rel=1e-9)
    assert anchored_rounds_bound(**run, beta=[beta] * rounds) == pytest.approx(expected, rel=1e-9)


def test_bounds_broadcast_and_begin_with_one_round() -> None:
    run = RUN | {"kappa0": 30.0}
    every = anchored_rounds_bound(**run, rounds=[1, 2, 8], beta=[[1.0], [0.5]])
    assert every.shape == (2, 3)
    assert every[1, 2] == anchored_rounds_bound(**run, rounds=8, beta=0.5)
    single = {name: value for name, value in RUN.items() if name != "margin"}
    assert every[0, 0] == pytest.approx(anchored_failure_bound(**single, log_condition=math.log(30)))
    assert anchored_rounds_bound(**RUN, rounds=2, beta=1.0, log_kappa0=1e4) == math.inf
    assert anchored_rounds_bound(**RUN | {"samples_per_prompt": [1, 4]}, rounds=2, beta=1.0, kappa0=9.0).shape == (2,)
    assert type(anchored_rounds_bound(**run, rounds=2, beta=1.0)) is float
    # The start is paid once: later rounds cost what a solved one costs.
    far = anchored_rounds_bound(**RUN | {"kappa0": 1e6, "margin": 20.0}, rounds=[1, 2], beta=1.0)
    solved = math.sqrt((5 + math.log(2 * 20)) / 1e4)
    assert far[1] - far[0] * solved / math.sqrt((5 + math.log(20)) / 1e4) == pytest.approx(solved, rel=1e-2)


@pytest.mark.parametrize(
    "bad",
    [{"rounds": 0}, {"rounds": 1.5}, {"margin": 0.0}, {"beta": 0.0}, {"num_samples": 0}, {"failure_probability": 1.0},
     {"samples_per_prompt": 0}, {"kappa0": 0.5}, {"log_kappa0": 1.0}, {"log_class_size": -1.0}],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(bad) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        anchored_rounds_bound(**RUN | {"kappa0": 3.0, "rounds": 2, "beta": 1.0} | bad)
    with pytest.raises(ValueError, match="beta"):
        anchored_exponent([1.0, 0.0])


rows = st.lists(st.floats(-6, 0), min_size=2, max_size=7)


@given(rows, st.lists(betas, min_size=1, max_size=4), st.data())
def test_a_prompt_that_no_round_loses_is_sharpened_so_far_at_least(
    logits: list[float], each: list[float], data: st.DataObject
) -> None:
    """Whatever the mass of a set lighter than the mode, that a round may get wrong, comes back as."""
    log_prob = np.asarray(sharpen(logits, 1.0))
    mode, start = int(log_prob.argmax()), log_prob
    margin = float(np.diff(np.sort(log_prob)[-2:])[0])
    assume(margin > 1e-3)
    for beta in each:
        exact = np.asarray(sharpen(log_prob, 1 + 1 / beta))
        order = [y for y in data.draw(st.permutations(range(len(logits)))) if y != mode]
        lighter = np.cumsum(np.exp(log_prob[order])) < 0.999 * np.exp(log_prob[mode])
        wrong = [y for y, light in zip(order, lighter, strict=True) if light]
        if wrong:  # all of it on one response, or shared out
            mass = np.logaddexp.reduce(exact[wrong])
            share = np.full(len(wrong), 1 / len(wrong))
            if data.draw(st.booleans()):
                share = np.where(np.arange(len(wrong)) == data.draw(st.integers(0, len(wrong) - 1)), 1.0, 1e-300)
            exact[wrong] = mass + np.log(share)
        log_prob = exact
        assert int(log_prob.argmax()) == mode
    odds = np.log(np.expm1(np.maximum(-log_prob[mode], 1e-300)))
    least = np.log(np.expm1(-start[mode])) - (anchored_exponent(each) - 1) * margin
    assert odds <= max(least, -30) + 1e-6


@given(rows, st.floats(1, 5), st.floats(0.01, 0.99))
def test_failure_of_the_escort_by_markov(logits: list[float], alpha: float, level: float) -> None:
    table = np.asarray(sharpen([logits, logits[::-1], [0.0] + [-5.0] * (len(logits) - 1)], 1.0))
    margin = float(np.diff(np.sort(table, -1)[:, -2:], axis=-1).min())
    assume(margin > 1e-6)
    kappa = float(np.exp(-table.max(-1)).mean())
    failed = float((np.exp(np.asarray(sharpen(table, alpha)).max(-1)) <= 1 - level).mean())
    bound = sharpened_failure_bound(max(kappa, 1.0), margin, alpha, level)
    assert failed <= bound * (1 + 1e-9)
    by_kappa = (sharpened_kappa_bound(max(kappa, 1.0), margin, alpha) - 1) * (1 - level) / level
    assert bound == pytest.approx(by_kappa, rel=1e-6, abs=1e-12)
    assert sharpened_failure_bound(None, margin, alpha, level, log_kappa0=math.log(kappa)) == pytest.approx(bound)


def test_markov_is_met() -> None:
    """A share s of prompts at odds of exactly delta/(1 - delta), the others certain."""
    kappa = condition_number([0.5, 1.0], [0.3, 0.7])
    assert sharpened_failure_bound(kappa, 1.0, 1.0, 0.5) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="level"):
        sharpened_failure_bound(2.0, 1.0, 1.0, 1.0)


def _learned(
    pi: np.ndarray, weight: np.ndarray, mode: np.ndarray, n: int, k: int, size: int, rng: np.random.Generator
) -> np.ndarray:
    """The worst zero-loss policy of a class of `size` that was fixed before the sample: the exact update (beta = 1) and
    others that change it on some prompts, where they move the mode or what few samples show."""
    prompts, responses = pi.shape
    exact = pi**2 / (pi**2).sum(-1, keepdims=True)
    policies = np.repeat(exact[None], size, 0)
    for policy in policies[1:]:
        for x in np.flatnonzero(rng.random(prompts) < rng.choice([0.1, 0.3, 0.9])):
            some = rng.permutation(responses)[: rng.integers(2, responses + 1)]
            if rng.random() < 0.8:
                some = np.unique(np.append(some, mode[x]))
            share = np.zeros(len(some))
            share[rng.choice(np.flatnonzero(some != mode[x]))] = 1
            policy[x, some] = exact[x, some].sum() * (0.98 * share + 0.02 / len(some))
    x = rng.choice(prompts, p=weight, size=n)
    y = np.array([rng.choice(responses, p=pi[i], size=k) for i in x])
    differs = np.abs(policies / exact - 1) > 1e-9
    kept = ~differs[:, x[:, None], y].any((1, 2))
    harm = (weight * (policies[:, np.arange(prompts), mode] < exact[np.arange(prompts), mode] - 1e-12)).sum(-1)
    return policies[np.where(kept, harm + 1e-6 * differs.mean((1, 2)), -1.0).argmax()]


def test_no_minimisers_are_beyond_the_bound_more_often_than_they_may() -> None:
    """beta = 1, T = 1 to 3, reward log pi_t, exact Z, the worst minimiser of every round."""
    rng, beyond, ratios, said = np.random.default_rng(0), 0, [], 0
    worlds = 240
    for _ in range(worlds):
        prompts, responses, rounds = rng.integers(2, 7), rng.integers(3, 7), int(rng.integers(1, 4))
        pi = rng.dirichlet(np.full(responses, rng.choice([0.2, 1.0])), size=prompts) + 1e-3
        pi /= pi.sum(-1, keepdims=True)
        weight, mode, start = rng.dirichlet(np.full(prompts, 0.5)), pi.argmax(-1), pi
        n, k, size = int(rng.choice([5, 20, 80, 320])), int(rng.choice([1, 2, 4])), int(rng.integers(2, 200))
        ordered = np.sort(np.log(pi), -1)
        margin = float((ordered[:, -1] - ordered[:, -2]).min())
        bound = anchored_rounds_bound(
            num_samples=n, rounds=rounds, log_class_size=math.log(size), failure_probability=RHO, margin=margin,
            beta=1.0, samples_per_prompt=k, log_kappa0=log_condition_number(np.log(start.max(-1)), weight),
        )  # fmt: skip
        for _ in range(rounds):
            pi = _learned(pi, weight, mode, n, k, size, rng)
        own = pi[np.arange(prompts), mode]
        odds, before = 1 / own - 1, 1 / start.max(-1) - 1
        lost = (pi.argmax(-1) != mode) | (odds > before * math.exp(-rounds * margin) * (1 + 1e-9))
        failure = float((weight * lost).sum())
        beyond += failure > bound
        said += bound < 1
        ratios.append(failure / bound)
    assert beyond <= binom.ppf(0.999, worlds, RHO)
    assert said > 30 and max(ratios) > 0.3  # and not for want of trying
