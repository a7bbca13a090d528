"""What comes next after prompts and what has been said behind them: prefilled once, then a token a row from a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from srlm.errors import UserError
from srlm.policies.transformer.log_prob import UNFIT, Head, decoder_of


class Continuation:
    """K rows for each of P prompts; `logits` [N, V] of the next word of the N rows that are left, fp32.

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
        self.padded = bool((mask == 0).any())
        ids, mask = ids.to(model.device), mask.to(model.device)
        output = self.decoder(
            input_ids=ids,
            attention_mask=mask if self.padded else None,
            position_ids=(mask.cumsum(-1) - 1).clamp_(min=0),
            use_cache=True,
        )
        # Some recurrent models call their cache otherwise, and read no padding mask once it is filled.
        names = [name for name in ("past_key_values", "cache_params") if hasattr(output.get(name), "reorder_cache")]
        if not names:
            raise _unbranched(model)
        (self.name,) = names
        self.cache = output[self.name]
        self.cache.reorder_cache(torch.arange(len(prompts), device=model.device).repeat_interleave(num_samples))
        self.logits = self.head.logits(output.last_hidden_state[:, -1]).repeat_interleave(num_samples, 0)
        self.mask = mask.repeat_interleave(num_samples, 0)
        self.position = self.mask.sum(-1)

    def keep(self, rows: Tensor) -> None:
        """Go on with these alone, before their next word is fed."""
        rows = rows.to(self.model.device)
        self.cache.reorder_cache(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]

    def feed(self, word: Tensor) -> None:
        """word: [N] what each row goes on with."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], -1)
        try:
            output = self.decoder(
                input_ids=word[:, None],
                attention_mask=self.mask if self.padded and self.name == "past_key_values" else None,
                position_ids=self.position[:, None],
                use_cache=True,
                **{self.name: self.cache},
            )
        except RuntimeError as error:
            if "size of tensor" not in str(error):
                raise
            raise _unbranched(self.model) from error  # part of the state was not repeated for the samples
        self.position = self.position + 1
        self.logits = self.head.logits(output.last_hidden_state[:, -1])


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
    relative, least = (0.0, 1e-3) if model.dtype == torch.float32 else (0.03, 0.15)
    tolerance = (relative * own.abs()).clamp(min=num_words * least)
    return bool(((torch.stack(found, -1).sum(-1) - own).abs() <= tolerance).all())
