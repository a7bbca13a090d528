"""A plan as one screen of a terminal, and as a figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from srlm.console import Display
from srlm.planning.anchored import promises
from srlm.planning.diagnosis import Source
from srlm.planning.inputs import LARGEST_BUDGET
from srlm.planning.result import Plan, Promise, Row, Target
from srlm.planning.words import at_most, complement, count, kappa, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = (1, 2, 3, 8)
WIDTH = 100


def show(made: Plan, display: Display) -> None:
    """What is promised or needed, a table over T, and what it rests on: 24 lines of 100 columns at most."""
    verdict = (line for part in _verdict(made) for line in _wrapped(part, "  " * part.startswith(" ")))
    grounds = (line for part in _grounds(made) for line in _wrapped(f"- {part}", "  "))
    for line in (*verdict, "", *_table(made), "", *grounds):
        display.say(line)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _verdict(made: Plan) -> list[str]:
    lines, given = [], made.inputs
    sure = f"with probability {complement(given.failure_probability)}"
    if given.failure is not None:
        asked = f"failure <= {short(given.failure)}"
        if made.needed_rounds is None:
            lines += [f"no number of prompts is sure of {asked}:", f"  {_why_not(made, given.failure)}"]
        else:
            row = made.row(made.needed_rounds)
            lines.append(f"{asked} {sure}: {count(row.one.needed or 0, up=True)} prompts")
            lines.append(f"  {_way(made, row)}{_several_need(made, row)}")
    if made.best_rounds is not None:
        row = made.row(made.best_rounds)
        assert row.one.sample is not None and row.one.failure is not None
        prompts = f"{count(given.budget or 0)} prompts"
        parts = f"sample {short(row.one.sample)} + target {short(row.one.target.failure)}"
        if row.one.failure < 1:
            lines.append(f"failure <= {at_most(row.one.failure)} {sure}: {prompts}")
        else:
            lines.append(f"{prompts} promise nothing ({short(row.one.failure)} >= 1)")
            enough = "more prompts" if row.one.sample > row.one.target.failure else "a smaller beta or a sharper start"
            parts += f": it takes {enough}"
        lines += [f"  {_way(made, row)}", f"  {parts}"]
    least = complement(given.level) + ("" if given.log_class_size is not None else " e^(-2/n)")
    lines.append(f"failure: the share of prompts where the start's mode has probability <= {least} after")
    return lines


def _way(made: Plan, row: Row) -> str:
    draws = made.inputs.num_samples
    same = "" if row.rounds == 1 else f" (as {row.rounds} exact ones)"
    return f"one round, {draws} response{'s' * (draws > 1)} each, beta {short(row.one_beta)}{same}"


def _several_need(made: Plan, row: Row) -> str:
    """What the same takes in rounds at the beta given: the T of the fewest prompts."""
    known = [each.several for each in made.rows if each.rounds > 1 and each.several is not None]
    needed = [(promise.needed, promise) for promise in known if promise.needed is not None]
    if row.rounds == 1 or not known:
        return ""
    if not needed:
        return f"; in rounds at {_beta_given(made)} it cannot be shown"
    least = min(value for value, _ in needed)
    rounds = next(each.rounds for each in made.rows if each.several is not None and each.several.needed == least)
    return f"; or {count(least, up=True)} in {rounds} rounds at {_beta_given(made)}"


def _beta_given(made: Plan) -> str:
    return f"beta {short(made.inputs.beta)}" if isinstance(made.inputs.beta, float) else "the betas given"


def _why_not(made: Plan, asked: float) -> str:
    """What stands in the way, and what would help."""
    row = min(made.rows, key=lambda row: row.one.target.failure)
    if row.one.target.failing is None:
        row = made.rows[-1]
    target = row.one.target
    if target.failure < asked:
        return f"the sample needs more than {count(LARGEST_BUDGET)}: kappa_0 or the class is too large"
    if target.failing is None:
        return (
            f"{row.rounds} exact rounds may leave {short(target.failure)}, from kappa_0 and margin: a smaller --beta "
            "or more --max-rounds sharpen further"
        )
    assert made.source is not None
    if target.failing:
        broken = made.source.broken
        left_out = f"; log-probs of {broken} are not numbers" if broken else ""
        return (
            f"{target.failing} of {_diagnosed(made.source)} may fail after {row.rounds} exact rounds (a mode that is "
            f"not certified, or near a tie{left_out}), which prompts to train on do not change: search further, or "
            "sharpen further"
        )
    return (
        f"that none of {_diagnosed(made.source)} fails after {row.rounds} exact rounds says no less than "
        f"{short(target.failure)} of others: diagnose more prompts"
    )


def _diagnosed(source: Source) -> str:
    copies = source.counted < (source.num_prompts or 0) + source.broken
    return f"{source.counted} {'different ' * copies}diagnosed prompts"


def _table(made: Plan) -> list[str]:
    """Lines, not a rich table: that would cut cells off where the terminal is narrow."""
    given = made.inputs
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("T", lambda row: str(row.rounds)),
        ("alpha", lambda row: short(row.exponent)),
        ("beta of one", lambda row: short(row.one_beta)),
        ("target", lambda row: at_most(row.one.target.failure)),
    ]
    if given.budget is not None:
        columns.append(("one round", lambda row: _cell(row.one, "failure")))
        columns.append(("T rounds", lambda row: _cell(row.several, "failure")))
    if given.failure is not None:
        columns.append(("one needs", lambda row: _cell(row.one, "needed")))
        columns.append(("T need", lambda row: _cell(row.several, "needed")))
    chosen = {*SHOWN, made.best_rounds, made.needed_rounds}
    rows = [[heading for heading, _ in columns]]
    rows += [[cell(row) for _, cell in columns] for row in made.rows if row.rounds in chosen]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(promise: Promise | None, name: str) -> str:
    value = getattr(promise, name) if promise is not None else None
    return "–" if value is None else count(value, up=True) if name == "needed" else at_most(value)


def _grounds(made: Plan) -> list[str]:
    given = made.inputs
    size = (
        f"of {short(given.log_class_size)} nats"
        if given.log_class_size is not None
        else f"(linear softmax, d = {short(given.dimension or 0)})"
    )
    condition = f"kappa^({given.num_samples}) <= {kappa(made.log_group_condition)}"
    chosen = made.row(made.needed_rounds or made.best_rounds or made.rows[-1].rounds)
    lines = [
        f"target: {_basis(made, chosen.one.target)}",
        f"sample: sqrt(kappa^(K) log(|Pi|/rho)/n), {condition}: proved, no constant, for any minimiser of the anchored "
        f"regression with exact log-likelihood rewards and Z over a class {size} that holds the exact update (in T "
        "rounds: of what was learned, on fresh prompts, --prompts-per-round); nothing where training stops short",
        f"T rounds at {_beta_given(made)} may each err; one round at 1/(alpha - 1) has the update of all of them",
    ]
    if made.floor is not None:
        lines.append(
            f"from every such start nobody promises less than {short(made.floor.one)} in one round, "
            f"{short(made.floor.any)} in any number"
        )
    if made.mode_wrong is not None and made.mode_wrong[1] > 0:
        low, high = (f"{100 * end:.0f}" for end in made.mode_wrong)
        share = f"{low} %" if low == high else f"{low} to {high} %"
        lines.append(f"the mode is wrong on {share} of the diagnosed prompts, and stays so whatever is spent")
    lines.append("the paper's bound, taken apart: --paper")
    return lines


def _basis(made: Plan, target: Target) -> str:
    given = made.inputs
    if target.failing is not None and made.source is not None:
        broken = made.source.broken
        left_out = f" ({broken} were left out, and count as failing)" if broken else ""
        return (
            f"of {_diagnosed(made.source)} at most {target.failing} fail after the exact update{left_out}, so of "
            f"others at most {at_most(target.failure)}: for each T by itself, less surely for one chosen by "
            f"them; {_start(made)}"
        )
    assert given.margin is not None
    margin = f"(kappa_0 - 1) e^(-(alpha - 1) margin) and Markov, margin {short(given.margin)} on every prompt"
    if not made.kappa_diagnosed or made.source is None:
        return f"{margin}, {_start(made)}"
    left_out = f" ({made.source.broken} more were left out)" if made.source.broken else ""
    return f"{margin}; {_start(made, f'of {made.source.num_prompts} diagnosed prompts{left_out}')}"


def _start(made: Plan, whose: str = "") -> str:
    value = f"kappa_0 = {kappa(made.inputs.log_kappa0)}"
    if not made.kappa_diagnosed:
        return f"{value}, as given"
    return f"{f'{value} {whose}' if whose else f'their {value}'} is taken for all"


def draw(made: Plan, axes: Axes) -> None:
    """The failure that one round promises against its prompts, for a few alpha, and what nobody is below."""
    given = made.inputs
    middle = given.budget or max((row.one.needed or 1e4 for row in made.rows), default=1e4)
    low, high = max(math.log10(middle) - 3, 0), min(math.log10(middle) + 3, math.log10(LARGEST_BUDGET))
    prompts = np.unique(np.floor(np.logspace(low, high, 60)))
    chosen = [row for row in made.rows if row.rounds in {*SHOWN, made.best_rounds, made.needed_rounds}]
    least = 1.0
    for row in chosen:
        failure = promises(given, row, prompts)
        axes.plot(prompts, failure, label=f"T = {row.rounds}: beta {short(row.one_beta)}")
        least = min(least, float(failure.min()))
    if made.floor is not None and given.budget is not None and made.floor.one > 0:
        axes.plot(given.budget, made.floor.one, "_", color="black", markersize=14, label="nobody below (one round)")
        least = min(least, made.floor.one)
    if given.failure is not None:
        axes.axhline(given.failure, color="black", ls="--", lw=1, label="asked for")
        least = min(least, given.failure)
    if given.budget is not None:
        axes.axvline(given.budget, color="0.5", lw=1)
    axes.axhspan(1, 30, color="grey", alpha=0.15, lw=0)
    axes.text(0.99, 1.1, "nothing promised", transform=axes.get_yaxis_transform(), ha="right", color="dimgrey")
    axes.set(xscale="log", yscale="log", ylim=(least / 2, 30), xlabel="prompts N, one round", ylabel="failure at most")
    axes.figure.legend(loc="outside lower center", ncols=3, fontsize=8)
