"""Next-token distributions of many prefixes behind several prompts, each token forwarded once (see srlm.search)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from srlm.policies.transformer.limits import CHUNK_ELEMENTS
from srlm.policies.transformer.log_prob import CACHES, Head, attention_mask, decoder_of


class CachedTrees:
    """For models that read trees: one row per prompt, whose cache keeps every node that was ever added.

    A node attends to the prompt, to its own ancestors and to itself, wherever they lie in the cache: nothing is copied
    when a prefix branches, and a batch takes nodes of all depths.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.head = model, Head.of(model)
        # Without a config: layers that slide would otherwise forget slots, which here are no positions.
        self.cache: Any = DynamicCache()
        self.rows = list(range(len(prompts)))
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):  # on the right, where causal attention never looks
            ids[row, : len(prompt)] = torch.tensor(prompt)
        self.position = torch.arange(width).expand(len(prompts), -1)  # [R, slots]
        hidden = self._forward(ids, self.position, None)
        lengths = [len(prompt) for prompt in prompts]
        self.root = [hidden[row, size - 1 : size] for row, size in enumerate(lengths)]
        # Slots that a node sees: of the prompt up to here, and these.
        self.prompt = lengths
        self.path: list[list[list[int]]] = [[[]] for _ in prompts]

    @torch.inference_mode()
    def grow(self, new: Mapping[int, Sequence[tuple[int, int]]]) -> Iterator[tuple[int, Tensor]]:
        self._keep(sorted(new))
        width = max(map(len, new.values()))
        hidden = self._append(new, width) if width else None
        wanted: list[tuple[int, Tensor]] = []
        for row, number in enumerate(self.rows):
            own = [] if hidden is None else [hidden[row, : len(new[number])]]
            if len(root := self.root[number]):
                own, self.root[number] = [root, *own], root[:0]
            wanted.append((number, torch.cat(own)))
        yield from _distributions(self.head, wanted)

    def _keep(self, numbers: list[int]) -> None:
        if numbers != self.rows:
            stay = torch.tensor([self.rows.index(number) for number in numbers])
            self.cache.reorder_cache(stay.to(self.model.device))
            self.position = self.position[stay]
            self.rows = numbers

    def _append(self, new: Mapping[int, Sequence[tuple[int, int]]], width: int) -> Tensor:
        rows, slots = self.position.shape
        ids = torch.zeros(rows, width, dtype=torch.long)
        position = torch.zeros(rows, width, dtype=torch.long)
        visible = torch.zeros(rows, width, slots + width, dtype=torch.bool)
        for row, number in enumerate(self.rows):
            path = self.path[number]
            visible[row, :, : self.prompt[number]] = True
            for column, (parent, token) in enumerate(new[number]):
                slot = slots + column
                path.append([*path[parent], slot])
                ids[row, column] = token
                position[row, column] = self.prompt[number] + len(path[parent])
                visible[row, column, path[-1]] = True
        self.position = torch.cat([self.position, position], -1)
        return self._forward(ids, position, visible)

    @torch.inference_mode()
    def _forward(self, ids: Tensor, position: Tensor, visible: Tensor | None) -> Tensor:
        device = self.model.device
        position = position.to(device)
        mask = None
        if visible is not None:
            mask = attention_mask(self.model, visible.to(device), position, self.position.to(device))
        decoder = decoder_of(self.model)
        name = next((name for name in CACHES if name in inspect.signature(decoder.forward).parameters), CACHES[1])
        output = decoder(
            input_ids=ids.to(device),
            attention_mask=mask,
            position_ids=position,
            use_cache=True,
            **{name: self.cache},
        )
        return cast(Tensor, output.last_hidden_state)


class PlainPrefixes:
    """For models that do not read trees: every prefix anew, as a plain row behind its prompt."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], token_budget: int) -> None:
        self.model, self.head, self.token_budget = model, Head.of(model), token_budget
        self.path: list[list[list[int]]] = [[list(prompt)] for prompt in prompts]
        self.unread = [0] * len(prompts)  # first node without an answer

    @torch.inference_mode()
    def grow(self, new: Mapping[int, Sequence[tuple[int, int]]]) -> Iterator[tuple[int, Tensor]]:
        for number, nodes in new.items():
            path = self.path[number]
            first, self.unread[number] = self.unread[number], len(path) + len(nodes)
            for parent, token in nodes:
                path.append([*path[parent], token])
            yield from _distributions(self.head, [(number, self._last_hidden(path[first:]))])

    def _last_hidden(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """[N, D]"""
        size = max(1, self.token_budget // max(map(len, rows)))
        parts = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            width = max(map(len, part))
            ids = torch.zeros(len(part), width, dtype=torch.long)
            mask = torch.zeros(len(part), width, dtype=torch.long)
            for i, row in enumerate(part):
                ids[i, : len(row)] = torch.tensor(row)
                mask[i, : len(row)] = 1
            device = self.model.device
            output = decoder_of(self.model)(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
            last = torch.tensor([len(row) - 1 for row in part], device=device)
            parts.append(output.last_hidden_state[torch.arange(len(part), device=device), last])
        return torch.cat(parts)


def _distributions(head: Head, wanted: Sequence[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    """Log-probs [N, V] of the next word after each hidden state [N, D]; several prompts share a product with the
    vocabulary."""
    most = max(1, CHUNK_ELEMENTS // head.weight.shape[0])
    start = 0
    while start < len(wanted):
        stop, size = start + 1, len(wanted[start][1])
        while stop < len(wanted) and size + len(wanted[stop][1]) <= most:
            size += len(wanted[stop][1])
            stop += 1
        numbers, hidden = zip(*wanted[start:stop], strict=True)
        logits = head.logits(torch.cat(hidden))
        logits -= torch.logsumexp(logits, -1, keepdim=True)
        yield from zip(numbers, torch.split(logits, [len(h) for h in hidden]), strict=True)
        start = stop
