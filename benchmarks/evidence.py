"""docs/evidence.md: are the defaults robust, and what does each part of them do? Arms x seeds of the demo's run.

    python -m benchmarks.evidence --output DIR [--jobs 2] [--table]

Every run is `srlm train --config configs/capitals.yaml` with the arm's options; finished runs are kept, unfinished ones
resumed. `--table` only prints the table of what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

ARMS = {  # name -> (options, seeds), in the order in which they are worth having
    "defaults": ((), 5),
    "plain: no clip, no anchor": (("--clip", "0", "--anchor", "0"), 3),
    "random reward": (("--reward", "random", "--no-guard"), 3),
    "clip only": (("--anchor", "0"), 3),
    "anchor only": (("--clip", "0"), 3),
}


def folder(output: Path, arm: str, seed: int) -> Path:
    return output / f"{arm.split(':')[0].replace(' ', '-')}-{seed}"


def run(output: Path, arm: str, seed: int, threads: int) -> None:
    target = folder(output, arm, seed)
    words = [sys.executable, "-m", "srlm.cli", "train", "--quiet"]
    if (target / "manifest.json").exists():
        words += ["--resume", str(target)]
    else:
        words += ["--config", "configs/capitals.yaml", "--seed", str(seed), "--output", str(target), *ARMS[arm][0]]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    output.mkdir(parents=True, exist_ok=True)
    with (output / f"{target.name}.log").open("a") as log:
        subprocess.run(words, stdout=log, stderr=log, env=environment, check=False)


def table(output: Path) -> str:
    lines = ["| arm | seed | " + " | ".join(f"t={t}" for t in range(4)) + " | gain | greedy 0 → 3 | mode fid. | leak |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for arm, (_, seeds) in ARMS.items():
        gains = []
        for seed in range(seeds):
            file = folder(output, arm, seed) / "records.jsonl"
            records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
            if len(records) < 4:
                continue
            sampled = [r["accuracy_sampled"] for r in records]
            gains.append(sampled[-1] - sampled[0])
            cells = [f"{value:.3f}" for value in sampled]
            greedy = f"{records[0]['accuracy_greedy']:.3f} → {records[-1]['accuracy_greedy']:.3f}"
            last = f"{records[-1]['mode_fidelity']:.2f} | {records[-1]['leak']:+.2f}"
            lines.append(f"| {arm} | {seed} | {' | '.join(cells)} | {gains[-1]:+.3f} | {greedy} | {last} |")
        if gains:
            lines.append(f"| **{arm}** | mean of {len(gains)} | | | | | **{mean(gains):+.3f}** | | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads per run")
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    chosen = parser.parse_args()
    if not chosen.table:
        # All arms get a first seed before any gets its last.
        jobs = sorted(
            ((seed, arm) for arm, (_, seeds) in ARMS.items() for seed in range(seeds)),
            key=lambda job: (job[1] != "defaults", job[0]),
        )
        with ThreadPoolExecutor(chosen.jobs) as pool:
            list(pool.map(lambda job: run(chosen.output, job[1], job[0], chosen.threads), jobs))
    print(table(chosen.output))


if __name__ == "__main__":
    main()
