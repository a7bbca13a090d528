"""The processes that share a run's work."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeAlias, cast

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from srlm.policies.transformer.devices.asked import read_config, refuse_too_many

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
        there = torch.accelerator.device_count() if _accelerated() else 0
        refuse_too_many(int(os.environ.get("LOCAL_RANK", "0")), started, there)
    # Without an accelerator it must be told so, or it takes each of several CPU processes for the only one.
    return PartialState(cpu=not _accelerated(), timeout=PATIENCE)


def _accelerated() -> bool:
    """Is there one to be used? Metal has no float64, in which words are drawn."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found is not None and found.type != "mps"


def gather(together: PartialState, mine: Tensor) -> Tensor:
    """Sum over processes: each filled in its own prompts and left zeros elsewhere."""
    if together.num_processes == 1:
        return mine
    return cast(Tensor, reduce(mine.to(together.device), "sum")).to(mine.device)


def silent(done: int, total: int) -> None:
    pass
