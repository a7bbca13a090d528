"""A prompt and its responses as they come from sampling, and what those have in common."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Places = tuple[int, int]  # from, to: responses in the order of `Prefixes`


@dataclass(frozen=True, eq=False)
class Group:
    """K responses to one prompt; views of what was sampled, no copies.

    prompt: [L] token ids. responses: K arrays of token ids. scored: [K] how many tokens of each response count, its
    last ones; all of them unless said otherwise.
    """

    prompt: Ids
    responses: tuple[Ids, ...]
    scored: tuple[int, ...] | None = None

    @classmethod
    def of(cls, prompt: Sequence[int], responses: Sequence[Sequence[int]], last: int | None = None) -> Group:
        """last: how many tokens count, of all responses alike."""
        rows = tuple(np.asarray(one, np.int32) for one in responses)
        return cls(np.asarray(prompt, np.int32), rows, None if last is None else (last,) * len(rows))

    def __len__(self) -> int:
        return len(self.responses)

    @cached_property
    def prefixes(self) -> Prefixes:
        return Prefixes.of(self.responses)


@dataclass(frozen=True, eq=False)
class Prefixes:
    """The prefix tree of some responses, without its nodes.

    order: responses, sorted by their tokens. common: with how many tokens each of them begins as the one before it.
    length: of each. All [K], in that order.
    """

    order: NDArray[np.int64]
    common: NDArray[np.int64]
    length: NDArray[np.int64]

    @classmethod
    def of(cls, responses: Sequence[Ids]) -> Prefixes:
        keys = [row.astype(">i4").tobytes() for row in responses]  # as bytes they sort like their numbers
        order = sorted(range(len(keys)), key=keys.__getitem__)
        rows = [responses[i] for i in order]
        common = [0] + [_common(*pair) for pair in itertools.pairwise(rows)]
        return cls(np.array(order), np.array(common), np.array([len(row) for row in rows]))

    def chains(self) -> list[Places]:
        """Cut into as few pieces as possible of which each is a plain row: its responses repeat or continue one
        another, or differ in their last tokens alone."""
        found: list[Places] = []
        first = fed = 0
        along = 0  # with how many tokens of what is fed in the present row a response begins
        for place, (length, common) in enumerate(zip(self.length.tolist(), self.common.tolist(), strict=True)):
            along = min(along, common)
            if place > first and along < min(length - 1, fed):
                found.append((first, place))
                first, fed = place, 0
            if length - 1 >= fed:
                fed, along = length - 1, length
        return [*found, (first, len(self.length))]

    def members(self, places: Places) -> list[int]:
        """Numbers of the responses there."""
        return sorted(self.order[slice(*places)].tolist())

    def nodes(self, first: int = 0, last: int | None = None) -> int:
        """Nodes behind the prompt of a tree of the responses from place `first` to `last` in the order: every token
        that another one follows, common ones once."""
        length, common = self.length[first:last], self.common[first:last].copy()
        common[:1] = 0
        new = length > common  # not a response that was there already; a shorter one stands before what begins with it
        length, common = length[new], common[new]
        return int((length - common).sum() - len(length) + (common[1:] == length[:-1]).sum())


def _common(one: Ids, other: Ids) -> int:
    least = min(len(one), len(other))
    differ = one[:least] != other[:least]
    return int(differ.argmax()) if differ.any() else least
