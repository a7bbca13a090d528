"""LoRA in the weights for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


@contextmanager
def folded(layers: Sequence[LoraLayer]) -> Iterator[None]:
    """Of some layers LoRA is meanwhile in the weights; of those where it is already nothing changes."""
    layers = [layer for layer in layers if not layer.merged]
    # A layer holds one weight, or those of all the experts of a mixture. Their copies are one block, which goes back to
    # the system: many small ones would stay with the process, in pieces.
    own = {
        p: -(-p.nbytes // 64) * 64 for layer in layers for name, p in layer.named_parameters() if "lora_" not in name
    }
    pieces = torch.split(torch.empty(sum(own.values()), dtype=torch.uint8), list(own.values())) if own else ()
    kept = {p: piece[: p.nbytes].view(p.dtype).view(p.shape) for p, piece in zip(own, pieces, strict=True)}
    held: dict[nn.Parameter, Tensor] = {}
    try:
        for layer in layers:
            for name, parameter in layer.named_parameters():
                if "lora_" not in name and parameter not in held:
                    held[parameter] = kept[parameter].copy_(parameter.detach())
            cast(Any, layer).merge()
        yield
    finally:
        for layer in layers:
            layer.merged_adapters.clear()
        with torch.no_grad():
            for parameter, original in held.items():
                parameter.data.copy_(original)
