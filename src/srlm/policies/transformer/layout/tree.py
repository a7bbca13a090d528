"""Lay responses behind their shared prompt as one prefix tree, so that no common token is computed twice.

Tokens with the same history are one node; a node's position is its depth and it attends to its ancestors only. That is
exact for any decoder whose only view of other tokens is attention: every response sees what it would see alone.
Identical responses cost nothing, a common opening is paid once. A tree of one response is a plain row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from srlm.policies.transformer.layout.group import Group, Ids, Prefixes


@dataclass(frozen=True, eq=False)
class Tree:
    """Some responses to one prompt. N nodes are forwarded (prompt first, parents before children); E edges are scored.

    token, depth: [N] input id and position.
    branch: [B, 3] runs of nodes that follow one another: first, last + 1, and the node before the first (-1: none).
    source, target: [E] node that predicts, token that it predicts.
    edge, length: the edges whose log-probs add up to that of each response, one response behind the other, and how many
        each has.
    """

    token: Ids
    depth: Ids
    branch: NDArray[np.int64]
    source: Ids
    target: Ids
    edge: Ids
    length: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.token)


def build_tree(group: Group, members: Sequence[int] | None = None) -> Tree:
    """Share every common prefix of some responses, of all by default. A response's last token is predicted, and fed
    only if another goes on from it."""
    members = range(len(group)) if members is None else members
    rows = [group.responses[i] for i in members]
    tree = _row(group.prompt, rows[0]) if len(rows) == 1 else _tree(group.prompt, rows)
    if group.scored is None:
        return tree
    return _counting(tree, np.array([group.scored[i] for i in members]))


def _row(prompt: Ids, response: Ids) -> Tree:
    size, length = len(prompt), len(response)
    token = np.concatenate([prompt, response[:-1]])
    steps = np.arange(length, dtype=np.int32)
    depth = np.arange(len(token), dtype=np.int32)
    return Tree(
        token, depth, np.array([[0, len(token), -1]]), steps + np.int32(size - 1), response, steps, np.array([length])
    )


def _tree(prompt: Ids, rows: Sequence[Ids]) -> Tree:
    size = len(prompt)
    before = _most_alike(rows)
    lengths = [len(row) for row in rows]
    token, depth = [prompt], [np.arange(size, dtype=np.int32)]
    branch = [(0, size, -1)]
    source: list[Ids] = []
    target: list[Ids] = []
    edges: list[Ids] = []
    # Node of each edge's target, once somebody goes on from there; edges number at most the tokens.
    node_of = np.full(sum(lengths), -1, np.int32)
    nodes, number = size, 0
    for row, length, (other, common) in zip(rows, lengths, before, strict=True):
        edge = np.empty(length, np.int32)
        edge[:common] = edges[other][:common] if common else ()
        edge[common:] = np.arange(number, number + length - common)
        number += length - common
        # A common opening has its nodes, but for an earlier response's last token if that is where this one goes on.
        fed = edge[:-1]
        known = int((node_of[fed[:common]] >= 0).sum())
        last = int(node_of[fed[known - 1]]) if known else size - 1
        count = max(length - 1 - known, 0)
        if count:
            node_of[fed[known:]] = np.arange(nodes, nodes + count)
            token.append(row[known:-1])
            depth.append(np.arange(size + known, size + known + count, dtype=np.int32))
            branch.append((nodes, nodes + count, last))
            nodes += count
        history = np.concatenate([np.array([size - 1], np.int32), node_of[fed]])[:length]
        source.append(history[common:])
        target.append(row[common:])
        edges.append(edge)
    joined = (np.concatenate(parts) for parts in (token, depth, source, target, edges))
    token_, depth_, source_, target_, edge_ = joined
    return Tree(token_, depth_, np.array(branch), source_, target_, edge_, np.array(lengths))


def _most_alike(rows: Sequence[Ids]) -> list[tuple[int, int]]:
    """For each row the earlier one that it begins like for longest, and for how many tokens."""
    prefixes = Prefixes.of(rows)
    place = np.empty(len(rows), np.int64)
    place[prefixes.order] = np.arange(len(rows))
    found = [(0, 0)]
    seen = np.array([place[0]])
    for at in place[1:]:
        # Of two rows that stand apart in the order, the least that any neighbours between them have in common.
        spot = int(np.searchsorted(seen, at))
        left = int(prefixes.common[seen[spot - 1] + 1 : at + 1].min()) if spot else -1
        right = int(prefixes.common[at + 1 : seen[spot] + 1].min()) if spot < len(seen) else -1
        nearest = seen[spot - 1] if left >= right else seen[spot]
        found.append((int(prefixes.order[nearest]), max(left, right, 0)))
        seen = np.insert(seen, spot, at)
    return found


def _counting(tree: Tree, last: NDArray[np.int64]) -> Tree:
    """The same tree, of which the last tokens of each response alone are scored."""
    ends = np.cumsum(tree.length)
    edge = np.concatenate([tree.edge[end - n : end] for end, n in zip(ends, last, strict=True)])
    used, place = np.unique(edge, return_inverse=True)
    return Tree(tree.token, tree.depth, tree.branch, tree.source[used], tree.target[used], place.astype(np.int32), last)
