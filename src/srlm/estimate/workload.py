"""What a run computes, in numbers: prompts by their length, responses, passes, and how they are laid out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from srlm.errors import UserError
from srlm.policies.transformer.layout.batches import Plan, shares
from srlm.policies.transformer.layout.cost import SLACK
from srlm.policies.transformer.layout.group import Group
from srlm.policies.transformer.shape import Shape
from srlm.writing.settings import AT_ONCE, at_once

MOST_GROUPS = 64  # laid out; more prompts are as many times these
SHARDS = ("none", "zero2", "zero3", "fsdp")


@dataclass(frozen=True)
class Writing:
    """Prompts that the policy of every round writes: how many, tokens of what it is asked for some of them, tokens of
    one on average and at most."""

    number: int
    asked: tuple[int, ...]
    mean: float
    longest: int

    @classmethod
    def of(cls, number: int, asked: Sequence[int], mean: float, longest: int) -> Writing:
        """mean: of a text that may be longer than what is written."""
        return cls(number, tuple(asked), min(max(mean, 1.0), float(longest)), longest)


@dataclass(frozen=True)
class Workload:
    """prompts, held_out: tokens of each. samples, held_samples: K. longest: tokens of a response at most. expected: on
    average, if it is known (lengths are then geometric, cut at the longest); else all are of the longest.

    votes: drawn beside the K; weighed: scored, too. epochs, step: passes, and prompts per optimiser step. recompute:
    activations. built_in: does the model itself draw? devices, shard: how many, and what they divide among them.
    writing: of prompts, some of which are among `prompts`.
    """

    prompts: tuple[int, ...]
    held_out: tuple[int, ...]
    samples: int
    held_samples: int
    longest: int
    expected: float | None
    votes: int
    epochs: int
    step: int
    budget: int
    rounds: int
    recompute: bool = False
    built_in: bool = True
    devices: int = 1
    shard: str = "none"
    uncounted: tuple[str, ...] = field(default=())
    writing: Writing | None = None
    weighed: bool = False

    def __post_init__(self) -> None:
        if self.expected is not None and not 1 <= self.expected <= self.longest:
            raise UserError(
                f"--expected-length is {self.expected:g}, expected from 1 to --max-new-tokens ({self.longest}): "
                "correct it"
            )
        if self.devices < 1:
            raise UserError(f"--devices is {self.devices}, expected at least 1: correct it")
        if self.shard not in SHARDS:
            raise UserError(f"--shard is {self.shard!r}, expected {', '.join(SHARDS[:-1])} or {SHARDS[-1]}: correct it")

    @property
    def mean(self) -> float:
        """Tokens of a response, the one that ends it included."""
        return float(self.longest) if self.expected is None else self.expected

    def writing_batches(self) -> list[tuple[list[int], float]]:
        """Tokens of what is asked at once, and how often. None that is written is dropped."""
        if self.writing is None:
            return []
        full, rest = divmod(self.writing.number, AT_ONCE)
        sizes = [(AT_ONCE, full)] * (full > 0) + [(at_once(rest), 1)] * (rest > 0)
        return [(evenly(self.writing.asked, size), float(times)) for size, times in sizes]

    @property
    def of_writing(self) -> Workload:
        """With responses that are prompts."""
        assert self.writing is not None
        return replace(self, longest=self.writing.longest, expected=self.writing.mean)

    @cached_property
    def alive(self) -> NDArray[np.float64]:
        """[T] share of the responses that have a token there: 1, q, q^2, ... with the mean as expected."""
        if self.expected is None or self.expected >= self.longest:
            return np.ones(self.longest)
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            if (middle ** np.arange(self.longest)).sum() < self.expected:
                low = middle
            else:
                high = middle
        return np.asarray(low ** np.arange(self.longest), dtype=np.float64)

    def lengths(self, number: int, seed: int = 0) -> list[int]:
        """Of some responses."""
        draws = np.random.default_rng(seed).random(number)
        return [max(1, int((self.alive > u).sum())) for u in draws]


@dataclass(frozen=True)
class Batch:
    """A micro-batch: rows of so many tokens, scored tokens; are they trees, of a group in several micro-batches, or
    too large to keep activations?"""

    rows: int
    tokens: int
    edges: int
    masked: bool
    several: bool
    large: bool

    @property
    def padded(self) -> int:
        return self.rows * self.tokens

    @property
    def pairs(self) -> float:
        """Pairs of tokens that attention looks at."""
        whole = float(self.rows * self.tokens**2)
        return whole if self.masked else whole / 2


@dataclass(frozen=True)
class Batches:
    """Of the first of several devices. times: how often they come in a pass. steps: optimiser steps of it."""

    batches: list[Batch]
    times: float
    steps: float


def laid_out(prompts: Sequence[int], samples: int, work: Workload, shape: Shape) -> Batches:
    """As scoring and training cut them; responses have nothing but their prompt in common."""
    size = work.step
    most = max(size, MOST_GROUPS // size * size)
    some = spread(prompts, most)
    groups = []
    for number, length in enumerate(some):
        words = work.lengths(samples, number)
        rows = tuple(np.full(n, i, np.int32) for i, n in enumerate(words))
        groups.append(Group(np.zeros(length, np.int32), rows))
    found: list[Batch] = []
    for start in range(0, len(groups), size):
        mine = list(range(start, min(start + size, len(groups))))[:: work.devices]
        plans = {i: Plan.of(groups[i], shape.cost, trees=shape.trees, budget=work.budget) for i in mine}
        for share in shares(plans, mine, work.budget):
            for pieces in share.batches:
                nodes = [len(groups[i].prompt) + groups[i].prefixes.nodes(*_places(groups[i], m)) for i, m in pieces]
                edges = sum(len(groups[i].responses[j]) for i, members in pieces for j in members)
                padded = len(nodes) * max(nodes)
                several, large = len(share.batches) > 1, padded > SLACK * work.budget
                found.append(Batch(len(nodes), max(nodes), edges, share.masked, several, large))
    times = len(prompts) / len(some) if some else 0.0
    return Batches(found, times, math.ceil(len(prompts) / size) / max(times, 1e-9) if some else 0.0)


def _places(group: Group, members: Sequence[int]) -> tuple[int, int]:
    places = [int(np.flatnonzero(group.prefixes.order == m)[0]) for m in members]
    return min(places), max(places) + 1


def evenly(lengths: Sequence[int], number: int) -> list[int]:
    """So many, as long as those that are given, the short ones as often as the long ones."""
    ordered = sorted(lengths)
    return [ordered[int((i + 0.5) * len(ordered) / number)] for i in range(number)]


def spread(lengths: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly."""
    return list(lengths) if len(lengths) <= most else evenly(lengths, most)
