"""What a round of long responses costs on an accelerator: `python -m benchmarks.gpu`, in under 8 minutes; toy sizes on
a CPU. With --engines: who draws responses fastest.

Random weights of real configs, bf16, LoRA of rank 16, K = 16: time of the chosen layout against trees and rows, tokens
a second, peak memory, and the share of the device's peak (`--peak`, in TFLOP/s, dense bf16) that learning reaches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.drawing import Drawing, compare
from benchmarks.lengths import PROMPT, Point, Step, load
from benchmarks.timing import interleave, machine, paragraph, ratios, say, spread, table
from srlm.policies.transformer.load.hub import resolve_dtype
from srlm.policies.transformer.processes import processes
from srlm.policies.transformer.room import measured

MODELS = ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b")
TOKENS = (512, 1024, 2048, 4096)
HEAD = ("model", "budget", "T", "layout", "seconds", "÷ rows", "tokens a second", "peak GB", "share of peak")


def run(models: tuple[str, ...], k: int, tokens: tuple[int, ...], rounds: int, peak: float, seconds: float) -> str:
    """seconds: after these no further point is begun."""
    device, start, rows = processes().device, time.perf_counter(), []
    for name in models:
        model = load(name, device)
        budget = measured(model, trained=True)
        for length in tokens:
            if time.perf_counter() - start > seconds:
                break
            step = Step(model, Point(name, k, length, budget))
            step()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            step()
            used = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan")
            taken = interleave({arm: partial(step, arm) for arm in ("chosen", "rows")}, rounds)
            middle = statistics.median(taken["chosen"])
            share = f"{step.flops() / middle / peak / 1e12:.1%}" if peak else "–"
            speed = f"{k * length / middle:.0f}"
            against = spread(ratios(taken["chosen"], taken["rows"]))
            row = (name, str(budget), str(length), step.layout(), spread(taken["chosen"], 3), against, speed)
            rows.append((*row, f"{used:.1f}", share))
            say(" | ".join(rows[-1]))
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    setting = paragraph(
        f"One group: a prompt of {PROMPT} tokens and {k} responses of T random words; forward and backward. The budget",
        "is what --token-budget auto measured. Share of peak: multiply-adds that have to be done at least, over",
        f"{peak:g} TFLOP/s.",
    )
    return f"# Long responses\n\n{machine(device.type, resolve_dtype('auto'))}\n\n{setting}\n\n{table(HEAD, rows)}\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    toy = processes().device.type == "cpu"
    parser.add_argument("--models", nargs="*", default=["toy"] if toy else MODELS)
    parser.add_argument("--tokens", nargs="*", type=int, default=[8, 16] if toy else TOKENS)
    parser.add_argument("--k", type=int, default=4 if toy else 16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", type=float, default=0.0 if toy else 989.0)
    parser.add_argument("--seconds", type=float, default=420.0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--engines", action="store_true", help="the built-in engine against those of transformers")
    parser.add_argument("--prompts", type=int, default=4 if toy else 128, help="of --engines")
    given = parser.parse_args(arguments)
    if given.engines:
        sizes = Drawing(given.prompts, given.k, tuple(given.tokens), given.rounds)
        text = compare(tuple(given.models), sizes, given.seconds)
    else:
        text = run(tuple(given.models), given.k, tuple(given.tokens), given.rounds, given.peak, given.seconds)
    print(text)
    if given.output:
        given.output.write_text(text)


if __name__ == "__main__":
    main()
