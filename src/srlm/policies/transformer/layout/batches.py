"""Groups -> optimiser steps -> micro-batches of bounded size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from srlm.policies.transformer.layout.cost import LARGEST_MASK, Cost, cheapest, sizes
from srlm.policies.transformer.layout.group import Group

UNEVEN = 1.5  # times what groups take alone that they may take together, padded to the longest piece of any

Piece: TypeAlias = tuple[int, list[int]]
"""Number of a group, and those of its responses that are laid out together."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How a group is laid out. pieces: responses of each; nodes: of each; masked: they are trees, not plain rows."""

    pieces: list[list[int]]
    nodes: list[int]
    masked: bool

    @classmethod
    def of(cls, group: Group, cost: Cost, *, trees: bool, budget: int) -> Plan:
        """trees: does the model read them?"""
        cut, masked = cheapest(group, cost, budget=budget) if trees else (group.prefixes.chains(), False)
        return cls([group.prefixes.members(places) for places in cut], sizes(group, cut), masked)

    @property
    def padded(self) -> int:
        """Tokens of all pieces in one micro-batch."""
        return len(self.nodes) * max(self.nodes)


@dataclass(frozen=True, eq=False)
class Share:
    """Groups that are learned from together. batches: their pieces, in one micro-batch, or, of a single group that does
    not fit into one, in several."""

    groups: list[int]
    batches: list[list[Piece]]
    masked: bool


def shares(plans: Mapping[int, Plan], numbers: Sequence[int], budget: int) -> list[Share]:
    """Groups in micro-batches: rows x longest row <= budget, and masks of at most LARGEST_MASK elements. A piece that
    exceeds either goes alone, and so do groups that others would pad far."""
    found: list[Share] = []
    size = {i: plans[i].padded for i in numbers}
    fits = {
        i
        for i in numbers
        if size[i] <= budget and (len(plans[i].nodes) == 1 or _fits(plans[i].nodes, plans[i], budget))
    }
    whole = sorted((i for i in numbers if i in fits), key=lambda i: (plans[i].masked, max(plans[i].nodes), size[i]))
    batch: list[int] = []

    def joins(i: int) -> bool:
        nodes = [n for j in (*batch, i) for n in plans[j].nodes]
        even = len(nodes) * max(nodes) <= UNEVEN * sum(size[j] for j in (*batch, i))
        return plans[i].masked == plans[batch[0]].masked and even and _fits(nodes, plans[i], budget)

    for i in whole:
        if batch and not joins(i):
            found.append(_together(plans, batch))
            batch = []
        batch.append(i)
    if batch:
        found.append(_together(plans, batch))
    larger = sorted((i for i in numbers if i not in fits), key=size.__getitem__)
    return found + [_cut(plans[i], i, budget) for i in larger]


def _fits(nodes: Sequence[int], plan: Plan, budget: int) -> bool:
    padded = len(nodes) * max(nodes)
    return padded <= budget and not (plan.masked and padded * max(nodes) > LARGEST_MASK)


def _together(plans: Mapping[int, Plan], groups: list[int]) -> Share:
    pieces = [(i, members) for i in groups for members in plans[i].pieces]
    return Share(groups, [pieces], plans[groups[0]].masked)


def _cut(plan: Plan, number: int, budget: int) -> Share:
    batches: list[list[int]] = []
    for piece in sorted(range(len(plan.pieces)), key=lambda i: plan.nodes[i]):
        if batches and _fits([plan.nodes[i] for i in (*batches[-1], piece)], plan, budget):
            batches[-1].append(piece)
        else:
            batches.append([piece])
    return Share([number], [[(number, plan.pieces[i]) for i in batch] for batch in batches], plan.masked)


def micro_batches(lengths: Sequence[int], token_budget: int, *, rank: int = 0, world: int = 1) -> list[list[int]]:
    """Numbers of this process's sequences, in batches of like length: sequences x longest <= token_budget (a single
    longer one goes alone)."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths))[rank::world], key=lambda i: lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= token_budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
