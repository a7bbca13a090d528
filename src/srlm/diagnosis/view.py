"""A diagnosis on the screen: the verdict, then the numbers, then the prompts."""

from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text

from srlm.console import Display
from srlm.diagnosis.result import Diagnosis, Forecast, Proportion, Trained
from srlm.estimators.intervals import student_bounds
from srlm.forecast import Estimate, ForecastRow, Likely
from srlm.prompts.select import said_of_copies

MOST_PROMPTS = 24
BAR = 12
SHOWN_ROUNDS = (0, 1, 2, 3, 8)


def show(result: Diagnosis, display: Display) -> None:
    say, seq, answers, sampling = display.say, result.sequence, result.answers, result.sampling
    say(f"{result.verdict.kind.upper()}: {result.verdict.reason}\n")
    if result.broken:
        say(f"{result.broken} prompts were left out: the model's log-probs for them are not numbers")
    if copies := (asked := seq.num_prompts + result.broken) - result.distinct:
        say(said_of_copies(copies, asked))
    say(f"{result.model} · {seq.num_prompts} prompts of {result.source} · {sampling.num_samples} samples each")
    low, high = (value / math.log(10) for value in seq.log_kappa)
    say(
        f"sequences  log10 κ {_range(low, high)} (best of {sampling.num_samples} samples says "
        f"{seq.log_kappa_best_of_k / math.log(10):.2f}); exact on {seq.certified_share:.0%} of the prompts, "
        f"{seq.mean_prefixes:.0f} prefixes each"
    )
    margin = "not known" if seq.margin is None else f"{_range(*seq.margin)} nats"
    finds = "" if seq.greedy_finds_mode is None else f"; greedy finds it on {seq.greedy_finds_mode:.0%}"
    say(
        f"           least confidence {_range(*seq.min_confidence)}, margin {margin}; the mode has at most half of the "
        f"mass on {_range(100 * seq.below_half[0], 100 * seq.below_half[1])} %{finds}"
    )
    if seq.empty_modes or seq.truncated_modes:
        say(f"           modes that are empty: {seq.empty_modes}; cut at the maximal length: {seq.truncated_modes}")
    say(
        f"answers    κ of {answers.classes} answers {_range(*answers.kappa)} (counts say "
        f"{answers.kappa_of_counts:.2f}), pairs agree {answers.agreement:.2f}, no answer {answers.no_answer:.2f}"
    )
    if answers.failed:
        say(f"           the answer function failed on {answers.failed} responses, first: {answers.first_failure}")
    say(
        f"samples    entropy {sampling.entropy:.2f} nats a token, {sampling.mean_length:.1f} tokens, "
        f"{sampling.truncation_rate:.0%} cut, distinct-2 {sampling.distinct_2:.2f}"
    )
    if (labels := result.labels) is not None:
        every = ("sampled", "greedy", "majority", "best_of_k", "mode")
        shares = ", ".join(f"{name.replace('_', '-')} {_share(getattr(labels, name))}" for name in every)
        say(f"accuracy   {shares}")
        known = {name: c for name, c in labels.calibration.items() if not math.isnan(c.auroc[0])}
        for name, c in known.items():
            say(
                f"           {name} tells right from wrong: AUROC {c.auroc_within:.2f} within a prompt "
                f"({c.prompts_within} prompts), {_share(c.auroc)} over all"
            )
    say("")
    display.console.print(_forecast(result.forecast))
    if result.forecast.trained is not None:
        say("")
        display.console.print(_trained(result.forecast.trained))
    elif result.forecast.untold is not None:
        say(f"\nrounds like the one before are not forecast: {result.forecast.untold}")
    say("")
    display.console.print(_prompts(result))


