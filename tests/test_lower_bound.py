from __future__ import annotations

import itertools
import math
import sys
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import lambertw

from srlm.theory import (
    HardInstance,
    condition_number,
    mode_margin,
    rounds_lower_bound,
    samples_needed,
    single_step_lower_bound,
    single_step_lower_bound_asymptotic,
    worst_case_failure,
    worst_case_failure_closed_form,
    worst_case_instance,
)

log10_samples = st.floats(0, 12)
log_kappas = st.one_of(st.floats(0, 40), st.floats(0, 10_000))
# Down to e^-690 the constant keeps even kappa = e^700 off the clip, where W's argument has long underflowed.
log_constants = st.one_of(st.floats(-5, 5), st.floats(-690, 0))
log_sizes = st.floats(-2, 12)


def by_root_finding(log_q: float, log_kappa: float) -> float:
    """log eps with eps^2 (1 + log(kappa/eps)) = q, in logs."""

    def excess(log_eps: float) -> float:
        return 2 * log_eps + math.log1p(log_kappa - log_eps) - log_q

    return brentq(excess, -2000, 0, xtol=1e-12) if excess(0) > 0 else 0.0


@settings(max_examples=300)
@given(log10_samples, log_kappas, log_sizes, log_constants)
def test_the_bound_solves_its_equation(log10_n: float, log_kappa: float, log_size: float, log_constant: float) -> None:
    n, size, constant = 10**log10_n, math.exp(log_size), math.exp(log_constant)
    log_q = log_constant + log_kappa + log_size - math.log(n)
    failure = single_step_lower_bound(n, log_kappa, size, constant)
    assert type(failure) is float
    assert math.log(failure) == pytest.approx(by_root_finding(log_q, log_kappa), abs=1e-10)
    assert (failure == 1) == (log_q >= math.log1p(log_kappa)) or abs(log_q - math.log1p(log_kappa)) < 1e-10


@given(log10_samples, st.floats(0, 40), log_sizes, st.floats(-5, 5))
def test_the_lambert_form(log10_n: float, log_kappa: float, log_size: float, log_constant: float) -> None:
    n, kappa = 10**log10_n, math.exp(log_kappa)
    q = math.exp(log_constant + log_size) * kappa / n
    assume(q < 1 + log_kappa)
    u = -0.5 * lambertw(-2 * q / (math.e * kappa) ** 2, -1).real
    expected = math.sqrt(q / u)
    bound = single_step_lower_bound(n, log_kappa, math.exp(log_size), math.exp(log_constant))
    assert bound == pytest.approx(expected, rel=1e-9)


@given(st.floats(-20, 0), st.floats(0, 600), log_sizes)
def test_samples_needed_is_the_inverse(log_failure: float, log_kappa: float, log_size: float) -> None:
    failure, size = math.exp(log_failure), math.exp(log_size)
    n = samples_needed(failure, log_kappa, size)
    kappa_over_eps = log_kappa - log_failure
    log_n = log_kappa + log_size - 2 * log_failure - math.log1p(kappa_over_eps)
    assert math.log(n) == pytest.approx(log_n, abs=1e-9)
    assume(n >= 1)
    assert single_step_lower_bound(n, log_kappa, size) == pytest.approx(failure, rel=1e-9)


def test_beyond_the_floats_the_samples_needed_are_infinite() -> None:
    assert samples_needed(0.1, 10_000.0, 5.0) == math.inf
    assert single_step_lower_bound(1e12, 10_000.0, 5.0) == 1


@given(log10_samples, st.floats(0, 40), st.floats(-5, 5))
def test_the_asymptotic_form_lies_above_and_converges(log10_n: float, log_kappa: float, log_size: float) -> None:
    arguments = 10**log10_n, log_kappa, math.exp(log_size)
    exact, simple = single_step_lower_bound(*arguments), single_step_lower_bound_asymptotic(*arguments)
    assert exact * (1 - 1e-12) <= simple <= 1
    if simple < 1:
        u = 1 + log_kappa - math.log(exact)
        assert simple / exact == pytest.approx(math.sqrt(u / (u - 0.5 * math.log(2 * u))), rel=1e-9)


