"""Regression on all pairs against DPO on best and worst: rounds, samples and seconds to the same held-out accuracy;
and against itself at a smaller beta.

    python -m benchmarks.objectives --output DIR [--model smollm2] [--threads 2] [--table]

One `srlm train --compare` on the capitals of docs/methods.md, three seeds, three rounds an arm. A seed's level is 90 %
of the way from round 0 to the best accuracy of its weaker arm, so that both reach it. Seconds are those of sampling,
scoring and updating; held-out measurements are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.methods import OPTIONS, SEEDS, SIZES, prompts
from srlm.training.comparison import file_name

REGRESSION = "log_likelihood"
OTHERS = ("log_likelihood objective=dpo pairs=best_worst beta=0.1", "log_likelihood beta=0.25")
ROLLOUTS = ("seconds_sample_rollouts", "seconds_score_rollouts")


def run(output: Path, model: str, threads: int) -> None:
    train, held_out, _ = prompts(output, "capitals")
    words = [sys.executable, "-m", "srlm.cli", "train", "--model", model, "--prompts", train, "--held-out", held_out]
    words += [*OPTIONS, *SIZES, "--rounds", "3", "--compare", ",".join((REGRESSION, *OTHERS)), "--seeds", str(SEEDS)]
    command = [*words, "--output", str(output / model)]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True)


def records(output: Path, model: str, arm: str, seed: int) -> list[dict[str, Any]]:
    file = output / model / f"{file_name(arm)}-seed-{seed}" / "records.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def reached(found: list[dict[str, Any]], level: float) -> tuple[int, float]:
    """Rounds, and seconds of training, until accuracy is `level`. Round t's row holds the sampling and scoring of pi_t
    and the update that made it."""
    seconds = 0.0
    for record in found:
        seconds += float(record.get("seconds_update", 0.0))
        if record["accuracy_sampled"] >= level:
            return record["round"], seconds
        seconds += sum(float(record[name]) for name in ROLLOUTS)
    raise ValueError("the level is never reached")


def table(output: Path, model: str) -> str:
    lines = [
        "| against β = 1 | seed | level | rounds | samples a prompt | seconds | ratio of seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in OTHERS:
        ratios, name = [], arm.removeprefix("log_likelihood ")
        for seed in range(SEEDS):
            ours, theirs = (records(output, model, one, seed) for one in (REGRESSION, arm))
            start = ours[0]["accuracy_sampled"]
            weaker = min(max(r["accuracy_sampled"] for r in found) for found in (ours, theirs))
            if weaker <= start:
                lines.append(f"| {name} | {seed} | none: an arm never rises | | | | |")
                continue
            level = start + 0.9 * (weaker - start)
            (a, a_seconds), (b, b_seconds) = reached(ours, level), reached(theirs, level)
            ratios.append(b_seconds / a_seconds)
            lines.append(
                f"| {name} | {seed} | {level:.2f} | {a} and {b} | {8 * a} and {8 * b} "
                f"| {a_seconds:.0f} and {b_seconds:.0f} | {ratios[-1]:.1f} |"
            )
        if ratios:
            lines.append(
                f"| {name} | median | | | | | **{median(ratios):.1f}** ({min(ratios):.1f}–{max(ratios):.1f}) |"
            )
    lines += ["", "| arm | seed | accuracy by round |", "|---|---|---|"]
    for arm in (REGRESSION, *OTHERS):
        for seed in range(SEEDS):
            path = " ".join(f"{r['accuracy_sampled']:.2f}" for r in records(output, model, arm, seed))
            lines.append(f"| {arm} | {seed} | {path} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    chosen = parser.parse_args()
    if not chosen.table:
        chosen.output.mkdir(parents=True, exist_ok=True)
        run(chosen.output, chosen.model, chosen.threads)
    print(table(chosen.output, chosen.model))


if __name__ == "__main__":
    main()
