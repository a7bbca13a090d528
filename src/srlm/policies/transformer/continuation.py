"""What comes next after prompts and what has been said behind them: prefilled once, then a token a row from a cache."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from srlm.errors import UserError
from srlm.policies.transformer.bits import exact
from srlm.policies.transformer.branches import Branches
from srlm.policies.transformer.log_prob import CACHES, UNFIT, Head, decoder_of, short_windows
from srlm.policies.transformer.repeated import Repeated


class Past(Protocol):
    """What has been said, of N rows.

    joins: can rows be added whose prompts are of another length? nbytes: of memory.
    """

    @property
    def joins(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...
    def join(self, other: Any) -> None: ...
    def keep(self, rows: Tensor) -> None: ...
    def reading(self, decoder: nn.Module) -> AbstractContextManager[dict[str, Any]]:
        """What `decoder` is given with the next word of each row, which is then among what has been said."""


class Continuation:
    """K rows for each of P prompts; `raw` [N, V]: what the head makes of the N rows that are left, before it is capped.

    Prompts of unequal length are padded on the left.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], num_samples: int, *, shared: bool = False
    ) -> None:
        """shared: by `Branches`, where `shares_prompts`.

        Raises:
            UserError: the model keeps its state in no cache. TypeError: `shared`, but in one of another kind.
        """
        self.model, self.decoder, self.head = model, decoder_of(model), Head.of(model)
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):  # on the left, so that every row's next token comes next
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        padded = min(map(len, prompts)) < longest
        ids, mask = ids.to(model.device), mask.to(model.device)
        output = self.decoder(
            input_ids=ids,
            attention_mask=mask if padded else None,
            position_ids=(mask.cumsum(-1) - 1).clamp_(min=0),
            use_cache=True,
        )
        name = next((name for name in CACHES if hasattr(output.get(name), "reorder_cache")), None)
        if name is None:
            raise _unbranched(model)
        self.past: Past = (Branches if shared else Repeated)(output[name], name, mask, num_samples)
        self.raw = self._head(output).repeat_interleave(num_samples, 0)
        self.position = mask.sum(-1).repeat_interleave(num_samples)

    def _head(self, output: Any) -> Tensor:
        return F.linear(output.last_hidden_state[:, -1], self.head.weight, self.head.bias)

    @property
    def logits(self) -> Tensor:
        """[N, V] of each row's next word, fp32."""
        return self.head.cap(self.raw)

    def join(self, other: Continuation) -> None:
        """Go on with the rows of another one as well, behind the own ones; nobody's next word has been fed yet. Where
        `past.joins`."""
        self.past.join(other.past)
        self.raw, self.position = torch.cat([self.raw, other.raw]), torch.cat([self.position, other.position])

    def keep(self, rows: Tensor) -> None:
        """Go on with these alone, before their next word is fed."""
        self.past.keep(rows)
        self.position = self.position[rows.to(self.position.device)]

    def feed(self, word: Tensor) -> None:
        """word: [N] what each row goes on with."""
        try:
            with self.past.reading(self.decoder) as past:
                output = self.decoder(
                    input_ids=word[:, None], position_ids=self.position[:, None], use_cache=True, **past
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
    short, long = _prompts(model)
    with short_windows(model):
        if _continues(model, [short, long], 1):
            return True
        if all(_continues(model, [prompt], 1) for prompt in (short, long)):
            return False
    raise UserError(
        f"model class {type(model).__name__} goes on from its cache otherwise than from the whole text, so its samples "
        "would not be its own: use a causal LM with a transformers Cache"
    )


def shares_prompts(model: PreTrainedModel) -> bool:
    """Can several responses read one copy of their prompt, and is that the better way? On CPUs, where it has been
    measured (benchmarks/drawing.py), if they go on as the model's own forward does."""
    if model.device.type != "cpu":
        return False
    with short_windows(model):
        return _continues(model, _prompts(model), 2, shared=True)


def _prompts(model: PreTrainedModel) -> list[list[int]]:
    """A short and a longer one."""
    size = model.get_input_embeddings().weight.shape[0]
    ids = [(7919 * i + 13) % size for i in range(40)]
    return [ids[:7], ids[7:]]


@torch.no_grad()
def _continues(
    model: Any, prompts: Sequence[Sequence[int]], num_samples: int, num_words: int = 4, *, shared: bool = False
) -> bool:
    """Are the log-probs of the next words, others behind each row, those of the model's own forward?"""
    rows, size = len(prompts) * num_samples, model.get_input_embeddings().weight.shape[0]
    words = [[(3 + number + 5 * row) % size for number in range(num_words)] for row in range(rows)]
    expected = []
    for row, own in enumerate(words):
        prompt = prompts[row // num_samples]
        text = torch.tensor([[*prompt, *own]], device=model.device)
        log_p = torch.log_softmax(model(input_ids=text, use_cache=False).logits[0, len(prompt) - 1 : -1].float(), -1)
        expected.append(log_p[range(num_words), own])
    found = []
    try:
        said = Continuation(model, prompts, num_samples, shared=shared)
        for number in range(num_words):
            word = torch.tensor([own[number] for own in words], device=model.device)
            found.append(torch.log_softmax(said.logits, -1).gather(1, word[:, None])[:, 0])
            if number + 1 < num_words:
                said.feed(word)
    except UserError:
        raise
    except UNFIT:
        return False
    whole = torch.stack(expected).sum(-1)
    # In bf16 log-probs err in proportion to their size: by up to 1.5 % (2.0 of 133 nats) after training has sharpened.
    relative, least = (0.0, 1e-3) if exact(model) else (0.03, 0.15)
    tolerance = (relative * whole.abs()).clamp(min=num_words * least)
    return bool(((torch.stack(found, -1).sum(-1) - whole).abs() <= tolerance).all())