def test_bounds_broadcast() -> None:
    n, log_kappa = np.array([[10.0], [1e6]]), np.array([0.0, 3.0, 5000.0])
    for function in (single_step_lower_bound, single_step_lower_bound_asymptotic):
        grid = function(n, log_kappa, 4.0)
        assert grid.shape == (2, 3)
        assert grid[1, 1] == function(1e6, 3.0, 4.0)
    assert samples_needed([0.1, 0.2], 3.0, 4.0)[1] == samples_needed(0.2, 3.0, 4.0)


tiny = st.tuples(st.integers(1, 2), st.integers(2, 3), st.integers(1, 2), st.integers(1, 2))


def by_enumeration(instance: HardInstance, num_samples: int, draws: int) -> float:
    """Bayes' rule over all key assignments and all data; the data say of each drawn label whether it is the key."""
    d, m = instance.num_prompts, instance.num_labels
    joint: dict[tuple, np.ndarray] = defaultdict(lambda: np.zeros((d, m)))
    for keys in itertools.product(range(m), repeat=d):
        log_prob, weight = instance.policy(keys)
        for prompts in itertools.product(range(d + 1), repeat=num_samples):
            rows = np.repeat(prompts, draws)
            for labels in itertools.product(range(m), repeat=len(rows)):
                prob = weight[list(prompts)].prod() * np.exp(log_prob[rows, list(labels)].sum()) / m**d
                if prob == 0:
                    continue
                data = tuple((int(x), y, x < d and keys[x] == y) for x, y in zip(rows, labels, strict=True))
                for prompt, key in enumerate(keys):
                    joint[data][prompt, key] += prob
    success = sum(table.max(-1).sum() for table in joint.values())
    return instance.informative_mass * (1 - success / d)


@settings(max_examples=25, deadline=None)
@given(tiny, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.05, 0.7]))
def test_bayes_failure_is_what_bayes_rule_says(shape: tuple[int, int, int, int], mass: float, margin: float) -> None:
    d, m, n, k = shape
    assume((d + 1) ** n * m ** (n * k + d) < 20_000)
    instance = HardInstance(d, m, mass, margin)
    assert instance.bayes_failure(n, k) == pytest.approx(by_enumeration(instance, n, k), abs=1e-12)


@pytest.mark.parametrize(
    ("d", "m", "mass", "margin", "n", "k"),
    [
        (3, 5, 0.6, 0.0, 20, 2),
        (2, 4, 1.0, 0.0, 12, 3),  # every label of a prompt is often drawn
        (4, 12, 0.3, 0.8, 40, 1),
        (5, 200, 0.9, 0.0, 100, 4),  # no prompt is ever drawn empty
        (1, 80, 1.0, 3.0, 50, 1),
    ],
)
def test_bayes_failure_is_what_a_bayes_learner_has(d: int, m: int, mass: float, margin: float, n: int, k: int) -> None:
    instance, rng, replicas = HardInstance(d, m, mass, margin), np.random.default_rng(20), 4000
    # By symmetry the key is label 0; which labels a learner has seen is all that it knows.
    log_prob, weight = instance.policy(np.zeros(d, dtype=int))
    prompts = rng.choice(d + 1, p=weight, size=(replicas, n))
    labels = np.array([rng.choice(m, p=np.exp(row), size=(replicas, n, k)) for row in log_prob])
    seen = np.zeros((replicas, d + 1, m), dtype=bool)
    chosen = np.take_along_axis(labels, prompts[None, :, :, None], 0)[0]
    np.logical_or.at(seen, (np.arange(replicas)[:, None, None], prompts[:, :, None], chosen), True)
    seen = seen[:, :d]
    guess = np.where(seen, -1.0, rng.random(seen.shape)).argmax(-1)
    failure = (~seen[..., 0] & (guess != 0)).mean(-1) * mass
    error = failure.std(ddof=1) / math.sqrt(replicas)
    assert abs(failure.mean() - instance.bayes_failure(n, k)) < 4 * error


