"""How many prompts and rounds for which failure: by direct calls of the theory, by hand, and on a screen."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import binom
from support import command

import srlm
from srlm import UserError
from srlm.console import Display
from srlm.planning import LARGEST_BUDGET, draw, keep, plan, show
from srlm.planning.words import at_most, complement, count
from srlm.theory import (
    anchored_exponent,
    anchored_failure_bound,
    anchored_rounds_bound,
    covering_log_size,
    sharpened_failure_bound,
    sharpening_exponent,
    worst_case_failure,
    worst_case_instance,
)

GIVEN = {"kappa0": 30.0, "margin": 2.5, "log_class_size": 20.0, "budget": 2e5, "failure": 0.1}
RHO = 0.05


def diagnosis(failing: tuple[float, ...] = (0.5, 0.25, 0.0), prompts: int = 48, **facts) -> dict:
    sequence = {"log_kappa": [1.5, 2.0], "min_confidence": [0.045, 0.06], "margin": [0.28, 0.4]}
    sequence |= {"num_prompts": prompts, "certified_share": 1.0} | facts
    interval = {"low": 1.2, "point": 1.3, "high": 1.4}
    rows = [
        {"beta": 1.0, "rounds": t, "target": target, "kappa": interval, "accuracy": None,
         "failure": {"low": 0.0, "point": 0.0, "high": high}}
        for t, high in enumerate(failing, 1)
        for target in ("clipped", "escort")
    ]  # fmt: skip
    return {"sequence": sequence, "forecast": {"rows": rows}, "labels": {"mode_wrong": [0.3, 0.4]}}


# By the theory


def sample(prompts: float, rounds: int | None = None, rho: float = RHO, **changes) -> float:
    given = {name: (GIVEN | changes)[name] for name in ("kappa0", "margin", "log_class_size")}
    common = {"failure_probability": rho, "samples_per_prompt": 8}
    if rounds is None:
        kappa, _, size = given.values()
        return anchored_failure_bound(num_samples=prompts, log_class_size=size, log_condition=math.log(kappa), **common)
    return anchored_rounds_bound(num_samples=prompts / rounds, rounds=rounds, beta=1.0, **given, **common)


def test_a_row_is_the_anchored_bound_and_what_an_exact_update_leaves() -> None:
    made = plan(**GIVEN, max_rounds=9)
    assert [row.rounds for row in made.rows] == list(range(1, 10))
    for row in made.rows:
        t = row.rounds
        alpha = sharpening_exponent(1.0, t)
        assert row.exponent == pytest.approx(alpha) and row.one_beta == pytest.approx(1 / (alpha - 1))
        target = min(sharpened_failure_bound(30.0, 2.5, alpha, 0.5), 1.0)
        assert row.one.target.failure == pytest.approx(target, abs=1e-300) and row.one.target.failing is None
        assert row.one.sample == pytest.approx(sample(2e5))
        assert row.one.failure == pytest.approx(sample(2e5) + target)
        several = min(sharpened_failure_bound(30.0, 2.5, anchored_exponent(1.0, t), 0.5), 1.0)
        assert row.several.failure == pytest.approx(sample(2e5, t) + several)
        assert row.several.failure >= row.one.failure * (1 - 1e-12)
    assert made.rows[0].one.failure == pytest.approx(made.rows[0].several.failure)


@pytest.mark.parametrize("changes", [{}, {"failure": 0.02}, {"kappa0": 3.0, "failure": 0.3}, {"kappa0": 1.0}])
def test_the_least_number_of_prompts_is_the_threshold(changes) -> None:
    made = plan(**GIVEN | changes, max_rounds=6)
    asked = (GIVEN | changes)["failure"]
    several = 0
    for row in made.rows:
        if row.one.needed is None:
            assert row.one.target.failure >= asked
        else:
            rest = asked - row.one.target.failure
            assert sample(row.one.needed, **changes) <= rest < sample(row.one.needed - 1, **changes)
        if row.several.needed is not None:
            rest = asked - row.several.target.failure
            assert row.several.needed % row.rounds == 0
            assert sample(row.several.needed, row.rounds, **changes) <= rest
            assert sample(row.several.needed - row.rounds, row.rounds, **changes) > rest
            several += row.rounds > 1
    assert several
    fewest = min(row.one.needed for row in made.rows if row.one.needed is not None)
    assert made.row(made.needed_rounds).one.needed <= 1.01 * fewest
    assert made.row(made.best_rounds).one.failure <= 1.01 * min(row.one.failure for row in made.rows)
    enough = plan(**GIVEN | changes | {"budget": made.row(made.needed_rounds).one.needed}, max_rounds=6)
    assert enough.row(enough.best_rounds).one.failure <= asked + 1e-12


def test_no_more_rounds_than_prompts_or_betas() -> None:
    assert len(plan(**GIVEN | {"budget": 3}).rows) == 3
    made = plan(**GIVEN, beta=(0.5, 2.0))
    assert [row.exponent for row in made.rows] == pytest.approx([3.0, 4.5])
    assert made.rows[1].one_beta == pytest.approx(1 / 3.5)


def test_a_linear_class_by_its_net() -> None:
    made = plan(kappa0=30.0, margin=2.5, dimension=10.0, norm_bound=2.0, budget=1e6, failure=0.1)
    for row in made.rows:
        size = covering_log_size(10.0, 2.0, 1e-6)
        assert row.one.sample == pytest.approx(sample(1e6, log_class_size=size)) and row.several is None
    needed = made.row(made.needed_rounds).one.needed
    rest = 0.1 - made.row(made.needed_rounds).one.target.failure
    assert sample(needed, log_class_size=covering_log_size(10.0, 2.0, 1 / needed)) <= rest
    assert sample(needed - 1, log_class_size=covering_log_size(10.0, 2.0, 1 / (needed - 1))) > rest
    assert made.floor is None


def test_what_nobody_is_below() -> None:
    made = plan(**GIVEN | {"log_class_size": 40.0})
    d = made.floor.hard_prompts
    assert made.floor.one == pytest.approx(worst_case_failure(200_000, 30.0, d, 8))
    assert made.floor.any <= made.floor.one < made.row(made.best_rounds).one.failure
    assert plan(**GIVEN | {"kappa0": None, "log_kappa0": 1000.0}).floor is None


def test_a_policy_may_hedge_at_levels_above_one_half() -> None:
    """At delta = .9 a prompt passes with more than .1 on its label: nine guesses, and not one. On the worst start
    that is .0005 failures, with a standard error of 4e-5, where one guess has .030."""
    given = {"kappa0": 1.5, "margin": 0.5, "log_class_size": 30.0, "num_samples": 1, "budget": 1000}
    floors = [plan(**given, level=level).floor for level in (0.3, 0.5, 0.51, 0.9)]
    assert floors[0] == floors[1] is not None and floors[2:] == [None, None]
    start = worst_case_instance(1000, 1.5, floors[1].hard_prompts)
    draws = np.random.default_rng(0)
    share, labels = start.informative_mass / start.num_prompts, start.num_labels
    left = np.array(
        [labels - len(set(draws.integers(labels, size=visits))) for visits in draws.binomial(1000, share, size=2000)]
    )
    hedged = start.informative_mass * np.maximum(left - 9, 0) / labels  # the key is any of those not drawn
    assert hedged.mean() + 6 * hedged.std() / math.sqrt(2000) < floors[1].one


# From a diagnosis


def test_the_target_is_what_the_diagnosis_forecasts_of_prompts_like_its_own() -> None:
    made = plan(diagnosis(), log_class_size=20.0, budget=1e6, failure=0.3)
    assert [row.one.target.failing for row in made.rows[:3]] == [24, 12, 0]
    for row, failing in zip(made.rows[:3], (24, 12, 0), strict=True):
        most = row.one.target.failure  # at which so few or fewer have probability rho/2
        assert binom.cdf(failing, 48, most) == pytest.approx(RHO / 2)
        assert row.one.sample == pytest.approx(sample(1e6, rho=RHO / 2, kappa0=math.exp(2.0)))
    # What is certain of the first round's odds is so of all rounds, and of more of them.
    assert [row.several.target for row in made.rows[:8]] == [made.rows[0].one.target] * 8
    assert {row.one.target for row in made.rows[2:]} == {made.rows[2].one.target}
    no_margin = {"num_samples": 1e6 / 2, "rounds": 2, "beta": 1.0, "margin": 1e-12, "log_class_size": 20.0}
    expected = anchored_rounds_bound(**no_margin, failure_probability=RHO / 2, samples_per_prompt=8, log_kappa0=2.0)
    assert made.rows[1].several.sample == pytest.approx(expected)
    assert made.mode_wrong == (0.3, 0.4) and made.needed_rounds == 3


def test_the_margin_of_a_diagnosis_is_that_of_its_prompts_only() -> None:
    assert plan(diagnosis(margin=[9.0, 9.5]), log_class_size=20.0, budget=1e6).inputs.margin is None
    given = plan(diagnosis(), kappa0=2.0, margin=9.0, log_class_size=20.0, budget=1e6)
    assert given.rows[0].one.target.failing is None
    # A diagnosis that says too little has probability RHO/2, and decides which target is taken.
    assert {row.one.target.sample_probability for row in given.rows} == {RHO / 2}
    assert given.rows[0].one.sample == pytest.approx(sample(1e6, rho=RHO / 2, kappa0=2.0))
    alone = plan(diagnosis(), kappa0=2.0, margin=9.0, log_class_size=20.0, budget=1e6, level=0.4)
    assert {row.one.target.sample_probability for row in alone.rows} == {RHO}


def test_a_forecast_of_less_sharpening_is_none_the_less_one() -> None:
    """Failure falls with alpha: of beta = .3 (4.33) the forecast is that of two rounds at beta = 1 (4)."""
    made = plan(diagnosis(), log_class_size=20.0, budget=1e6, beta=0.3)
    assert made.rows[0].one.target.failing == 12 and made.rows[1].one.target.failing == 0
    for changes in ({"level": 0.4}, {"beta": 2.0}):
        rows = plan(diagnosis(), log_class_size=20.0, budget=1e6, margin=0.1, **changes).rows
        assert rows[0].one.target.failing is None
        said = refusal(diagnosis(), log_class_size=20, budget=9, **changes, max_rounds=1)
        assert "--margin was not given and the diagnosis has no forecast for this beta and level" in said


def test_an_old_diagnosis_has_no_forecast_of_failure() -> None:
    old = diagnosis()
    for row in old["forecast"]["rows"]:
        del row["failure"]
    assert "--margin was not given" in refusal(old, log_class_size=20.0, budget=9)


def test_prompts_that_a_diagnosis_left_out_may_all_fail(capsys) -> None:
    made = plan(diagnosis((0.125,), prompts=8) | {"broken": 40}, log_class_size=20.0, budget=1e6, failure=0.1)
    assert made.rows[0].one.target.failing == 41
    assert binom.cdf(41, 48, made.rows[0].one.target.failure) == pytest.approx(RHO / 2)
    text = " ".join(shown(capsys, made).split())
    assert "of 48 diagnosed prompts at most 41 fail after the exact update (40 were left out, and count as fail" in text
    assert "41 of 48 diagnosed prompts may fail after 1 exact rounds (a mode that is not certified, or near a" in text
    assert "near a tie; log-probs of 40 are not numbers)" in text
    for odd in (diagnosis() | {"broken": -1}, diagnosis(num_prompts="many")):
        assert "is not a diagnosis" in refusal(odd, log_class_size=20.0, budget=9)


def test_copies_of_a_prompt_count_once(capsys) -> None:
    made = plan(diagnosis((0.5, 0.125, 0.0)) | {"distinct": 8}, log_class_size=20.0, budget=1e6)
    assert [row.one.target.failing for row in made.rows[:3]] == [8, 6, 0]  # 24 and 6 of 48 may be of so many
    assert binom.cdf(6, 8, made.rows[1].one.target.failure) == pytest.approx(RHO / 2)
    assert "of 8 different diagnosed prompts at most 0 fail" in " ".join(shown(capsys, made).split())


# Where no number is enough


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"failure": 0.05}, "none of 48 diagnosed prompts fails after 3 exact rounds"),
        ({"failure": 0.05, "failing": (0.5, 0.25)}, "12 of 48 diagnosed prompts may fail after 2 exact rounds"),
        ({"failure": 0.2, "log_class_size": 1e17}, "the sample needs more than 1e18"),
    ],
)
def test_why_no_number_of_prompts_is_enough(capsys, given, said: str) -> None:
    given = {"log_class_size": 20.0, "max_rounds": 5} | given
    known = diagnosis(given.pop("failing", (0.5, 0.25, 0.0)))
    made = plan(known, **given)
    assert made.needed_rounds is None and made.vacuous and all(row.one.needed is None for row in made.rows)
    text = " ".join(shown(capsys, made).split())
    assert text.startswith(f"no number of prompts is sure of failure <= {given['failure']:g}:") and said in text


def test_a_target_of_kappa_and_margin_that_is_too_large_is_named(capsys) -> None:
    text = " ".join(shown(capsys, plan(**GIVEN | {"margin": 0.1, "budget": None}, max_rounds=3)).split())
    assert "3 exact rounds may leave 1, from kappa_0 and margin: a smaller --beta or more --max-rounds" in text


# Bad input


def refusal(*words, **options) -> str:
    with pytest.raises(UserError) as error:
        plan(*words, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


BAD = {
    "kappa0": [0.5, math.nan, math.inf, "x"],
    "margin": [0, -1, math.nan],
    "beta": [0, -1, math.inf],
    "level": [0, 1],
    "failure_probability": [0, 1],
    "budget": [0, 1.5, 1e19, math.nan],
    "failure": [0, 1, -0.1, math.nan, "x", [0.1]],
    "num_samples": [0, 1.5, 1e7],
    "max_rounds": [0, 2.5, 1e9],
    "log_class_size": [0, -1, math.inf],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD for value in BAD[name]])
def test_what_is_out_of_range_is_refused(name: str, value) -> None:
    said = refusal(**GIVEN | {name: value})
    assert f"--{name.replace('_', '-')}" in said and "expected" in said


@pytest.mark.parametrize("name", ["kappa0", "margin"])
def test_what_is_missing_is_named(name: str) -> None:
    said = refusal(**{key: value for key, value in GIVEN.items() if key != name})
    assert said.startswith(f"--{name} was not given: give a number in ")


def test_a_budget_or_a_failure_is_asked_for_and_a_class() -> None:
    rest = {"kappa0": 3.0, "margin": 1.0}
    assert refusal(**rest, log_class_size=3.0).startswith("--budget was not given: give a number in [1, 1e+18], or a")
    assert "one of --log-class-size and --dimension, got none" in refusal(**rest, budget=9)
    assert "--norm-bound is needed with --dimension" in refusal(**rest, budget=9, dimension=3.0)


# On a screen


def shown(capsys, made) -> str:
    show(made, Display(quiet=True))
    return capsys.readouterr().out


SCREENS = [GIVEN, GIVEN | {"failure": None}, GIVEN | {"budget": None}, GIVEN | {"margin": 0.1, "failure": 0.01}]
SCREENS += [GIVEN | {"kappa0": None, "log_kappa0": 1e3, "budget": LARGEST_BUDGET, "failure": 1e-9}]
SCREENS += [
    {"diagnosis": diagnosis(), "log_class_size": 40.0, "budget": 1e17, "failure": failure} for failure in (0.01, 0.3)
]
SCREENS += [{"diagnosis": diagnosis(margin=None), "dimension": 1e6, "norm_bound": 9.0, "budget": 1e3, "failure": 0.2}]


@pytest.mark.parametrize("given", SCREENS)
def test_the_answer_is_one_screen(capsys, given) -> None:
    lines = shown(capsys, plan(**given)).splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    text = " ".join(" ".join(lines).split())
    assert "proved, no constant" in text and "training stops short" in text and "--paper" in text


def test_what_is_asked_for_leads(capsys) -> None:
    made = plan(**GIVEN)
    row = made.row(made.needed_rounds)
    several = min(row.several.needed for row in made.rows if row.rounds > 1 and row.several.needed)
    said = shown(capsys, made)
    text = " ".join(said.split())
    needed, more = (f"{value:,.0f}".replace(",", " ") for value in (row.one.needed, several))
    assert text.startswith(f"failure <= 0.1 with probability 0.95: {needed} prompts one round, 8 responses each, beta")
    assert f"(as {row.rounds} exact ones); or {more} in" in text
    assert (
        f"failure <= {at_most(made.row(made.best_rounds).one.failure)} with probability 0.95: 200 000 prompts" in said
    )
    cells = next(line for line in said.splitlines() if line.startswith(f"{row.rounds}  ")).split()
    assert at_most(row.one.failure) in cells and at_most(row.several.failure) in cells
    poor = " ".join(shown(capsys, plan(**GIVEN | {"budget": 10, "failure": None})).split())
    assert poor.startswith("10 prompts promise nothing (") and "it takes more prompts" in poor
    assert "from every such start nobody promises less than" in text and "mode is wrong" not in text


def test_what_a_diagnosis_knows_is_said(capsys) -> None:
    text = " ".join(shown(capsys, plan(diagnosis(), log_class_size=20.0, budget=1e6)).split())
    assert "of 48 diagnosed prompts at most 0 fail after the exact update, so of others at most 0.074: for" in text
    assert "for each T by itself, less surely for one chosen by them" in text
    assert "their kappa_0 = 7.39 is taken for all" in text
    assert "the mode is wrong on 30 to 40 % of the diagnosed prompts" in text


# Files


def test_json_holds_the_plan(tmp_path: Path) -> None:
    made = plan(diagnosis(), log_class_size=20.0, budget=1e6, failure=0.3, beta=1.0)
    keep(made, draw, output=tmp_path / "plan.json")
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert saved == made.to_dict() and saved["vacuous"] is False
    assert plan(diagnosis(), **saved["inputs"]) == made
    extreme = plan(**GIVEN | {"beta": 1e-9, "kappa0": 1e300})
    assert extreme.rows[39].exponent == math.inf and extreme.to_dict()["rows"][39]["exponent"] is None
    assert extreme.rows[39].one_beta == 0


@pytest.mark.parametrize("given", SCREENS)
def test_the_figure_is_xml(tmp_path: Path, given) -> None:
    made = plan(**given)
    keep(made, draw, plot=tmp_path / "plan.svg")
    words = {each.text for each in ElementTree.fromstring((tmp_path / "plan.svg").read_text()).iter() if each.text}
    assert {"nothing promised", "prompts N, one round", "failure at most"} <= words
    assert ("asked for" in words) == (made.inputs.failure is not None)


def test_the_figure_has_the_promise_against_prompts() -> None:
    from matplotlib.figure import Figure

    made, axes = plan(**GIVEN), Figure().subplots()
    draw(made, axes)
    line = next(line for line in axes.lines if str(line.get_label()).startswith("T = 3"))
    for n, failure in zip(line.get_xdata(), line.get_ydata(), strict=True):
        assert failure == pytest.approx(sample(n) + made.row(3).one.target.failure)
    assert np.ptp(np.log10(line.get_xdata())) == pytest.approx(6, abs=0.1)


def test_the_command_is_the_function(tmp_path: Path) -> None:
    words = [word for name, value in GIVEN.items() for word in (f"--{name.replace('_', '-')}", value)]
    said = command("plan", *words, "--output", tmp_path / "plan.json", "--plot", tmp_path / "plan.svg", "--quiet")
    assert said.code == 0 and not said.err and said.out.startswith("failure <= 0.1 with probability 0.95: ")
    assert json.loads((tmp_path / "plan.json").read_text()) == srlm.plan(**GIVEN).to_dict()
    assert (tmp_path / "plan.svg").exists()


def test_a_failure_to_reach_does_not_change_what_the_budget_promises() -> None:
    known = {"kappa0": 7.39, "margin": 4.2857, "log_class_size": 2.0, "max_rounds": 3}
    alone = plan(diagnosis((0.0, 0.0, 0.0)), **known, budget=1e9)
    both = plan(diagnosis((0.0, 0.0, 0.0)), **known, budget=1e9, failure=0.3)
    needed = plan(diagnosis((0.0, 0.0, 0.0)), **known, failure=0.3)
    assert [row.one.failure for row in both.rows] == [row.one.failure for row in alone.rows]
    assert [row.one.needed for row in both.rows] == [row.one.needed for row in needed.rows]
    assert both.best_rounds == alone.best_rounds and both.needed_rounds == needed.needed_rounds


# What readers found


def test_rounds_of_which_nothing_is_known_promise_nothing(capsys) -> None:
    """No forecast is of so little sharpening as the first round of beta 4 does."""
    made = plan(diagnosis(), log_class_size=20.0, budget=1e6, beta=4.0)
    assert made.rows and all(row.several is None for row in made.rows)
    assert "–" in shown(capsys, made)


def test_rounds_without_a_margin_err_each_like_one_at_any_beta() -> None:
    row = plan(diagnosis(), log_class_size=20.0, budget=1e6, beta=0.01, max_rounds=200).rows[199]
    rho, size = row.several.target.sample_probability, 20.0 + math.log(200)
    one = anchored_failure_bound(
        num_samples=1e6 / 200, log_class_size=size, failure_probability=rho, samples_per_prompt=8, log_condition=2.0
    )
    assert row.several.sample == pytest.approx(200 * one, rel=1e-12)


def test_what_rounds_take_for_granted_is_said(capsys) -> None:
    said = " ".join(shown(capsys, plan(**GIVEN)).split())
    assert "in T rounds: of what was learned, on fresh prompts, --prompts-per-round" in said
    assert "kappa_0 = 30, as given" in said and "taken for all" not in said


def test_prompts_that_were_left_out_are_said_beside_a_margin(capsys) -> None:
    known = {name: GIVEN[name] for name in ("margin", "log_class_size", "failure")}
    said = " ".join(shown(capsys, plan(diagnosis((0.125,), prompts=8) | {"broken": 40}, **known)).split())
    assert "of 8 diagnosed prompts (40 more were left out) is taken for all" in said
    own = " ".join(shown(capsys, plan(diagnosis(), kappa0=200.0, log_class_size=20.0, budget=1e6)).split())
    assert "kappa_0 = 200, as given" in own and "their" not in own


def test_a_bound_is_never_printed_below_itself(capsys) -> None:
    made = plan(kappa0=30.0, margin=2.5, log_class_size=20.0, budget=1.06e8)
    best = made.row(made.best_rounds).one.failure
    shown_failure = float(shown(capsys, made).partition("failure <= ")[2].split()[0])
    assert best <= shown_failure <= 1.01 * best and f"{best:.3g}" != f"{shown_failure:.3g}"
    assert [at_most(v) for v in (0.0010024, 0.1, 1.0, 0.0, 12345.0)] == ["0.00101", "0.1", "1", "0", "1.24e4"]
    assert count(123_456_789.0, up=True) == "1.24e8" and count(123_456_789.0) == "1.23e8"


def test_nothing_has_probability_1(capsys) -> None:
    said = shown(capsys, plan(**GIVEN, failure_probability=1e-4))
    assert "with probability 0.9999:" in said and "with probability 1:" not in said
    assert complement(1e-12) == "0.999999999999"
    with pytest.raises(UserError, match="--failure-probability"):
        plan(**GIVEN, failure_probability=1e-17)
