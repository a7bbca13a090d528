"""Prompts -> token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srlm.errors import UserError
from srlm.patience import at_most
from srlm.policies.transformer.context import Context
from srlm.types import PromptItem, Prompts

TEMPLATE_SECONDS = 5.0  # a template that takes longer loops


class Encoder:
    """The chat template for conversations (and strings, if there is one), else raw text.

    name: of the model. raw_prompts: take strings as they are even if there is a chat template (default: one user turn).
    eos: ids that end a text. vocabulary: number of ids that the model embeds.
    """

    def __init__(self, tokenizer: Any, name: str, *, raw_prompts: bool, eos: frozenset[int], vocabulary: int) -> None:
        self._tokenizer, self._name, self._raw, self._eos = tokenizer, name, raw_prompts, eos
        self._vocabulary = vocabulary
        self._kept: dict[str, NDArray[np.int32]] = {}

    def __call__(self, item: PromptItem) -> list[int]:
        """Once for each prompt: a template that writes the date, say, is not asked again.

        Raises:
            UserError: a conversation without a chat template, or a prompt that has no tokens.
        """
        return self._keeping(item, "a prompt")

    def _keeping(self, item: PromptItem, what: str) -> list[int]:
        key = _key(item)
        if key not in self._kept:
            self._kept[key] = np.asarray(self.passing(item, what), np.int32)
        ids: list[int] = self._kept[key].tolist()
        return ids

    def keep(self, items: Iterable[PromptItem], ids: Iterable[Sequence[int] | NDArray[np.int32]]) -> None:
        """What these prompts are from now on."""
        self._kept |= {_key(item): np.asarray(one, np.int32) for item, one in zip(items, ids, strict=True)}

    def some(self, number: int) -> list[list[int]]:
        """The first prompts that were encoded, at most 256 tokens of each."""
        return [ids[:256].tolist() for ids in list(self._kept.values())[:number]]

    def check(self, prompts: Prompts, spare: int, context: Context) -> None:
        """
        Raises:
            UserError: a prompt that the template refuses, that has ids the model does not know, or that does not fit
                the context together with `spare` new tokens.
        """
        for number, item in enumerate(prompts.items, 1):
            ids = self._keeping(item, f"prompt {number}")
            if len(ids) + spare > context.tokens:
                raise UserError(
                    f"prompt {number} has {len(ids)} tokens, which with {spare} new ones exceeds the context of "
                    f"{context.tokens:.0f} of {self._name}{context.why}: shorten it or lower --max-new-tokens"
                )

    def continuation(self, text: str) -> list[int]:
        """Text that goes on from what is there already."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def passing(self, item: PromptItem, what: str = "a prompt") -> list[int]:
        """Of a prompt that will not come again, such as a question to a judge: nothing is kept. what: in errors."""
        ids = self._ids(item, what)
        if not ids:
            raise UserError(f"{what}, {item!r}, has no tokens: give a longer prompt or a tokenizer with a BOS token")
        if (largest := max(ids)) >= self._vocabulary:
            token = self._tokenizer.convert_ids_to_tokens(largest)
            raise UserError(
                f"{what} holds the token {token!r} with id {largest}, but {self._name} embeds {self._vocabulary} ids "
                "only: resize its embeddings to its tokenizer, or use the tokenizer that it was trained with"
            )
        return ids

    def _ids(self, item: PromptItem, what: str) -> list[int]:
        template = self._tokenizer.chat_template is not None
        if isinstance(item, str) and (self._raw or not template):
            ids = list(self._tokenizer(item)["input_ids"])
            if len(ids) > 1 and ids[0] == ids[1] == self._tokenizer.bos_token_id:  # the text brings its own
                ids = ids[1:]
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
            try:
                with at_most(TEMPLATE_SECONDS):
                    ids = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            except Exception as error:  # a template is a program: it can raise, and fail, in every way
                roles = ", ".join(turn["role"] for turn in turns)
                reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
                raise UserError(
                    f"the chat template of {self._name} does not take {what} with the turns {roles} ({reason}): change "
                    "the prompt, give raw text with --raw-prompts, or mend the template"
                ) from error
        return list(ids)


def _key(item: PromptItem) -> str:
    return json.dumps(item, sort_keys=True)