@given(st.integers(1, 6), st.integers(2, 150), st.floats(0.01, 1), st.integers(1, 2000), st.integers(1, 8))
def test_the_formula_for_a_vanishing_margin(d: int, m: int, mass: float, n: int, k: int) -> None:
    failure = HardInstance(d, m, mass).bayes_failure(n, k)
    missed = (1 - mass / d * (1 - (1 - 1 / m) ** k)) ** n
    # THEORY's form with P(U > 0) between 0 and 1; without cancellation where U > 0 is certain
    assert mass * (missed - 1 / m) - 1e-12 <= failure <= mass * missed * (1 + 1e-12)
    if n * k < m:
        assert failure == pytest.approx(mass * (missed - 1 / m), rel=1e-9)


@given(st.integers(1, 4), st.integers(2, 60), st.floats(0.05, 1), st.floats(0, 0.9), st.integers(1, 300))
def test_more_data_never_hurt(d: int, m: int, mass: float, margin: float, n: int) -> None:
    failure = HardInstance(d, m, mass, margin).bayes_failure([n, n + 1, 2 * n], [[1], [2]])
    assert (np.diff(failure, axis=1) <= 1e-15).all() and (np.diff(failure, axis=0) <= 1e-15).all()


def test_bayes_failure_keeps_its_digits() -> None:
    # One prompt, N uniform draws on M labels: E[(U - 1)_+]/M from the distribution of U, a sum of positive terms.
    for m, n in [(3, 200), (47, 400), (60, 60), (60, 200), (100, 300), (100, 2000)]:
        left = np.zeros(m + 1)
        left[m] = 1
        states = np.arange(m + 1)
        for _ in range(n):
            left = left * (1 - states / m) + np.append(left[1:] * states[1:] / m, 0)
        expected = left @ np.maximum(states - 1, 0) / m
        assert HardInstance(1, m, 1.0).bayes_failure(n) == pytest.approx(expected, rel=1e-11)


@given(st.integers(1, 4), st.integers(2, 9), st.floats(0, 1), st.floats(0, 0.9), st.data())
def test_an_instance_is_a_policy(d: int, m: int, mass: float, margin: float, data) -> None:
    instance = HardInstance(num_prompts=d, num_labels=m, informative_mass=mass, margin=margin)
    keys = data.draw(st.lists(st.integers(0, m - 1), min_size=d, max_size=d))
    log_prob, weight = instance.policy(keys)
    assert log_prob.shape == (d + 1, m) and weight.shape == (d + 1,)
    np.testing.assert_allclose(np.exp(log_prob).sum(-1), 1)
    assert weight.sum() == pytest.approx(1)
    assert condition_number(np.exp(log_prob.max(-1)), weight) == pytest.approx(instance.kappa)
    assert instance.log_class_size == pytest.approx(math.log(m**d))
    if margin > 1e-9:
        assert log_prob[:d].argmax(-1).tolist() == keys
        expected = math.log((1 + margin) / (1 - margin / (m - 1)))
        assert mode_margin(log_prob[:d]) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 2.5), st.floats(-2, 1.3), st.integers(1, 4), st.floats(0, 2))
def test_the_worst_case_is_the_maximum(log10_n: float, log10_excess: float, d: int, log10_k: float) -> None:
    n, kappa, k = round(10**log10_n), 1 + 10**log10_excess, round(10**log10_k)
    worst = worst_case_failure(n, kappa, d, k)
    least = max(2, math.ceil(kappa))
    sizes = np.unique(np.r_[least : least + 20, np.geomspace(least, 40 * least * (n + 1), 25).astype(int)])
    failures = [HardInstance(d, int(m), (kappa - 1) / (m - 1)).bayes_failure(n, k) for m in sizes]
    assert worst >= max(failures) * (1 - 1e-12)
    rises = np.sign(np.diff(failures))
    assert (np.diff(rises[rises != 0]) <= 0).all(), "the search takes one maximum for granted"
    instance = worst_case_instance(n, kappa, d, k)
    assert instance.kappa == pytest.approx(kappa) and instance.bayes_failure(n, k) == worst


