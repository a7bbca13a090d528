"""What comes next after prompts and what has been said behind them: prefilled once, then a token a row from a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from srlm.errors import UserError
from srlm.policies.transformer.bits import exact
from srlm.policies.transformer.log_prob import CACHES, UNFIT, Head, decoder_of


class Continuation:
    """K rows for each of P prompts; `raw` [N, V]: what the head makes of the N rows that are left, before it is capped.

    Prompts of unequal length are padded on the left.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], num_samples: int) -> None:
        self.model, self.decoder, self.head = model, decoder_of(model), Head.of(model)
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):  # on the left, so that every row's next token comes next
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        self.padded = min(map(len, prompts)) < longest
        ids, mask = ids.to(model.device), mask.to(model.device)
        output = self.decoder(
            input_ids=ids,
            attention_mask=mask if self.padded else None,
            position_ids=(mask.cumsum(-1) - 1).clamp_(min=0),
            use_cache=True,
        )
        name = next((name for name in CACHES if hasattr(output.get(name), "reorder_cache")), None)
        if name is None:
            raise _unbranched(model)
        self.name = name
        self.cache = output[self.name]
        self.cache.reorder_cache(torch.arange(len(prompts), device=model.device).repeat_interleave(num_samples))
        self.raw = self._head(output).repeat_interleave(num_samples, 0)
        self.mask = mask.repeat_interleave(num_samples, 0)
        self.position = self.mask.sum(-1)

    def _head(self, output: Any) -> Tensor:
        return F.linear(output.last_hidden_state[:, -1], self.head.weight, self.head.bias)

    @property
    def logits(self) -> Tensor:
        """[N, V] of each row's next word, fp32."""
        return self.head.cap(self.raw)

    @property
    def cache_bytes(self) -> int:
        """Of what has been said."""
        layers = getattr(self.cache, "layers", ())
        held = [value for one in layers for value in (getattr(one, "keys", None), getattr(one, "values", None))]
        return sum(value.nbytes for value in held if isinstance(value, Tensor))

    @property
    def joins(self) -> bool:
        """Can rows be added whose prompts are of another length? `join` knows these layers from the inside."""
        return type(self.cache) is DynamicCache and all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and layer.is_initialized
            for layer in self.cache.layers
        )

    def join(self, other: Continuation) -> None:
        """Go on with the rows of another one as well, behind the own ones; nobody's next word has been fed yet."""
        slots = max(self.mask.shape[1], other.mask.shape[1])
        for one in (self, other):
            one._resize(slots)
        self.padded = self.padded or other.padded
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys, mine.values = torch.cat([mine.keys, theirs.keys]), torch.cat([mine.values, theirs.values])
        self.mask, self.raw = torch.cat([self.mask, other.mask]), torch.cat([self.raw, other.raw])
        self.position = torch.cat([self.position, other.position])

    def narrow(self, used: Sequence[int]) -> None:
        """Give back what no row reads any more. used: [N] slots of each row."""
        if self.padded and self.joins:
            self._resize(max(used))
            self.padded = min(used) < max(used)

    def _resize(self, slots: int) -> None:
        """More slots on the left, which nobody sees, or fewer, which nobody saw."""
        more = slots - self.mask.shape[1]
        if not more:
            return
        self.mask = F.pad(self.mask, (more, 0))
        self.padded = self.padded or more > 0
        for layer in self.cache.layers:
            sliding = isinstance(layer, DynamicSlidingWindowLayer)
            width = min(slots, layer.sliding_window - 1) if sliding else slots
            new = (0, 0, width - layer.keys.shape[-2], 0)
            layer.keys, layer.values = F.pad(layer.keys, new), F.pad(layer.values, new)
            if sliding:
                layer.cumulative_length = slots

    def keep(self, rows: Tensor) -> None:
        """Go on with these alone, before their next word is fed."""
        rows = rows.to(self.model.device)
        self.cache.reorder_cache(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]

    def feed(self, word: Tensor) -> None:
        """word: [N] what each row goes on with."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], -1)
        # Models that call it cache_params read no padding mask once it is filled.
        try:
            output = self.decoder(
                input_ids=word[:, None],
                attention_mask=self.mask if self.padded and self.name != "cache_params" else None,
                position_ids=self.position[:, None],
                use_cache=True,
                **{self.name: self.cache},
            )
        except RuntimeError as error:
            if "size of tensor" not in str(error):
                raise
            raise _unbranched(self.model) from error  # part of the state was not repeated for the samples
        self.position = self.position + 1
        self.raw = self._head(output)


def _unbranched(model: PreTrainedModel) -> UserError:
    return UserError(
        f"model class {type(model).__name__} keeps its state in a way srlm cannot branch into samples: "
        "use a causal LM with a transformers Cache"
    )


def reads_padding(model: PreTrainedModel) -> bool:
    """Do prompts that are padded on the left go on as the model's own forward does? Not where positions are slots.

    Raises:
        UserError: not even prompts without padding do.
    """
    size = model.get_input_embeddings().weight.shape[0]
    ids = [(7919 * i + 13) % size for i in range(40)]
    short, long = ids[:7], ids[7:]
    if _continues(model, [short, long]):
        return True
    if all(_continues(model, [prompt]) for prompt in (short, long)):
        return False
    raise UserError(
        f"model class {type(model).__name__} goes on from its cache otherwise than from the whole text, so its samples "
        "would not be its own: use a causal LM with a transformers Cache"
    )


@torch.no_grad()
def _continues(model: Any, prompts: Sequence[Sequence[int]], num_words: int = 4) -> bool:
    """Are the log-probs of the same next words, behind each prompt, those of the model's own forward?"""
    words = list(range(3, 3 + num_words))
    expected = []
    for prompt in prompts:
        row = torch.tensor([[*prompt, *words]], device=model.device)
        log_p = torch.log_softmax(model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1].float(), -1)
        expected.append(log_p[range(num_words), words])
    found = []
    try:
        said = Continuation(model, prompts, 1)
        for number, word in enumerate(words):
            found.append(torch.log_softmax(said.logits, -1)[:, word])
            if number + 1 < num_words:
                said.feed(torch.full((len(prompts),), word, device=model.device))
    except UserError:
        raise
    except UNFIT:
        return False
    own = torch.stack(expected).sum(-1)
    # In bf16 log-probs err in proportion to their size: by up to 1.5 % (2.0 of 133 nats) after training has sharpened.
    relative, least = (0.0, 1e-3) if exact(model) else (0.03, 0.15)
    tolerance = (relative * own.abs()).clamp(min=num_words * least)
    return bool(((torch.stack(found, -1).sum(-1) - own).abs() <= tolerance).all())
