"""Token ids -> text, and where a response ends."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from srlm.patience import at_most
from srlm.policies.transformer.encode import TEMPLATE_SECONDS
from srlm.policies.transformer.responses import Responses

PIECES = "\ufffd"  # what a decoder writes for bytes that are no character, or not yet
LONGEST_PIECES = 64  # tokens in a row that make no character, before they are taken as they stand


class Texts:
    """stop: strings that end a response exactly like EOS. eos: ids that do. window: newest tokens among which a stop
    string surely lies once it is there."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], eos: frozenset[int]) -> None:
        self._tokenizer, self.stop, self._eos = tokenizer, tuple(stop), eos
        self.window = max((len(one.encode()) for one in stop), default=0) + 4  # a token can be a single byte
        self._alone: dict[int, str] = {}
        self._ending: dict[int, bool] = {}

    def ended(self, response: Sequence[int]) -> bool:
        """Does a response end with its last token?"""
        return response[-1] in self._eos or (bool(self.stop) and self.stopped(response))

    def stopped(self, tokens: Sequence[int]) -> bool:
        """Is there a stop string, which the last token may have completed? Only where it may is any text made."""
        last = tokens[-1]
        if last not in self._ending:
            self._ending[last] = self._may_end(self._tokenizer.decode([last]))
        if not self._ending[last]:
            return False
        text = self._tokenizer.decode(tokens[-self.window :])
        return any(stop in text for stop in self.stop)

    def _may_end(self, alone: str) -> bool:
        """By its text alone: it has the last sign of a stop string, or pieces of one. Spaces before it, and its own if
        it has nothing else, may be missing."""
        if PIECES in alone or not alone.strip():
            return True
        return any(stop[-1] == " " or stop[-1] in alone for stop in self.stop)

    def text(self, ids: Sequence[int]) -> str:
        """Without special tokens and what ends it, cut before the stop string."""
        return self._cut(self._decoded(self._open(ids)))

    def _open(self, ids: Sequence[int]) -> Sequence[int]:
        """Not every tokenizer calls the end of a turn special."""
        return ids[:-1] if len(ids) and ids[-1] in self._eos else ids

    def token_ends(self, ids: Sequence[int]) -> list[int]:
        """How far `text(ids)` reaches with each token of a response, in characters; one that leaves a sign in pieces
        adds none."""
        if len(ids) > 1 and ids[-1] in self._eos:
            ends = self.token_ends(ids[:-1])
            return [*ends, ends[-1]]
        whole = self._decoded(self._open(ids))
        text = self._cut(whole)
        reached = self._one_by_one(ids, whole) or self._in_windows(ids, whole) or self._anew(ids)
        reached[-1:] = [len(text.rstrip(PIECES))]  # what comes with the stop string is cut
        return [min(end, len(text)) for end in itertools.accumulate(reached[: len(ids)], max)]

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _cut(self, whole: str) -> str:
        return whole[: min((at for stop in self.stop if (at := whole.find(stop)) >= 0), default=len(whole))]

    def _one_by_one(self, ids: Sequence[int], whole: str) -> list[int] | None:
        """Where tokens mean the same alone, as most do to a byte-level tokenizer."""
        for i in set(ids) - self._alone.keys():
            self._alone[i] = self._decoded([i])
        pieces = [self._alone[i] for i in ids]
        if PIECES in whole or "".join(pieces) != whole:
            return None
        return list(itertools.accumulate(map(len, pieces)))

    def _in_windows(self, ids: Sequence[int], whole: str) -> list[int] | None:
        """A whole character is not changed by what comes behind it, so the tokens behind it are decoded without those
        before; after a token all the same, since some decoders trim the first. None where that is not so."""
        ends: list[int] = []
        reached, new = 0, ""
        before = start = 0
        known = done = 0  # characters of the tokens from `before` to `start`, and of all before `start`
        for i in range(len(ids)):
            new = self._decoded(ids[before : i + 1])[known:]
            sound = new.rstrip(PIECES)
            if sound:
                reached = done + len(sound)
            ends.append(reached)
            whole_now = sound == new or i + 1 - start >= LONGEST_PIECES
            if whole_now and (alone := self._decoded(ids[start : i + 1])):
                before, start, known, done = start, i + 1, len(alone), done + len(new)
                new = ""
        return ends if done + len(new) == len(whole) else None

    def _anew(self, ids: Sequence[int]) -> list[int]:
        return [len(self._decoded(ids[: i + 1]).rstrip(PIECES)) for i in range(len(ids))]

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
    known = model.get_input_embeddings().weight.shape[0]
    return frozenset(i for i in found if isinstance(i, int) and 0 <= i < known)


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
