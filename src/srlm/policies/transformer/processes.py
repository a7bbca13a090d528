"""The processes that share a run's work."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeAlias, cast

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from srlm.policies.transformer.devices.asked import read_config, refuse_too_many
from srlm.policies.transformer.limits import BUCKET

Progress: TypeAlias = Callable[[int, int], None]  # (done, total)

PATIENCE = timedelta(days=7)  # of those who wait for slower ones; who is gone is found out by `devices/watch.py`


def processes() -> PartialState:
    """Who takes part: one process, or those that `accelerate launch` or `torchrun` started.

    Raises:
        UserError: they were started with a config that cannot be followed.
    """
    if PartialState._shared_state == {}:
        read_config(os.environ)
    started = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if started > 1 and PartialState._shared_state == {}:
        there = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
        refuse_too_many(int(os.environ.get("LOCAL_RANK", "0")), started, there)
        return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
    # Without an accelerator it must be told so, or it takes each of several CPU processes for the only one.
    return PartialState(cpu=not torch.accelerator.is_available())


def gather(together: PartialState, mine: Tensor) -> Tensor:
    """Sum over processes: each filled in its own prompts and left zeros elsewhere."""
    if together.num_processes == 1:
        return mine
    return cast(Tensor, reduce(mine.to(together.device), "sum")).to(mine.device)


def add_up(together: PartialState, values: Sequence[Tensor]) -> None:
    """Sum each over processes, in place; a bucket travels while the next one is packed, and one whole copy of all never
    exists."""
    if together.num_processes == 1 or not values:
        return
    under_way: list[tuple[list[Tensor], Tensor, torch.distributed.Work]] = []

    def unpack() -> None:
        some, flat, work = under_way.pop(0)
        work.wait()
        for value, summed in zip(some, torch.split(flat, [v.numel() for v in some]), strict=True):
            value.copy_(summed.view_as(value))

    bucket: list[Tensor] = []
    size = 0
    for number, value in enumerate(values):
        bucket, size = [*bucket, value], size + value.numel()
        if size >= BUCKET or number + 1 == len(values):
            flat = torch.cat([v.flatten() for v in bucket])
            under_way.append((bucket, flat, torch.distributed.all_reduce(flat, async_op=True)))
            bucket, size = [], 0
        if len(under_way) > 1:
            unpack()
    while under_way:
        unpack()


def silent(done: int, total: int) -> None:
    pass
