"""How far the responses to one prompt agree on an answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Consistency:
    """What K answer classes of one prompt, None for no answer, say of their distribution q."""

    answer: Hashable | None
    """The modal class, the first seen of those that tie; None only where there is no answer at all."""
    count: int
    """How often it was seen."""
    responses: int
    """K, those without an answer included."""
    agreement: float
    """sum_c n_c (n_c - 1) / (K (K - 1)), the share of pairs that agree, unbiased for sum_c q_c^2; nan for K < 2."""

    @property
    def majority(self) -> Hashable | None:
        """The answer of more than half of the responses, None where there is none."""
        return self.answer if 2 * self.count > self.responses else None

    @property
    def unanimous(self) -> bool:
        """All responses give this answer."""
        return self.count == self.responses > 0


def self_consistency(classes: Iterable[Sequence[Hashable | None]]) -> list[Consistency]:
    """The agreement of every prompt's answer classes (the vote of Wang et al. 2023, Sec. 2).

    None counts among the K responses, but agrees with nothing, not even itself, and never wins the vote.
    """
    return [_of_prompt(row) for row in classes]


def _of_prompt(row: Sequence[Hashable | None]) -> Consistency:
    counts = Counter(answer for answer in row if answer is not None)
    answer, count = counts.most_common(1)[0] if counts else (None, 0)
    pairs = len(row) * (len(row) - 1)
    agreeing = sum(n * (n - 1) for n in counts.values())
    return Consistency(answer, count, len(row), agreeing / pairs if pairs else math.nan)
