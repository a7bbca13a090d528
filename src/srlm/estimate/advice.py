"""What would make a run fit: each remedy tried, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from srlm.estimate.memory import Memory, memory
from srlm.estimate.workload import Workload
from srlm.policies.transformer.shape import Shape

LOWEST = 64  # tokens of a budget
MOST_DEVICES = 64
GB = 1e9


@dataclass(frozen=True)
class Remedy:
    """what: options to give; peak: bytes then; fits: is that enough?"""

    what: str
    peak: float
    fits: bool


def remedies(
    shape: Shape, work: Workload, room: float, *, cpu: bool, with_lora: Callable[[int], Shape]
) -> list[Remedy]:
    """With each of them that helps, those that are enough first; nothing if the run fits. room: bytes of a device."""

    def peak(shape: Shape, work: Workload) -> Memory:
        return memory(shape, work, cpu=cpu)

    now = peak(shape, work).peak.total
    if now <= room:
        return []
    found = [
        Remedy(what, total, total <= room)
        for what, total in ((w, peak(s, k).peak.total) for w, s, k in _tried(shape, work, room, peak, with_lora))
    ]
    return sorted((one for one in found if one.peak < now), key=lambda one: not one.fits)


def _tried(
    shape: Shape,
    work: Workload,
    room: float,
    peak: Callable[[Shape, Workload], Memory],
    with_lora: Callable[[int], Shape],
) -> Iterator[tuple[str, Shape, Workload]]:
    lower = work
    while lower.budget > LOWEST and peak(shape, lower).peak.total > room:
        lower = replace(lower, budget=lower.budget // 2)
    if lower.budget != work.budget:
        yield f"--token-budget {lower.budget}", shape, lower
    if not work.recompute:
        yield "--gradient-checkpointing", shape, replace(work, recompute=True)
    if shape.whole:
        yield "--lora-rank 16", with_lora(16), work
    if work.built_in:
        yield "--engine http://… (another device draws)", shape, replace(work, built_in=False)
    if work.shard == "none":
        for devices in (2, 4, 8, 16, 32, 64):
            tried = replace(work, devices=devices, shard="fsdp")
            if peak(shape, tried).peak.total <= room or devices == MOST_DEVICES:
                yield f"weights divided among {devices} devices (--devices {devices} --shard fsdp)", shape, tried
                break
    if lower.budget != work.budget and not work.recompute:
        both = replace(lower, recompute=True)
        yield f"--token-budget {both.budget} --gradient-checkpointing", shape, both
