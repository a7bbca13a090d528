"""Bounds without a constant: the experiments hold, and a row that is not so makes each of their checks fail."""

from __future__ import annotations

import math

import numpy as np
import pytest

from srlm.experiments import anchored_rounds, concentrability, rounds_lower_bound, sandwich
from srlm.experiments.outcome import Row
from srlm.theory import HardInstance, anchored_failure_bound

MODULES = [concentrability, sandwich, rounds_lower_bound, anchored_rounds]


def silent(done: int, total: int) -> None:
    assert 0 <= done < total


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[Row]]:
    return {module.__name__: module.run(quick=True, seed=0, report=silent) for module in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_a_short_run_holds(module, outcomes) -> None:
    verdict = module.check(outcomes[module.__name__])
    assert verdict.holds, verdict.findings


def pairs_of(row: Row) -> bool:
    return row["objective"] == concentrability.PAIRWISE


# (experiment, where, what the row says instead, what the failed check speaks of)
DOCTORED = [
    (concentrability, pairs_of, {"failing": 0.04}, "pairwise: Thm 5.3"),
    (concentrability, pairs_of, {"bound": 1.1}, "pairwise: Thm 5.3"),
    (concentrability, pairs_of, {"failing": 0.9}, "that is how often"),
    (concentrability, pairs_of, {"concentrability": 5 / 3}, "E[pi_1/pi_0]"),
    (concentrability, lambda row: row["objective"] == concentrability.EXACT_Z, {"failing": 0.01}, "anchored"),
    (concentrability, lambda row: row["objective"] == concentrability.SAMPLED_Z, {"failing": 0.01}, "anchored"),
    (concentrability, lambda row: not pairs_of(row), {"replicas": 10}, "anchored"),
    (sandwich, lambda row: True, {"plain": lambda row: 0.5 * row["floor"]}, "below"),
    (sandwich, lambda row: True, {"floor": lambda row: 0.5 * row["floor"]}, "below"),
    (sandwich, lambda row: True, {"error": lambda row: 6 * row["error"]}, "below"),
    (sandwich, lambda row: True, {"adversary": lambda row: 0.9 * row["plain"]}, "between"),
    (sandwich, lambda row: True, {"beyond": 0.2}, "above"),
    (sandwich, lambda row: True, {"bound": 1.2}, "above"),
    (sandwich, lambda row: True, {"bound": lambda row: 40 * row["floor"]}, "the bound is"),
    (sandwich, lambda row: True, {"pairwise beyond": 0.05}, "pairs alone"),
    (rounds_lower_bound, lambda row: True, {"bound": lambda row: 1.01 * row["floor"]}, "the closed form"),
    (rounds_lower_bound, lambda row: True, {"bound": lambda row: 0.5 * row["floor"]}, "the closed form"),
    (rounds_lower_bound, lambda row: True, {"adaptive": lambda row: 0.9 * row["floor"]}, "the optimal adaptive"),
    (rounds_lower_bound, lambda row: True, {"loop": lambda row: 0.7 * row["floor"]}, "the loop is never"),
    (rounds_lower_bound, lambda row: True, {"error": lambda row: 6 * row["error"]}, "the loop is never"),
    (rounds_lower_bound, lambda row: True, {"loop": 0.3}, "n = 32 a round"),
    (rounds_lower_bound, lambda row: True, {"loop": lambda row: row["loop"] / row["T"]}, "nT = 512"),
    (anchored_rounds, lambda row: True, {"beyond": 0.2}, "the bound says"),
    (anchored_rounds, lambda row: True, {"bound": 1.2}, "the bound: vacuous"),
    (anchored_rounds, lambda row: True, {"lost": 0.0}, "the adversary is heard"),
    (anchored_rounds, lambda row: True, {"error": lambda row: 50 * row["error"]}, "the adversary is heard"),
    (anchored_rounds, lambda row: True, {"bound": lambda row: 8 * row["bound"]}, "the adversary is heard"),
    (anchored_rounds, lambda row: True, {"pairs beyond": 0.05}, "pairs alone"),
    (anchored_rounds, lambda row: True, {"Thm 5.3": 1.0}, "Thm 5.3: vacuous"),
    (anchored_rounds, lambda row: True, {"lost": lambda row: row["lost"] / row["T"]}, "nT fixed"),
    (anchored_rounds, lambda row: row["varied"] == "T", {"lost": lambda row: row["lost"] * row["T"]}, "n fixed"),
    (rounds_lower_bound, lambda row: True, {"one round": lambda row: 1.5 * row["floor"]}, "choosing"),
]


@pytest.mark.parametrize(("module", "where", "change", "said"), DOCTORED)
def test_a_doctored_row_fails_the_check_it_belongs_to(module, where, change, said: str, outcomes) -> None:
    rows = [dict(row) for row in outcomes[module.__name__]]
    spoiled = [row for row in rows if where(row)]
    assert spoiled
    for row in spoiled:
        row |= {name: value(row) if callable(value) else value for name, value in change.items()}
    verdict = module.check(rows)
    assert not verdict.holds
    assert any(finding.startswith(f"FAILED: {said}") for finding in verdict.findings), verdict.findings


@pytest.mark.parametrize("module", [concentrability, sandwich])
def test_rows_depend_on_the_seed_alone(module, outcomes) -> None:
    assert module.run(quick=True, seed=0, report=silent) == outcomes[module.__name__]
    assert module.run(quick=True, seed=1, report=silent) != outcomes[module.__name__]


def test_two_known_labels_fail_by_a_coin_where_neither_was_drawn() -> None:
    hard = HardInstance(3, 10, 0.6)
    neither = (1 - 0.2 * (1 - 0.8**2)) ** 40
    assert sandwich.bayes_failure(hard, 2, 40, 2) == pytest.approx(0.6 / 2 * neither, rel=1e-12)
    assert sandwich.bayes_failure(hard, 10, 40, 2) == hard.bayes_failure(40, 2)
    known = [sandwich.bayes_failure(hard, c, 40, 2) for c in range(2, 11)]
    assert known == sorted(known)


def test_the_sandwich_s_bound_is_that_of_its_own_start() -> None:
    """kappa of the instance, K = 1: sqrt(kappa log(|Pi|/rho)/n) up to the mass of the rare response and the margin."""
    row = sandwich._measure(sandwich.Case(K=1), 2, np.random.default_rng(0))
    plain = anchored_failure_bound(
        num_samples=sandwich.N,
        log_class_size=row["log|Pi|"],
        failure_probability=0.05,
        log_condition=math.log(sandwich.KAPPA),
    )
    assert row["bound"] == pytest.approx(plain, rel=0.05)
