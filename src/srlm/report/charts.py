"""Figures, once: a `Chart` is drawn by Plotly on the page and by matplotlib in an SVG file for a paper."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from srlm.plain import visible
from srlm.report.folders import HELD_OUT, TRAINING, Folder, Sample, measured_at
from srlm.report.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's, as in srlm.figures, which would import matplotlib; and a grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
DASHES = ("solid", "dash", "dot", "dashdot")
LINESTYLES = ("-", "--", ":", "-.")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
MARKERS = ("o", "s", "D", "^", "X", "*", "P")
MOST_HISTOGRAMS = 6
MOST_BOUNDED = 1000  # rounds: what a file says of them is not to be believed
Values = Sequence[float | None]
CALIBRATION = "Samples in ten groups of rising reward, equal rewards together; 95 % intervals. A useful reward climbs."
REWARD_RANK = "rank of the reward (%)"
SAMPLED_BOUND = "A sampled run's bound needs the size of its class, unknown for a transformer: it is not drawn."
AS_TRAINED = "As trained: rounds with the exponent and the errors of the update before the diagnosed round, 95 %."
TELLS = "Does the reward tell right from wrong?"


class Style(TypedDict):
    """Indices of a line's colour and dash, the same ones for the same thing in all figures."""

    colour: int
    dash: int


@dataclass(frozen=True)
class Series:
    """low, high: ends of an interval. colour, dash: as in `Style`."""

    name: str
    x: Values
    y: Values
    low: Values | None = None
    high: Values | None = None
    colour: int = 0
    dash: int = 0


@dataclass(frozen=True)
class Chart:
    """kind: line, step or bar (stacked). events: where something happened on the x axis, and what."""

    id: str
    title: str
    caption: str
    x_label: str
    y_label: str
    series: list[Series]
    kind: str = "line"
    log: bool = False
    events: list[tuple[float, str]] = field(default_factory=list)