def _forecast(prediction: Forecast) -> Table:
    """Exact rounds at β = 1, where nothing else is said of the escort."""
    table = Table(box=None, pad_edge=False, header_style="dim", title="forecast, β = 1", title_justify="left")
    labelled = prediction.limit.accuracy is not None
    for heading in ("T", "log10 κ", "mode mass", "failure", *(["accuracy"] if labelled else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in prediction.rows:
        if row.beta == 1 and row.rounds in SHOWN_ROUNDS and row.target == "escort":
            table.add_row(*_forecast_row(row))
    table.add_row("∞", *_forecast_row(prediction.limit)[1:])
    clipped = [row for row in prediction.rows if row.target == "clipped" and row.beta == 1 and row.rounds == 3]
    for row in clipped:
        table.caption = f"with rewards clipped at {prediction.clip:g} nats, T = 3: {' · '.join(_forecast_row(row)[1:])}"
        table.caption_justify = "left"
    return table


def _trained(found: Trained) -> Table:
    update = found.update
    exact = "" if found.asked is None else f" where exact is {found.asked:.3g}"
    _, error = student_bounds(0.0, update.standard_error, update.prompts, 0.025)
    title = f"rounds like the one before: exponent {update.exponent:.2f} ± {error:.2f}{exact}, "
    title += f"errors of {update.noise:.2g} nats ({update.prompts} held-out prompts); 95 % intervals,"
    title += " tried on answers of 12 tokens"
    table = Table(box=None, pad_edge=False, header_style="dim", title=title, title_justify="left")
    labelled = found.rows[0].accuracy is not None
    trained = any(value is not None for value in found.measured)
    headings = ["more rounds", "log10 κ", "mode mass", "failure", "modes kept", *(["accuracy"] if labelled else [])]
    for heading in headings + ["accuracy, as trained"] * trained:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, measured in zip(found.rows, found.measured, strict=True):
        kappa = (row.kappa.low, row.kappa.point, row.kappa.high)
        cells = [str(row.rounds), _around(*(format(math.log10(value), ".2f") for value in kappa))]
        cells += [_likely(value) for value in (row.mode_mass, row.failure, row.mode_kept)]
        cells += [] if row.accuracy is None else [_likely(row.accuracy)]
        table.add_row(*cells, *(["" if measured is None else _share(measured)] if trained else []))
    return table


def _likely(value: Likely) -> str:
    return _around(*(format(x, ".2f") for x in (value.low, value.point, value.high)))


def _forecast_row(row: ForecastRow) -> list[str]:
    kappa = row.kappa
    logs = [format(math.log10(value), ".2f") for value in (kappa.low, kappa.point, kappa.high)]
    cells = [str(row.rounds), _around(*logs), _estimate(row.mode_mass), _estimate(row.failure)]
    return cells if row.accuracy is None else [*cells, _estimate(row.accuracy)]


def _prompts(result: Diagnosis) -> Table:
    """The least certain first: a bar for the mode's probability, shaded as far as it may still reach."""
    columns = result.prompts
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading, least, most in (
        ("mode has", 8, 13),
        ("", BAR, BAR),
        ("prompt", 12, 34),
        ("mode", 16, 44),
        ("greedy, where it misses", 10, 44),
    ):
        table.add_column(heading, no_wrap=True, min_width=least, max_width=most, overflow="ellipsis")
    order = sorted(range(len(columns["mode"])), key=lambda i: float(columns["mode_log_prob"][i]))
    for i in order[:MOST_PROMPTS]:
        low, high = (math.exp(columns[name][i]) for name in ("mode_log_prob", "mode_log_prob_high"))
        right = columns.get("mode_right")
        mark = "" if right is None else ("✓ " if right[i] else "✗ ")
        table.add_row(
            _range(low, high, ".2g"),
            _bar(low, high),
            Text(_line(columns["prompt"][i])),
            Text(mark + _line(columns["mode"][i] or "(empty)")),
            Text("" if columns["greedy_is_mode"][i] is not False else _line(columns["greedy"][i])),
        )
    if len(order) > MOST_PROMPTS:
        table.caption = f"and {len(order) - MOST_PROMPTS} more certain ones"
        table.caption_justify = "left"
    return table


def _bar(low: float, high: float) -> Text:
    full, reach = round(BAR * low), round(BAR * high)
    return Text("█" * full + "▒" * (reach - full) + "·" * (BAR - reach))


def _line(text: object) -> str:
    """On one line, without what could move the cursor."""
    words = text if isinstance(text, str) else str(text[-1]["content"]) if isinstance(text, list) else str(text)
    return " ".join("".join(c if c.isprintable() else " " for c in words).split())


def _range(low: float, high: float, form: str = ".3g") -> str:
    first, last = format(low, form), format(high, form)
    return first if first == last else f"{first}–{last}"


def _share(value: Proportion) -> str:
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"


def _estimate(value: Estimate) -> str:
    return _around(*(format(x, ".3f") for x in (value.low, value.point, value.high)))


def _around(low: str, point: str, high: str) -> str:
    """The point, and the certain interval where it is wider than what is printed; without a point that alone."""
    if point == "nan":
        return f"[{low}, {high}]"
    return point if low == high else f"{point} [{low}, {high}]"
