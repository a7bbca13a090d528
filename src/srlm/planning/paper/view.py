"""A plan by the paper's bound as lines on a terminal, and as a figure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from srlm.console import Display
from srlm.planning.diagnosis import Bracket, Forecast
from srlm.planning.inputs import LARGEST_BUDGET
from srlm.planning.paper.consequences import RESPONSES
from srlm.planning.paper.result import Inputs, Plan, Remedy
from srlm.planning.words import complement, count, kappa, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987)


def show(made: Plan, display: Display) -> None:
    """The verdict, a table of splits, elasticities, and what is proved."""
    changes = ", ".join(f"{e.name.replace('_', ' ')} {e.value:+.2f}" for e in made.sensitivity)
    sensitivity = ["1 % more of an input changes the bound at the best split by so many %:", f"  {changes}"]
    for line in (*_verdict(made), "", *_table(made), "", *sensitivity, "", *(f"- {line}" for line in _proved(made))):
        display.say(line)


def _verdict(made: Plan) -> list[str]:
    best, given, remedy = made.best, made.inputs, made.remedy
    total = best.guarantee.total
    plural = "s" if best.rounds > 1 else ""
    split = f"T = {best.rounds} round{plural} of {count(best.num_samples)} prompts"
    forget = made.iterations_to_forget
    lines = []
    if remedy is None:
        lines.append(f"bound at the best split, {split}: failure <= {short(total)}")
        one = made.splits[0].guarantee
        if best.rounds > 1:
            empty = ", which is vacuous" if one.vacuous else ""
            lines.append(f"one round of all {count(given.budget)} prompts: failure <= {short(one.total)}{empty}")
    else:
        lines.append(
            f"the bound is vacuous ({short(total)} >= 1) at any split of {count(given.budget)} prompts (the best: "
            f"{split})"
        )
        lines.append(_advice(remedy, given))
    if made.best_rounds_iterated != made.best_rounds:
        value = made.splits[made.best_rounds_iterated - 1].guarantee.iterated_total
        lines.append(
            f"by its recursion, sharper but not taken apart, T = {made.best_rounds_iterated} is best: failure <= "
            f"{short(value)}"
        )
    lines.append(
        f"failure: the share of prompts whose mode has probability <= {complement(given.level)}; the bound holds with "
        f"probability {complement(given.failure_probability)}, up to its constant (C = {short(given.constant)}"
        f"{', by convention' if given.constant == 1 else ''})"
    )
    if math.log(best.guarantee.kappa_infinity) < given.log_kappa0:
        lines.append(
            f"the start (kappa_0 = {kappa(given.log_kappa0)}) is forgotten after {forget} round{'s' * (forget > 1)} "
            f"(contraction {short(best.guarantee.contraction)} a round, towards kappa = "
            f"{short(best.guarantee.kappa_infinity)})"
        )
    else:
        lines.append(
            f"no start to forget: kappa_0 = {kappa(given.log_kappa0)} is not above the limit of the bound's "
            f"recursion, kappa = {short(best.guarantee.kappa_infinity)}"
        )
    lower = made.lower_bound
    lines.append(f"one round cannot do better than about {short(lower.failure)} in the worst case (up to a constant)")
    if lower.hard_failure is not None:
        lines.append(
            f"and on some start with this kappa_0 in a class of this size, {short(lower.hard_failure)} exactly "
            f"({RESPONSES} responses a prompt, margin near 0, {lower.hard_prompts} informative prompts)"
        )
    return lines


def _advice(remedy: Remedy, given: Inputs) -> str:
    if remedy.budget is not None:
        return f"it says something from about {count(remedy.budget)} prompts on"
    if remedy.budget_without_beta is None:
        return f"it would take more than {count(LARGEST_BUDGET)} prompts to say something"
    return (
        f"it would take more than {count(LARGEST_BUDGET)} prompts to say something, because of the part with beta = "
        f"{short(given.largest_beta)}: it needs beta below {short(remedy.largest_beta or 0)}, and with beta near 0 "
        f"about {count(remedy.budget_without_beta)} prompts"
    )


def _table(made: Plan) -> list[str]:
    """Lines, not a rich table: that would cut cells off where the terminal is narrow."""
    forecast = any(split.forecast is not None for split in made.splits)
    headings = ["T", "n", "factor", "stable", "transient", "β part", "total", "exact κ_T ≤"]
    rows = [headings + ["forecast κ_T", "accuracy"] * forecast + [""]]
    chosen = {*SHOWN, made.best_rounds, made.best_rounds_iterated, len(made.splits)}
    for split in made.splits:
        if split.rounds not in chosen:
            continue
        g = split.guarantee
        parts = (g.statistical_factor, g.stable_part, g.transient_part, g.beta_part, g.total)
        cells = [str(split.rounds), count(split.num_samples), *map(short, parts), kappa(split.exact_log_kappa)]
        beside = _forecast_cells(split.forecast) if forecast else []
        rows.append([*cells, *beside, "best" if split is made.best else ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _forecast_cells(forecast: Forecast | None) -> list[str]:
    if forecast is None:
        return ["–", "–"]
    target = "" if forecast.target == "escort" else f" ({forecast.target})"
    return [_range(forecast.kappa) + target, "–" if forecast.accuracy is None else _range(forecast.accuracy)]


def _range(bracket: Bracket) -> str:
    low, high = ("?" if end is None else short(end) for end in (bracket.low, bracket.high))
    return f"{low} to {high}"


def _proved(made: Plan) -> list[str]:
    inputs, linear = made.inputs, made.inputs.norm_bound is not None
    lines = [
        f"total = stable + transient + β part: the shape of Thm {'6.2' if linear else '5.3'}, up to C, and no theorem "
        "for a realizable class alone: the learned policy must also have its mass where samples come from "
        "(srlm verify concentrability); fresh prompts in every round",
        f"margin and min-confidence must hold in every round: kappa_1 <= 1/p = {short(1 / inputs.min_confidence)} "
        "is assumed of the first round, not shown, and on the worst start more rounds do not forget it "
        "(srlm verify rounds-lower-bound)",
        f"the class must hold pi_0^alpha_t for all t <= T; alpha_T is {short(made.best.exponent)} at T = "
        f"{made.best_rounds}"
        + (", and norm-bound must be at least so many times the norm of the start's parameters" if linear else ""),
        "exact κ_T: proved with no constant, for a realizable class and infinite samples, if the margin holds at the "
        "start on every prompt; not a bound for a sampled run",
        "the single round's bound (Thm 4.1) has a constant of its own (c = 1 by convention)",
        "a bound that falls with T is not a forecast that rounds pay: where self-rewards are exact, one round was not "
        "beaten (srlm verify single-vs-iterated)",
    ]
    if isinstance(made.inputs.beta, tuple):
        lines.append("every round has its own beta: the bound takes the largest, exact κ_T and forecasts take each")
    if made.source is not None:
        source = made.source
        share = "" if source.certified_share is None else f", {100 * source.certified_share:.0f} % of them certified"
        prompts = "its prompts" if source.num_prompts is None else f"{source.num_prompts} prompts"
        lines.append(f"from {source.name}: the cautious ends on {prompts}{share}; other prompts may be worse")
    return lines


def draw(made: Plan, axes: Axes) -> None:
    """The bound and its parts against T, on logarithmic axes."""
    rounds = [split.rounds for split in made.splits]
    series = {
        "bound": "total",
        "stable part": "stable_part",
        "transient part": "transient_part",
        "β part": "beta_part",
    }
    for label, name in series.items():
        values = [getattr(split.guarantee, name) for split in made.splits]
        axes.plot(rounds, values, label=label, marker="." if len(rounds) == 1 else None, lw=2 if name == "total" else 1)
    total = [split.guarantee.total for split in made.splits]
    floor = made.lower_bound.failure
    axes.axhline(floor, color="black", ls="--", lw=1, label="one round at least (up to a constant)")
    axes.plot(made.best_rounds, made.best.guarantee.total, "o", color="C0", label=f"best: T = {made.best_rounds}")
    bottom, top = min(*total, floor) / 30, 3 * max(*total, 3.0)
    axes.axhspan(1, top, color="grey", alpha=0.15, lw=0)
    axes.text(0.99, 1.1, "vacuous", transform=axes.get_yaxis_transform(), ha="right", va="bottom", color="dimgrey")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(yscale="log", ylim=(bottom, top), xlabel="rounds T", ylabel="failure")
    axes.set_title(f"{count(made.inputs.budget)} prompts in T rounds, C = {short(made.inputs.constant)}", fontsize=10)
    axes.figure.legend(loc="outside lower center", ncols=3, fontsize=8)