@settings(max_examples=150, deadline=None)
@given(st.floats(0, 8), st.floats(-3, 6), st.integers(1, 50), st.integers(1, 16))
def test_the_closed_form_is_below_the_worst_case(log10_n: float, log10_excess: float, d: int, k: int) -> None:
    n, kappa = round(10**log10_n), 1 + 10**log10_excess
    closed = worst_case_failure_closed_form(n, kappa, d, k)
    mass = math.sqrt(d * (kappa - 1) / (2 * n * k))
    if mass <= 1:
        assert closed == pytest.approx(max(0, math.exp(-0.5) * mass - d / (2 * n * k)), rel=1e-9, abs=1e-300)
    worst = worst_case_failure(n, kappa, d, k)
    assert 0 <= closed <= worst * (1 + 1e-12)
    if mass < 1e-2 and kappa - 1 > 100 * mass and n > 100 and (kappa - 1) * k < mass * n:
        assert closed == pytest.approx(worst, rel=0.05)  # tight where M is large and K draws rarely collide


def test_the_closed_form_has_the_slopes_of_the_theorem() -> None:
    n, kappa = np.array([1e8, 1e10]), np.array([[1e2], [1e4]])
    log_failure = np.log(worst_case_failure(n, kappa, 3))
    np.testing.assert_allclose(np.diff(log_failure, axis=1) / math.log(100), -0.5, atol=1e-3)
    np.testing.assert_allclose(np.diff(log_failure, axis=0) / np.log(9999 / 99), 0.5, atol=1e-3)


@pytest.mark.filterwarnings("error")
def test_worst_cases_at_the_ends() -> None:
    assert worst_case_failure(100, 1.0, 3) == worst_case_failure_closed_form(100, 1.0, 3) == 0
    assert worst_case_failure(10**12, 1e300, 1) == pytest.approx(1)
    assert worst_case_failure_closed_form(10**12, 1e300, 1) == pytest.approx(1)
    for kappa in (1e305, 1e308, sys.float_info.max):  # where twice as many labels are no float
        assert worst_case_failure(1000, kappa, 4, 2) == pytest.approx(1)
        assert worst_case_failure(1000, kappa, 4, 2, adaptive=True) == pytest.approx(1)
        assert worst_case_instance(1000, kappa, 4, 2).kappa == pytest.approx(kappa)
    assert worst_case_failure([10, 20], 3.0, 2).tolist() == [worst_case_failure(n, 3.0, 2) for n in (10, 20)]


def test_a_constant_of_one_is_not_what_the_hard_instance_proves() -> None:
    for kappa, n in itertools.product([10.0, 1e3], [10**5, 10**9]):
        instance = worst_case_instance(n, kappa, 5)
        failure = instance.bayes_failure(n)
        arguments = n, math.log(instance.kappa), instance.log_class_size
        assert single_step_lower_bound(*arguments) > 2 * failure
        assert single_step_lower_bound(*arguments, constant=1 / (2 * math.e)) <= failure


def test_samples_that_are_not_whole_are_refused_where_they_are_counted() -> None:
    with pytest.raises(ValueError, match="num_samples must be whole"):
        HardInstance(2, 3, 0.5).bayes_failure(2.5)


@pytest.mark.parametrize("keys", [[0], [0, 3], [0, -1], [0, 0.5], [[0, 1]], [0, math.nan]])
def test_keys_that_fit_no_prompt_are_refused(keys) -> None:
    with pytest.raises(ValueError, match="keys must"):
        HardInstance(2, 3, 0.5).policy(keys)


# Learners that choose what they draw from


def adaptive_by_sum(d: int, m: int, mass: float, n: int, k: int) -> float:
    """Delta E[(1 - (J + 1)/M)_+] over visits by their binomial probabilities."""
    share = mass / d
    total = 0.0
    for visits in range(n + 1):
        prob = math.comb(n, visits) * share**visits * (1 - share) ** (n - visits)
        total += prob * max(0.0, 1 - (k * visits + 1) / m)
    return mass * total


