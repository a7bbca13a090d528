from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm.theory import (
    contraction_factor,
    covering_log_size,
    finite_class_guarantee,
    iterations_to_forget,
    kappa_bound,
    kappa_fixed_point,
    linear_softmax_guarantee,
    tail_integral_recursion,
)

COMMON = {
    "num_samples": 1e6,
    "rounds": 3,
    "kappa0": 1e3,
    "min_confidence": 0.3,
    "margin": 1.0,
    "beta": 1e-3,
    "level": 0.5,
    "failure_probability": 0.05,
    "constant": 0.05,
}
FINITE = {**COMMON, "log_class_size": 5.0}
LINEAR = {**COMMON, "dimension": 4.0, "norm_bound": 2.0}


def powers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda x: 10**x)


settings_of_a_run = st.fixed_dictionaries(
    {
        "num_samples": powers(0, 12),
        "rounds": st.integers(1, 12),
        "kappa0": powers(0, 300),
        "log_class_size": st.floats(0, 1e4),
        "min_confidence": powers(-3, 0),
        "margin": powers(-2, 1),
        "beta": st.one_of(st.just(0.0), powers(-6, 1)),
        "level": st.floats(0.01, 0.99),
        "failure_probability": st.floats(1e-6, 0.5),
        "constant": powers(-6, 1),
    }
)


@given(settings_of_a_run)
def test_the_parts_by_their_formulas(run: dict[str, float]) -> None:
    bound = finite_class_guarantee(**run)
    n, t, p, gamma, delta = (run[k] for k in ("num_samples", "rounds", "min_confidence", "margin", "level"))
    complexity = run["log_class_size"] + math.log(t / run["failure_probability"])
    rate = run["constant"] * (complexity + math.log(n)) * math.sqrt(complexity / n) / gamma
    factor = 1 + p * max(0, math.log(1 / (p * rate)))
    s = (rate + run["beta"] / gamma) / p * factor
    limit, slope = kappa_fixed_point(1.0, s), contraction_factor(1.0, s)
    kept = min(limit, 1 / p)
    old = slope ** (t - 1) * max(run["kappa0"] - kept, 0)
    old = min(old, slope ** (t - 2) * (1 / p - kept)) if t > 1 else old
    assert bound.relaxation == pytest.approx(factor)
    assert bound.coefficient == pytest.approx(s)
    assert bound.kappa_infinity == pytest.approx(limit)
    assert bound.contraction == pytest.approx(slope)
    assert bound.statistical_factor == pytest.approx(rate / delta)
    assert bound.stable_part == pytest.approx(rate / delta * math.sqrt(kept))
    assert bound.stable_part_by_confidence == pytest.approx(rate / delta / math.sqrt(p))
    assert bound.transient_part == pytest.approx(rate / delta * math.sqrt(old))
    assert bound.beta_part == pytest.approx(run["beta"] / gamma / delta * math.log(kept + old), abs=1e-12)
    assert bound.total == pytest.approx(bound.stable_part + bound.transient_part + bound.beta_part)
    assert bound.vacuous is (bound.total >= 1)


@given(settings_of_a_run)
def test_the_total_is_above_what_the_recursions_give(run: dict[str, float]) -> None:
    bound = finite_class_guarantee(**run)
    rate, beta_rate = bound.statistical_factor * run["level"], run["beta"] / run["margin"]
    kappa = tail_integral_recursion(run["kappa0"], run["rounds"] - 1, rate, beta_rate, run["min_confidence"])[-1]
    expected = (rate * math.sqrt(kappa) + beta_rate * math.log(kappa)) / run["level"]
    assert bound.iterated_total == pytest.approx(expected, rel=1e-9)
    assert bound.iterated_total <= bound.total * (1 + 1e-9)
    assert bound.stable_part <= bound.stable_part_by_confidence * (1 + 1e-12)
    if bound.kappa_infinity <= 1 / run["min_confidence"]:
        line = kappa_bound(run["kappa0"], run["rounds"] - 1, 1.0, bound.coefficient)
        if run["rounds"] > 1:
            line = min(line, kappa_bound(1 / run["min_confidence"], run["rounds"] - 2, 1.0, bound.coefficient))
        assert bound.statistical_factor * math.sqrt(line) <= (bound.stable_part + bound.transient_part) * (1 + 1e-9)


