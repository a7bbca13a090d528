"""(c) Achieved FLOP/s of the update over the rate at which this machine multiplies the model's own matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.epoch import ours
from benchmarks.timing import interleave, now, paragraph, ratios, say, spread, table
from benchmarks.workload import Data, Sizes, load_prompts, sampled
from srlm.policies.transformer.log_prob import CHUNK_ELEMENTS, response_log_prob
from srlm.policies.transformer.policy import TransformerPolicy

MOST_WEIGHTS = 2**27  # elements multiplied per measurement: as good as a whole pass, without a second model in memory
SQUARE = 2048
MATMULS = (torch.ops.aten.mm, torch.ops.aten.addmm)  # attention is bmm or a kernel of its own


class Work:
    """What one epoch multiplies: counted on the tensors that run, so padding counts and attention does not.

    flops: of all linear layers, LoRA's and the head's included. nodes, padded: tokens forwarded, without padding, with.
    rows, edges: tokens and scored tokens of a typical micro-batch.
    """

    def __init__(self, policy: TransformerPolicy, data: Data) -> None:
        groups = policy.groups(data.prompts, data.responses)
        shares = [s for step in policy.scorer.steps(range(len(groups))) for s in policy.scorer.shares(groups, step)]
        packed = [policy.scorer.pack(groups, batch, masked=s.masked) for s in shares for batch in s.batches]
        self.nodes = sum(sum(policy.scorer.plan(group).nodes) for group in groups)
        self.padded = sum(p.input_ids.numel() for p in packed)
        self.rows = sorted(p.input_ids.numel() for p in packed)[len(packed) // 2]
        self.edges = sorted(len(p.source) for p in packed)[len(packed) // 2]
        self.batches = len(packed)
        with FlopCounterMode(display=False) as counter:
            for p in packed:
                response_log_prob(policy.model, p)[0].sum().backward()
        for parameter in policy.trainable().values():
            parameter.grad = None
        counts = counter.get_flop_counts()["Global"]
        self.flops = float(sum(counts.get(op, 0) for op in MATMULS))


class Rate:
    """Seconds and FLOP/s of the model's own linear layers, forward and backward for the input, and nothing else."""

    def __init__(self, policy: TransformerPolicy, rows: int, edges: int, dtype: torch.dtype) -> None:
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.flops = 0.0
        head = cast(nn.Linear, policy.model.get_output_embeddings()).weight
        layers = [
            cast(Any, module).weight
            for name, module in policy.model.named_modules()
            if isinstance(module, nn.Linear) and "lora_" not in name and module.weight is not head
        ]
        inputs: dict[tuple[int, int], Tensor] = {}
        taken = 0
        for weight in [head, *layers]:
            if taken > MOST_WEIGHTS:
                break
            taken += weight.numel()
            count = min(edges, max(1, CHUNK_ELEMENTS // len(head))) if weight is head else rows
            out, into = weight.shape
            for width in (out, into):
                if (count, width) not in inputs:
                    inputs[count, width] = torch.randn(count, width, device=weight.device, dtype=dtype)
            self.pairs.append((weight.detach().to(dtype), inputs[count, into], inputs[count, out]))
            self.flops += 4.0 * count * weight.numel()

    @torch.no_grad()
    def __call__(self) -> float:
        """FLOP/s"""
        start = now()
        for weight, x, gradient in self.pairs:
            F.linear(x, weight)
            gradient @ weight
        return self.flops / (now() - start)


def square(device: torch.device, dtype: torch.dtype) -> Callable[[], float]:
    """The machine at its best: one large matmul."""
    size = SQUARE * 4 if device.type == "cuda" else SQUARE
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def measure() -> float:
        start = now()
        for _ in range(4):
            a @ b
        return 4 * 2.0 * size**3 / (now() - start)

    return measure


def run(policy: TransformerPolicy, sizes: Sizes) -> str:
    data = sampled(policy, load_prompts(policy, sizes), sizes)
    work = Work(policy, data)
    dtype, device = policy.model.dtype, policy.model.device
    model = {kind: Rate(policy, work.rows, work.edges, kind) for kind in (torch.bfloat16, torch.float32)}
    large = {kind: square(device, kind) for kind in (torch.bfloat16, torch.float32)}
    say("  warming up")
    ours(policy, data.head(2))
    arms: dict[str, Callable[[], float]] = {"update": lambda: work.flops / ours(policy, data).epoch}
    for kind, rate in model.items():
        rate()
        arms[f"{str(kind)[6:]}, the model's matrices"] = rate
    for kind, measure in large.items():
        measure()
        arms[f"{str(kind)[6:]}, large square matrices"] = measure
    got = interleave(arms, sizes.rounds)
    rows = [
        (
            name,
            spread([value / 1e9 for value in each], 0),
            "" if name == "update" else f"**{spread([100 * r for r in ratios(got['update'], each)], 0)} %**",
        )
        for name, each in got.items()
    ]
    setting = paragraph(
        f"The epoch of (a), {str(dtype)[6:]}: forward, backward and optimiser step, {work.batches} micro-batches of",
        f"about {work.rows} tokens and {work.edges} scored tokens. Counted, {work.flops / 1e12:.2f} TFLOP: every",
        "matrix product of the linear layers on the tokens forwarded (after packing; LoRA's share included) and of the",
        "head on scored tokens.",
        "Not counted: attention, norms, softmax, rotations. The model's matrices: its own linear layers alone, forward",
        "and backward for the input, at the same number of rows. Padding is",
        f"{100 * (1 - work.nodes / work.padded):.0f} % of the tokens forwarded.",
    )
    return f"""## (c) Achieved FLOP/s of the update

{setting}

{table(("", "GFLOP/s", f"update ÷ this, {sizes.rounds} interleaved pairs"), rows)}
"""
