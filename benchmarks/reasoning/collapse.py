"""Sums: a run for each number of prompts, the guard off."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from benchmarks.reasoning import kept
from benchmarks.reasoning.commands import srlm
from srlm.figures import write_svg

SUMS = "reasoning-gym:chain_sum?size={}&seed={}&min_terms=2&max_terms=2&min_digits=1&max_digits=2&instruction="
MOST = 1280  # prompts that a run trains on, round for round: beyond ten times 128 it has fewer rounds


def rounds_of(prompts: int) -> int:
    return max(3, min(10, MOST // prompts))


def run(given: argparse.Namespace) -> None:
    task = ("--prompts", SUMS.format(600, 1), "--held-out", SUMS.format(100, 2), "--answers", "number")
    how = ("--raw-prompts", "--stop", "\n", "--max-new-tokens", 12, "--max-held-out", 48, "--no-guard", "--quiet")
    for number in given.prompts:
        for reward in given.rewards:
            folder = given.output / f"{reward}-{number}"
            if not (folder / "model").exists():
                own = ("--max-prompts", number, "--rounds", rounds_of(number), "--reward", reward, "--output", folder)
                begun = (folder / "manifest.json").exists()
                words = ["train", *(("--resume", folder) if begun else (*task, *how, *own))]
                srlm(words, given.output / f"{folder.name}.log")
            kept.keep(folder, given.records / "collapse" / f"{folder.name}.jsonl")


@dataclasses.dataclass(frozen=True)
class Curve:
    reward: str
    prompts: int
    records: list[dict[str, Any]]

    @property
    def alarm(self) -> int | None:
        """Round of the guard's first alarm that needs no labels."""
        return next((t for t, record in enumerate(self.records) if record["guard_unlabelled"]), None)

    def values(self, name: str) -> list[float]:
        return [float(record[name] or 0.0) for record in self.records]

    def draw(self, axes: Axes, name: str) -> None:
        values = self.values(name)
        (line,) = axes.plot(range(len(values)), values, marker=".", label=f"{self.prompts} prompts")
        if self.alarm is not None:
            axes.plot(self.alarm, values[self.alarm], marker="x", markersize=10, color=line.get_color())


def read(given: argparse.Namespace) -> list[Curve]:
    files = {
        (reward, number): given.records / "collapse" / f"{reward}-{number}.jsonl"
        for reward in given.rewards
        for number in given.prompts
    }
    return [Curve(*key, kept.read(file)) for key, file in files.items() if file.exists()]


def table(found: Sequence[Curve]) -> str:
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


def draw(found: Sequence[Curve], folder: Path) -> None:
    names = {
        "accuracy_sampled": "sampled accuracy",
        "log10_kappa_upper_held_out": "log10 κ ≤",
        "mode_fidelity": "mode fidelity",
    }
    for reward in {curve.reward for curve in found}:
        for name, label in names.items():

            def one(axes: Axes, name: str = name, label: str = label, reward: str = reward) -> None:
                for curve in found:
                    if curve.reward == reward:
                        curve.draw(axes, name)
                axes.set_xlabel("round")
                axes.set_ylabel(label)
                alarmed = any(curve.alarm is not None for curve in found if curve.reward == reward)
                said = "crosses mark the guard's first alarm" if alarmed else "the guard raises no alarm"
                axes.set_title(f"{reward}: {said}", fontsize=10)
                axes.legend(frameon=False)

            write_svg(folder / f"collapse-{reward}-{name.split('_')[0]}.svg", one)
