"""What `srlm estimate` says of a small round against what the round takes: seconds and peak memory, stage by stage.

python -m benchmarks.estimate [--only 135M,270M] [--save FILE]       (135M-4bit and -8bit need bitsandbytes)

A round runs in a process of its own (`--run`): a peak is a peak since it was last forgotten, and here that is at the
beginning of every stage. Responses go on to their last token, so that what is compared is the same work. Both sides
are timed on one thread, in processor time: that of others on the machine does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.memory import peak_from_now
from benchmarks.timing import table

CAPITALS = Path(__file__).parents[1] / "data" / "capitals-train.jsonl"


@dataclasses.dataclass(frozen=True)
class Case:
    """A small run. tokens: of every response."""

    model: str
    prompts: int
    held_out: int
    samples: int
    tokens: int
    prompts_per_step: int = 4
    budget: int = 2048
    rank: int = 16
    quantize: str = "none"

    def words(self) -> list[str]:
        """Options of `srlm train` and `srlm estimate`."""
        options = {
            "model": self.model,
            "rounds": 1,
            "num_samples": self.samples,
            "max_new_tokens": self.tokens,
            "epochs": 1,
            "held_out_samples": self.samples,
            "prompts_per_step": self.prompts_per_step,
            "token_budget": self.budget,
            "lora_rank": self.rank,
            "quantize": self.quantize,
        }
        return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


CASES = {
    "135M": Case("smollm2", prompts=4, held_out=2, samples=8, tokens=32),
    "135M-long": Case("smollm2", prompts=4, held_out=2, samples=8, tokens=160),
    "135M-whole": Case("smollm2", prompts=8, held_out=4, samples=8, tokens=32, rank=0),
    "135M-4bit": Case("smollm2", prompts=4, held_out=2, samples=8, tokens=32, quantize="4bit"),
    "135M-8bit": Case("smollm2", prompts=4, held_out=2, samples=8, tokens=32, quantize="8bit"),
    "270M": Case("gemma3-270m", prompts=4, held_out=2, samples=8, tokens=32),
    "1.5B": Case("qwen2.5-coder-1.5b", prompts=2, held_out=1, samples=4, tokens=16, budget=512),
}


def files(case: Case, folder: Path) -> list[str]:
    lines = CAPITALS.read_text().splitlines()
    parts = {"prompts": lines[: case.prompts], "held-out": lines[case.prompts : case.prompts + case.held_out]}
    found = []
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("\n".join(part))
        found += [f"--{name}", str(folder / f"{name}.jsonl")]
    return found


class Over(Exception):
    """The rounds are; what is written then does not count."""


def clocked() -> None:
    """From now on seconds are those of the processor."""
    time.perf_counter = time.process_time  # type: ignore[assignment]


def estimate(case: Case) -> None:
    """Prints what a round is said to take, as JSON."""
    from srlm.commands import estimate as command

    clocked()
    with tempfile.TemporaryDirectory() as folder:
        command.run([*case.words(), *files(case, Path(folder)), "--measure", "--json"])


def run(case: Case) -> None:
    """One round, in this process; prints what it took as JSON."""
    clocked()
    from srlm.commands import train
    from srlm.policies.transformer import respond
    from srlm.run.ledger import Ledger
    from srlm.training import trainer

    decode, stage = respond.decode, Ledger.stage
    peaks: dict[str, int] = {}

    def to_the_end(*given: Any, **options: Any) -> Any:
        *rest, how, drawn = given
        return decode(*rest, dataclasses.replace(how, eos=frozenset({-1}), stopped=None), drawn, **options)

    def watched(self: Ledger, round: int, name: str, work: Callable[..., Any], tokens: Any) -> Any:
        peak = peak_from_now()
        result = stage(self, round, name, work, tokens)
        peaks[f"{round} {name}"] = peak()
        return result

    def over(*_: object) -> None:
        raise Over

    respond.decode, Ledger.stage, trainer.become = to_the_end, watched, over  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with contextlib.suppress(Over):
            train.run([*case.words(), *files(case, work), "--output", str(work / "run"), "--no-guard"])
        seconds = {}
        for number in (0, 1):
            stages = json.loads((work / "run" / f"round-00{number}" / "stages.json").read_text())
            seconds |= {f"{number} {k}": v["seconds"] for k, v in stages.items() if isinstance(v, dict)}
    print(json.dumps({"seconds": seconds, "peaks": peaks}))


def said(*words: str) -> str:
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False, env=alone)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def compared(case: Case, name: str) -> dict[str, Any]:
    start = time.perf_counter()
    model = ("--model", case.model)
    estimated = json.loads(said("benchmarks.estimate", "--estimate", name, *model))
    return {
        "case": dataclasses.asdict(case),
        "estimated": estimated,
        "took": time.perf_counter() - start,
        "measured": json.loads(said("benchmarks.estimate", "--run", name, *model).splitlines()[-1]),
    }


def rows(found: dict[str, dict[str, Any]]) -> str:
    lines: list[tuple[str, ...]] = []
    for name, one in found.items():
        estimated, measured = one["estimated"], one["measured"]
        mine = {f"0 {s['name']}": s["seconds"] for s in estimated["rounds"]["first"]}
        mine |= {f"1 {s['name']}": s["seconds"] for s in estimated["rounds"]["last"]}
        theirs = measured["seconds"]
        for kind in ("sample", "score", "update"):
            a, b = (sum(v for k, v in each.items() if k.split()[1] == kind) for each in (mine, theirs))
            lines.append((name, f"{kind}, s", f"{a:.1f}", f"{b:.1f}", f"{a / b:.2f}"))
        a, b = sum(mine.values()), sum(theirs.values())
        lines.append((name, "**whole run, s**", f"{a:.1f}", f"{b:.1f}", f"**{a / b:.2f}**"))
        a, b = estimated["memory"]["peak"] / 1e9, max(measured["peaks"].values()) / 1e9
        lines.append((name, "**peak memory, GB**", f"{a:.2f}", f"{b:.2f}", f"**{a / b:.2f}**"))
    return table(("case", "", "estimated", "measured", "estimated ÷ measured"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="one round of this case, in this process")
    parser.add_argument("--estimate", help="what is said of it")
    parser.add_argument("--only", default="135M,270M,1.5B", help="comma-separated cases")
    parser.add_argument("--save", type=Path, help="JSON file to keep everything in, beside what is there already")
    parser.add_argument("--show", type=Path, help="such a file, as a table")
    parser.add_argument("--model", help="of one case, where its alias is not installed: a folder with the same")
    given = parser.parse_args()

    def chosen(name: str) -> Case:
        return dataclasses.replace(CASES[name], model=given.model or CASES[name].model)

    if given.run or given.estimate:
        (run if given.run else estimate)(chosen(given.run or given.estimate))
        return
    if given.show:
        print(rows(json.loads(given.show.read_text())))
        return
    found = {}
    for name in given.only.split(","):
        found[name] = compared(chosen(name), name)
        print(rows({name: found[name]}), flush=True)
        if given.save:
            before = json.loads(given.save.read_text()) if given.save.exists() else {}
            given.save.write_text(json.dumps(before | {name: found[name]}, indent=1))


if __name__ == "__main__":
    main()
