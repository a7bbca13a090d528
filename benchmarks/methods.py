"""docs/methods.md: every self-reward on two tasks and two model families, beside the controls, at equal compute.

    python -m benchmarks.methods --output DIR [--jobs 2] [--only smollm2-capitals] [--judges] [--table] [--guard]

Each cell is one `srlm train --compare` with three seeds; finished runs are kept, unfinished ones resumed. `--table`
only prints the tables of what is there. Both families get the same prompts, as text to be continued: Gemma is a base
model without a chat template.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

from srlm.config import SelfRewardConfig
from srlm.guard.signals import alarms
from srlm.training.comparison import FILE, file_name

SEEDS = 3
# Factors and beta bring the rewards of a group to a standard deviation of about 3 nats (docs/methods.md).
CHEAP = (
    *("log_likelihood", "random", "3*mean_log_likelihood", "4*self_certainty", "6*negative_entropy", "20*majority"),
    *("log_likelihood+implicit", "inverted"),
)
ORACLE = ("oracle beta=0.125",)  # of the sums alone: the capitals to train on come without answers
JUDGES = ("30*judge", "300*judge_pairwise")
OPTIONS = ("--raw-prompts", "--stop", "\n", "--max-new-tokens", "8", "--rounds", "2", "--beta", "1", "--quiet")
SIZES = ("--max-prompts", "24", "--max-held-out", "32")
SMALL = ("--max-prompts", "16", "--max-held-out", "24")  # of the slowest cell
AS_RUN = SelfRewardConfig(max_new_tokens=8, rounds=2)
SUMS = "reasoning-gym:chain_sum?size={}&seed={}&min_terms=2&max_terms=2&min_digits=1&max_digits=1&instruction="
MODELS = ("smollm2", "gemma3-270m")
TASKS = ("capitals", "sums")
CELLS = [f"{model}-{task}" for task in TASKS for model in reversed(MODELS)]
SLOWEST = "gemma3-270m-sums"
Case: TypeAlias = tuple[int | None, int | None, int | None]
"""Rounds of a run: of the damage, of the guard's first alarm, and of that without labels."""
COLUMNS = ("accuracy_sampled", "accuracy_greedy", "log10_kappa_upper_held_out", "mean_length", "distinct_2")


def prompts(output: Path, task: str) -> tuple[str, str, str]:
    """Training prompts, held-out prompts and answer classes of a task."""
    if task == "sums":
        return SUMS.format(100, 1), SUMS.format(60, 2), "number"
    files = []
    for part in ("train", "held-out"):
        rows = [json.loads(line) for line in Path(f"data/capitals-{part}.jsonl").read_text().splitlines()]
        for row in rows:
            (country,) = re.findall(r"the capital of (.+)\?", row["prompt"])
            row["prompt"] = f"Country: {country}\nCapital:"
        file = output / f"capitals-{part}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        files.append(str(file))
    return files[0], files[1], "normalised"


def run(output: Path, cell: str, judges: bool, threads: int) -> None:
    model, _, task = cell.rpartition("-")
    arms = CHEAP + (ORACLE if task == "sums" else ()) + (JUDGES if judges else ())
    train, held_out, classes = prompts(output, task)
    words = [sys.executable, "-m", "srlm.cli", "train", "--model", model, "--prompts", train, "--held-out", held_out]
    words += ["--answers", classes, *OPTIONS, *(SMALL if cell == SLOWEST else SIZES)]
    words += ["--compare", ",".join(arms), "--seeds", str(SEEDS)]
    with (output / f"{cell}.log").open("a") as log:
        command = [*words, "--output", str(output / cell)]
        subprocess.run(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=False)


