"""docs/reasoning.md: does self-reward improve word problems, and how do gain and collapse go with prompts and rounds?

    python -m benchmarks.reasoning study --output DIR [--seeds 2] [--prompts 12] [--held-out 24] [--rounds 2]
        [--figures FOLDER] [--table]
    python -m benchmarks.reasoning collapse --output DIR [--prompts 8 32 128 512] [--figures FOLDER] [--table]

The study asks `srlm diagnose` first and is then one `srlm train --compare`, seed by seed; collapse is one `srlm train`
for each number of prompts, the guard off. Finished runs are kept, unfinished ones resumed; --table prints what is
there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from srlm.config import SelfRewardConfig
from srlm.figures import write_svg
from srlm.guard.signals import alarms
from srlm.training.comparison import file_name

CONTROLS = ("random", "oracle")
ARMS = ("log_likelihood", "mean_log_likelihood", "majority", *CONTROLS)
PROBLEMS = "reasoning-gym:gsm_symbolic?size={}&seed={}&difficulty=1.0"
# Of five, on twelve other problems (seed 77), greedy: 8 right, in 85 tokens. Terser ones: 2 to 4 right, in 18 to 51.
BRIEF = "Be brief: one short line for each step, at most four, and end with 'Answer: ' and the number."
SUMS = "reasoning-gym:chain_sum?size={}&seed={}&min_terms=2&max_terms=2&min_digits=1&max_digits=2&instruction="
MOST = 1280  # prompts that a run of `collapse` trains on, round for round: beyond ten times 128 it has fewer rounds


def srlm(words: Sequence[object], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as sink:
        subprocess.run([sys.executable, "-m", "srlm.cli", *map(str, words)], stdout=sink, stderr=sink, check=True)


def study(given: argparse.Namespace) -> None:
    held_out, diagnosis = PROBLEMS.format(200, 2), given.output / "diagnosis"
    shared = ("--model", given.model, "--answers", "number", "--instruction", BRIEF, "--max-new-tokens", 160)
    if not diagnosis.exists():
        size = ("--max-prompts", 32, "--samples", 8, "--search-budget", 64)
        log = given.output / "diagnosis.log"
        srlm(["diagnose", *shared, *size, "--prompts", held_out, "--output", diagnosis], log)
    size = ("--max-prompts", given.prompts, "--max-held-out", given.held_out, "--held-out-samples", 4)
    # Two passes cost two thirds of the default's three; at 2e-4 R² was below 0 (docs/log.md).
    steps = ("--epochs", 2, "--learning-rate", 1e-4, "--step", 1)
    how = ("--rounds", given.rounds, *steps, "--truncated", "penalise", "--quiet")
    words = ["train", *shared, *size, *how, "--prompts", PROBLEMS.format(400, 1), "--held-out", held_out]
    for seeds in range(1, given.seeds + 1):  # so that every arm has its first seed before one has its second
        arms = ("--compare", ",".join(ARMS), "--seeds", seeds, "--output", given.output / "arms")
        srlm([*words, *arms], given.output / "arms.log")


def rounds_of(prompts: int) -> int:
    return max(3, min(10, MOST // prompts))


def collapse(given: argparse.Namespace) -> None:
    task = ("--prompts", SUMS.format(600, 1), "--held-out", SUMS.format(100, 2), "--answers", "number")
    how = ("--raw-prompts", "--stop", "\n", "--max-new-tokens", 12, "--max-held-out", 48, "--no-guard", "--quiet")
    for number in given.prompts:
        for reward in given.rewards:
            folder = given.output / f"{reward}-{number}"
            if (folder / "model").exists():
                continue
            own = ("--max-prompts", number, "--rounds", rounds_of(number), "--reward", reward, "--output", folder)
            begun = (folder / "manifest.json").exists()
            srlm(
                ["train", *(("--resume", folder) if begun else (*task, *how, *own))],
                given.output / f"{folder.name}.log",
            )


def records_of(folder: Path) -> list[dict[str, Any]]:
    file = folder / "records.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def share(record: dict[str, Any], name: str) -> str:
    value, low, high = (record.get(name + end) for end in ("", "_low", "_high"))
    return "–" if value is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def told(records: Sequence[dict[str, Any]]) -> str:
    """The guard's reasons about the last of them, in short."""
    said = alarms(records, SelfRewardConfig()) if len(records) > 1 else []
    return ", ".join(reason.split(" is ")[0] for reason in said)


