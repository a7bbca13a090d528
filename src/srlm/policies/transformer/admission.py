"""Which responses are begun when: those that fit beside what is being decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

REFILL = 0.25  # share of a full batch that has to be free before prompts are admitted: few at a time are slow
SHARED = 2  # tokens that one of a prompt counts as where responses share it: it is kept in fp32 there
MOST_LOGITS = 2**27  # of a batch whose rows share prompts: all are held, and those of the next words beside them
LOOK_EVERY = {"cpu": 1}  # words between two looks at what was drawn, by kind of device
LOOK_ELSEWHERE = 8  # a look waits for an accelerator


@dataclass(frozen=True)
class Unit:
    """Responses `first` to `last` to a prompt, which are begun together."""

    prompt: int
    first: int
    last: int

    @property
    def rows(self) -> int:
        return self.last - self.first


def kept_tokens(rows: int, units: int, size: int, longest: int, *, shared: bool) -> int:
    """Of the past of some rows, at most: their prompt's for each row, or for each unit that shares it."""
    return rows * longest + (SHARED * units if shared else rows) * size


def most_rows(vocabulary: int, *, shared: bool) -> float:
    """Of a batch, whatever its budget: many short responses that share a prompt keep little but their logits."""
    return max(1, MOST_LOGITS // vocabulary) if shared else math.inf


def units_of(
    prompt: int,
    size: int,
    num_samples: int,
    longest: int,
    budget: float,
    *,
    shared: bool = False,
    most: float = math.inf,
) -> list[Unit]:
    """The responses to a prompt of `size` tokens: one part after the other where there is no room for all. most: rows
    of a batch."""
    at_once = (budget - SHARED * size) // longest if shared else budget // (size + longest)
    at_once = int(min(num_samples, most, max(1, int(at_once))))
    return [Unit(prompt, first, min(first + at_once, num_samples)) for first in range(0, num_samples, at_once)]


def fitting(
    units: Sequence[Unit],
    number: int,
    sizes: Sequence[int],
    *,
    rows: int,
    begun: int,
    size: int,
    longest: int,
    budget: float,
    shared: bool = False,
    most: float = math.inf,
) -> list[Unit]:
    """Of the units from `number` on those that fit beside some rows; none as long as few do and more are to come.

    sizes: tokens of each prompt. rows, begun, size: how many are being decoded, of how many units, tokens of the
    longest of their prompts. budget: `kept_tokens` of a batch; a unit that exceeds it goes alone. most: rows of a
    batch.
    """
    found: list[Unit] = []
    before = rows
    while number + len(found) < len(units):
        unit = units[number + len(found)]
        size = max(size, sizes[unit.prompt])
        more = rows + unit.rows
        kept = kept_tokens(more, begun + len(found) + 1, size, longest, shared=shared)
        if rows and (kept > budget or more > most):
            return found if rows - before >= REFILL * rows else []
        if found and unit.rows != found[0].rows:
            break
        found.append(unit)
        rows += unit.rows
    return found