# record key, what its line is called
Lines = tuple[tuple[str, str], ...]
CURVES: tuple[tuple[str, str, str, str, Lines], ...] = (
    (
        "accuracy",
        "Accuracy",
        "Held-out prompts, 95 % intervals; samples of one prompt count as a cluster.",
        "share right",
        (("accuracy_sampled", "sampled"), ("accuracy_greedy", "greedy")),
    ),
    (
        "likelihood-rank",
        "Likelihood under the start",
        "How often a held-out response is more probable under π₀ than one that π₀ gave to the same prompt itself, per "
        "token and whole. 1/2 is π₀; sharpening raises it, and significantly below 1/2, per token, is damage.",
        "rank",
        (("token_likelihood_rank", "per token"), ("likelihood_rank", "whole responses")),
    ),
    (
        "mode-fidelity",
        "Mode fidelity",
        "Share of held-out prompts where the favourite is, under π₀, within 0.5 nat of π₀'s own best. 1 is healthy.",
        "share of prompts",
        (("mode_fidelity", "mode fidelity"),),
    ),
    (
        "self-consistency",
        "Self-consistency",
        "How often two samples of a held-out prompt give the same answer, and on what share of prompts all do. Both "
        "rise as a rule.",
        "share",
        (("self_consistency", "two agree"), ("unanimous", "all agree")),
    ),
    (
        "mode-surprisal",
        "Surprisal of the mode",
        "−log π of the most probable sample, averaged over held-out prompts (log κ without its heavy tail), and what "
        "the exact update of the round before would have made it.",
        "nats",
        (("mode_surprisal_held_out", "measured"), ("mode_surprisal_forecast", "exact update")),
    ),
    (
        "auroc",
        "Self-reward against the answers",
        "Chance that a right response is rewarded above a wrong one to the same held-out prompt, 95 % intervals. Below "
        "1/2 the self-reward prefers wrong ones.",
        "AUROC",
        (("auroc", "AUROC"),),
    ),
    (
        "displacement",
        "Displacement",
        "Log-ratio of each group's most probable response in the update before. Above 0 as a rule.",
        "nats",
        (("displacement", "training"), ("displacement_held_out", "held out")),
    ),
    (
        "leak",
        "Leak of mass",
        "log E[π_t / π_(t−1)] over the samples of the round before. Near 0 is healthy; far below, mass went to what "
        "nobody sampled.",
        "nats",
        (("leak", "training"), ("leak_held_out", "held out")),
    ),
    (
        "j0-gap",
        "J₀ gap",
        "How far samples lie under the best response known, both under π₀; held-out prompts. Falls near the mode.",
        "nats",
        (("j0_gap", "J₀ gap"),),
    ),
    (
        "fidelity",
        "Fidelity of the update",
        "R² of log-ratios against what the exact update asks for; the share achieved of the gain it asks for; Kendall "
        "τ between the orders of responses before and after. 1 is exact, achieved below 0 is damage.",
        "R², share and τ",
        (
            ("fidelity_r2", "R²"),
            ("achieved", "achieved"),
            ("kendall_tau", "Kendall τ"),
            ("fidelity_r2_held_out", "R², held out"),
        ),
    ),
    (
        "log-ratio",
        "Log-ratio",
        "log π_t / π_(t−1) of the responses of the round before: mean, and spread inside groups.",
        "nats",
        (("log_ratio_mean", "mean"), ("log_ratio_std", "standard deviation")),
    ),
    (
        "length",
        "Length",
        "Mean tokens of a training response, its end included.",
        "tokens",
        (("mean_length", "length"),),
    ),
    (
        "endings",
        "Finished responses",
        "Share of training responses that end by themselves rather than at the maximal length.",
        "share of responses",
        (("eos_rate", "EOS rate"),),
    ),
    (
        "entropy",
        "Entropy",
        "Mean next-token entropy along training responses.",
        "nats a token",
        (("entropy", "entropy"),),
    ),
    (
        "diversity",
        "Diversity",
        "Distinct n-grams over all n-grams of the training responses.",
        "share distinct",
        (("distinct_1", "distinct-1"), ("distinct_2", "distinct-2")),
    ),
    ("gain", "Gain", "Inverse temperature that training gave the logits.", "factor", (("gain", "gain"),)),
    (
        "step",
        "Step",
        "How far the round's exact update is from its policy: KL on its own samples, with rewards as they are.",
        "nats",
        (("step", "step"),),
    ),
    (
        "effective-samples",
        "Effective samples",
        "On how many responses a prompt's normaliser Z rests once they are weighed by exp(r/β). Near 1 it is one.",
        "responses",
        (("effective_samples", "effective samples"),),
    ),
    (
        "mismatch",
        "Engine against trainer",
        "|log-prob by the engine that drew a token − ours|, and how far both were apart right after the weights had "
        "gone to it.",
        "nats a token",
        (
            ("mismatch_absolute", "mean"),
            ("mismatch_q99", "99 % quantile"),
            ("sync_difference_sample_rollouts", "after the sync"),
        ),
    ),
    (
        "mismatch-effective",
        "Effective share of responses",
        "(Σw)²/(N Σw²) of the importance weights w = π_t(y|x) / μ(y|x), with μ what the engine says it drew from, and "
        "the share of tokens further apart than .1 nat.",
        "share",
        (("mismatch_effective", "effective samples"), ("mismatch_beyond", "tokens beyond .1 nat")),
    ),
    ("beta", "β", "Strength of the KL term of the round's update.", "unit of the reward", (("beta", "β"),)),
)


# kind of record key, what it is
AT_K = (
    ("pass", "Chance that one of {k} samples of a held-out prompt is right"),
    ("maj", "Chance that the answer which most of {k} samples of a held-out prompt give is right"),
)
# end of the record key, colour
FLIPS = (("kept", 0), ("learned", 2), ("lost", 1), ("never", 7))


