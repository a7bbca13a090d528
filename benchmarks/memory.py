"""(d) Peak memory of one update micro-batch as K, the response and the vocabulary grow: ours against full logits.

A subprocess a point: a peak is a peak since the process began. Run as a module it measures one point.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.timing import paragraph, say, spread, table
from srlm.policies.transformer.layout.group import Group
from srlm.policies.transformer.layout.pack import pack
from srlm.policies.transformer.layout.tree import build_tree
from srlm.policies.transformer.log_prob import response_log_prob

PROCESSES = 5


@dataclass(frozen=True)
class Point:
    k: int = 8
    tokens: int = 16
    vocabulary: int = 65536
    prompt: int = 64
    device: str = "cpu"


def tiny(vocabulary: int, device: str) -> LlamaForCausalLM:
    """Two narrow layers in fp32 with LoRA: next to nothing but the vocabulary costs memory."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(device).eval()
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")).get_base_model()


def sequences(point: Point) -> tuple[list[int], list[list[int]]]:
    generator = torch.Generator().manual_seed(0)
    words = partial(torch.randint, point.vocabulary, generator=generator)
    return words((point.prompt,)).tolist(), words((point.k, point.tokens)).tolist()


def ours(model: LlamaForCausalLM, point: Point) -> Tensor:
    tree = build_tree(Group.of(*sequences(point)))
    return response_log_prob(model, pack([tree], masked=True).to(model.device))[0]


def naive(model: LlamaForCausalLM, point: Point) -> Tensor:
    """Separate rows, log_softmax over the logits of all positions."""
    prompt, responses = sequences(point)
    rows = torch.tensor([prompt + response for response in responses], device=model.device)
    log_prob = torch.log_softmax(model(input_ids=rows, use_cache=False).logits[:, :-1].float(), -1)
    return log_prob.gather(-1, rows[:, 1:, None])[:, -point.tokens :, 0].sum(-1)


WAYS: dict[str, Callable[[LlamaForCausalLM, Point], Tensor]] = {"ours": ours, "naive": naive}


def _memory(field: str) -> int:
    """Bytes: VmRSS now, VmHWM at most so far. Elsewhere than on Linux both are the peak of the process.

    Linux's ru_maxrss would not do: a child begins with the peak of its parent.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def resident() -> int:
    """Bytes now."""
    return _memory("VmRSS")


def peak_from_now() -> Callable[[], int]:
    """Tells the most bytes since this call; where a peak cannot be forgotten, since the process began."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return partial(_memory, "VmHWM")


def measure(way: str, point: Point) -> float:
    """Megabytes above what the loaded model takes."""
    step = WAYS[way]
    warm = replace(point, k=2, tokens=2, vocabulary=512)
    step(tiny(warm.vocabulary, point.device), warm).sum().backward()
    model = tiny(point.vocabulary, point.device)
    gc.collect()
    if point.device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(model, point).sum().backward()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    peak = peak_from_now()  # else what loading took could hide the step
    before = resident()
    step(model, point).sum().backward()
    return (peak() - before) / 1e6


def in_subprocess(way: str, point: Point) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", way, json.dumps(asdict(point))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"{point} ({way}) failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def run(device: str, quick: bool) -> str:
    base = Point(device=device)
    grow: dict[str, tuple[int, ...]] = {
        "k": (2, 8, 32),
        "tokens": (8, 16, 32, 64),
        "vocabulary": (16384, 32768, 65536, 131072, 262144),
    }
    if quick:
        grow = {"k": (2, 8), "tokens": (8,), "vocabulary": (16384, 65536)}
    points = [replace(base, **{name: value}) for name, values in grow.items() for value in values]
    points += [] if quick else [Point(k=32, tokens=32, vocabulary=131072, device=device)]
    times = 1 if quick else PROCESSES
    rows, seen = [], set()
    for point in points:
        if point in seen:
            continue
        seen.add(point)
        mine, full = [in_subprocess("ours", point) for _ in range(times)], in_subprocess("naive", point)
        say(f"  K {point.k}, T {point.tokens}, V {point.vocabulary}: {spread(mine, 0)} MB, full logits {full:.0f} MB")
        logits = point.k * (point.prompt + point.tokens) * point.vocabulary * 4 / 1e6
        numbers = (point.k, point.tokens, point.vocabulary)
        rows.append(
            (*map(str, numbers), f"{logits:.0f}", f"{full:.0f}", f"**{spread(mine, 0)}**", f"{full / max(mine):.0f}")
        )
    setting = paragraph(
        f"Forward and backward of one group behind a prompt of {base.prompt} tokens; tiny Llama (2 layers, width 64,",
        "fp32, LoRA); megabytes above the loaded model, a process a point. Full logits: K separate rows,",
        "`log_softmax` over all positions. What srlm holds of the vocabulary at a time is a chunk of at most 2^24",
        f"logits, however many tokens are scored. srlm: median (least–most) of {times} processes, since",
        "the C library's heap fragments in one and not in the next.",
    )
    return f"""## (d) Peak memory of an update micro-batch

{setting}

{table(("K", "T", "V", "logits of all positions", "full logits", "srlm", "full logits ÷ most of srlm"), rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("point", type=json.loads)
    given = parser.parse_args()
    print(measure(given.way, Point(**given.point)))


if __name__ == "__main__":
    main()