@given(settings_of_a_run, st.floats(1.01, 100))
def test_worse_starts_and_larger_classes_are_never_better(run: dict[str, float], times: float) -> None:
    total = finite_class_guarantee(**run).total
    assert finite_class_guarantee(**{**run, "kappa0": run["kappa0"] * times}).total >= total * (1 - 1e-12)
    larger = {**run, "log_class_size": run["log_class_size"] * times}
    assert finite_class_guarantee(**larger).iterated_total >= 0
    assert finite_class_guarantee(**{**run, "level": run["level"] / times}).total >= total


@given(settings_of_a_run)
def test_with_the_start_in_the_confidence_the_paper_s_form_gains_at_most_a_factor_two(run: dict[str, float]) -> None:
    run = {**run, "kappa0": min(run["kappa0"], 1 / run["min_confidence"])}
    bound = finite_class_guarantee(**run)
    assert bound.transient_part <= bound.stable_part_by_confidence * (1 + 1e-12)


def test_one_round_is_the_root_of_kappa_over_n() -> None:
    n, kappa0 = 10.0 ** np.arange(8, 13), np.array([[1e4], [1e6]])
    bound = finite_class_guarantee(**{**FINITE, "rounds": 1, "num_samples": n, "kappa0": kappa0, "beta": 0.0})
    np.testing.assert_allclose(bound.iterated_total, bound.statistical_factor * np.sqrt(kappa0))
    logs = (np.log(n) + 5 + math.log(20)) / np.sqrt(n)
    np.testing.assert_allclose(
        bound.iterated_total / logs / np.sqrt(kappa0), bound.iterated_total[0, 0] / logs[0] / 100
    )


def test_rounds_remove_the_start_and_nothing_else() -> None:
    rounds = np.arange(1, 12)
    bound = finite_class_guarantee(**{**FINITE, "rounds": rounds, "kappa0": 1e12})
    assert (np.diff(bound.transient_part) < 0).all() and bound.transient_part[-1] < 1e-2 * bound.stable_part[-1]
    assert bound.vacuous[0] and not bound.vacuous[-1]
    enough = iterations_to_forget(1e12, 1.0, bound.coefficient[-1])
    forgotten = finite_class_guarantee(**{**FINITE, "rounds": 11, "kappa0": 1e12})
    assert enough <= 11 and forgotten.transient_part <= forgotten.stable_part


def test_from_the_second_round_on_no_start_is_worse_than_the_confidence_says() -> None:
    """kappa_1 <= 1/p is the hypothesis: from T = 2 on a start of 1e300 costs what one of 1/p does, or less."""
    rounds = np.arange(1, 65)
    run = {**FINITE, "rounds": rounds, "min_confidence": 0.045, "margin": 0.28, "beta": 1.0, "constant": 1.0}
    bound = finite_class_guarantee(**{**run, "kappa0": 1e300})
    assert bound.total[0] > 1e140 and bound.total[1:].max() < 1e3
    most = bound.statistical_factor * math.sqrt(1 / 0.045)
    assert (bound.stable_part[1:] ** 2 + bound.transient_part[1:] ** 2 <= most[1:] ** 2 * (1 + 1e-9)).all()
    assert (bound.iterated_total <= bound.total * (1 + 1e-9)).all()


def test_a_budget_split_over_rounds_broadcasts() -> None:
    rounds = np.array([1, 2, 5, 10])
    split = finite_class_guarantee(**{**FINITE, "num_samples": 1e6 / rounds, "rounds": rounds})
    for i, t in enumerate(rounds):
        single = finite_class_guarantee(**{**FINITE, "num_samples": 1e6 / t, "rounds": t})
        for field in dataclasses.fields(split):
            value = getattr(split, field.name)
            assert value.shape == (4,) and value[i] == pytest.approx(getattr(single, field.name), rel=1e-12)
    assert all(isinstance(getattr(single, f.name), float) for f in dataclasses.fields(single) if f.name != "vacuous")


@given(powers(0, 9), powers(-1, 4), powers(-1, 3))
def test_linear_softmax_is_a_finite_class_of_the_size_of_its_net(n: float, d: float, radius: float) -> None:
    linear = linear_softmax_guarantee(**{**LINEAR, "num_samples": n, "dimension": d, "norm_bound": radius})
    size = covering_log_size(d, radius, 1 / n)
    assert size == pytest.approx(d * math.log(1 + 6 * radius * n))
    assert linear == finite_class_guarantee(**{**FINITE, "num_samples": n, "log_class_size": size})
