"""Arms on word problems: `srlm diagnose` first, then `srlm train --compare`, seed by seed. A seed has its own problems,
to train on and held out, too."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from benchmarks.reasoning import kept
from benchmarks.reasoning.commands import srlm
from srlm.estimators.intervals import mean_and_error, student_bounds
from srlm.figures import write_svg
from srlm.training.comparison import file_name

CONTROLS = ("random", "oracle")
ARMS = ("log_likelihood", "mean_log_likelihood", "majority", *CONTROLS)
PROBLEMS = "reasoning-gym:gsm_symbolic?size={}&seed={}&difficulty=1.0"
# Of five, on twelve other problems (seed 77), greedy: 8 right, in 85 tokens. Terser ones: 2 to 4 right, in 18 to 51.
BRIEF = "Be brief: one short line for each step, at most four, and end with 'Answer: ' and the number."
Record = dict[str, Any]


def run(given: argparse.Namespace) -> None:
    held_out, diagnosis = PROBLEMS.format(200, 2), given.output / "diagnosis"
    shared = ("--model", given.model, "--answers", "number", "--instruction", BRIEF, "--max-new-tokens", 160)
    if given.diagnose and not diagnosis.exists():
        size = ("--max-prompts", 32, "--samples", 8, "--search-budget", 64)
        log = given.output / "diagnosis.log"
        srlm(["diagnose", *shared, *size, "--prompts", held_out, "--output", diagnosis], log)
    size = ("--max-prompts", given.problems, "--max-held-out", given.held_out, "--held-out-samples", 4)
    # Two passes cost two thirds of the default's three; at 2e-4 R² was below 0 (docs/log.md).
    steps = ("--epochs", 2, "--learning-rate", 1e-4, "--step", 1)
    how = ("--rounds", given.rounds, *steps, "--truncated", "penalise", "--quiet")
    words = ["train", *shared, *size, *how, "--prompts", PROBLEMS.format(400, 1), "--held-out", held_out]
    for seed in given.seeds:
        arms = ("--compare", ",".join(given.arms), "--seed", seed, "--seeds", 1, "--output", given.output / "arms")
        srlm([*words, *arms], given.output / "arms.log")
        for arm in given.arms:
            kept.keep(given.output / "arms" / _name(arm, seed), _file(given.records, arm, seed))


def _name(arm: str, seed: int) -> str:
    return f"{file_name(arm)}-seed-{seed}"


def _file(records: Path, arm: str, seed: int) -> Path:
    return records / "study" / f"{_name(arm, seed)}.jsonl"


def read(records: Path, arms: Sequence[str], seeds: Sequence[int]) -> dict[int, dict[str, list[Record]]]:
    """seed -> arm -> records, of what is there."""
    found = {
        seed: {arm: kept.read(file) for arm in arms if (file := _file(records, arm, seed)).exists()} for seed in seeds
    }
    return {seed: arms for seed, arms in found.items() if arms}


def table(found: dict[int, dict[str, list[Record]]]) -> str:
    heads = "seed, arm, round, sampled, greedy, maj@4, pass@4, length, rank by token, learned, lost, the guard"
    lines = [f"| {heads.replace(', ', ' | ')} |", "|" + "---|" * 12]
    for seed, arms in found.items():
        start = next(iter(arms.values()))[0]
        rows = [("*start*", start), *((arm, record) for arm, records in arms.items() for record in records[1:])]
        for arm, record in rows:
            cells = [
                *(str(seed), arm, str(record["round"])),
                *(_share(record, name) for name in ("accuracy_sampled", "accuracy_greedy", "maj_at_4", "pass_at_4")),
                f"{record['mean_length']:.0f}",
                *(_number(record.get(name)) for name in ("token_likelihood_rank", "greedy_learned", "greedy_lost")),
                ", ".join(record["guard"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(record: Record, name: str) -> str:
    value, low, high = (record.get(name + end) for end in ("", "_low", "_high"))
    return "–" if value is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float | int) else "–"


def paired(found: dict[int, dict[str, list[Record]]]) -> str:
    """Sampled accuracy of the last round less the start's and less random's, problem by problem: means and Student's
    95 % intervals over the problems of each seed and of all."""
    lines = ["| arm | seed | − start | − random |", "|---|---|---|---|"]
    for arm in dict.fromkeys(arm for arms in found.values() for arm in arms):
        of_start: dict[str, list[float]] = {}
        of_random: dict[str, list[float]] = {}
        for seed, arms in found.items():
            if arm not in arms or "right" not in arms[arm][-1]:
                continue
            own, first = arms[arm][-1]["right"], arms[arm][0]["right"]
            of_start[str(seed)] = [a - b for a, b in zip(own, first, strict=True)]
            if arm != "random" and "right" in arms.get("random", [{}])[-1]:
                of_random[str(seed)] = [a - b for a, b in zip(own, arms["random"][-1]["right"], strict=True)]
        for seed in [*of_start, *(["all"] if len(of_start) > 1 else [])]:
            pairs = [_difference(differences, seed) for differences in (of_start, of_random)]
            lines.append(f"| {arm} | {seed} | {' | '.join(pairs)} |")
    return "\n".join(lines)


def _difference(differences: dict[str, list[float]], seed: str) -> str:
    values = [v for own in differences.values() for v in own] if seed == "all" else differences.get(seed, [])
    mean, error = mean_and_error(values)
    if not math.isfinite(error):
        return "–"
    low, high = student_bounds(mean, error, len(values), 0.025)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def draw(found: dict[int, dict[str, list[Record]]], folder: Path) -> None:
    """By round, each seed and the mean of those of an arm that have come as far."""
    names = {"accuracy_sampled": "sampled accuracy", "maj_at_4": "majority of 4", "mean_length": "tokens of a response"}
    for name, label in names.items():

        def one(axes: Axes, name: str = name, label: str = label) -> None:
            for arm in dict.fromkeys(arm for arms in found.values() for arm in arms):
                runs = [arms[arm] for arms in found.values() if arm in arms]
                last = max(len(records) for records in runs)
                longest = [records for records in runs if len(records) == last]
                means = [fmean(float(records[t][name]) for records in longest) for t in range(last)]
                style = ":" if arm in CONTROLS else "-"
                (line,) = axes.plot(range(last), means, marker=".", linestyle=style, label=arm)
                for records in runs if len(runs) > 1 else ():
                    values = [float(record[name]) for record in records]
                    axes.plot(range(len(values)), values, linestyle=style, linewidth=0.6, color=line.get_color())
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylabel(label)
            axes.legend(frameon=False)

        write_svg(folder / f"reasoning-{name.replace('_', '-')}.svg", one)
