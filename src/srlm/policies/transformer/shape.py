"""What is to be known of a causal LM to say what it costs: numbers alone."""

from __future__ import annotations

from dataclasses import dataclass

from srlm.policies.transformer.layout.cost import Cost

PACKED = {"none": 0.0, "4bit": (4 + 8 / 64 + 32 / (64 * 256)) / 8, "8bit": 1.0}
"""Bytes of an element: in 4 bits each block of 64 has an 8-bit scale, and 256 of those one of fp32."""


@dataclass(frozen=True)
class Shape:
    """Counts are of elements, multiply-adds of one forward pass; bytes are those of the dtype that is asked for.

    parameters: of the model without adapter. adapter: LoRA's beside them. trained: of both, what is learned.
    folded: weights that LoRA, of this rank, is folded into while decoding. table: of the input embedding where the head
    is another.
    cost: multiply-adds with the adapter; plain: of a decoder's token once it is folded, as far as it is.
    vocabulary V, hidden D, widest: of words, of a hidden state, of the widest linear layer.
    saved: bytes of a token that a backward pass keeps, of the whole decoder; kept: of those, what it keeps with
    recomputation; guessed: no forward pass could tell.
    cache: bytes of a token in the KV cache of all layers that keep every token; sliding: of those that keep the last
    `window` alone.
    packed: of the parameters, those in layers of few bits (quantize: 4bit or 8bit), which nothing is folded into.
    """

    name: str
    dtype: str
    parameters: int
    adapter: int
    trained: int
    folded: int
    rank: int
    table: int
    cost: Cost
    plain: float
    vocabulary: int
    hidden: int
    layers: int
    widest: int
    saved: float
    kept: float
    cache: float
    sliding: float
    window: int
    trees: bool
    packed: int = 0
    quantize: str = "none"
    guessed: bool = False

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return 4 if self.dtype == "fp32" else 2

    @property
    def weights(self) -> float:
        """Bytes of the model without adapter."""
        return (self.parameters - self.packed) * self.size + self.packed * PACKED[self.quantize]

    @property
    def whole(self) -> bool:
        """Are all weights trained?"""
        return not self.adapter

    def cached(self, tokens: float) -> float:
        """Bytes of the KV cache of a sequence."""
        return self.cache * tokens + self.sliding * (min(tokens, self.window) if self.window else tokens)
