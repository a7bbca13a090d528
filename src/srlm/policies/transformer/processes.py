"""The processes that share a run's work."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

Progress: TypeAlias = Callable[[int, int], None]  # (done, total)


def processes() -> PartialState:
    """Who takes part: one process, or those that `accelerate launch` or `torchrun` started."""
    # Without an accelerator it must be told so, or it takes each of several CPU processes for the only one.
    return PartialState(cpu=not torch.accelerator.is_available())


def gather(together: PartialState, mine: Tensor) -> Tensor:
    """Sum over processes: each filled in its own prompts and left zeros elsewhere."""
    if together.num_processes == 1:
        return mine
    return cast(Tensor, reduce(mine.to(together.device), "sum")).to(mine.device)


def silent(done: int, total: int) -> None:
    pass
