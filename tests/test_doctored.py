"""Rows that are not so, as an experiment makes them and somebody changed them: every verdict must say no to each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from srlm.experiments import EXPERIMENTS, contraction, finite_sample, one_round, share_rewards
from srlm.experiments.outcome import Row, power_law

Doctor = Callable[[Row], Row]


@cache
def rows_of(name: str) -> tuple[Row, ...]:
    return tuple(EXPERIMENTS[name].run(quick=True, seed=0, report=lambda done, total: None))


def only(where: Callable[[Row], bool], doctor: Doctor) -> Doctor:
    return lambda row: doctor(row) if where(row) else row


def times(name: str, factor: float) -> Doctor:
    return lambda row: row | {name: factor * row[name]}


def put(**values: object) -> Doctor:
    assert values
    return lambda row: row | values


def kappa_times(factor: float) -> Doctor:
    return lambda row: row | {name: factor * row[name] for name in row if name.startswith("kappa_")}


def many_noisy(row: Row) -> bool:
    return row["rounds"] == finite_sample.ROUNDS and row["rewards"] == finite_sample.NOISY


def exactly_on_ball(row: Row) -> bool:
    return row["part"] == contraction.BALL


def on_ball(row: Row) -> bool:
    return row["part"] in (contraction.BALL, contraction.SAMPLED)


def of_price(row: Row) -> bool:
    return bool(row["statement"] == one_round.PRICE)


DOCTORED: dict[str, tuple[str, Doctor, str]] = {
    "four noisy rounds lose every mode": ("finite-sample", only(many_noisy, put(lost=1.0)), "both fall"),
    "gentle rounds lose every mode": (
        "finite-sample",
        only(lambda row: row["rounds"] == finite_sample.GENTLE, put(lost=1.0)),
        "gentle",
    ),
    "finite-sample: standard errors x 6": ("finite-sample", times("error", 6.0), "noisy rewards, T = 1"),
    "noise-free starts never merge": (
        "contraction",
        only(exactly_on_ball, lambda row: row | {f"kappa_{contraction.LAST}": row["kappa_0"] ** 0.1}),
        "is left after",
    ),
    "noise-free starts stay where they are": (
        "contraction",
        only(exactly_on_ball, lambda row: row | {f"kappa_{contraction.LAST}": row["kappa_0"]}),
        "is left after",
    ),
    "factors of .99 to 1.5": ("contraction", put(fastest=0.99, slowest=1.5), "a round multiplies"),
    "factors of .99": ("contraction", put(fastest=0.99, slowest=0.99, factor=0.99), "a round multiplies"),
    "the ball's kappa x 10^6": ("contraction", only(on_ball, kappa_times(1e6)), "every start ends below 2"),
    "contraction: a bound that is vacuous everywhere": ("contraction", put(vacuous=1.0), "of its bound"),
    "contraction: standard errors x 100": ("contraction", times("error", 100.0), "F test"),
    "a learner of .5 +- .4": ("lower-bound", put(learner=0.5, error=0.4), "learner in n"),
    "a learner of .5": ("lower-bound", put(learner=0.5), "times Bayes"),
    "a learner of twice Bayes": ("lower-bound", lambda row: row | {"learner": 2 * row["bayes"]}, "times Bayes"),
    "Eq. 99 for c = 1e-12 only": ("lower-bound", put(constant=1e-12), "Eq. 99"),
    "more samples, as many rounds": (
        "contraction",
        only(lambda row: row["part"] == contraction.FASTER, put(to_2=3.0)),
        "rounds to kappa <= 2 fall",
    ),
    "a guarantee that is vacuous everywhere": ("guarantee", put(bound=1.5), "Thm 5.3: vacuous here, not tested"),
    "a guarantee that ignores its arguments": ("guarantee", put(bound=0.5), "the bound is"),
    "a failure above the guarantee": (
        "guarantee",
        lambda row: row | {"failed": 1.1 * row["bound"], "crossed": 0.1},
        "Thm 5.3",
    ),
    "no failure at all": ("guarantee", put(failed=0.0, mean=0.0), "minimisers do fail"),
    "a kappa above Lemma C.4": ("guarantee", lambda row: row | {"kappa": 1.01 * row["kappa bound"]}, "Lemma C.4"),
    "Lemma C.4 vacuous everywhere": (
        "guarantee",
        lambda row: row | {"kappa bound": 1 / row["p"]},
        "Lemma C.4 (Eq. 56): vacuous here, not tested",
    ),
    "a failure above the J-gap": (
        "one-round",
        only(lambda row: row["policies"] == "sampled rounds", put(reached=1.01)),
        "J-gap",
    ),
    "a J-gap off by a factor": ("one-round", times("reached", 0.5), "J-gap"),
    "a price above beta log kappa": ("one-round", only(of_price, times("reached", 1.5)), "price of the KL"),
    "residuals that do not bound the gap": (
        "one-round",
        only(lambda row: row["statement"] == one_round.RESIDUAL, times("reached", 1.01)),
        "residuals to J-gap",
    ),
    "residuals off by a factor": (
        "one-round",
        only(lambda row: row["statement"] == one_round.RESIDUAL, times("reached", 0.9)),
        "residuals to J-gap",
    ),
    "a change of measure that is no bound": (
        "one-round",
        only(lambda row: row["statement"] == one_round.MEASURE, times("reached", 1.5)),
        "change of measure",
    ),
    "a change of measure off by a factor": (
        "one-round",
        only(lambda row: row["statement"] == one_round.MEASURE, times("reached", 0.9)),
        "change of measure",
    ),
    "a price off by a factor": ("one-round", only(of_price, times("reached", 0.5)), "price of the KL"),
    "a loop that loses more than the union": ("fidelity", times("reached", 1.1), "the bound says something"),
    "a union that is vacuous everywhere": ("fidelity", put(said=0.0), "vacuous here, not tested"),
    "a union off by a factor": ("fidelity", times("reached", 0.1), "the bound says something"),
    "no answer is lost": ("fidelity", lambda row: row | {"lost": row["unsure"]}, "the answer of pi_0"),
    "fidelity: standard errors x 6": ("fidelity", times("error", 6.0), "the answer of pi_0"),
    "more rounds are always better": ("fidelity", lambda row: row | {"bound": 1 / (1 + row["T"])}, "is best after"),
    "shares as fast as log-shares": ("share-rewards", put(rounds=3), "a rival"),
    "shares faster than any can be": ("share-rewards", times("rounds", 0.9), "never fewer"),
    "log-shares linear in kappa": (
        "share-rewards",
        only(lambda row: row["reward"] == share_rewards.LOG_SHARE, lambda row: row | {"rounds": row["m"]}),
        "log share",
    ),
    "K samples hear what is rarer than 1/K": (
        "share-rewards",
        only(lambda row: row["reward"] == share_rewards.FLOORED, put(rounds=3)),
        "log of K",
    ),
    "every d_eff halved": ("linear-softmax", times("d_eff", 0.5), "its level"),
    "every d_eff doubled": ("linear-softmax", times("d_eff", 2.0), "its level"),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_a_doctored_row_does_not_pass(name: str) -> None:
    experiment, doctor, sentence = DOCTORED[name]
    module, rows = EXPERIMENTS[experiment], rows_of(experiment)
    changed = [doctor(row) for row in rows]
    assert changed != list(rows)
    assert module.check(list(rows)).holds
    verdict = module.check(changed)
    assert not verdict.holds
    assert any(finding.startswith("FAILED: ") and sentence in finding for finding in verdict.findings)


def test_what_no_bound_speaks_of_is_called_so() -> None:
    """Where every bound is vacuous a verdict says that it tested nothing."""
    for name in ("finite-sample", "contraction"):
        findings = EXPERIMENTS[name].check(list(rows_of(name))).findings
        assert any("vacuous here, not tested" in finding for finding in findings)


@pytest.mark.parametrize(
    ("slope", "holds"),
    [
        ((-0.5, -0.6, -0.4), True),
        ((-0.5, -0.9, -0.1), True),
        ((-0.5, -1.01, -0.1), False),
        ((-0.5, -0.9, 0.01), False),
        ((-0.7, -0.8, -0.56), False),
        ((-0.3, -0.44, -0.2), False),
    ],
)
def test_an_exponent_is_near_and_told_apart(slope: tuple[float, float, float], holds: bool) -> None:
    assert power_law("x", slope, -0.5)[0] is holds
    mirrored = (-slope[0], -slope[2], -slope[1])
    assert power_law("x", mirrored, 0.5)[0] is holds
