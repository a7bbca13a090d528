"""Budgets into rounds by the paper's bound: direct calls of the theory, brute force, and where the answer is known."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from support import command

from srlm import UserError
from srlm.console import Display
from srlm.planning import LARGEST_BUDGET, keep
from srlm.planning.paper import draw, plan, show
from srlm.theory import (
    HardInstance,
    effective_dimension,
    finite_class_guarantee,
    iterations_to_forget,
    linear_softmax_guarantee,
    sharpened_kappa_bound,
    sharpening_exponent,
    single_step_lower_bound,
    worst_case_failure,
)

START = {"kappa0": 1e4, "margin": 1.0, "min_confidence": 0.3}
CLASS = {"log_class_size": 5.0}
REST = {"beta": 1e-3, "level": 0.5, "failure_probability": 0.05, "constant": 0.05}
GIVEN = {**START, **CLASS, **REST, "budget": 1e6}
POOR = {"kappa0": 7.5, "margin": 0.28, "min_confidence": 0.045, "log_class_size": 20.0, "budget": 10_000}
LINEAR = {**START, **REST, "budget": 1e6, "norm_bound": 2.0}


def diagnosis(**sequence) -> dict:
    facts = {"log_kappa": [1.5, 2.0], "min_confidence": [0.045, 0.06], "margin": [0.28, 0.4]}
    facts |= {"num_prompts": 24, "certified_share": 0.75}
    interval, right = {"low": 1.2, "point": 1.3, "high": None}, {"low": 0.6, "point": 0.7, "high": 0.8}
    rows = [
        {"beta": beta, "rounds": rounds, "target": target, "kappa": interval | {"point": point}, "accuracy": seen}
        for beta in (1.0, 0.5)
        for rounds in (1, 2)
        for target, point, seen in (("clipped", 9.0, None), ("escort", beta + rounds, right))
        if (rounds, target) != (2, "escort")
    ]
    return {"sequence": facts | sequence, "forecast": {"rows": rows}, "more": "unread"}


def total(rounds=None, **changes) -> float:
    run = {k: v for k, v in (GIVEN | changes).items() if k not in ("budget", "max_rounds")}
    budget = (GIVEN | changes)["budget"]
    return finite_class_guarantee(num_samples=budget / rounds, rounds=rounds, **run).total


# Splits


@pytest.mark.parametrize("size", [CLASS, {"dimension": 4.0, "norm_bound": 2.0}])
def test_a_split_is_the_guarantee_of_its_rounds(size) -> None:
    made = plan(**START, **size, **REST, budget=1e6, max_rounds=9)
    function = linear_softmax_guarantee if "dimension" in size else finite_class_guarantee
    assert [split.rounds for split in made.splits] == list(range(1, 10))
    for split in made.splits:
        expected = function(**START, **size, **REST, num_samples=1e6 / split.rounds, rounds=split.rounds)
        for field in fields(expected):
            assert getattr(split.guarantee, field.name) == pytest.approx(getattr(expected, field.name), rel=1e-12)
        assert split.num_samples == 1e6 / split.rounds
        alpha = sharpening_exponent(1e-3, split.rounds)
        assert split.exponent == alpha
        assert math.exp(split.exact_log_kappa) == pytest.approx(sharpened_kappa_bound(1e4, 1.0, alpha))
    assert made.splits[0].guarantee.transient_part > made.splits[0].guarantee.stable_part


def test_the_best_split_is_that_of_brute_force() -> None:
    for changes in ({}, {"kappa0": 3.0}, {"min_confidence": 0.01, "budget": 1e8}, {"kappa0": 1e12, "budget": 1e9}):
        made = plan(**GIVEN | changes, max_rounds=20)
        totals = {t: total(t, **changes) for t in range(1, 21)}
        assert made.best_rounds == min(totals, key=lambda t: totals[t])
        assert made.best.guarantee.total == pytest.approx(min(totals.values()), rel=1e-12)
        iterated = [split.guarantee.iterated_total for split in made.splits]
        assert iterated[made.best_rounds_iterated - 1] == min(iterated)
    assert plan(**GIVEN).best_rounds > 1


def test_one_round_is_one_round() -> None:
    made = plan(**GIVEN, max_rounds=1)
    assert made.best_rounds == made.best_rounds_iterated == len(made.splits) == 1
    assert made.best.guarantee.total == pytest.approx(total(1), rel=1e-12)


def test_no_more_rounds_than_prompts() -> None:
    assert len(plan(**GIVEN | {"budget": 3}).splits) == 3


def test_the_effective_dimension_is_at_ridge_one_over_n() -> None:
    spectrum = 0.5 ** np.arange(1, 30)
    made = plan(**LINEAR, eigenvalues=spectrum, max_rounds=4)
    for split in made.splits:
        d = effective_dimension(spectrum, split.rounds / 1e6)
        expected = linear_softmax_guarantee(
            **START, **REST, norm_bound=2.0, dimension=d, num_samples=1e6 / split.rounds, rounds=split.rounds
        )
        assert split.guarantee.total == pytest.approx(expected.total, rel=1e-12)
    assert made.splits[0].log_class_size > made.splits[3].log_class_size


def test_the_start_is_forgotten_as_corollary_5_7_says() -> None:
    made = plan(**GIVEN)
    from_start, from_confidence = iterations_to_forget([1e4, 1 / 0.3], 1.0, made.best.guarantee.coefficient)
    assert made.iterations_to_forget == min(from_start, 1 + from_confidence)
    near = plan(**GIVEN | {"kappa0": 2.0})
    assert near.iterations_to_forget == iterations_to_forget(2.0, 1.0, near.best.guarantee.coefficient)


def test_a_start_beyond_the_floats_is_given_by_its_logarithm(capsys) -> None:
    """A thousand tokens at a nat each."""
    far = {**GIVEN, "kappa0": None, "log_kappa0": 1000.0}
    made = plan(**far)
    assert made.splits[0].guarantee.total > 1e200 and made.best_rounds > 1 and made.best.guarantee.total < 1
    assert made.lower_bound.hard_failure is None and made.lower_bound.failure == 1
    assert "kappa_0 = e^1000" in shown(capsys, **far)
    near = plan(**GIVEN | {"kappa0": None, "log_kappa0": math.log(1e4)})
    assert near == plan(**GIVEN)
    assert "--kappa0 and --log-kappa0 are both given" in refusal(**GIVEN, log_kappa0=1.0)


def test_no_start_outlives_the_confidence_of_the_first_round() -> None:
    """kappa_1 <= 1/p: of 1e300 nothing is left in a second round."""
    made = plan(kappa0=1e300, margin=0.28, min_confidence=0.045, budget=100_000, log_class_size=20.0)
    assert made.splits[0].guarantee.total > 1e140
    assert made.best_rounds == 2 and made.best.guarantee.total < 100
    assert made.iterations_to_forget == 2


def test_what_is_taken_for_granted_is_said(capsys) -> None:
    said = shown(capsys, **LINEAR, dimension=4.0)
    assert "no theorem for a realizable class alone" in said and "srlm verify concentrability" in said
    assert "kappa_1 <= 1/p = 3.33 is assumed" in said
    made = plan(**LINEAR, dimension=4.0)
    assert (
        f"alpha_T is {made.best.exponent:.3g} at T = {made.best_rounds}".replace("e+0", "e").replace("e+", "e") in said
    )
    assert "norm-bound must be at least so many times" in said
    assert "norm-bound must" not in shown(capsys, **GIVEN)


# One round


def test_the_single_round_s_bounds() -> None:
    lower = plan(**POOR).lower_bound
    assert lower.failure == single_step_lower_bound(10_000, math.log(7.5), 20.0)
    d = lower.hard_prompts
    assert d == 3 and lower.hard_failure == pytest.approx(worst_case_failure(10_000, 7.5, d, 2), rel=1e-12)

    def size(prompts: int) -> float:  # of the worst instance, by a scan over the number of its labels
        found = [HardInstance(prompts, m, 6.5 / (m - 1)) for m in range(8, 1500)]
        return max(found, key=lambda instance: instance.bayes_failure(10_000, 2)).log_class_size

    assert size(d) <= 20 < size(d + 1)


def test_without_a_hard_instance_there_is_no_exact_bound() -> None:
    assert plan(**GIVEN).lower_bound.hard_failure is None  # no room for 1e4 labels in e^5 policies
    assert plan(**LINEAR, dimension=4.0).lower_bound.hard_failure is None
    assert plan(**GIVEN | {"kappa0": 1.0}).lower_bound.hard_failure is None
    assert plan(**POOR, level=0.5).lower_bound.hard_failure > 0
    assert plan(**POOR, level=0.6).lower_bound.hard_failure is None  # two answers may have more than .4 each


# Vacuous bounds


@pytest.mark.parametrize("changes", [{"budget": 20}, {"budget": 7, "kappa0": 3.0}, {"budget": 10, "constant": 5.0}])
def test_the_smallest_budget_is_the_threshold(changes) -> None:
    made = plan(**GIVEN | changes)
    assert made.vacuous and made.best.guarantee.total >= 1
    enough = made.remedy.budget
    assert enough == math.floor(enough) > changes["budget"]
    at, below = (
        plan(**GIVEN | changes | {"budget": enough}),
        plan(**GIVEN | changes | {"budget": math.floor(0.99 * enough)}),
    )
    assert not at.vacuous and at.remedy is None
    assert below.vacuous


def test_a_beta_that_no_budget_makes_up_for() -> None:
    made = plan(**POOR)
    remedy = made.remedy
    assert made.vacuous and remedy.budget is None
    assert plan(**POOR | {"budget": LARGEST_BUDGET}).vacuous
    at_most = {**POOR, "budget": LARGEST_BUDGET, "beta": remedy.largest_beta}
    assert not plan(**at_most).vacuous and plan(**at_most | {"beta": 1.01 * remedy.largest_beta}).vacuous
    almost_none = {**POOR, "beta": 1e-12, "budget": remedy.budget_without_beta}
    assert not plan(**almost_none | {"budget": math.ceil(1.01 * remedy.budget_without_beta)}).vacuous
    assert plan(**almost_none | {"budget": math.floor(0.99 * remedy.budget_without_beta)}).vacuous


def test_nothing_helps_an_enormous_class() -> None:
    remedy = plan(**POOR | {"log_class_size": 1e9}).remedy
    assert (remedy.budget, remedy.budget_without_beta, remedy.largest_beta) == (None, None, None)


# Sensitivity


def elasticities(**changes) -> dict[str, float]:
    return {e.name: e.value for e in plan(**GIVEN | changes).sensitivity}


def test_elasticities_that_are_known() -> None:
    for changes in ({}, {"kappa0": 3.0}, POOR):
        found = elasticities(**changes)
        assert found["level"] == pytest.approx(-1, abs=1e-6)
        assert list(map(abs, found.values())) == sorted(map(abs, found.values()), reverse=True)
    # p = 1 and one round: C B sqrt(log(|Pi|/rho)/n)/(gamma delta) (1 + sqrt(kappa_0 - 1)), and next to no beta part.
    found = elasticities(min_confidence=1.0, max_rounds=1, beta=1e-12)
    b = math.log(1e6) + 5 + math.log(20)
    assert found["constant"] == pytest.approx(1, abs=1e-6)
    assert found["margin"] == pytest.approx(-1, abs=1e-6)
    assert found["beta"] == pytest.approx(0, abs=1e-6)
    assert found["kappa0"] == pytest.approx(1e4 / (2 * math.sqrt(9999) * (1 + math.sqrt(9999))), rel=1e-5)
    assert found["budget"] == pytest.approx(1 / b - 0.5, abs=1e-6)
    assert found["log_class_size"] == pytest.approx(5 / b + 2.5 / (5 + math.log(20)), abs=1e-6)
    assert found["failure_probability"] == pytest.approx(-1 / b - 0.5 / (5 + math.log(20)), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "step"), [("min_confidence", 1.0, -1e-3), ("kappa0", 1.0, 1e-3), ("budget", 1.0, 1e-3)]
)
def test_at_the_end_of_a_range_the_difference_is_one_sided(name: str, value: float, step: float) -> None:
    found = elasticities(**{name: value, "max_rounds": 1})[name]
    moved, held = total(1, **{name: value * math.exp(step)}), total(1, **{name: value})
    assert found == pytest.approx(math.log(moved / held) / step, rel=0.02, abs=1e-4)


def test_elasticities_of_a_linear_class() -> None:
    flat = plan(**LINEAR, dimension=29.0).sensitivity
    steep = plan(**LINEAR, eigenvalues=np.full(29, 1e12)).sensitivity
    assert {e.name for e in flat} >= {"dimension", "norm_bound", "budget"}
    assert {e.name: e.value for e in flat} == pytest.approx({e.name: e.value for e in steep}, abs=1e-5)


# A diagnosis


def test_the_cautious_ends_of_a_diagnosis_are_used() -> None:
    made = plan(diagnosis(), **CLASS, budget=1000)
    assert made.inputs.log_kappa0 == 2.0
    assert (made.inputs.min_confidence, made.inputs.margin) == (0.045, 0.28)
    assert (made.source.num_prompts, made.source.certified_share) == (24, 0.75)
    by_hand = plan(kappa0=math.exp(2.0), min_confidence=0.045, margin=0.28, **CLASS, budget=1000)
    assert by_hand.inputs == made.inputs and by_hand.sensitivity == made.sensitivity


def test_what_is_given_wins() -> None:
    made = plan(diagnosis(margin=None, log_kappa=[1.0, 1e5]), kappa0=2.0, margin=3.0, **CLASS, budget=1000)
    assert (made.inputs.log_kappa0, made.inputs.margin, made.inputs.min_confidence) == (math.log(2), 3.0, 0.045)


def test_forecasts_are_those_of_beta_and_of_the_escort_where_there_is_one() -> None:
    first, second, third, *_ = plan(diagnosis(), **CLASS, beta=0.5, budget=1000).splits
    assert (first.forecast.target, first.forecast.kappa.point, first.forecast.kappa.high) == ("escort", 1.5, None)
    assert (second.forecast.target, second.forecast.kappa.point) == ("clipped", 9.0)
    assert first.forecast.accuracy.low == 0.6 and second.forecast.accuracy is None and third.forecast is None
    assert all(s.forecast is None for s in plan(diagnosis(), **CLASS, beta=0.3, budget=1000).splits)


def test_rounds_with_a_beta_of_their_own() -> None:
    """The bound of the largest, the exponent of each, forecasts of the same betas; and no more rounds than betas."""
    betas = (2e-3, 5e-4, 1.0)
    made = plan(**GIVEN | {"beta": betas})
    assert [split.rounds for split in made.splits] == [1, 2, 3] and made.inputs.beta == betas
    for split in made.splits:
        assert split.guarantee.total == pytest.approx(total(split.rounds, beta=1.0))
        assert split.exponent == pytest.approx(math.prod(1 + 1 / beta for beta in betas[: split.rounds]))
    assert plan(**GIVEN | {"beta": [0.5]}) == plan(**GIVEN | {"beta": 0.5})
    known = diagnosis()
    row = known["forecast"]["rows"][0]
    known["forecast"]["rows"] += [row | {"beta": [0.7, 0.3], "rounds": 2, "target": "escort"}, row | {"beta": [0.7]}]
    one, two = plan(known, **CLASS, beta=(0.7, 0.3), budget=1000).splits
    assert (one.forecast.target, two.forecast.target) == ("clipped", "escort")
    assert all(split.forecast is None for split in plan(known, **CLASS, beta=(0.7, 0.4), budget=1000).splits[1:])
    same = plan(known, **CLASS, beta=(0.5, 0.5), budget=1000).splits
    assert [s.forecast for s in same] == [s.forecast for s in plan(known, **CLASS, beta=0.5, budget=1000).splits[:2]]


def test_a_file_is_as_good_as_what_is_in_it(tmp_path: Path) -> None:
    file = tmp_path / "diagnose.json"
    file.write_text(json.dumps(diagnosis()))
    made = plan(file, **CLASS, budget=1000)
    assert made.splits == plan(diagnosis(), **CLASS, budget=1000).splits
    assert made.source.name == str(file)


NO_DIAGNOSIS = ["", "[]", "3", "{}", '{"sequence": {}}', '{"sequence": {"log_kappa": 3, "min_confidence": [0, 1]}}']
NO_DIAGNOSIS += [json.dumps(diagnosis() | {"forecast": {"rows": [{"beta": 1}]}}), '{"prompt": "a"}\n{"prompt": "b"}']
NO_DIAGNOSIS += [json.dumps(diagnosis(log_kappa=["x", "y"])), json.dumps(diagnosis(min_confidence=[]))]
NO_DIAGNOSIS += [json.dumps(diagnosis(log_kappa=[1, 10**400]))]
NO_DIAGNOSIS += [json.dumps(diagnosis() | {"forecast": {"rows": [{"beta": 1, "rounds": 10**12}]}})]


@pytest.mark.parametrize("content", NO_DIAGNOSIS)
def test_a_file_that_is_no_diagnosis(tmp_path: Path, content: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    said = refusal(str(file), **CLASS, budget=1000)
    assert "other.json" in said and "give --diagnosis the diagnose.json" in said
    assert "nothing.json cannot be read" in refusal(tmp_path / "nothing.json", **CLASS, budget=1000)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"log_kappa": [2.0, 1401.0]}, "astronomically large"),
        ({"log_kappa": [2.0, None]}, "--kappa0 was not given"),
        ({"log_kappa": [-3.0, -2.0]}, "--log-kappa0"),
        ({"log_kappa": [2.0, math.nan]}, "--log-kappa0"),
        ({"margin": None}, "--margin was not given and the diagnosis does not know it"),
        ({"margin": [0.0, 1.0]}, "the margin of the diagnosis is 0.0, expected a number in (0, inf): give --margin"),
        ({"min_confidence": [0.0, 1.0]}, "give --min-confidence"),
        ({"min_confidence": None}, "--min-confidence was not given"),
    ],
)
def test_a_diagnosis_that_is_not_enough(facts, said: str) -> None:
    assert said in refusal(diagnosis(**facts), **CLASS, budget=1000)


# Bad input


def refusal(*words, **options) -> str:
    with pytest.raises(UserError) as error:
        plan(*words, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


BAD = {
    "kappa0": [0.5, math.nan, math.inf, "x", "3"],
    "margin": [0, -1, math.nan],
    "min_confidence": [0, 1.1],
    "beta": [0, -1, math.inf],
    "level": [0, 1, math.nan],
    "failure_probability": [0, 1],
    "budget": [0, 1.5, -3, 1e19, math.nan, [10, 20]],
    "max_rounds": [0, 2.5, 1e9],
    "constant": [0, math.inf],
    "log_class_size": [0, -1, math.inf],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD for value in BAD[name]])
def test_what_is_out_of_range_is_refused(name: str, value) -> None:
    said = refusal(**GIVEN | {name: value})
    option = f"--{name.replace('_', '-')}"
    assert option in said and "expected" in said


@pytest.mark.parametrize("name", ["kappa0", "margin", "min_confidence", "budget"])
def test_what_is_missing_is_named(name: str) -> None:
    said = refusal(**{key: value for key, value in GIVEN.items() if key != name})
    assert said.startswith(f"--{name.replace('_', '-')} was not given: give a number in ")


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ({}, "got none: give one of them"),
        ({"log_class_size": 5.0, "dimension": 4.0, "norm_bound": 1.0}, "got --log-class-size and --dimension"),
        ({"log_class_size": 5.0, "norm_bound": 1.0}, "--norm-bound does not go with --log-class-size"),
        ({"dimension": 4.0}, "--norm-bound is needed with --dimension"),
        ({"eigenvalues": [1.0]}, "--norm-bound is needed with --eigenvalues"),
        ({"eigenvalues": [1.0, -1.0], "norm_bound": 1.0}, "--eigenvalues is [1.0, -1.0], expected numbers in [0, inf)"),
        ({"eigenvalues": 3.0, "norm_bound": 1.0}, "--eigenvalues"),
        ({"eigenvalues": [], "norm_bound": 1.0}, "--eigenvalues are all 0 or none"),
        ({"eigenvalues": [0.0], "norm_bound": 1.0}, "--eigenvalues are all 0 or none"),
        ({"dimension": -4.0, "norm_bound": 1.0}, "--dimension is -4.0"),
        ({"dimension": 4.0, "norm_bound": 0.0}, "--norm-bound is 0.0"),
    ],
)
def test_the_class_has_one_size(size, said: str) -> None:
    assert said in refusal(**START, **REST, **size, budget=1000)


def test_beyond_the_floats_is_said() -> None:
    assert "beyond the range of floats" in refusal(**GIVEN | {"constant": 1e308, "log_class_size": 1e300})


# What a person sees


def shown(capsys, *words, **options) -> str:
    show(plan(*words, **options), Display(quiet=True))
    return capsys.readouterr().out


def test_the_verdict_comes_first(capsys) -> None:
    made = plan(**GIVEN)
    first, second, *rest = shown(capsys, **GIVEN).splitlines()
    assert (
        first == f"bound at the best split, T = 4 rounds of 250 000 prompts: failure <= {made.best.guarantee.total:.3g}"
    )
    assert second == f"one round of all 1 000 000 prompts: failure <= {total(1):.3g}"
    text = "\n".join(rest)
    assert "vacuous" not in text and "C = 0.05" in text and "by convention" not in rest[0]
    assert "forgotten after 3 rounds" in text
    row = next(line for line in rest if line.rstrip().endswith("best"))
    best = made.best.guarantee
    assert row.split()[0] == "4" and f"{best.stable_part:.3g}" in row and f"{best.total:.3g}" in row


def test_a_vacuous_bound_is_called_so(capsys) -> None:
    said = shown(capsys, **POOR)
    assert said.startswith("the bound is vacuous (74.2 >= 1) at any split of 10 000 prompts")
    assert "more than 1e18 prompts" in said and "beta below 0.045" in said and "C = 1, by convention" in said
    assert "says something from about 4.84e7 prompts on" in shown(capsys, **POOR, beta=0.01)
    said = shown(capsys, **POOR | {"log_class_size": 1e9})
    assert "more than 1e18 prompts to say something\n" in said
    poor_single = shown(capsys, **GIVEN | {"budget": 2e5})
    assert poor_single.startswith("bound") and "which is vacuous" in poor_single.splitlines()[1]


def test_forecasts_stand_beside_the_exact_trajectory(capsys) -> None:
    said = shown(capsys, diagnosis(), **CLASS, budget=1000, beta=0.5)
    assert "forecast κ_T" in said and "1.2 to ?  0.6 to 0.8" in said and "1.2 to ? (clipped)  " in said
    assert "from the diagnosis: the cautious ends on 24 prompts, 75 % of them certified" in said


# Files


def test_json_holds_the_plan(tmp_path: Path) -> None:
    made = plan(**GIVEN)
    keep(made, draw, output=tmp_path / "plan.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    saved = json.loads((tmp_path / "plan.json").read_text(), parse_constant=refuse)
    assert saved == made.to_dict()
    assert plan(**saved["inputs"]) == made
    assert saved["splits"][made.best_rounds - 1]["guarantee"]["total"] == made.best.guarantee.total
    assert saved["vacuous"] is False
    extreme = plan(**GIVEN | {"beta": 1e-9, "kappa0": 1e300}, max_rounds=40)
    assert extreme.splits[39].exponent == math.inf and extreme.to_dict()["splits"][39]["exponent"] is None


@pytest.mark.parametrize("given", [GIVEN, POOR, GIVEN | {"max_rounds": 1}])
def test_the_figure_is_xml_and_says_what_is_vacuous(tmp_path: Path, given) -> None:
    made = plan(**given)
    keep(made, draw, plot=tmp_path / "plan.svg")
    text = (tmp_path / "plan.svg").read_text(encoding="utf-8")
    words = {element.text for element in ElementTree.fromstring(text).iter() if element.text}
    assert {"vacuous", "bound", "stable part", "transient part", "β part", "rounds T"} <= words
    assert [path.name for path in tmp_path.iterdir()] == ["plan.svg"]


def test_the_figure_has_the_parts_against_rounds() -> None:
    from matplotlib.figure import Figure

    made, axes = plan(**GIVEN), Figure().subplots()
    draw(made, axes)
    bound = next(line for line in axes.lines if line.get_label() == "bound")
    assert list(bound.get_xdata()) == list(range(1, 65))
    assert list(bound.get_ydata()) == [split.guarantee.total for split in made.splits]
    floor = next(line for line in axes.lines if "one round" in line.get_label())
    assert set(floor.get_ydata()) == {made.lower_bound.failure}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    made, mine = plan(**GIVEN), tmp_path / "mine.svg"
    mine.write_text("mine")
    for files, said in [
        ({"plot": mine}, "choose another --plot"),
        ({"output": mine}, "choose another --output"),
        ({"plot": mine, "output": tmp_path / "new.json"}, "choose another --plot"),
        ({"plot": tmp_path / "a.svg", "output": tmp_path / "a.svg"}, "both"),
        ({"plot": tmp_path / "a.png"}, "ends in .svg"),
        ({"output": tmp_path / "none" / "a.json"}, "cannot be written"),
    ]:
        with pytest.raises(UserError, match=said):
            keep(made, draw, **files)
    assert mine.read_text() == "mine" and list(tmp_path.iterdir()) == [mine]


def test_the_command_is_the_function(tmp_path: Path) -> None:
    words = [word for name, value in GIVEN.items() for word in (f"--{name.replace('_', '-')}", value)]
    said = command(
        "plan", "--paper", *words, "--output", tmp_path / "plan.json", "--plot", tmp_path / "plan.svg", "--quiet"
    )
    assert said.code == 0 and not said.err and said.out.startswith("bound at the best split")
    assert json.loads((tmp_path / "plan.json").read_text()) == plan(**GIVEN).to_dict()
    assert (tmp_path / "plan.svg").exists()


def test_planning_is_light() -> None:
    code = "import sys, srlm; from srlm.planning.paper import plan\n"
    code += "given = dict(kappa0=2, margin=1, log_class_size=2, budget=9)\n"
    code += "plan(**given, min_confidence=.5), srlm.plan(**given, failure=.1)\n"
    code += "print([m for m in ('torch', 'transformers', 'pyarrow', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
