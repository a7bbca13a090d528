"""(e) Learning from one group as responses grow: time of each layout, memory, tokens and multiply-adds a second.

    python -m benchmarks.lengths [--models smollm2 qwen2.5-0.5b] [--tokens 64 256 512 1024 2048] [--rounds 3]

A group is a prompt of 110 tokens and K responses of T random words each, which have nothing but the prompt in common:
the worst case of a tree. Arms are interleaved. Memory is measured in a process a point.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from benchmarks.memory import _memory
from benchmarks.timing import interleave, machine, now, paragraph, ratios, say, spread, table
from srlm.objectives.regression import regression
from srlm.policies.transformer.backward import Learning
from srlm.policies.transformer.layout import batches
from srlm.policies.transformer.layout.cost import Cost
from srlm.policies.transformer.layout.group import Group, Places
from srlm.policies.transformer.load.adapters import with_lora
from srlm.policies.transformer.load.hub import load_model, resolve_dtype
from srlm.policies.transformer.processes import processes
from srlm.policies.transformer.room import Room
from srlm.policies.transformer.score import Scorer

PROMPT = 110
SHAPES = {  # of Qwen2.5: width, inner width, layers, heads, key-value heads, vocabulary, is the head the embedding?
    "toy": (64, 128, 2, 4, 2, 1000, True),
    "qwen2.5-0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "qwen2.5-1.5b": (1536, 8960, 28, 12, 2, 151936, True),
    "qwen2.5-7b": (3584, 18944, 28, 28, 4, 152064, False),
}
LAYOUTS = ("chosen", "tree", "rows")
MOST_NODES = 5000  # of a tree that is timed: those beyond take minutes


@dataclasses.dataclass(frozen=True)
class Point:
    model: str
    k: int
    tokens: int
    budget: int
    layout: str = "chosen"


def load(name: str, device: torch.device) -> PreTrainedModel:
    """With LoRA of rank 16; random weights but for smollm2."""
    return with_lora(plain(name, device), rank=16, alpha=None, gain=True, seed=0)[0]


def plain(name: str, device: torch.device) -> PreTrainedModel:
    """Without."""
    if name not in SHAPES:
        return load_model(name)[0].to(device)
    width, inner, layers, heads, kv, vocabulary, tied = SHAPES[name]
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        tie_word_embeddings=tied,
        max_position_embeddings=32768,
    )
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=resolve_dtype("auto")).eval()


def group_of(point: Point, vocabulary: int) -> Group:
    words = partial(torch.randint, 3, vocabulary, generator=torch.Generator().manual_seed(0))
    return Group.of(words((PROMPT,)).tolist(), words((point.k, point.tokens)).tolist())


@contextmanager
def forced(layout: str) -> Iterator[None]:
    """Every group as one tree, or as rows, whatever is cheapest."""
    was = batches.cheapest

    def cut(group: Group, *_: Any, **__: Any) -> tuple[list[Places], bool]:
        return ([(0, len(group))], True) if layout == "tree" else (group.prefixes.chains(), False)

    if layout != "chosen":
        batches.cheapest = cut
    try:
        yield
    finally:
        batches.cheapest = was


class Step:
    """Forward and backward of one group."""

    def __init__(self, model: PreTrainedModel, point: Point) -> None:
        self.group = group_of(point, model.get_input_embeddings().weight.shape[0])
        room = Room(point.budget)
        self.scorer = Scorer(model, processes(), trees=True, prompts_per_step=1, room=room)
        shape = (1, point.k)
        one = torch.ones(shape)
        self.learning = Learning(
            self.scorer,
            [self.group],
            regression,
            level="sum",
            share=torch.ones(1),
            reference=-10.0 * point.tokens * one,
            reward=torch.arange(point.k).float().view(shape),
            weight=one / point.k,
            length=point.tokens * one,
        )
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def __call__(self, layout: str = "chosen") -> float:
        """Seconds."""
        with forced(layout):
            start = now()
            self.learning.backward(self.scorer.shares([self.group], [0]), 1)
            seconds = now() - start
        for parameter in self.parameters:
            parameter.grad = None
        return seconds

    def layout(self, layout: str = "chosen") -> str:
        with forced(layout):
            plan = self.scorer.plan(self.group)
        return f"{len(plan.pieces)} {'trees' if plan.masked else 'rows'}"

    def flops(self) -> float:
        """Of what has to be computed at least: linear layers forward and backward for their inputs on every token of
        prompt and responses once, half of all pairs of attention, the head once. No recomputation, no second pass."""
        cost, k = Cost.of(self.scorer.model), len(self.group)
        length = len(self.group.responses[0])
        pairs = PROMPT**2 / 2 + k * (PROMPT * length + length**2 / 2)
        return 2 * 2 * ((PROMPT + k * length) * cost.token + pairs * cost.pair + k * length * cost.head)


def memory(point: Point) -> float:
    """Megabytes above the loaded model that one step takes at most."""
    device = processes().device
    model = load(point.model, device)
    Step(model, dataclasses.replace(point, tokens=8, k=2))()
    step = Step(model, point)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(point.layout)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    step(point.layout)
    return (_memory("VmHWM") - before) / 1e6


def memory_apart(point: Point) -> float:
    command = [sys.executable, "-m", "benchmarks.lengths", "--point", json.dumps(dataclasses.asdict(point))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"{point} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def layouts(name: str, k: int, tokens: list[int], rounds: int, budget: int) -> list[tuple[str, ...]]:
    """A row for each T: the layout that is chosen, and its time against a tree's and rows'."""
    model = load(name, processes().device)
    rows, before = [], None
    for length in tokens:
        say(f"{name}, T = {length}")
        step = Step(model, Point(name, k, length, budget))
        arms = ["rows", *(["tree"] if PROMPT + k * length <= MOST_NODES else [])]
        alike = next((arm for arm in arms if step.layout(arm) == step.layout()), None)  # what is chosen is timed once
        if length == tokens[0]:
            step()
        seconds = interleave({arm: partial(step, arm) for arm in (*arms, *([] if alike else ["chosen"]))}, rounds)
        seconds["chosen"] = seconds[alike or "chosen"]
        best = [min(seconds[arm][i] for arm in arms) for i in range(rounds)]
        growth = f"{statistics.median(ratios(seconds['chosen'], before)):.2f}" if before else "–"
        before = seconds["chosen"]
        tokens_a_second = statistics.median(k * length / s for s in seconds["chosen"])
        work = step.flops() / statistics.median(seconds["chosen"])
        rows.append(
            (
                *(name, str(length), step.layout()),
                *(spread(seconds[arm]) if arm in seconds else "–" for arm in LAYOUTS),
                spread(ratios(seconds["chosen"], best)),
                growth,
                f"{tokens_a_second:.0f}",
                f"{work / 1e12:.3f}",
            )
        )
        print(table(HEAD, rows[-1:]), flush=True)
    return rows


HEAD = (
    *("model", "T", "chosen", "seconds, chosen", "one tree", "rows", "chosen ÷ better of the two", "÷ T before"),
    *("response tokens a second", "TFLOP/s"),
)


def run(models: list[str], k: int, tokens: list[int], rounds: int, budget: int, memories: bool = True) -> str:
    timed = [row for name in models for row in layouts(name, k, tokens, rounds, budget)]
    held: list[tuple[str, ...]] = []
    if memories:
        for name in models:
            points = [Point(name, k, length, budget) for length in tokens]
            megabytes = [memory_apart(point) for point in points]
            held += [(name, str(p.tokens), f"{mb:.0f}") for p, mb in zip(points, megabytes, strict=True)]
    setting = paragraph(
        f"One group: a prompt of {PROMPT} random tokens and {k} responses of T, LoRA of rank 16, forward and backward;",
        f"token budget {budget}; median (least–most) of {rounds} interleaved rounds. TFLOP/s count what has to be",
        "computed at least, so neither padding nor a second pass helps them. Memory: megabytes above the loaded model,",
        "a process a point.",
    )
    parts = ["## (f) Responses of any length", setting, table(HEAD, timed)]
    return "\n\n".join([*parts, *([table(("model", "T", "MB"), held)] if held else [])]) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lengths", description=__doc__)
    parser.add_argument("--models", nargs="*", default=["smollm2", "qwen2.5-0.5b"])
    parser.add_argument("--tokens", nargs="*", type=int, default=[64, 256, 512, 1024, 2048])
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.point:
        print(memory(Point(**given.point)))
        return
    device = processes().device.type
    found = run(given.models, given.k, given.tokens, given.rounds, given.budget, not given.no_memory)
    text = f"{machine(device, resolve_dtype('auto'))}\n\n{found}"
    print(text)
    if given.output:
        given.output.write_text(text)


if __name__ == "__main__":
    main()
