"""What a policy says."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from srlm.errors import UserError


@dataclass(frozen=True)
class Responses:
    """K responses to each of P prompts, as token ids, cut at `length`; the token that ended a response is its last.

    finished: [P, K] ended by itself (EOS or stop string) rather than cut at the maximal length.
    log_prob: [P, K, T] of single tokens, in nats, by an engine of its own; to be compared with ours, never used for it.
    """

    tokens: Tensor  # [P, K, T] int32
    length: Tensor  # [P, K]
    finished: Tensor  # [P, K] bool
    log_prob: Tensor | None = None

    def __len__(self) -> int:
        """P"""
        return len(self.length)

    def __getitem__(self, prompts: slice) -> Responses:
        """Those to some of the prompts; a view."""
        log_prob = None if self.log_prob is None else self.log_prob[prompts]
        return Responses(self.tokens[prompts], self.length[prompts], self.finished[prompts], log_prob)

    def some(self, prompts: Sequence[int]) -> Responses:
        """Those to some of the prompts; a copy."""
        rows = list(prompts)
        return Responses(self.tokens[rows], self.length[rows], self.finished[rows])

    def rows(self) -> list[NDArray[Any]]:
        """The ids of all responses, prompt by prompt."""
        return cut(self.tokens, self.length)

    def ids(self, prompt: int) -> list[list[int]]:
        return [row[:n] for row, n in zip(self.tokens[prompt].tolist(), self.length[prompt].tolist(), strict=True)]


@dataclass(frozen=True)
class Written:
    """K texts behind each of N openings, and whether they ended by themselves [N, K]. score: their log-probs."""

    texts: list[list[str]]
    finished: Tensor
    score: Callable[[], Tensor]

    @cached_property
    def log_prob(self) -> Tensor:
        """[N, K] in nats at temperature 1, by the weights as they are when it is asked for: a pass over all of them,
        which not everybody needs. All processes ask."""
        return self.score()


def cut(values: Tensor, length: Tensor) -> list[NDArray[Any]]:
    """[P, K, T] as far as each response goes: P K views, no copies."""
    rows = values.flatten(0, 1).numpy()
    return [row[:n] for row, n in zip(rows, length.flatten().tolist(), strict=True)]


def refuse_too_many(num_prompts: int, num_samples: int, max_new_tokens: int) -> None:
    """
    Raises:
        UserError: token ids of P x K responses of T tokens do not fit this machine.
    """
    needed = 4 * num_prompts * num_samples * max_new_tokens
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > whole:
        raise UserError(
            f"{num_prompts} prompts x {num_samples} responses of up to {max_new_tokens} tokens need {needed / 1e9:.3g} "
            f"GB for their tokens alone, this machine has {whole / 1e9:.3g} GB: lower --max-prompts, the number of "
            "samples or --max-new-tokens"
        )
