"""How words are drawn, from the full distribution unless asked otherwise, and where responses end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

BLOCK = 512  # words per partial sum of the two-level inverse CDF
COLDEST = 1e-6  # where the most probable word is certain long since, and logits divided by less would overflow

Draws: TypeAlias = Callable[[Sequence[int]], Tensor]
"""numbers of prompts -> uniforms [P, K, T] in [0, 1)"""


@dataclass(frozen=True)
class Decoding:
    """How responses are drawn and where they end.

    max_new_tokens: responses are cut there, and flagged.
    temperature, top_p, top_k: exploration only; scores always come from the full distribution at temperature 1.
    eos: ids that end a response. The id that ends it is its last token, scored once.
    stopped: text-level end (stop strings), given the last `window` tokens; None when there are no stop strings.
    stop: those strings.
    """

    max_new_tokens: int
    eos: frozenset[int]
    temperature: float = 1.0
    top_p: float = 1.0
    stopped: Callable[[Sequence[int]], bool] | None = None
    window: int = 0
    top_k: int = 0
    stop: tuple[str, ...] = ()

    def ended(self, response: Sequence[int]) -> bool:
        """Does a response end with its last token?"""
        return response[-1] in self.eos or (self.stopped is not None and self.stopped(response[-self.window :]))


def inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """One draw per row of softmax(logits [B, V]) from one uniform [B] in [0, 1): the first word whose CDF exceeds it.

    Two levels, block sums then one block, so that no [B, V] cumulative sum is formed and rounding stays local.
    A word of probability zero is never drawn.
    """
    rows, words = logits.shape
    mass = (logits - logits.amax(-1, keepdim=True)).exp_()
    padded = (torch.nn.functional.pad(mass, (0, -words % BLOCK)) if words % BLOCK else mass).view(rows, -1, BLOCK)
    outer = padded.sum(-1, dtype=torch.float64).cumsum(-1)
    threshold = uniform.to(outer.dtype) * outer[:, -1]
    block = torch.searchsorted(outer, threshold[:, None], right=True).clamp_(max=outer.shape[1] - 1)
    before = torch.where(block > 0, outer.gather(1, (block - 1).clamp_(min=0)), 0.0)
    index = torch.arange(rows, device=logits.device)
    inner = padded[index, block[:, 0]].to(outer.dtype).cumsum(-1)
    # Rounding between the two levels can leave the threshold just past the block's own sum.
    last = (inner < inner[:, -1:]).sum(-1, keepdim=True)
    word = torch.searchsorted(inner, threshold[:, None] - before, right=True)
    return block[:, 0] * BLOCK + torch.minimum(word, last)[:, 0]


def of_the_most_probable(logits: Tensor, top_k: int) -> Tensor:
    """Words less probable than the top_k-th get -inf."""
    least = logits.topk(min(top_k, logits.shape[-1]), -1).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Words outside the smallest set of probability >= top_p get -inf."""
    ordered, words = logits.sort(-1, descending=True)
    mass = torch.softmax(ordered, -1)
    outside = mass.cumsum(-1) - mass >= top_p
    outside[:, 0] = False  # however small top_p is in the dtype of logits
    return logits.masked_fill(outside.scatter(-1, words, outside), -torch.inf)


def next_word(logits: Tensor, uniform: Tensor | None, how: Decoding) -> Tensor:
    """One word per row of logits [N, V], by uniforms [N] in [0, 1), or the most probable one without."""
    if uniform is None:
        return logits.argmax(-1)
    if how.temperature != 1.0:
        logits = logits / max(how.temperature, COLDEST)
    if how.top_k:
        logits = of_the_most_probable(logits, how.top_k)
    if how.top_p < 1.0:
        logits = nucleus(logits, how.top_p)
    return inverse_cdf(logits, uniform)


def prompt_seeds(number: int, generator: torch.Generator) -> list[int]:
    """A seed below 2^62 for each of `number` prompts, so that neither batches nor processes change what is drawn."""
    seeds: list[int] = torch.randint(2**62, (number,), generator=generator).tolist()
    return seeds


def streams(seeds: Sequence[int], num_samples: int, longest: int) -> Draws:
    """The random stream of each prompt, from its seed."""

    def draws(indices: Sequence[int]) -> Tensor:
        of_prompts = [torch.Generator().manual_seed(seeds[i]) for i in indices]
        return torch.stack([torch.rand(num_samples, longest, generator=g, dtype=torch.float64) for g in of_prompts])

    return draws
