"""The sequence model on which greedy decoding misses the mode (Prop. 4.3, App. E)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from srlm.theory._check import argument

KEY, TRAP = 0, 1


@dataclass(frozen=True)
class GreedyTrap:
    """Sequences of L tokens: after the key all is certain, after the trap nothing is. Build it with `greedy_trap`.

    First token: the key has p*, the trap p* + gap, the V - 2 others share the rest. The key is followed by a single
    path of probability 1; after any other token, and off that path, tokens are uniform. Policies, not tables: a row
    costs O(V) for any L.
    """

    vocab_size: int
    length: int
    mode_prob: float
    gap: float

    @property
    def mode(self) -> tuple[int, ...]:
        """y*, the only sequence of probability p*: (0, ..., 0)."""
        return (KEY,) * self.length

    @property
    def mode_log_prob(self) -> float:
        return math.log(self.mode_prob)

    def next_log_prob(self, prefix: Sequence[int]) -> NDArray[np.float64]:
        """log pi(token | prefix), [V] in nats, for a prefix of fewer than L tokens in 0..V-1."""
        tokens = self._tokens("prefix", prefix, range(self.length))
        if tokens and tokens == self.mode[: len(tokens)]:
            certain = np.full(self.vocab_size, -np.inf)
            certain[KEY] = 0
            return certain
        if tokens:
            return np.full(self.vocab_size, -math.log(self.vocab_size))
        rest = (1 - 2 * self.mode_prob - self.gap) / (self.vocab_size - 2)
        first = np.full(self.vocab_size, rest)
        first[[KEY, TRAP]] = self.mode_prob, self.mode_prob + self.gap
        log_prob: NDArray[np.float64] = np.log(first)
        return log_prob

    def sequence_log_prob(self, sequence: Sequence[int]) -> float:
        """log pi(y), in nats, of L tokens in 0..V-1."""
        tokens = self._tokens("sequence", sequence, range(self.length, self.length + 1))
        return float(sum(self.next_log_prob(tokens[:i])[token] for i, token in enumerate(tokens)))

    def greedy(self) -> tuple[int, ...]:
        """The likeliest token at every step, the smallest one of a tie: it starts with the trap, 1."""
        tokens: tuple[int, ...] = ()
        while len(tokens) < self.length:
            tokens = (*tokens, int(self.next_log_prob(tokens).argmax()))
        return tokens

    def _tokens(self, name: str, tokens: Sequence[int], lengths: range) -> tuple[int, ...]:
        values = argument(name, tokens, f"[0, {self.vocab_size - 1}]", whole=True)
        if values.ndim != 1 or values.size not in lengths:
            raise ValueError(f"{name} must have {lengths[0]} to {lengths[-1]} tokens, got {tokens!r}")
        return tuple(int(token) for token in values)


def greedy_trap(vocab_size: int, length: int, mode_prob: float, gap: float | None = None) -> GreedyTrap:
    """Prop. 4.3: an autoregressive policy whose mode has probability p* < 1/2 and whose greedy decoding is another one.

    The paper asks for 0 < gap < min(p*, 1 - 2p*). That keeps the key the mode (p* + gap < 2p* is spread over V or more
    sequences), but leaves out that the trap must beat the V - 2 other first tokens as well: gap > (1 - V p*)/(V - 1),
    for which the range has room when p* > 1/(2V - 1). The default gap is the middle of the range.
    At p* > 1/2 there is no such policy: every prefix of the mode has more than half of the mass, so greedy follows it.

    vocab_size V whole [3, inf); length L whole [2, inf) (a mode of one token is what greedy takes);
    mode_prob p* (1/(2V - 1), 1/2).
    """
    size = int(argument("vocab_size", vocab_size, "[3, inf)", whole=True))
    tokens = int(argument("length", length, "[2, inf)", whole=True))
    p = float(argument("mode_prob", mode_prob, f"({1 / (2 * size - 1)}, 0.5)"))
    low, high = max(0.0, (1 - size * p) / (size - 1)), min(p, 1 - 2 * p)
    chosen = (low + high) / 2 if gap is None else float(argument("gap", gap, f"({low}, {high})"))
    return GreedyTrap(size, tokens, p, chosen)
