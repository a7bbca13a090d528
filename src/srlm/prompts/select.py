"""Sets of prompts, and random parts of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from srlm.errors import UserError
from srlm.types import PromptItem, Prompts

MOST_HELD_OUT = 64  # of the prompts set aside when no held-out file is given
_TAKE, _SPLIT, _FRESH = (
    1,
    2,
    3,
)  # separate random streams, so that a subset says nothing about the split of the same seed


@dataclass(frozen=True)
class PromptSet:
    """Prompts with where they came from, and the acceptable answers that only an evaluation may see.

    answers: per prompt, None where the source has none.
    fingerprint: sha256 of the prompts in order; neither answers nor columns enter it.
    columns: per prompt, what else its row holds, where that was asked for.
    note: how the source was read, where that is worth a line.
    """

    prompts: Prompts
    answers: tuple[tuple[str, ...], ...] | None
    source: str
    fingerprint: str
    columns: tuple[Mapping[str, Any], ...] | None = None
    note: str | None = None

    @property
    def copies(self) -> int:
        """How many prompts are copies of one before them."""
        return len(self.prompts) - len(set(map(_canonical, self.prompts.items)))

    def take(self, number: int | None, seed: int) -> PromptSet:
        """A random subset in file order, part of every larger one of the same seed; all when there are no more."""
        if number is not None and number < 1:
            raise UserError(f"{number} prompts of {self.source} were asked for; ask for 1 or more")
        if number is None or number >= len(self.prompts):
            return self
        return self._pick(self._shuffled(seed, _TAKE)[:number])

    def split(self, held_out: int, seed: int) -> tuple[PromptSet, PromptSet]:
        """(train, held out), each in file order. Training loses its copies of a held-out prompt, so that none leaks."""
        key = [_canonical(item) for item in self.prompts.items]
        order = self._shuffled(seed, _SPLIT)
        seen = {key[i] for i in order[: max(held_out, 0)]}
        train = [i for i in order if key[i] not in seen]
        if not seen or not train:
            given = f"{held_out} of {len(key)} prompts ({len(set(key))} distinct) of {self.source} cannot be held out"
            raise UserError(f"{given}; hold out 1 or more and leave 1 or more to train on")
        return self._pick(train), self._pick(order[:held_out])

    def set_aside(self, share: float, seed: int) -> tuple[PromptSet, PromptSet | None]:
        """(train, held out) where no held-out prompts are given: that share, at most MOST_HELD_OUT."""
        number = min(MOST_HELD_OUT, int(share * len(self.prompts)))
        return self.split(number, seed) if number else (self, None)

    def without(self, other: PromptSet) -> PromptSet:
        """The prompts that do not stand in `other`."""
        seen = set(map(_canonical, other.prompts.items))
        rest = [i for i, item in enumerate(self.prompts.items) if _canonical(item) not in seen]
        if not rest:
            given = f"all {len(self.prompts)} prompts of {self.source} are among those of {other.source}"
            raise UserError(f"{given}; take one part from elsewhere")
        return self._pick(rest)

    def leave_out(self, rows: Iterable[int]) -> PromptSet:
        """
        Raises:
            UserError: nothing is left.
        """
        rest = sorted(set(range(len(self.prompts))) - set(rows))
        if not rest:
            raise UserError(
                f"all {len(self.prompts)} prompts of {self.source} are too long for the context with their responses, "
                "expected some that are not: shorten them or lower --max-new-tokens"
            )
        return self._pick(rest)

    def without_answers(self) -> Prompts:
        """What training may see."""
        return self.prompts

    def _shuffled(self, seed: int, stream: int) -> list[int]:
        return [int(i) for i in np.random.default_rng([seed, stream]).permutation(len(self.prompts))]

    def _pick(self, rows: Iterable[int]) -> PromptSet:
        rows = sorted(rows)
        answers = None if self.answers is None else tuple(self.answers[i] for i in rows)
        columns = None if self.columns is None else tuple(self.columns[i] for i in rows)
        made = prompt_set([self.prompts.items[i] for i in rows], answers, self.source, columns)
        return replace(made, note=self.note)


def said_of_copies(copies: int, number: int) -> str:
    return f"{copies} of {number} prompts are copies of others, which intervals take for different ones"


def one_kind(items: Sequence[PromptItem]) -> list[PromptItem]:
    """As a column can hold them, strings or conversations: where both occur, a string is one user turn."""
    if all(isinstance(item, str) for item in items):
        return list(items)
    return [({"role": "user", "content": item},) if isinstance(item, str) else item for item in items]


def prompt_set(
    items: Sequence[Any],
    answers: tuple[tuple[str, ...], ...] | None,
    source: str,
    columns: tuple[Mapping[str, Any], ...] | None = None,
) -> PromptSet:
    content = "\n".join(map(_canonical, items))
    return PromptSet(Prompts.uniform(items), answers, source, hashlib.sha256(content.encode()).hexdigest(), columns)


def fresh(number: int, per_round: int, seed: int, round: int) -> list[int]:
    """Which of `number` prompts are a round's, in order: `per_round` of them without replacement, until all have had
    their turn; then again in another order. A round that begins before their turn is over has no prompt twice.

    A function of its arguments alone.
    """
    left: list[int] = []
    taken: list[int] = []
    turn = 0
    for _ in range(round + 1):
        taken, left = left[:per_round], left[per_round:]
        if len(taken) < per_round:
            order = [int(i) for i in np.random.default_rng([seed, _FRESH, turn]).permutation(number)]
            held = set(taken)
            left = [i for i in order if i not in held]
            again = [i for i in order if i in held]  # their next turn comes at the end of this one
            taken, left = taken + left[: per_round - len(taken)], left[per_round - len(taken) :] + again
            turn += 1
    return sorted(taken)


def _canonical(item: Any) -> str:
    return json.dumps(item, sort_keys=True)
