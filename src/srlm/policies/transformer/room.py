"""How many tokens a micro-batch may have: as many as fit into the device's memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from srlm.policies.transformer.context import Context
from srlm.policies.transformer.layout.group import Group
from srlm.policies.transformer.layout.pack import Packed, pack
from srlm.policies.transformer.layout.tree import build_tree
from srlm.policies.transformer.limits import ON_CPU, OPTIMISER_BYTES, fitting
from srlm.policies.transformer.log_prob import response_log_prob

if TYPE_CHECKING:
    from srlm.policies.transformer.devices.shards import Shards

Result = TypeVar("Result")
Forward: TypeAlias = Callable[[PreTrainedModel, Packed], tuple[Tensor, Tensor | None]]


class Room:
    """tokens: padded ones of a micro-batch. say: is told when they become fewer. fixed: they do not, since all
    processes would have to begin anew."""

    def __init__(self, tokens: int, *, fixed: bool = False) -> None:
        self.tokens, self.fixed = tokens, fixed
        self.say: Callable[[str], object] = lambda _: None

    def within(self, work: Callable[[], Result]) -> Result:
        """Do what memory may be too small for; with half as many tokens as long as it is. `work` begins anew each time.

        Raises:
            torch.OutOfMemoryError: not even one token at a time fits.
        """
        before = self.tokens
        while True:
            try:
                result = work()
            except torch.OutOfMemoryError:
                if self.tokens == 1 or self.fixed:
                    raise
                self.tokens //= 2
            else:
                break
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if self.tokens < before:
            self.say(f"memory was too small: going on with --token-budget {self.tokens}")
        return result


def room_for(
    model: PreTrainedModel, budget: int | Literal["auto"], *, trained: bool, held: int, shards: Shards | None
) -> Room:
    """As asked for, or as measured; in shards, the least of what processes find. held: trained parameters of this
    process."""
    if budget != "auto":
        tokens = budget
    elif shards is None:
        tokens = measured(model, trained=trained)
    else:
        with shards.working():
            own = measured(model, trained=trained, held=held, forward=lambda _, packed: shards(packed))
        tokens = shards.least(own)
    return Room(tokens, fixed=shards is not None)


def measured(
    model: PreTrainedModel, *, trained: bool, held: int | None = None, forward: Forward = response_log_prob
) -> int:
    """Padded tokens of a micro-batch that fits into what is free on an accelerator: its forward pass, and, if the model
    is to be trained, the backward pass and what the optimiser keeps. held: trained parameters of this process, if the
    model is in shards.

    Raises:
        torch.OutOfMemoryError: in shards, not even a few rows fit.
    """
    if model.device.type != "cuda":
        return ON_CPU
    row = int(min(512, Context.of(model).tokens))
    try:
        with nullcontext() if trained else torch.no_grad():
            few, many = (_peak(model, rows, row, forward) for rows in (1, 4))
    except torch.OutOfMemoryError:
        if held is not None:  # others are in the middle of the pass, and would wait there
            raise
        return row  # which recomputation, or half of it, may still fit
    free, _ = torch.cuda.mem_get_info(model.device)
    if held is None:
        held = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kept = held * OPTIMISER_BYTES if trained else 0
    return fitting(free - kept, few, many, row)


def _peak(model: PreTrainedModel, rows: int, row: int, forward: Forward) -> int:
    """Bytes that scoring some rows, and learning from them where gradients are on, took at most."""
    ids = [(7919 * i + 13) % model.get_input_embeddings().weight.shape[0] for i in range(row)]
    group = Group.of(ids[:1], [ids[1:]] * rows)
    packed = pack([build_tree(group, [i]) for i in range(rows)], masked=False).to(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    total = forward(model, packed)[0].sum()
    if total.requires_grad:
        torch.autograd.backward(total)
    taken = torch.cuda.max_memory_allocated(model.device) - before
    for parameter in model.parameters():
        parameter.grad = None
    return taken
