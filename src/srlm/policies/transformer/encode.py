"""Prompts -> token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srlm.errors import UserError
from srlm.types import PromptItem, Prompts


class Encoder:
    """The chat template for conversations (and strings, if there is one), else raw text.

    name: of the model. raw_prompts: take strings as they are even if there is a chat template (default: one user turn).
    eos: ids that end a text.
    """

    def __init__(self, tokenizer: Any, name: str, *, raw_prompts: bool, eos: frozenset[int]) -> None:
        self._tokenizer, self._name, self._raw, self._eos = tokenizer, name, raw_prompts, eos
        self._kept: dict[str, NDArray[np.int32]] = {}

    def __call__(self, item: PromptItem) -> list[int]:
        """Once for each prompt: a template that writes the date, say, is not asked again.

        Raises:
            UserError: a conversation without a chat template, or a prompt that has no tokens.
        """
        key = _key(item)
        if key not in self._kept:
            self._kept[key] = np.asarray(self.passing(item), np.int32)
        ids: list[int] = self._kept[key].tolist()
        return ids

    def keep(self, items: Iterable[PromptItem], ids: Iterable[Sequence[int] | NDArray[np.int32]]) -> None:
        """What these prompts are from now on."""
        self._kept |= {_key(item): np.asarray(one, np.int32) for item, one in zip(items, ids, strict=True)}

    def check(self, prompts: Prompts, spare: int, context: float) -> None:
        """
        Raises:
            UserError: a prompt that does not fit the context together with `spare` new tokens.
        """
        for number, item in enumerate(prompts.items, 1):
            size = len(self(item))
            if size + spare > context:
                raise UserError(
                    f"prompt {number} has {size} tokens, which with {spare} new ones exceeds the context of "
                    f"{context} of {self._name}: shorten it or lower --max-new-tokens"
                )

    def continuation(self, text: str) -> list[int]:
        """Text that goes on from what is there already."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def passing(self, item: PromptItem) -> list[int]:
        """Of a prompt that will not come again, such as a question to a judge: nothing is kept."""
        template = self._tokenizer.chat_template is not None
        if isinstance(item, str) and (self._raw or not template):
            ids = self._tokenizer(item)["input_ids"]
            # Some tokenizers close every text with EOS; a prompt must stay open.
            if len(ids) > 1 and ids[-1] in self._eos:
                ids = ids[:-1]
        else:
            if not template:
                raise UserError(
                    f"the tokenizer of {self._name} has no chat template, which `messages` need: "
                    "give `prompt` strings (with --stop) or an instruction-tuned model"
                )
            turns = [{"role": "user", "content": item}] if isinstance(item, str) else [dict(turn) for turn in item]
            ids = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        if not ids:
            raise UserError(f"prompt {item!r} has no tokens: give a longer prompt or a tokenizer with a BOS token")
        return list(ids)


def _key(item: PromptItem) -> str:
    return json.dumps(item, sort_keys=True)
