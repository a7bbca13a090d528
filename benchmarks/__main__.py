"""One command, one run: measure, print, write RESULTS.md."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from accelerate import PartialState

from benchmarks import flops, memory, sampling
from benchmarks.timing import machine, say
from benchmarks.workload import Sizes, load_policy
from srlm.policies.transformer.policy import TransformerPolicy

HERE = Path(__file__).parent
PARTS = ("a", "b", "c", "d")


def against_trl(policy: TransformerPolicy, model: str, dtype: str, sizes: Sizes) -> str:
    from benchmarks import update  # the only part that needs trl

    return update.run(policy, model, dtype, sizes)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="What srlm costs; see benchmarks/README.md"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run? (nothing is written)")
    parser.add_argument("--only", default="a,b,c,d", help="comma-separated parts (nothing is written unless all)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--rounds", type=int, help="A B pairs per comparison")
    parser.add_argument("--output", type=Path, help="file to write; RESULTS.md or RESULTS-cuda.md by default")
    given = parser.parse_args()
    parts = given.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only names {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")

    device = PartialState(cpu=given.device == "cpu").device.type
    if given.device not in ("auto", device):
        parser.error(f"--device is {given.device}, but there is none here")
    sizes = Sizes.of(device, given.quick)
    if given.rounds:
        sizes = dataclasses.replace(sizes, rounds=given.rounds)
    start = time.perf_counter()
    policy = load_policy(given.model, given.dtype, sizes)
    about = machine(device, policy.model.dtype)
    runners = {
        "a": lambda: against_trl(policy, given.model, given.dtype, sizes),
        "b": lambda: sampling.run(load_policy(given.model, given.dtype, sizes), sizes),
        "c": lambda: flops.run(policy, sizes),
        "d": lambda: memory.run(device, given.quick),
    }
    sections = []
    for part in PARTS:
        if part in parts:
            say(f"({part})")
            sections.append(runners[part]())
            print(sections[-1], flush=True)
    minutes = (time.perf_counter() - start) / 60
    header = f"""# Benchmarks

One run of `python -m benchmarks`, {minutes:.0f} minutes, model `{given.model}`.
Ratios: median (least–most) of interleaved pairs.

{about}
"""
    print(header)
    output = given.output
    if output is None and not given.quick and set(parts) == set(PARTS):
        output = HERE / ("RESULTS.md" if device == "cpu" else f"RESULTS-{device}.md")
    if output is not None:
        output.write_text("\n".join([header, *sections]))
        say(f"written to {output}")


if __name__ == "__main__":
    main()
