"""Lay K responses behind their shared prompt as one prefix tree, so that no common token is computed twice.

A group [prompt][y_1]..[y_K] becomes one row. Tokens with the same history are one node; a node's position is its depth
and it attends to its ancestors only. That is exact for any decoder whose only view of other tokens is attention:
every response sees what it would see alone. Identical responses cost nothing, a common opening is paid once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PromptIds = Sequence[int]
ResponseIds = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Tree:
    """One group. N nodes are forwarded (prompt first, parents before children); E edges are scored.

    parent: [N] index of the previous token's node, -1 for the first.
    token, depth: [N] input id and position.
    source, target: [E] node that predicts, token that it predicts.
    path: for each response, the edges whose log-probs add up to log pi(y|x).
    """

    token: list[int]
    parent: list[int]
    depth: list[int]
    source: list[int]
    target: list[int]
    path: list[list[int]]

    def __len__(self) -> int:
        return len(self.token)


def build_tree(prompt: PromptIds, responses: ResponseIds) -> Tree:
    """Share every common prefix. A response's last token is predicted, and fed only if another goes on from it."""
    size = len(prompt)
    token, parent, depth = list(prompt), list(range(-1, size - 1)), list(range(size))
    source: list[int] = []
    target: list[int] = []
    edge_of: dict[tuple[int, int], int] = {}
    node_of: dict[int, int] = {}  # edge -> node of its target, once somebody continues there
    path: list[list[int]] = []
    for response in responses:
        node = size - 1
        edges: list[int] = []
        for position, word in enumerate(response):
            if position:
                last = edges[-1]
                if last not in node_of:
                    node_of[last] = len(token)
                    token.append(target[last])
                    parent.append(node)
                    depth.append(depth[node] + 1)
                node = node_of[last]
            edge = edge_of.setdefault((node, word), len(source))
            if edge == len(source):
                source.append(node)
                target.append(word)
            edges.append(edge)
        path.append(edges)
    return Tree(token, parent, depth, source, target, path)


@dataclass(frozen=True)
class Packed:
    """A micro-batch of R groups, padded to L nodes. Indices are flat: node r*L + n, response r*K + k."""

    input_ids: Tensor  # [R, L]
    position_ids: Tensor  # [R, L]
    visible: Tensor  # [R, L, L] may query q (second axis) see key k (third)?  Plain rows: [R, L] is it a token?
    source: Tensor  # [E] flat node index
    target: Tensor  # [E] token id
    edge: Tensor  # [S] edge of each (response, token) pair
    owner: Tensor  # [S] flat response index of each pair
    num_responses: int  # R*K

    def to(self, device: torch.device) -> Packed:
        move = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Packed(**move, num_responses=self.num_responses)


def layout(prompt: PromptIds, responses: ResponseIds, shared: bool) -> list[Tree]:
    """One tree for the group, or, for models that cannot read trees, one plain row per response."""
    return [build_tree(prompt, responses)] if shared else [build_tree(prompt, [y]) for y in responses]


def pack(trees: Sequence[Tree], shared: bool = True) -> Packed:
    """Pad trees into one micro-batch; with `shared` false each is a plain row and needs no mask but the padding's."""
    rows, length = len(trees), max(map(len, trees))
    input_ids = torch.zeros(rows, length, dtype=torch.long)
    position_ids = torch.zeros(rows, length, dtype=torch.long)
    if shared:
        visible = np.zeros((rows, length, length), dtype=bool)
        visible[:, np.arange(length), np.arange(length)] = True  # padding sees itself: an empty softmax would be NaN
    else:
        visible = np.arange(length) < np.array([[len(tree)] for tree in trees])
    source: list[int] = []
    target: list[int] = []
    edge: list[int] = []
    owner: list[int] = []
    response = 0
    for row, tree in enumerate(trees):
        input_ids[row, : len(tree)] = torch.tensor(tree.token)
        position_ids[row, : len(tree)] = torch.tensor(tree.depth)
        if shared:
            seen = visible[row]
            for node, parent in enumerate(tree.parent):
                if parent >= 0:
                    seen[node] |= seen[parent]
        first = len(source)
        source += [row * length + node for node in tree.source]
        target += tree.target
        for edges in tree.path:
            edge += [first + e for e in edges]
            owner += [response] * len(edges)
            response += 1

    def index(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long)

    seen_by = torch.from_numpy(visible)
    return Packed(input_ids, position_ids, seen_by, index(source), index(target), index(edge), index(owner), response)


def micro_batches(
    lengths: Sequence[int],
    order: Sequence[int],
    *,
    prompts_per_step: int,
    token_budget: int,
    rank: int = 0,
    world: int = 1,
) -> list[list[list[int]]]:
    """Steps of `prompts_per_step` prompts in the given order; each step's share of this process cut into micro-batches.

    What is learned depends on the step, what fits in memory on the micro-batch: rows * longest row <= token_budget
    (a single longer group goes alone).
    """
    steps: list[list[list[int]]] = []
    for start in range(0, len(order), prompts_per_step):
        mine = sorted(order[start : start + prompts_per_step][rank::world], key=lambda i: lengths[i])
        batches: list[list[int]] = []
        for i in mine:
            if batches and (len(batches[-1]) + 1) * lengths[i] <= token_budget:
                batches[-1].append(i)
            else:
                batches.append([i])
        steps.append(batches)
    return steps
