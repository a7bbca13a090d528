"""What a policy says."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Responses:
    """K responses to each of P prompts, as token ids, cut at `length`; the token that ended a response is its last.

    finished: [P, K] ended by itself (EOS or stop string) rather than cut at the maximal length.
    """

    tokens: Tensor  # [P, K, T] int32
    length: Tensor  # [P, K]
    finished: Tensor  # [P, K] bool

    def ids(self, prompt: int) -> list[list[int]]:
        return [row[:n] for row, n in zip(self.tokens[prompt].tolist(), self.length[prompt].tolist(), strict=True)]
