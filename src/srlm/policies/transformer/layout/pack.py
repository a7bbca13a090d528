"""Trees of a micro-batch -> the tensors that a model is handed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srlm.policies.transformer.layout.tree import Tree


@dataclass(frozen=True)
class Packed:
    """A micro-batch of R rows, padded to L nodes. Indices are flat: node r*L + n.

    visible: [R, L, L] may node q (second axis) see node k (third)? None for plain rows, where each sees what is before
    it. Padding is on the right, where nothing sees it.
    """

    input_ids: Tensor  # [R, L]
    position_ids: Tensor  # [R, L]
    visible: Tensor | None
    source: Tensor  # [E] flat node index
    target: Tensor  # [E] token id
    edge: Tensor  # [S] edge of each (response, token) pair
    owner: Tensor  # [S] which response of the micro-batch each pair belongs to
    num_responses: int

    def to(self, device: torch.device) -> Packed:
        move = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Packed(**(vars(self) | move))


def pack(trees: Sequence[Tree], *, masked: bool) -> Packed:
    """Pad trees into one micro-batch. Without `masked` all of them are plain rows, trees of one response each."""
    rows, length = len(trees), max(map(len, trees))
    input_ids = np.zeros((rows, length), np.int64)
    position_ids = np.zeros((rows, length), np.int64)
    if not masked:
        position_ids[:] = np.arange(length)  # a position that began again would look like another sequence
    for row, tree in enumerate(trees):
        input_ids[row, : len(tree)] = tree.token
        position_ids[row, : len(tree)] = tree.depth
    first_edge = np.cumsum([0, *(len(tree.source) for tree in trees)])
    lengths = np.concatenate([tree.length for tree in trees])

    def joined(parts: Sequence[NDArray[np.int32]], first: Sequence[int] | NDArray[np.int64]) -> Tensor:
        pieces = [part.astype(np.int64) + start for part, start in zip(parts, first, strict=False)]
        return torch.from_numpy(np.concatenate(pieces))

    return Packed(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        torch.from_numpy(_visible(trees, length)) if masked else None,
        source=joined([tree.source for tree in trees], [row * length for row in range(rows)]),
        target=joined([tree.target for tree in trees], [0] * rows),
        edge=joined([tree.edge for tree in trees], first_edge),
        owner=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
        num_responses=len(lengths),
    )


def _visible(trees: Sequence[Tree], length: int) -> NDArray[np.bool_]:
    visible = np.zeros((len(trees), length, length), dtype=bool)
    visible[:, np.arange(length), np.arange(length)] = True  # padding sees itself: an empty softmax would be NaN
    for seen, tree in zip(visible, trees, strict=True):
        for first, last, parent in tree.branch.tolist():
            if parent >= 0:
                seen[first:last, : parent + 1] = seen[parent, : parent + 1]
            seen[first:last, first:last] = np.tri(last - first, dtype=bool)
    return visible
