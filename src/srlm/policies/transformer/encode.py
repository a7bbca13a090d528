"""Prompts -> token ids."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.meta
import numpy as np
from numpy.typing import NDArray

from srlm.errors import UserError
from srlm.patience import at_most
from srlm.policies.transformer.context import Context
from srlm.policies.transformer.settings import named_values
from srlm.thinking import CLOSES, in_thought
from srlm.types import PromptItem, Prompts

OPENING = 32  # tokens at the end of a prompt among which a thinking block may be opened
THINKS = "enable_thinking"  # of the templates that know it
_OWN = {  # what transformers tells every template
    *("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token"),
    *("raise_exception", "strftime_now", "namespace", "range", "dict"),
}
TEMPLATE_SECONDS = 5.0  # a template that takes longer loops


class Encoder:
    """The chat template for conversations (and strings, if there is one), else raw text.

    name: of the model. raw_prompts: take strings as they are even if there is a chat template (default: one user turn).
    eos: ids that end a text. vocabulary: number of ids that the model embeds. template_kwargs: name=value, variables
    of the chat template; the value as JSON, or else as text.

    Raises:
        UserError: the template has no such variable.
    """

    def __init__(
        self,
        tokenizer: Any,
        name: str,
        *,
        raw_prompts: bool,
        eos: frozenset[int],
        vocabulary: int,
        template_kwargs: Sequence[str] = (),
    ) -> None:
        self._tokenizer, self._name, self._raw, self._eos = tokenizer, name, raw_prompts, eos
        self._variables = variables(tokenizer, name, template_kwargs)
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

    def overlong(self, prompts: Prompts, spare: int, context: Context) -> list[int]:
        """Numbers, from 0, of the prompts that do not fit the context together with `spare` new tokens."""
        return [
            number
            for number, item in enumerate(prompts.items)
            if len(self._keeping(item, f"prompt {number + 1}")) + spare > context.tokens
        ]

    @property
    def opens_thought(self) -> bool:
        """Does a prompt end in an open thinking block, as the first one that was encoded, of which a response's text
        tells the end?"""
        last = next(iter(self._kept.values()), None)
        if last is None or not in_thought(self._tokenizer.decode(last[-OPENING:].tolist())):
            return False
        return CLOSES in str(self._tokenizer.decode(self.continuation(CLOSES), skip_special_tokens=True))

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

    def answering(self, item: PromptItem) -> list[int]:
        """Of a question that will not come again, up to where the answer itself begins: without thinking, where the
        template can say so, and behind a thinking block that it opens."""
        ids = self.passing(item, "a question", thinking=False)
        if self._tokenizer.chat_template is not None and in_thought(self._tokenizer.decode(ids[-OPENING:])):
            ids = ids + self.continuation(f"\n{CLOSES}\n\n")
        return ids

    def passing(self, item: PromptItem, what: str = "a prompt", *, thinking: bool = True) -> list[int]:
        """Of a prompt that will not come again: nothing is kept. what: in errors."""
        ids = self._ids(item, what, self._variables if thinking else self._variables | self._unthinking())
        if not ids:
            raise UserError(f"{what}, {item!r}, has no tokens: give a longer prompt or a tokenizer with a BOS token")
        if (largest := max(ids)) >= self._vocabulary:
            token = self._tokenizer.convert_ids_to_tokens(largest)
            raise UserError(
                f"{what} holds the token {token!r} with id {largest}, but {self._name} embeds {self._vocabulary} ids "
                "only: resize its embeddings to its tokenizer, or use the tokenizer that it was trained with"
            )
        return ids

    def _unthinking(self) -> dict[str, Any]:
        return {THINKS: False} if THINKS in _declared(self._tokenizer) else {}

    def _ids(self, item: PromptItem, what: str, variables: Mapping[str, Any]) -> list[int]:
        template = self._tokenizer.chat_template is not None
        if isinstance(item, str) and (self._raw or not template):
            ids = list(self._tokenizer(item)["input_ids"])
            if len(ids) > 1 and ids[0] == ids[1] == self._tokenizer.bos_token_id:  # the text brings its own
                ids = ids[1:]
            # Some tokenizers close every text with EOS; a prompt must stay open. One that the user wrote stays.
            if len(ids) > 1 and ids[-1] in self._eos and self._closed(ids, item):
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
                    ids = self._tokenizer.apply_chat_template(
                        turns, add_generation_prompt=True, return_dict=False, **variables
                    )
            except Exception as error:  # a template is a program: it can raise, and fail, in every way
                roles = ", ".join(turn["role"] for turn in turns)
                reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
                raise UserError(
                    f"the chat template of {self._name} does not take {what} with the turns {roles} ({reason}): change "
                    "the prompt, give raw text with --raw-prompts, or mend the template"
                ) from error
        return list(ids)

    def _closed(self, ids: Sequence[int], item: str) -> bool:
        """Did the tokenizer add the last id?"""
        written = list(self._tokenizer(item, add_special_tokens=False)["input_ids"])
        return not written or written[-1] != ids[-1] or _ends(written) < _ends(ids)


def _ends(ids: Sequence[int]) -> int:
    """How often the last id stands at the end."""
    return next((n for n, one in enumerate(reversed(ids)) if one != ids[-1]), len(ids))


def variables(tokenizer: Any, name: str, given: Sequence[str]) -> dict[str, Any]:
    """name=value -> what the chat template is told.

    Raises:
        UserError: it has no such variable, and would ignore it; or there is no template.
    """
    found: dict[str, Any] = {}
    for one in given:
        key = one.partition("=")[0]
        declared = _declared(tokenizer)
        if key not in declared:
            there = f"it has {', '.join(sorted(declared - _OWN))}" if declared - _OWN else "it has none"
            has = "is no chat template" if tokenizer.chat_template is None else f"is no variable {key!r}"
            raise UserError(
                f"--chat-template-kwargs is {one!r}, but there {has} in the tokenizer of {name}, which would ignore it "
                f"({there}): correct it or leave it out"
            )
        found |= named_values([one])
    return found


def _declared(tokenizer: Any) -> frozenset[str]:
    """Variables that the chat template asks for."""
    if tokenizer.chat_template is None:
        return frozenset()
    return _asked_for(tokenizer.get_chat_template())


@functools.lru_cache(8)
def _asked_for(template: str) -> frozenset[str]:
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(template)))
    except jinja2.TemplateError:  # it has tags that transformers alone knows
        return frozenset(re.findall(r"[A-Za-z_]\w*", template))


def _key(item: PromptItem) -> str:
    return json.dumps(item, sort_keys=True)