def charts(folders: Sequence[Folder]) -> list[Chart]:
    """All figures of folders of one kind."""
    runs = [folder for folder in folders if folder.kind == "run" and folder.records]
    diagnoses = [folder for folder in folders if folder.kind == "diagnosis"]
    every = (_of_runs(runs) if runs else []) + (_of_diagnoses(diagnoses) if diagnoses else [])
    return [chart for chart in every if any(y is not None for one in chart.series for y in one.y)]


# Runs


def _of_runs(runs: list[Folder]) -> list[Chart]:
    events = [event for run in runs for event in guard_events(run)]
    made = [_kappa(runs)]
    for id, title, caption, label, lines in CURVES:
        made.append(Chart(id, title, caption, "round", label, _curves(runs, lines)))
    made[1] = _with_forecasts(made[1], runs)
    made[2:2] = [*(_at_k(runs, kind, what) for kind, what in AT_K), _flips(runs)]
    made += [_loss(runs), *_histograms(runs), _calibration(runs), *_timings(runs)]
    return [Chart(**vars(c) | {"events": events}) if c.x_label == "round" and c.kind == "line" else c for c in made]


def _named(runs: Sequence[Folder], run: Folder, name: str) -> str:
    return name if len(runs) == 1 else f"{run.name}: {name}"


def _colour(runs: Sequence[Folder], run: int, line: int) -> Style:
    """One run: a colour a line. Several: a colour a run, a dash a line."""
    return {"colour": line, "dash": 0} if len(runs) == 1 else {"colour": run, "dash": line}


def _solid(runs: Sequence[Folder], run: int, line: int) -> Style:
    return {"colour": _colour(runs, run, line)["colour"], "dash": 0}


def _curves(runs: list[Folder], lines: Lines, power: bool = False) -> list[Series]:
    found = []
    for i, run in enumerate(runs):
        for j, (key, name) in enumerate(lines):
            low, y, high = ([number(record.get(key + end)) for record in run.records] for end in ("_low", "", "_high"))
            if power:
                y = [None if value is None or value > 300 else 10**value for value in y]
            if any(value is not None for value in y):
                ends = (low, high) if any(value is not None for value in low) else (None, None)
                label = run.name if len(runs) > 1 == len(lines) else _named(runs, run, name)
                found.append(Series(label, _rounds(run), y, *ends, **_colour(runs, i, j)))
    return found


def _rounds(run: Folder) -> list[float | None]:
    return [number(record.get("round")) for record in run.records]


def _kappa(runs: list[Folder]) -> Chart:
    lines = (("log10_kappa_upper", "training prompts"), ("log10_kappa_upper_held_out", "held-out prompts"))
    series = _curves(runs, lines, power=True)
    caption = "Upper estimates: the best of K samples stands in for the mode. κ falls in collapsing runs too."
    for i, run in enumerate(runs):
        if rows := _forecast_rows(run):
            series.append(_forecast(rows, _named(runs, run, "forecast"), "kappa", _colour(runs, i, 2)["colour"], 2))
            caption += " Forecast: exact updates from the diagnosed start, with the certain interval."
            bound, said = _bound(rows, run)
            caption += f" {said} {SAMPLED_BOUND}"
            if bound:
                name, colour = _named(runs, run, "bound, exact updates"), _colour(runs, i, 3)["colour"]
                series.append(Series(name, [number(row["rounds"]) for row in rows], bound, colour=colour, dash=3))
        if trained := trained_rows(run):
            name, colour = _named(runs, run, "forecast, rounds as trained"), _colour(runs, i, 4)["colour"]
            series.append(_forecast(trained, name, "kappa", colour, 1))
            caption += f" {AS_TRAINED}"
    return Chart("kappa", "Condition number κ", caption, "round", "κ", series, log=True)