def study_table(output: Path, seeds: int) -> str:
    heads = "seed, arm, round, sampled, greedy, maj@4, pass@4, length, cut off, rank by token, learned, lost, the guard"
    lines = [f"| {heads.replace(', ', ' | ')} |", "|" + "---|" * 13]
    for seed in range(seeds):
        for arm in ARMS:
            records = records_of(output / "arms" / f"{file_name(arm)}-seed-{seed}")
            for number, record in enumerate(records):
                if number == 0 and arm != ARMS[0]:
                    continue  # shared
                cells = [
                    *(str(seed), arm if number else "*start*", str(number)),
                    *(share(record, name) for name in ("accuracy_sampled", "accuracy_greedy", "maj_at_4", "pass_at_4")),
                    *(f"{record['mean_length']:.0f}", f"{record['truncation_rate']:.2f}"),
                    *(_number(record.get(name)) for name in ("token_likelihood_rank", "greedy_learned", "greedy_lost")),
                    told(records[: number + 1]),
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def study_figures(output: Path, seeds: int, folder: Path) -> None:
    """By round, the mean over those seeds of an arm that have come as far."""
    names = {"accuracy_sampled": "sampled accuracy", "maj_at_4": "majority of 4", "mean_length": "tokens of a response"}
    for name, label in names.items():

        def draw(axes: Axes, name: str = name, label: str = label) -> None:
            for arm in ARMS:
                runs = [records_of(output / "arms" / f"{file_name(arm)}-seed-{seed}") for seed in range(seeds)]
                last = min((len(run) for run in runs if run), default=0)
                if last < 2:
                    continue
                means = [fmean(float(run[t][name]) for run in runs if run) for t in range(last)]
                axes.plot(range(last), means, marker=".", linestyle=":" if arm in CONTROLS else "-", label=arm)
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylabel(label)
            axes.legend(frameon=False)

        write_svg(folder / f"reasoning-{name.replace('_', '-')}.svg", draw)


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float | int) else "–"


@dataclasses.dataclass(frozen=True)
class Curve:
    reward: str
    prompts: int
    records: list[dict[str, Any]]

    @property
    def alarm(self) -> int | None:
        """Round of the guard's first alarm that needs no labels."""
        bare = [
            {key: value for key, value in record.items() if not key.startswith(("accuracy", "auroc"))}
            for record in self.records
        ]
        found = (t for t in range(1, len(bare)) if alarms(bare[: t + 1], SelfRewardConfig()))
        return next(found, None)

    def values(self, name: str) -> list[float]:
        return [float(record[name] or 0.0) for record in self.records]

    def draw(self, axes: Axes, name: str) -> None:
        values = self.values(name)
        (line,) = axes.plot(range(len(values)), values, marker=".", label=f"{self.prompts} prompts")
        if self.alarm is not None:
            axes.plot(self.alarm, values[self.alarm], marker="x", markersize=10, color=line.get_color())


def curves(given: argparse.Namespace) -> list[Curve]:
    found = [
        Curve(reward, number, records_of(given.output / f"{reward}-{number}"))
        for reward in given.rewards
        for number in given.prompts
    ]
    return [curve for curve in found if curve.records]


def collapse_table(found: Sequence[Curve]) -> str:
    lines = [
        "| reward | prompts | rounds | sampled: start, best (round), end | greedy: start, end | log10 κ: start, end | "
        "mode fidelity at the end | pass@8: start, end | first alarm |",
        "|" + "---|" * 9,
    ]
    for curve in found:
        first, last = curve.records[0], curve.records[-1]
        sampled = curve.values("accuracy_sampled")
        best = max(range(len(sampled)), key=sampled.__getitem__)
        cells = [
            *(curve.reward, str(curve.prompts), str(last["round"])),
            f"{sampled[0]:.2f}, {sampled[best]:.2f} ({best}), {sampled[-1]:.2f}",
            *(
                ", ".join(f"{record[name]:.2f}" for record in (first, last))
                for name in ("accuracy_greedy", "log10_kappa_upper_held_out")
            ),
            f"{last['mode_fidelity']:.2f}",
            ", ".join(f"{record['pass_at_8']:.2f}" for record in (first, last)),
            "none" if curve.alarm is None else f"round {curve.alarm}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figures(found: Sequence[Curve], folder: Path) -> None:
    names = {
        "accuracy_sampled": "sampled accuracy",
        "log10_kappa_upper_held_out": "log10 κ ≤",
        "mode_fidelity": "mode fidelity",
    }
    for reward in {curve.reward for curve in found}:
        for name, label in names.items():

            def draw(axes: Axes, name: str = name, label: str = label, reward: str = reward) -> None:
                for curve in found:
                    if curve.reward == reward:
                        curve.draw(axes, name)
                axes.set_xlabel("round")
                axes.set_ylabel(label)
                alarmed = any(curve.alarm is not None for curve in found if curve.reward == reward)
                said = "crosses mark the guard's first alarm" if alarmed else "the guard raises no alarm"
                axes.set_title(f"{reward}: {said}", fontsize=10)
                axes.legend(frameon=False)

            write_svg(folder / f"collapse-{reward}-{name.split('_')[0]}.svg", draw)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("study")
    one.add_argument("--model", default="qwen2.5-coder-1.5b")
    for name, value in (("seeds", 2), ("prompts", 12), ("held-out", 24), ("rounds", 2)):
        one.add_argument(f"--{name}", type=int, default=value)
    two = parts.add_parser("collapse")
    two.add_argument("--prompts", type=int, nargs="+", default=[8, 32, 128, 512])
    two.add_argument("--rewards", nargs="+", default=["log_likelihood", "majority"])
    for part in (one, two):
        part.add_argument("--figures", type=Path, help="folder to draw into")
        part.add_argument("--output", type=Path, required=True)
        part.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    given = parser.parse_args(argv)
    if not given.table:
        study(given) if given.part == "study" else collapse(given)
    if given.part == "study":
        print(study_table(given.output, given.seeds))
        if given.figures:
            study_figures(given.output, given.seeds, given.figures)
        return
    found = curves(given)
    print(collapse_table(found))
    if given.figures:
        figures(found, given.figures)


if __name__ == "__main__":
    main()
