"""Our own decoder, on the very model that is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

from accelerate import PartialState
from transformers import PreTrainedModel

from srlm.policies.transformer.continuation import reads_padding, shares_prompts
from srlm.policies.transformer.engines import SyncReport
from srlm.policies.transformer.processes import Progress
from srlm.policies.transformer.respond import respond
from srlm.policies.transformer.responses import Responses
from srlm.policies.transformer.room import Room
from srlm.policies.transformer.sample import Decoding, streams
from srlm.policies.transformer.weights import Weights


class Builtin:
    """There is nothing to sync: the weights are those that it decodes with, LoRA merged meanwhile."""

    def __init__(self, model: PreTrainedModel, weights: Weights, room: Room, together: PartialState) -> None:
        self._model, self._weights, self._room, self._together = model, weights, room, together

    @property
    def context(self) -> float:
        return math.inf

    def sync(self, policy: object) -> SyncReport:
        return SyncReport()

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        num_samples: int,
        how: Decoding,
        seeds: Sequence[int] | None,
        progress: Progress,
    ) -> Responses:
        draws = None if seeds is None else streams(seeds, num_samples, how.max_new_tokens)
        with self._weights.merged():
            return respond(
                self._model,
                prompts,
                num_samples,
                draws,
                how,
                padding=self._padding,
                shared=self._shared,
                room=self._room,
                together=self._together,
                progress=progress,
            )

    @cached_property
    def _padding(self) -> bool:
        return reads_padding(self._model)

    @cached_property
    def _shared(self) -> bool:
        return self._padding and shares_prompts(self._model)

    def close(self) -> None:
        pass