@given(st.integers(1, 5), st.integers(2, 40), st.floats(0.05, 1), st.integers(1, 60), st.integers(1, 5))
def test_the_adaptive_failure_by_its_definition(d: int, m: int, mass: float, n: int, k: int) -> None:
    instance = HardInstance(d, m, mass)
    failure = instance.adaptive_failure(n, k)
    assert type(failure) is float
    assert failure == pytest.approx(adaptive_by_sum(d, m, mass, n, k), rel=1e-8, abs=1e-15)
    assert failure <= instance.bayes_failure(n, k) * (1 + 1e-9) + 1e-15


def best_of_all_queries(m: int, draws: int) -> float:
    """The least failure on one prompt of any sequence of queries and one guess, by going through all of them."""
    least = 1.0
    for labels in itertools.product(range(m), repeat=draws):
        for guess in range(m):
            missed = sum(key not in labels and key != guess for key in range(m)) / m
            least = min(least, missed)
    return least


@pytest.mark.parametrize(("m", "draws"), [(3, 1), (4, 2), (4, 3), (5, 3)])
def test_drawing_without_replacement_is_optimal(m: int, draws: int) -> None:
    """One prompt, every visit certain: K draws from one point each, chosen knowing that none was the key."""
    assert HardInstance(1, m, 1.0).adaptive_failure(1, draws) == pytest.approx(best_of_all_queries(m, draws))


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 6), st.integers(1, 20), st.floats(-3, 5), st.integers(1, 30), st.integers(1, 8))
def test_the_bound_on_rounds_is_below_the_exact_floor(
    log10_n: float, t: int, log10_excess: float, d: int, k: int
) -> None:
    n, kappa = round(10**log10_n), 1 + 10**log10_excess
    bound = rounds_lower_bound(n, t, kappa, d, k)
    mass = math.sqrt(d * (kappa - 1) / (3 * n * t * k))
    if mass <= 1:
        assert bound == pytest.approx(max(0, 2 / 3 * mass - d / (3 * n * t * k)), rel=1e-9, abs=1e-300)
    floor = worst_case_failure(n * t, kappa, d, k, adaptive=True)
    assert 0 <= bound <= floor * (1 + 1e-8)
    assert floor <= worst_case_failure(n * t, kappa, d, k) * (1 + 1e-8)
    if mass < 1e-2 and kappa - 1 > 100 * mass and n * t > 100 and (kappa - 1) > 100 * k * mass:
        assert bound == pytest.approx(floor, rel=0.05)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 2.5), st.floats(-2, 1.3), st.integers(1, 4), st.integers(1, 6))
def test_the_adaptive_worst_case_is_the_maximum(log10_n: float, log10_excess: float, d: int, k: int) -> None:
    n, kappa = round(10**log10_n), 1 + 10**log10_excess
    worst = worst_case_failure(n, kappa, d, k, adaptive=True)
    least = max(2, math.ceil(kappa))
    sizes = np.unique(np.r_[least : least + 20, np.geomspace(least, 40 * least * (n + 1), 25).astype(int)])
    failures = [HardInstance(d, int(m), (kappa - 1) / (m - 1)).adaptive_failure(n, k) for m in sizes]
    assert worst >= max(failures) * (1 - 1e-9)


def test_rounds_are_prompts_and_nothing_else() -> None:
    assert rounds_lower_bound(32, 16, 5.0, 4, 2) == rounds_lower_bound(512, 1, 5.0, 4, 2)
    rounds = 4.0 ** np.arange(3, 8)
    slopes = np.diff(np.log(rounds_lower_bound(100, rounds, 50.0, 3))) / math.log(4)
    np.testing.assert_allclose(slopes, -0.5, atol=1e-2)
    assert rounds_lower_bound(10, [1, 2], 1.0, 3).tolist() == [0, 0]
    # 2/(3 sqrt 3) = .385 against e^{-1/2}/sqrt 2 = .429 for one round of as many prompts
    one = worst_case_failure_closed_form(10**8, 1e3, 5, 2)
    assert one / rounds_lower_bound(10**6, 100, 1e3, 5, 2) == pytest.approx(
        math.exp(-0.5) / math.sqrt(2) / 0.3849, rel=1e-3
    )