def _bound(rows: list[dict[str, Any]], run: Folder) -> tuple[list[float], str]:
    """`sharpened_kappa_bound` from the certain ends of kappa and margin, and what to say of it. Clipped rewards stretch
    odds D by g_T(D) - D, which never falls in D: at the margin it bounds them all."""
    from srlm.theory import sharpened_kappa_bound, sharpened_log_odds

    found, config = run.diagnosis.get("sequence"), run.manifest["config"]
    found = found if isinstance(found, dict) else {}
    (_, log_kappa), (margin, _) = (_pair(found.get(key)) for key in ("log_kappa", "margin"))
    clip = number(config.get("clip")) if config.get("step") is None else None  # beside a step each round has its own
    rounds = [row["rounds"] - _diagnosed_round(run) for row in rows]
    betas = _betas(run, max(rounds, default=0)) if all(t in range(MOST_BOUNDED) for t in rounds) else None
    if margin is None or margin <= 0:
        return [], "The bound on exact updates is vacuous: a margin may be 0."
    if log_kappa is None or not 0 <= log_kappa < 700 or betas is None:
        return [], "The bound on exact updates is not known."
    stretched = [float(sharpened_log_odds(margin, betas[: int(t)], clip=clip or math.inf)) / margin for t in rounds]
    bound = [float(sharpened_kappa_bound(math.exp(log_kappa), margin, exponent)) for exponent in stretched]
    return bound, f"Bound: where they end at worst, all that is known being margins of {margin:.2g} nats or more."


def _betas(run: Folder, rounds: float) -> list[float] | None:
    """Of so many rounds from the diagnosed one on: the run's own, or those that it solved."""
    config, start = run.manifest["config"], _diagnosed_round(run)
    if config.get("step") is None:
        betas = [number(config.get("beta"))] * int(rounds)
    else:
        betas = [number(record.get("beta")) for record in run.records[start : start + int(rounds)]]
    known = [beta for beta in betas if beta is not None and beta > 0]
    return known if len(known) == rounds else None


def _pair(value: Any) -> tuple[float | None, float | None]:
    low, high = value if isinstance(value, list) and len(value) == 2 else (None, None)
    return number(low), number(high)


def _forecast_rows(run: Folder) -> list[dict[str, Any]]:
    """Rows of a forecast with the run's own β and clipping, rounds counted as the run does."""
    config = run.manifest.get("config")
    config = config if isinstance(config, dict) else {}
    start = _diagnosed_round(run)
    target = "clipped" if number(config.get("clip")) and config.get("step") is None else "escort"
    solved = [record.get("beta") for record in run.records[start:]]

    def own(row: dict[str, Any]) -> bool:
        beta = row.get("beta")
        if config.get("step") is None:
            return number(beta) == number(config.get("beta"))
        return beta == solved[: len(beta)] if isinstance(beta, list) else row.get("rounds") == 0 and beta == 1

    last = max([number(config.get("rounds")) or 0, *(t for t in _rounds(run) if t is not None)])
    rows = [row for row in forecast_rows(run) if own(row) and row.get("target") == target]
    shifted = [row | {"rounds": (number(row.get("rounds")) or 0) + start} for row in rows]
    return [row for row in shifted if row["rounds"] <= last]


