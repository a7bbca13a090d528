"""What a sampling stage does: rows that are decoded together, begun and left as those of a run are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from srlm.estimate.workload import Workload, spread
from srlm.policies.transformer.admission import LOOK_ELSEWHERE, LOOK_EVERY, fitting, most_rows, units_of
from srlm.policies.transformer.limits import FEWEST_WORDS, MORE_WORDS, decoded_tokens
from srlm.policies.transformer.shape import Shape

MOST_PROMPTS = 512  # played; more are as many times these


@dataclass(frozen=True)
class Held:
    """What is kept of the past where responses read one copy of their prompt: copies that any row goes on from, tokens
    of the longest, rows that there is room for, words of the row that has said most."""

    prompts: int
    tokens: int
    rows: int
    words: int


@dataclass(frozen=True)
class Begun:
    """Prompts that are read at once. tokens: padded ones of each; rows, slots: of all that is decoded from then on;
    before: rows that others had begun."""

    prompts: int
    tokens: int
    rows: int
    slots: int
    before: int


@dataclass(frozen=True)
class Fed:
    """`steps` words for each of some rows, the first of which sees `slots` tokens. moved: were rows dropped before?
    held: behind the last of them."""

    rows: int
    slots: int
    steps: int
    moved: bool
    held: Held


@dataclass(frozen=True)
class Decoded:
    """Of the first of several devices. times: how often that comes in a stage."""

    begun: list[Begun]
    fed: list[Fed]
    times: float

    @property
    def rows(self) -> int:
        """Of the fullest batch."""
        return max((one.rows for one in self.begun), default=0)

    @property
    def seen(self) -> int:
        """Tokens that a fed one sees, on average."""
        words = sum(one.rows * one.steps for one in self.fed)
        every = sum(one.rows * one.steps * (one.slots + (one.steps - 1) / 2) for one in self.fed)
        return round(every / words) if words else max((one.slots for one in self.begun), default=1)


def shares_prompts(shape: Shape, *, cpu: bool) -> bool:
    """As the decoder finds by a trial. Near enough: who reads trees has an attention of queries and keys alone, too."""
    return cpu and shape.trees


def kept(shape: Shape, held: Held) -> float:
    """Bytes: prompts in fp32, and rows with room for words, which doubles at first. Layers that slide keep no more than
    their window of a prompt, but every word."""
    room = FEWEST_WORDS
    while room < held.words:
        room += min(room, MORE_WORDS)
    return held.prompts * shape.cached(held.tokens) * 4 / shape.size + held.rows * (shape.cache + shape.sliding) * room


def decoded(
    prompts: Sequence[int], samples: int, work: Workload, *, cpu: bool, shared: bool = False, vocabulary: int = 1
) -> Decoded:
    """prompts: tokens of each. cpu: is what was drawn looked at after every word? shared: do responses share one copy
    of their prompt?"""
    return _played(tuple(prompts), samples, work, cpu, shared, most_rows(vocabulary, shared=shared))


@lru_cache(64)  # remedies change what has nothing to do with it
def _played(prompts: tuple[int, ...], samples: int, work: Workload, cpu: bool, shared: bool, most: float) -> Decoded:
    mine = sorted(prompts[:: work.devices])
    sizes = spread(mine, MOST_PROMPTS)
    longest, budget = work.longest, decoded_tokens(work.budget, cpu=cpu)
    units = [
        unit
        for i, size in enumerate(sizes)
        for unit in units_of(i, size, samples, longest, budget, shared=shared, most=most)
    ]
    lengths = work.lengths(len(sizes) * samples, seed=samples)
    look = LOOK_EVERY["cpu"] if cpu else LOOK_ELSEWHERE
    size, left, step, unit_of = (np.zeros(0, np.int64) for _ in range(4))
    fullest = 0

    def held(more: int) -> Held:
        return Held(len({*unit_of.tolist()}), int(size.max()), fullest, int(step.max()) + more)

    begun: list[Begun] = []
    fed: list[Fed] = []
    number = 0
    while number < len(units) or len(left):
        admitted = fitting(
            units,
            number,
            sizes,
            rows=len(left),
            begun=len({*unit_of.tolist()}),
            size=int(size.max(initial=0)),
            longest=longest,
            budget=budget,
            shared=shared,
            most=most,
        )
        if admitted:
            words = [n for unit in admitted for n in lengths[unit.prompt * samples :][unit.first : unit.last]]
            own = [sizes[unit.prompt] for unit in admitted for _ in range(unit.rows)]
            numbers = [number + i for i, unit in enumerate(admitted) for _ in range(unit.rows)]
            before = len(left)
            size, left, unit_of = np.append(size, own), np.append(left, words), np.append(unit_of, numbers)
            fullest = max(fullest, len(left))
            step = np.append(step, np.zeros(len(words), np.int64))
            begun.append(Begun(len(admitted), max(own), len(left), int((size + step).max()), before))
            number += len(admitted)
        # A word is drawn of what was fed before it; so the last one of a row is never fed.
        words_left = min(-(-int(left.min()) // look) * look, longest - int(step.max()))
        slots = int((size + step).max()) + 1
        if words_left > 1:
            fed.append(Fed(len(left), slots, words_left - 1, False, held(words_left - 1)))
        step, left = step + words_left, left - words_left
        stay = left > 0
        moved = not stay.all()
        size, step, left, unit_of = size[stay], step[stay], left[stay], unit_of[stay]
        if len(left):
            fed.append(Fed(len(left), int((size + step).max()), 1, moved, held(0)))
    return Decoded(begun, fed, len(mine) / len(sizes) if sizes else 0.0)
