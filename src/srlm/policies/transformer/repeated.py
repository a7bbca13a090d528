"""A cache as transformers keeps it, with a prompt's part once for each of its samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class Repeated:
    def __init__(self, cache: Any, name: str, mask: Tensor, num_samples: int) -> None:
        """cache: of prompts padded on the left, which the model calls `name`; mask [P, S]: which slots are theirs."""
        cache.reorder_cache(torch.arange(len(mask), device=mask.device).repeat_interleave(num_samples))
        self._cache, self._name = cache, name
        self._mask = mask.repeat_interleave(num_samples, 0)
        self._used: list[int] = self._mask.sum(-1).tolist()  # slots of each row, known without a wait for the device
        self._padded = min(self._used) < mask.shape[1]

    @property
    def nbytes(self) -> int:
        layers = getattr(self._cache, "layers", ())
        held = [value for one in layers for value in (getattr(one, "keys", None), getattr(one, "values", None))]
        return sum(value.nbytes for value in held if isinstance(value, Tensor))

    @property
    def joins(self) -> bool:
        """`join` knows these layers from the inside."""
        return type(self._cache) is DynamicCache and all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and layer.is_initialized
            for layer in self._cache.layers
        )

    def join(self, other: Repeated) -> None:
        slots = max(self._mask.shape[1], other._mask.shape[1])
        for one in (self, other):
            one._resize(slots)
        self._padded = self._padded or other._padded
        for mine, theirs in zip(self._cache.layers, other._cache.layers, strict=True):
            mine.keys, mine.values = torch.cat([mine.keys, theirs.keys]), torch.cat([mine.values, theirs.values])
        self._mask = torch.cat([self._mask, other._mask])
        self._used += other._used

    def keep(self, rows: Tensor) -> None:
        self._used = [self._used[row] for row in rows.tolist()]
        rows = rows.to(self._mask.device)
        self._cache.reorder_cache(rows)
        self._mask = self._mask[rows]
        if self._padded and self.joins:
            self._resize(max(self._used))
            self._padded = min(self._used) < max(self._used)

    def _resize(self, slots: int) -> None:
        """More slots on the left, which nobody sees, or fewer, which nobody saw."""
        more = slots - self._mask.shape[1]
        if not more:
            return
        self._mask = F.pad(self._mask, (more, 0))
        self._padded = self._padded or more > 0
        for layer in self._cache.layers:
            sliding = isinstance(layer, DynamicSlidingWindowLayer)
            width = min(slots, layer.sliding_window - 1) if sliding else slots
            new = (0, 0, width - layer.keys.shape[-2], 0)
            layer.keys, layer.values = F.pad(layer.keys, new), F.pad(layer.values, new)
            if sliding:
                layer.cumulative_length = slots

    @contextmanager
    def reading(self, decoder: nn.Module) -> Iterator[dict[str, Any]]:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], -1)
        # Models that call it cache_params read no padding mask once it is filled.
        masked = self._padded and self._name != "cache_params"
        yield {self._name: self._cache, "attention_mask": self._mask if masked else None}
        self._used = [used + 1 for used in self._used]