def forecast_rows(folder: Folder) -> list[dict[str, Any]]:
    found = folder.diagnosis.get("forecast")
    rows = found.get("rows") if isinstance(found, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _diagnosed_round(run: Folder) -> int:
    _, comma, rest = str(run.diagnosis.get("model", "")).rpartition(", round ")
    digits = rest.split(" ")[0]
    return int(digits) if comma and digits.isdecimal() and len(digits) < 6 else 0


def trained_rows(folder: Folder) -> list[dict[str, Any]]:
    """Rows of the forecast of rounds like the one before the diagnosed one, rounds counted as the run does; first what
    was diagnosed."""
    found = folder.diagnosis.get("forecast")
    trained = found.get("trained") if isinstance(found, dict) else None
    rows = [row for row in _list(trained.get("rows")) if isinstance(row, dict)] if isinstance(trained, dict) else []
    now = [row | {"rounds": 0} for row in forecast_rows(folder) if row.get("rounds") == 0][:1]
    start = _diagnosed_round(folder) if folder.kind == "run" else 0
    return [row | {"rounds": (number(row.get("rounds")) or 0) + start} for row in now + rows] if rows else []


def _with_forecasts(chart: Chart, runs: list[Folder]) -> Chart:
    """Accuracy, and what was forecast of it: of exact rounds, and of rounds as they were trained before."""
    series, caption = [], chart.caption
    for i, run in enumerate(runs):
        exact, trained = _forecast_rows(run), trained_rows(run)
        colours = [_colour(runs, i, line)["colour"] for line in (2, 4)]
        if any(isinstance(row.get("accuracy"), dict) for row in exact):
            series.append(_forecast(exact, _named(runs, run, "forecast, exact"), "accuracy", colours[0], 2))
            caption += " Forecast: exact updates from the diagnosed start, with the certain interval."
        if any(isinstance(row.get("accuracy"), dict) for row in trained):
            name = _named(runs, run, "forecast, rounds as trained")
            series.append(_forecast(trained, name, "accuracy", colours[1], 1))
            caption += f" {AS_TRAINED}"
    return Chart(**vars(chart) | {"series": chart.series + series, "caption": caption})


def _forecast(rows: list[dict[str, Any]], name: str, key: str, colour: int, dash: int) -> Series:
    cells = [row[key] if isinstance(row.get(key), dict) else {} for row in rows]
    low, y, high = ([number(cell.get(end)) for cell in cells] for end in ("low", "point", "high"))
    return Series(name, [number(row.get("rounds")) for row in rows], y, low, high, colour, dash)


def _at_k(runs: list[Folder], kind: str, what: str) -> Chart:
    """All k of one run; of several the largest that they share."""
    shared = sorted(set.intersection(*(set(measured_at(run.records, kind)) for run in runs)))
    k, shown = ("k", shared) if len(runs) == 1 else (max(shared, default="k"), shared[-1:])
    series = _curves(runs, tuple((f"{kind}_at_{one}", f"{kind}@{one}") for one in shown))
    caption = f"{what.format(k=k)}, estimated without bias; 95 % intervals over prompts."
    return Chart(f"{kind}-at-k", f"{kind}@{k}", caption, "round", "share right", series)


def _flips(runs: list[Folder]) -> Chart:
    """Bars for one run, for several a line of what was learned and one of what was lost."""
    caption = "Greedy responses to held-out prompts against round 0: "
    if len(runs) == 1:
        caption += "kept right, learned (wrong, now right), lost (right, now wrong), never right."
        keys = [(name, [number(r.get(f"greedy_{name}")) for r in runs[0].records], colour) for name, colour in FLIPS]
        series = [Series(name, _rounds(runs[0]), values, colour=colour) for name, values, colour in keys]
    else:
        caption += "learned (wrong, now right) and lost (right, now wrong)."
        series = _curves(runs, (("greedy_learned", "learned"), ("greedy_lost", "lost")))
    kind = "bar" if len(runs) == 1 else "line"
    return Chart("flips", "Flips", caption, "round", "share of prompts", series, kind)


def _loss(runs: list[Folder]) -> Chart:
    series = []
    for i, run in enumerate(runs):
        values = [number(v) for t in sorted(run.stages) for v in _list(run.stages[t].get("loss"))]
        series.append(Series(_named(runs, run, "loss"), list(range(1, len(values) + 1)), values, **_colour(runs, i, 0)))
    caption = "Mean loss of each optimiser step, all rounds in a row; every round has targets of its own."
    return Chart("loss", "Loss", caption, "optimiser step", "loss (nats²)", series, kind="step")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _timings(runs: list[Folder]) -> list[Chart]:
    if len(runs) > 1:
        total = _curves(runs, (("seconds", "all stages"),))
        return [Chart("seconds", "Time", "All stages of a round.", "round", "seconds", total)]
    run = runs[0]
    prefix, speed = "seconds_", "tokens_per_second_"
    keys = dict.fromkeys(key.removeprefix(prefix) for r in run.records for key in r if key.startswith(prefix))
    bars, speeds = [], []
    for i, key in enumerate(keys):
        name = key.replace("_", " ")
        bars.append(Series(name, _rounds(run), [number(r.get(prefix + key)) for r in run.records], colour=i))
        speeds.append(Series(name, _rounds(run), [number(r.get(speed + key)) for r in run.records], colour=i))
    return [
        Chart(
            "seconds",
            "Time by stage",
            "The update is the one that made the round's model.",
            "round",
            "seconds",
            bars,
            "bar",
        ),
        Chart("speed", "Speed by stage", "Tokens of responses, prompts not counted.", "round", "tokens/s", speeds),
    ]


def guard_events(run: Folder) -> list[tuple[float, str]]:
    """What the guard did, where the manifest says so."""
    guard = run.manifest.get("guard")
    events = guard.get("events") if isinstance(guard, dict) else guard
    found = [(number(event.get("round")), event) for event in _list(events) if isinstance(event, dict)]
    return [(t, str(event.get("action") or event.get("kind") or "guard")) for t, event in found if t is not None]


# Histograms over prompts


def _histograms(runs: list[Folder]) -> list[Chart]:
    parts = [HELD_OUT if any(s.part == HELD_OUT for s in run.samples) else TRAINING for run in runs]
    groups = [by_round([s for s in run.samples if s.part == part]) for run, part in zip(runs, parts, strict=True)]
    confidence: list[tuple[str, list[float], Style]] = []
    margin: list[tuple[str, list[float], Style]] = []
    alike = 0
    for i, (run, rounds) in enumerate(zip(runs, groups, strict=True)):
        shown = _some(sorted(rounds)) if len(runs) == 1 else sorted(rounds)[-1:]
        for j, t in enumerate(shown):
            style = _solid(runs, i, j)
            name = _named(runs, run, f"round {t}")
            best = [two_best(samples) for samples in rounds[t].values()]
            confidence.append((name, [two[0] for two in best if two], style))
            margin.append((name, [two[0] - two[1] for two in best if len(two) == 2], style))
            alike += sum(len(two) == 1 for two in best)
    where = " and ".join(sorted(set(parts)))
    said = f"{where.capitalize()} prompts."
    one = f" {alike} groups (of a prompt and a round) whose samples are all alike have no margin." if alike else ""
    return [
        Chart(
            "confidence",
            "Confidence",
            f"{said} The most probable sample of each prompt; a prompt under its mode's probability at most.",
            "largest log-prob (nats)",
            "prompts",
            _steps(confidence),
            "step",
        ),
        Chart(
            "margin",
            "Margin",
            f"{said} Log-prob of the most probable sample over that of the next different one.{one}",
            "margin (nats)",
            "prompts",
            _steps(margin),
            "step",
        ),
    ]


def by_round(samples: Sequence[Sample]) -> dict[int, dict[int, list[Sample]]]:
    """round -> prompt -> its samples."""
    found: dict[int, dict[int, list[Sample]]] = {}
    for sample in samples:
        found.setdefault(sample.round, {}).setdefault(sample.prompt_index, []).append(sample)
    return found


def two_best(samples: Sequence[Sample]) -> list[float]:
    """Log-probs of the most probable response and of the next different one, as far as there are such."""
    different = {s.response: s.log_prob for s in samples if s.log_prob is not None}
    return sorted(different.values(), reverse=True)[:2]


def _some(rounds: list[int]) -> list[int]:
    if len(rounds) <= MOST_HISTOGRAMS:
        return rounds
    return [rounds[round(i)] for i in np.linspace(0, len(rounds) - 1, MOST_HISTOGRAMS)]


def _steps(groups: list[tuple[str, list[float], Style]], bins: int = 24) -> list[Series]:
    """Histograms with common bins; empty series where there is nothing to count."""
    values = [value for _, group, _ in groups for value in group]
    if not values:
        return []
    low, high = min(values), max(values)
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    made = []
    for name, group, style in groups:
        counts = np.histogram(group, edges)[0].tolist()
        made.append(Series(name, edges.tolist(), [*map(float, counts), 0.0], **style))
    return made


# Calibration


def _calibration(runs: list[Folder]) -> Chart:
    from srlm.estimators.calibration import reliability

    series = []
    for i, run in enumerate(runs):
        rounds = by_round([s for s in run.samples if s.part == HELD_OUT])
        shown = _some(sorted(rounds)) if len(runs) == 1 else sorted(rounds)[-1:]
        for j, t in enumerate(shown):
            every = [
                (s.reward, s.right)
                for group in rounds[t].values()
                for s in group
                if s.reward is not None and s.right is not None
            ]
            scores, rights = [score for score, _ in every], [right for _, right in every]
            bins = [vars(b) for b in reliability(scores, rights)] if every else []
            name = _named(runs, run, f"round {t}")
            series.append(_reliability(name, bins, _solid(runs, i, j)))
    return Chart("calibration", TELLS, CALIBRATION, REWARD_RANK, "share right", series)


def _reliability(name: str, bins: Sequence[Any], style: Style) -> Series:
    rows = [row for row in bins if isinstance(row, dict)]
    y, low, high = ([number(row.get(key)) for row in rows] for key in ("share_right", "low", "high"))
    counts = np.array([number(row.get("count")) or 0.0 for row in rows])
    x = (100 * (counts.cumsum() - counts / 2) / max(counts.sum(), 1)).tolist()
    return Series(name, x, y, low, high, **style)


# Diagnoses


def _of_diagnoses(folders: list[Folder]) -> list[Chart]:
    kappa: list[Series] = []
    right: list[Series] = []
    calibration: list[Series] = []
    said = ""
    for i, folder in enumerate(folders):
        rows = [row for row in forecast_rows(folder) if row.get("target") == "escort"]
        betas = sorted({beta for row in rows if (beta := number(row.get("beta"))) is not None})
        for j, beta in enumerate(betas if len(folders) == 1 else [b for b in betas if b == 1] or betas[:1]):
            mine = [row for row in rows if number(row.get("beta")) == beta]
            name = _named(folders, folder, f"β = {beta:g}")
            style = _colour(folders, i, j)
            kappa.append(_forecast(mine, name, "kappa", style["colour"], 0))
            right.append(_forecast(mine, name, "accuracy", style["colour"], 0))
        if trained := trained_rows(folder):
            name, colour = _named(folders, folder, "rounds as trained"), _colour(folders, i, 3)["colour"]
            kappa.append(_forecast(trained, name, "kappa", colour, 1))
            right.append(_forecast(trained, name, "accuracy", colour, 1))
            said = f" {AS_TRAINED}"
        labels = folder.diagnosis.get("labels")
        scores = labels.get("calibration") if isinstance(labels, dict) else None
        for j, (name, facts) in enumerate(scores.items() if isinstance(scores, dict) else ()):
            bins = _list(facts.get("reliability")) if isinstance(facts, dict) else []
            calibration.append(_reliability(_named(folders, folder, name), bins, _colour(folders, i, j)))
    certain = f"Exact updates from this start, with what search and samples leave open as the interval.{said}"
    return [
        Chart("forecast-kappa", "Forecast of κ", certain, "rounds T", "κ", kappa, log=True),
        Chart("forecast-accuracy", "Forecast of sampled accuracy", certain, "rounds T", "share right", right),
        Chart(
            "diagnosed-calibration",
            TELLS,
            CALIBRATION,
            REWARD_RANK,
            "share right",
            calibration,
        ),
    ]


# Drawing


def plotly(chart: Chart) -> dict[str, Any]:
    """{data, layout} in Plotly's schema, without the page's theme. Plotly reads names as a kind of HTML."""
    data = [_trace(chart, one) for one in chart.series]
    x_axis: dict[str, Any] = {"title": {"text": chart.x_label}}
    y_axis: dict[str, Any] = {"title": {"text": chart.y_label}}
    if chart.log:
        y_axis |= {"type": "log", "exponentformat": "power", "nticks": 7}
    elif chart.y_label.startswith("share"):
        y_axis["range"] = [0, 1.03]
    if chart.x_label.startswith("round"):
        x_axis |= {"tickformat": "d"} | ({"dtick": 1} if len(chart.series[0].x) <= 12 else {})
    layout: dict[str, Any] = {"xaxis": x_axis, "yaxis": y_axis, "showlegend": len(data) > 1}
    if chart.kind == "bar":
        layout["barmode"] = "stack"
    if chart.events:
        line = {"dash": "dot", "width": 1.5, "color": COLOURS[1]}
        layout["shapes"] = [
            {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line} for x, _ in chart.events
        ]
        layout["annotations"] = [
            {"x": x, "y": 1, "yref": "paper", "text": _plain(text), "showarrow": False} for x, text in chart.events
        ]
    return {"data": data, "layout": layout}


def _trace(chart: Chart, series: Series) -> dict[str, Any]:
    colour = COLOURS[series.colour % len(COLOURS)]
    trace: dict[str, Any] = {"name": _plain(series.name), "x": list(series.x), "y": list(series.y)}
    if chart.kind == "bar":
        return trace | {"type": "bar", "marker": {"color": colour}}
    trace |= {"type": "scatter", "line": {"color": colour, "dash": DASHES[series.dash % len(DASHES)]}}
    if chart.kind == "step":
        trace["line"]["shape"] = "hv"
        return trace | {"mode": "lines"}
    trace |= {"mode": "lines+markers", "marker": {"symbol": SYMBOLS[series.colour % len(SYMBOLS)], "size": 7}}
    if series.low is not None and series.high is not None:
        reach = {
            "array": [_apart(high, y) for y, high in zip(series.y, series.high, strict=True)],
            "arrayminus": [_apart(y, low) for y, low in zip(series.y, series.low, strict=True)],
        }
        trace["error_y"] = {"type": "data", "symmetric": False, "thickness": 1.2, "width": 4, "color": colour} | reach
    return trace


def _apart(high: float | None, low: float | None) -> float:
    return 0.0 if high is None or low is None else max(0.0, high - low)


def _plain(text: str) -> str:
    return html.escape(visible(text), quote=False)


def draw(chart: Chart, axes: Axes) -> None:
    """For `srlm.figures.write_svg`; text is drawn as it is, dollar signs included."""
    from matplotlib.ticker import MaxNLocator

    below: list[float] = []
    for series in chart.series:
        x, y = (np.array([math.nan if v is None else v for v in values]) for values in (series.x, series.y))
        colour, name = COLOURS[series.colour % len(COLOURS)], visible(series.name).replace("$", r"\$")
        if chart.kind == "bar":
            height = np.nan_to_num(y)
            bottom = np.array(below) if below else np.zeros(len(y))
            axes.bar(x, height, bottom=bottom, color=colour, label=name)
            below = (bottom + height).tolist()
            continue
        style = LINESTYLES[series.dash % len(LINESTYLES)]
        if chart.kind == "step":
            axes.step(x, y, where="post", color=colour, linestyle=style, label=name)
            continue
        reach = None
        if series.low is not None and series.high is not None:
            reach = [
                [_apart(b, a) for a, b in zip(series.low, series.y, strict=True)],
                [_apart(b, a) for a, b in zip(series.y, series.high, strict=True)],
            ]
        marker = MARKERS[series.colour % len(MARKERS)]
        axes.errorbar(
            x, y, yerr=reach, color=colour, linestyle=style, marker=marker, markersize=5, capsize=2, label=name
        )
    if chart.log:
        axes.set_yscale("log")
    elif chart.y_label.startswith("share"):
        axes.set_ylim(0, 1.03)
    if chart.x_label.startswith("round"):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for x_event, text in chart.events:
        axes.axvline(x_event, color=COLOURS[1], linestyle=":", linewidth=1.5)
        axes.annotate(visible(text).replace("$", r"\$"), (x_event, 1), xycoords=("data", "axes fraction"), fontsize=8)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if len(chart.series) > 1:
        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if len(chart.series) > 4 else {}
        axes.legend(frameon=False, fontsize=8, **beside)