def table(arms: list[dict[str, Any]]) -> str:
    """Markdown: what each arm ends with, means over seeds, with 95 % intervals of differences."""
    lines = [
        "| arm | sampled | gain | − random | greedy | log10 κ ≤ | length | distinct-2 | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def spread(found: dict[str, float] | None) -> str:
        return "–" if found is None else f"{found['mean']:+.2f} ± {(found['high'] - found['low']) / 2:.2f}"

    first = arms[0]["start"]
    start = [f"{first[key]['mean']:.2f}" for key in COLUMNS]
    lines.append(f"| *round 0* | {start[0]} | | | {' | '.join(start[1:])} | |")
    for arm in arms:
        cells = [f"{arm['end'][key]['mean']:.2f}" for key in COLUMNS]
        cells[1:1] = [spread(arm["gain"]["accuracy_sampled"]), spread(arm["over_random"])]
        lines.append(f"| {arm['name']} | {' | '.join(cells)} | {arm['seconds']['mean']:.0f} |")
    return "\n".join(lines)


def guarded(cell: Path, arms: list[str]) -> tuple[str, list[Case]]:
    """Markdown: what the guard, which comparisons run without, says of each run after the fact, with labels and
    without. Damaged, by labels: a round ends with less than three quarters of the best sampled accuracy before it."""
    lines = ["| arm | accuracy by round, seed by seed | damaged | alarm | without labels |", "|---|---|---|---|---|"]
    cases: list[Case] = []
    for arm in arms:
        paths, mine = [], []
        for seed in range(SEEDS):
            file = cell / f"{file_name(arm)}-seed-{seed}" / "records.jsonl"
            records = [json.loads(line) for line in file.read_text().splitlines()]
            found = [r["accuracy_sampled"] for r in records]
            paths.append(" ".join(f"{value:.2f}" for value in found))
            damaged = next((t for t in range(1, len(found)) if found[t] < 0.75 * max(found[:t])), None)
            bare = [{key: r[key] for key in r if not key.startswith(("accuracy", "auroc"))} for r in records]
            mine.append((damaged, first_alarm(records), first_alarm(bare)))
        cells = [", ".join("–" if t is None else str(t) for t in column) for column in zip(*mine, strict=True)]
        lines.append(f"| {arm} | {'; '.join(paths)} | {' | '.join(cells)} |")
        cases += mine
    return "\n".join(lines), cases


def counts(cases: list[Case]) -> str:
    """Markdown: of all cells, with labels and without."""
    lines = [
        "| | damaged | same round | before | after | missed | undamaged | alarms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, which in (("with labels", 1), ("without", 2)):
        hurt = [(case[0], case[which]) for case in cases if case[0] is not None]
        told = [alarm - round for round, alarm in hurt if round is not None and alarm is not None]
        rest = [case[which] for case in cases if case[0] is None]
        numbers = [len(hurt), told.count(0), sum(t < 0 for t in told), sum(t > 0 for t in told), len(hurt) - len(told)]
        numbers += [len(rest), sum(alarm is not None for alarm in rest)]
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def first_alarm(records: list[dict[str, Any]]) -> int | None:
    return next((t for t in range(1, len(records)) if alarms(records[: t + 1], AS_RUN)), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads per cell")
    parser.add_argument("--only", nargs="+", choices=CELLS, default=CELLS, help="some of the cells")
    parser.add_argument("--judges", action="store_true", help="the judges too, which take several times as long")
    parser.add_argument("--guard", action="store_true", help="print what the guard would have said, too")
    parser.add_argument("--table", action="store_true", help="print the tables and stop")
    chosen = parser.parse_args()
    if not chosen.table:
        chosen.output.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(chosen.jobs) as pool:
            list(pool.map(lambda cell: run(chosen.output, cell, chosen.judges, chosen.threads), chosen.only))
    cases: list[Case] = []
    unfinished = False
    for cell in chosen.only:
        file = chosen.output / cell / FILE
        kept = json.loads(file.read_text()) if file.exists() else {"state": "not begun"}
        if kept["state"] != "finished":
            print(f"## {cell}\n\n{kept['state']}; see {cell}.log\n")
            unfinished = True
            continue
        print(f"## {cell}\n\n{table(kept['arms'])}\n")
        if chosen.guard:
            text, found = guarded(chosen.output / cell, [arm["name"] for arm in kept["arms"]])
            cases += found
            print(f"{text}\n")
    if cases:
        print(f"## The guard\n\n{counts(cases)}")
    sys.exit(unfinished)


if __name__ == "__main__":
    main()
