"""Draw K responses per prompt from the full distribution: prefill once, decode all, drop rows as they finish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel

from srlm.policies.transformer.continuation import Continuation
from srlm.policies.transformer.layout.batches import micro_batches
from srlm.policies.transformer.limits import DECODE_BUDGET
from srlm.policies.transformer.processes import Progress, gather
from srlm.policies.transformer.responses import Responses
from srlm.policies.transformer.room import Room

BLOCK = 512  # words per partial sum of the two-level inverse CDF

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
    mass = torch.exp(logits - logits.amax(-1, keepdim=True))
    padded = torch.nn.functional.pad(mass, (0, -words % BLOCK)).view(rows, -1, BLOCK)
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
    return logits.masked_fill(outside.scatter(-1, words, outside), -torch.inf)


@torch.inference_mode()
def decode(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], uniform: Tensor | None, num_samples: int, how: Decoding
) -> tuple[Tensor, Tensor, Tensor]:
    """One batch of P prompts -> (tokens [P, K, T] int32, length [P, K], finished [P, K]).

    uniform: [P, K, T] draws in [0, 1), so that a response depends on its own draws alone, whatever shares the batch;
    None decodes greedily.
    """
    said = Continuation(model, prompts, num_samples)
    total, device = len(prompts) * num_samples, model.device
    draws = None if uniform is None else uniform.flatten(0, 1).to(device)
    tokens = torch.zeros(total, how.max_new_tokens, dtype=torch.int32)
    length = torch.full((total,), how.max_new_tokens)
    finished = torch.zeros(total, dtype=torch.bool)
    alive = torch.arange(total)  # rows of the result that the batch still carries
    eos = torch.tensor(sorted(how.eos), device=device)
    for step in range(how.max_new_tokens):
        logits = said.logits
        if draws is None:
            word = logits.argmax(-1)
        else:
            if how.temperature != 1.0:
                logits = logits / how.temperature
            if how.top_k:
                logits = of_the_most_probable(logits, how.top_k)
            if how.top_p < 1.0:
                logits = nucleus(logits, how.top_p)
            word = inverse_cdf(logits, draws[alive.to(device), step])
        tokens[alive, step] = word.to("cpu", torch.int32)
        ended = torch.isin(word, eos).cpu()
        if how.stopped is not None:
            newest = tokens[alive, max(0, step + 1 - how.window) : step + 1]
            ended |= torch.tensor([how.stopped(row) for row in newest.tolist()])
        length[alive[ended]] = step + 1
        finished[alive[ended]] = True
        if ended.any():
            stay = (~ended).nonzero()[:, 0]
            if not len(stay):
                break
            alive = alive[stay]
            word = word[stay.to(device)]
            said.keep(stay)
        if step + 1 < how.max_new_tokens:
            said.feed(word)
    shape = (len(prompts), num_samples)
    return tokens.view(*shape, -1), length.view(shape), finished.view(shape)


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


def _places(prompts: Sequence[Sequence[int]], size: int) -> list[int]:
    return [place for place, ids in enumerate(prompts) if len(ids) == size]


def respond(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    num_samples: int,
    draws: Draws | None,
    how: Decoding,
    *,
    padding: bool,
    room: Room,
    together: PartialState,
    progress: Progress,
) -> Responses:
    """K responses to each prompt, in batches that processes share; greedy ones without `draws`. The responses to a
    prompt are in several batches where there is no room for all.

    padding: may prompts of unequal length share a batch?
    """
    shape = (len(prompts), num_samples)
    tokens = torch.zeros(*shape, how.max_new_tokens, dtype=torch.int32)
    length, finished = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    sizes = [num_samples * (len(ids) + how.max_new_tokens) for ids in prompts]

    def fill(batch: Sequence[int], first: int, last: int) -> None:
        """Responses `first` to `last` of some prompts."""
        uniform = None if draws is None else draws(batch)[:, first:last]
        made = decode(model, [prompts[i] for i in batch], uniform, last - first, how)
        for part, whole in zip(made, (tokens, length, finished), strict=True):
            whole[torch.tensor(batch), first:last] = part.to(whole.dtype)

    def respond_to(batch: Sequence[int]) -> None:
        budget = DECODE_BUDGET * room.tokens
        for part in micro_batches([sizes[i] for i in batch], budget):
            some = [batch[i] for i in part]
            at_once = num_samples if len(some) > 1 else max(1, num_samples * budget // sizes[some[0]])
            for first in range(0, num_samples, at_once):
                fill(some, first, min(first + at_once, num_samples))

    alike = [range(len(prompts))] if padding else [_places(prompts, size) for size in sorted({*map(len, prompts)})]
    rank, world, budget = together.process_index, together.num_processes, DECODE_BUDGET * room.tokens
    batches = [
        [some[i] for i in part]
        for some in alike
        for part in micro_batches([sizes[i] for i in some], budget, rank=rank, world=world)
    ]
    done, total = 0, sum(map(len, batches))
    for batch in batches:
        room.within(partial(respond_to, batch))
        done += len(batch)
        progress(done, total)
    return Responses(gather(together, tokens), gather(together, length), gather(together, finished).bool())
