"""Samples of one prompt read its keys and values where they lie: one copy for all of them, their own words behind it.

A step of plain attention copies the whole cache, a prompt's part once for each of its K samples, and once more for each
query head that shares it. On a CPU that takes longer than the rest of a model of 135M parameters, and a seventh of one
of 1.5B: here words are written into rows that are there already, and the samples of a prompt read it in one product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from srlm.policies.transformer.limits import FEWEST_WORDS, MORE_WORDS

NAME = "srlm_branches"  # of this attention, among those of transformers
_read: ContextVar[Branches] = ContextVar(NAME)


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """prompt_keys, prompt_values [P, H, S, D], fp32; keys, values [R, H, C, D] of own words, left-aligned, for R >= N
    rows and C words at most."""

    is_sliding = False

    def __init__(self, kept: DynamicLayer) -> None:
        super().__init__()
        assert kept.keys is not None and kept.values is not None
        self.prompt_keys, self.prompt_values = kept.keys.float(), kept.values.float()
        self.window = kept.sliding_window if isinstance(kept, DynamicSlidingWindowLayer) else None
        self.keys = kept.keys.new_empty(0, kept.keys.shape[1], FEWEST_WORDS, kept.keys.shape[3])
        self.values = kept.values.new_empty(0, kept.values.shape[1], FEWEST_WORDS, kept.values.shape[3])
        self.is_initialized = True
        self.longest = 0  # words behind any prompt

    def write(self, keys: Tensor, values: Tensor, slot: Tensor, said: Tensor, longest: int) -> None:
        """keys, values: [N, H, 1, D]"""
        assert self.keys is not None and self.values is not None
        self.longest = longest
        rows, columns = len(self.keys), self.keys.shape[2]
        if len(slot) > rows or longest > columns:
            columns = columns if longest <= columns else max(longest, columns + min(columns, MORE_WORDS))
            more = (0, 0, 0, columns - self.keys.shape[2], 0, 0, 0, max(len(slot) - rows, 0))
            self.keys, self.values = F.pad(self.keys, more), F.pad(self.values, more)
        self.keys[slot, :, said], self.values[slot, :, said] = keys[:, :, 0], values[:, :, 0]

    def own(self, rows: int) -> tuple[Tensor, Tensor]:
        """[N * H, T, D] each, fp32, by slot"""
        assert self.keys is not None and self.values is not None
        found = [part[:rows].flatten(0, 1)[:, : self.longest].float() for part in (self.keys, self.values)]
        return found[0], found[1]

    def move(self, source: Tensor, target: Tensor) -> None:
        for part in (self.keys, self.values):
            part[target] = part[source]

    def of_prompts(self, number: Tensor) -> None:
        self.prompt_keys, self.prompt_values = self.prompt_keys[number], self.prompt_values[number]

    def join(self, other: _Layer) -> None:
        width = max(self.prompt_keys.shape[2], other.prompt_keys.shape[2])
        for name in ("prompt_keys", "prompt_values"):
            mine, theirs = (
                F.pad(part, (0, 0, width - part.shape[2], 0)) for part in (getattr(self, name), getattr(other, name))
            )
            setattr(self, name, torch.cat([mine, theirs]))

    def narrow(self, width: int) -> None:
        self.prompt_keys, self.prompt_values = self.prompt_keys[:, :, -width:], self.prompt_values[:, :, -width:]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("Branches writes")

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        return self.get_seq_length() + 1, 0

    def get_seq_length(self, *_: Any) -> int:
        return int(self.prompt_keys.shape[2]) + self.longest

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # as transformers before 5.23 calls it


class Branches(Cache):  # type: ignore[misc]
    """Of N rows behind P prompts: the number of each row's prompt [N], its slot among the rows of every layer [N], and
    how many words it has said [N]."""

    joins = True

    def __init__(self, cache: Any, name: str, mask: Tensor, num_samples: int) -> None:
        """cache: of the prompts, padded on the left, which the model calls `name`; mask [P, S]: which slots are theirs.

        Raises:
            TypeError: a cache of another kind than plain and sliding windows of keys and values.
        """
        if type(cache) is not DynamicCache or not all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and layer.is_initialized for layer in cache.layers
        ):
            raise TypeError(f"a cache of {type(cache).__name__}")
        self._name = name
        super().__init__(layers=[_Layer(layer) for layer in cache.layers])
        self._seen, self._size = mask.bool(), mask.sum(-1)
        self._prompt = torch.arange(len(mask)).repeat_interleave(num_samples)
        self._slot, self._said = torch.arange(len(self._prompt)), torch.zeros_like(self._prompt)
        self._unread: tuple[int, Tensor, Tensor] | None = None  # layer, keys and values that were written last
        self._sorted()

    @property
    def nbytes(self) -> int:
        parts = (
            part for layer in self.layers for part in (layer.prompt_keys, layer.prompt_values, layer.keys, layer.values)
        )
        return sum(part.nbytes for part in parts)

    def _sorted(self) -> None:
        """Where rows are among those of their prompt, [N], and the rows of each prompt, [P, M]; row 0 fills up."""
        counts = torch.bincount(self._prompt, minlength=len(self._size))
        order = self._prompt.argsort(stable=True)
        first = counts.cumsum(0) - counts
        self._place = torch.empty_like(order)
        self._place[order] = torch.arange(len(order)) - first[self._prompt[order]]
        self._members = torch.zeros(len(counts), int(counts.max()), dtype=torch.long)
        self._members[self._prompt, self._place] = torch.arange(len(order))
        self._by_slot = self._slot.argsort()
        self._visible: dict[tuple[int, int | None], Tensor] = {}

    def keep(self, rows: Tensor) -> None:
        """Go on with these alone."""
        prompt, self._slot, self._said = self._prompt[rows], self._slot[rows], self._said[rows]
        beyond = self._slot >= len(rows)
        if beyond.any():
            free = torch.ones(len(rows), dtype=torch.bool)
            free[self._slot[~beyond]] = False
            target, begun = free.nonzero()[:, 0], self._said[beyond] > 0
            for layer in self.layers:
                layer.move(self._slot[beyond][begun], target[begun])
            self._slot[beyond] = target
        left, self._prompt = torch.unique(prompt, return_inverse=True)
        if len(left) < len(self._size):
            self._seen, self._size = self._seen[left], self._size[left]
            for layer in self.layers:
                layer.of_prompts(left)
            self._narrow()
        self._sorted()

    def join(self, other: Branches) -> None:
        """Go on with the rows of another one as well, which have said nothing yet."""
        width = max(self._seen.shape[1], other._seen.shape[1])
        seen = [F.pad(one._seen, (width - one._seen.shape[1], 0)) for one in (self, other)]
        self._seen, self._size = torch.cat(seen), torch.cat([self._size, other._size])
        self._prompt = torch.cat([self._prompt, other._prompt + len(self._size) - len(other._size)])
        self._slot = torch.cat([self._slot, other._slot + len(self._slot)])
        self._said = torch.cat([self._said, other._said])
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.join(theirs)
        self._sorted()

    def _narrow(self) -> None:
        """Slots on the left that no prompt has."""
        width = int(self._size.max())
        if width < self._seen.shape[1]:
            self._seen = self._seen[:, -width:]
            for layer in self.layers:
                layer.narrow(width)

    @contextmanager
    def reading(self, decoder: nn.Module) -> Iterator[dict[str, Any]]:
        configs = {id(config): config for config in (getattr(m, "config", None) for m in decoder.modules()) if config}
        before = {number: config._attn_implementation for number, config in configs.items()}
        token = _read.set(self)
        self._visible = {}
        try:
            for config in configs.values():
                config._attn_implementation = NAME
            yield {self._name: self, "attention_mask": None}
        finally:
            for number, config in configs.items():
                config._attn_implementation = before[number]
            _read.reset(token)
        self._refuse_unread()
        self._said = self._said + 1

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        if key_states.shape[2] != 1:
            raise ValueError("one word of each row at a time")
        self._refuse_unread()
        self._unread = layer_idx, key_states, value_states
        self.layers[layer_idx].write(key_states, value_states, self._slot, self._said, int(self._said.max()) + 1)
        return key_states, value_states

    def _refuse_unread(self) -> None:
        if self._unread is not None:
            raise ValueError("a layer with an attention of its own")

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """query [N, heads, 1, D] -> [N, 1, heads, D]

        Raises:
            ValueError: it is not asked of the keys and values that have just been written, as they are.
        """
        if self._unread is None or self._unread[1] is not key or self._unread[2] is not value:
            raise ValueError("keys or values that are not those of the cache")
        layer: _Layer = self.layers[self._unread[0]]
        self._unread = None
        if layer.window is not None and layer.window != window:
            raise ValueError("a layer whose window is not its attention's")
        rows, heads, _, width = query.shape
        prompts, most, groups = *self._members.shape, layer.prompt_keys.shape[1]
        each, members = heads // groups, self._members.flatten()
        q = query[:, :, 0].float().view(rows, groups, each, width) * (width**-0.5 if scaling is None else scaling)

        def by_prompt(values: Tensor) -> Tensor:  # [N, H, G, *] -> [P * H, M * G, *]
            own = values[members].view(prompts, most, groups, each, -1).transpose(1, 2)
            return own.reshape(prompts * groups, most * each, -1)

        def by_row(values: Tensor) -> Tensor:  # and back
            own = values.view(prompts, groups, most, each, -1).transpose(1, 2)
            return own[self._prompt, self._place]

        def by_slot(values: Tensor) -> Tensor:  # [N, H, G, *] -> [N * H, G, *]
            return values[self._by_slot].flatten(0, 1)

        keys, values = layer.own(rows)
        there = by_row(by_prompt(q) @ layer.prompt_keys.flatten(0, 1).mT)
        own = (by_slot(q) @ keys.mT).view(rows, groups, each, -1)[self._slot]
        scores = torch.cat([there, own], -1)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        visible = self._seen_by(there.shape[-1], window)
        share = scores.masked_fill_(~visible[:, None, None], -torch.inf).softmax(-1)
        of_prompt, of_own = torch.split(share, [there.shape[-1], own.shape[-1]], -1)
        found = by_row(by_prompt(of_prompt) @ layer.prompt_values.flatten(0, 1))
        found = found + (by_slot(of_own) @ values).view(rows, groups, each, -1)[self._slot]
        return found.reshape(rows, 1, heads, -1).to(query.dtype)

    def _seen_by(self, width: int, window: int | None) -> Tensor:
        """[N, width + T]: which slots each row's newest word sees, of the last `width` of its prompt and of its own."""
        if (width, window) not in self._visible:
            size, said = self._size[self._prompt, None], self._said[:, None]
            own = torch.arange(int(said.max()) + 1)[None]
            visible = torch.cat([self._seen[self._prompt][:, self._seen.shape[1] - width :], own <= said], -1)
            if window is not None:
                back = torch.arange(width, 0, -1)[None]  # prompts end in their last slot
                position = torch.cat([size - back, size + own], -1)
                visible &= size + said - position < window
            self._visible[width, window] = visible
        return self._visible[width, window]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    if (
        attention_mask is not None
        or dropout
        or any(others.get(name) is not None for name in ("s_aux", "position_bias"))
    ):
        raise ValueError("an attention that is more than products of queries and keys")
    return _read.get().attention(query, key, value, scaling, sliding_window, softcap), None


AttentionInterface.register(NAME, _attend)