@pytest.mark.parametrize("value", [0, 1.5, math.nan])
def test_rounds_out_of_range_are_refused(value) -> None:
    with pytest.raises(ValueError, match=rf"^rounds must be whole and in \[1, inf\), got {value}"):
        rounds_lower_bound(10, value, 2.0, 3)


# Numbers of any kind


def test_whole_numbers_of_any_kind_are_whole_numbers() -> None:
    expected = HardInstance(3, 5, 0.5).bayes_failure(10)
    for instance in (HardInstance(np.int64(3), np.int64(5), 0.5), HardInstance(3.0, 5.0, np.float32(0.5))):
        assert instance.bayes_failure(np.int64(10)) == expected
        assert type(instance.num_prompts) is type(instance.num_labels) is int


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64, float])
def test_narrow_integers_do_not_overflow(kind) -> None:
    n, k = (100, 100) if kind is np.int8 else (10**9, 10**7) if kind is np.int32 else (10**12, 10**7)
    assert worst_case_instance(kind(n), 5.0, kind(4), kind(k)) == worst_case_instance(n, 5.0, 4, k)
    assert worst_case_failure(kind(n), 5.0, 4, kind(k)) == worst_case_failure(n, 5.0, 4, k)


@pytest.mark.parametrize(("d", "m", "mass", "margin", "n"), [(1, 400, 1.0, 40.0, 300), (2, 2000, 0.5, 900.0, 500)])
def test_a_large_margin_with_many_labels_left(d: int, m: int, mass: float, margin: float, n: int) -> None:
    """Where some label is certain to be left, against the sum over visits: E[rho^N (M (1 - 1/M)^N - 1)]/M."""
    share, rho = mass / d, 1 - margin / (m - 1)
    expected = sum(
        math.exp(math.lgamma(n + 1) - math.lgamma(v + 1) - math.lgamma(n - v + 1))
        * share**v * (1 - share) ** (n - v) * rho**v * (m * (1 - 1 / m) ** v - 1)
        for v in range(n + 1)
    )  # fmt: skip
    assert HardInstance(d, m, mass, margin).bayes_failure(n) == pytest.approx(mass * expected / m, rel=1e-9)


@pytest.mark.parametrize("margin", [0.0, 0.1])
@pytest.mark.parametrize(("prompts", "labels", "mass", "n", "k"), [(3, 100, 0.6, 50, 20), (20, 200, 0.5, 200, 20)])
def test_that_a_label_is_left_need_not_be_certain(prompts, labels, mass, n, k, margin):
    """What is left out is then next to nothing of the failure, and inclusion and exclusion say the same."""
    instance = HardInstance(prompts, labels, mass, margin)
    exact = mass * instance._surplus_by_inclusion_exclusion(n, k)
    assert instance.bayes_failure(n, k) == pytest.approx(exact, rel=1e-11)


def test_many_labels_that_may_all_be_drawn_take_no_sum_over_them():
    """96,871 labels of 2 draws each on average; by inclusion and exclusion it was not done in 50 s."""
    instance = HardInstance(3, 96_871, 0.000299370290079488, 0.0)
    assert 0 < instance.bayes_failure(100_000, 19_415) < instance.informative_mass


def test_a_margin_a_rounding_below_the_largest_leaves_nothing():
    """(1 + gamma)/M is then 1 for some M, whose logarithm of what is left is not a number of its own."""
    for labels in range(2, 300):
        instance = HardInstance(3, labels, 0.5, math.nextafter(labels - 1, 0))
        assert 0 <= instance.bayes_failure(10, 4) <= 0.5
