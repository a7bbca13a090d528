"""Token ids -> text, and where a response ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from srlm.patience import at_most
from srlm.policies.transformer.encode import TEMPLATE_SECONDS
from srlm.policies.transformer.responses import Responses


class Texts:
    """stop: strings that end a response exactly like EOS. eos: ids that do."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], eos: frozenset[int]) -> None:
        self._tokenizer, self.stop, self._eos = tokenizer, tuple(stop), eos

    def ended(self, response: Sequence[int]) -> bool:
        """Does a response end with its last token?"""
        return response[-1] in self._eos or (bool(self.stop) and self.stopped(response))

    def stopped(self, tokens: Sequence[int]) -> bool:
        # A stop string ends with the newest token, so a window that surely covers it is enough.
        window = max(len(stop.encode()) for stop in self.stop) + 4  # a token can be a single byte
        text = self._tokenizer.decode(tokens[-window:])
        return any(stop in text for stop in self.stop)

    def text(self, ids: Sequence[int]) -> str:
        """Without special tokens, cut before the stop string."""
        whole = str(self._tokenizer.decode(ids, skip_special_tokens=True))
        return whole[: min((at for stop in self.stop if (at := whole.find(stop)) >= 0), default=len(whole))]

    def token_ends(self, ids: Sequence[int]) -> list[int]:
        """How far `text(ids)` reaches with each token, in characters; a token that leaves one in pieces adds none."""
        size, ends = len(self.text(ids)), [0]
        for i in range(len(ids)):
            reached = len(self.text(ids[: i + 1]).rstrip("\ufffd"))
            ends.append(max(ends[-1], min(reached, size)))
        return ends[1:]

    def texts(self, responses: Responses) -> list[list[str]]:
        """[P][K]"""
        return [[self.text(ids) for ids in responses.ids(p)] for p in range(len(responses.length))]


def eos_ids(model: PreTrainedModel, tokenizer: Any, *, template: bool) -> frozenset[int]:
    """Ids that end a response: the tokenizer's, those with which the model ends its own, and, where prompts go through
    the chat template, the one with which that ends a turn, which base models have besides."""
    found: list[Any] = [tokenizer.eos_token_id]
    for config in (model.generation_config, model.config):
        ids = getattr(config, "eos_token_id", None)
        found += ids if isinstance(ids, list) else [ids]
    if template and tokenizer.chat_template is not None:
        found.append(_end_of_turn(tokenizer))
    return frozenset(i for i in found if isinstance(i, int))


def _end_of_turn(tokenizer: Any) -> int | None:
    """The special token behind what an assistant says, if there is one."""
    said = "Quite so"
    turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": said}]
    try:
        with at_most(TEMPLATE_SECONDS):
            whole = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = tokenizer(whole[whole.rindex(said) + len(said) :], add_special_tokens=False)["input_ids"]
    except Exception:  # prompts will tell what is wrong with a template
        return None
    return int(ids[0]) if ids and ids[0] in tokenizer.added_tokens_decoder else None
