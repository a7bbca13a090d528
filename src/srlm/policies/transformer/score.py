"""Log-probs of whole sets of responses, in micro-batches that processes share: those of scoring and of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel

from srlm.policies.transformer.devices.shards import Shards
from srlm.policies.transformer.layout.batches import Piece, Plan, Share, shares
from srlm.policies.transformer.layout.cost import Cost
from srlm.policies.transformer.layout.group import Group
from srlm.policies.transformer.layout.pack import Packed, pack
from srlm.policies.transformer.layout.tree import build_tree
from srlm.policies.transformer.log_prob import Statistic, by_response, response_log_prob
from srlm.policies.transformer.processes import Progress, gather
from srlm.policies.transformer.responses import Responses
from srlm.policies.transformer.room import Room


class Scorer:
    """trees: the model reads them. prompts_per_step: of an optimiser step. room: for a micro-batch. shards: of the
    model, if it is in shards."""

    def __init__(
        self,
        model: PreTrainedModel,
        processes: PartialState,
        *,
        trees: bool,
        prompts_per_step: int,
        room: Room,
        shards: Shards | None = None,
    ) -> None:
        self.model, self.processes, self.trees, self.shards = model, processes, trees, shards
        self.prompts_per_step, self.room = prompts_per_step, room
        self._cost = Cost.of(model)

    def groups(self, prompts: Iterable[Sequence[int]], responses: Responses) -> list[Group]:
        rows, k = responses.rows(), responses.length.shape[1]
        return [
            Group(np.asarray(ids, np.int32), tuple(rows[p * k : (p + 1) * k]))
            for p, ids in zip(range(len(responses)), prompts, strict=True)
        ]

    def endings(self, prompts: Sequence[list[int]], endings: Sequence[Sequence[int]]) -> Group:
        """Every ending behind every prompt, as one group in which the endings alone are scored."""
        first, last = min(prompts), max(prompts)
        common = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
        rows = [[*ids[common:], *ending] for ids in prompts for ending in endings]
        group = Group.of(first[:common], rows)
        return Group(group.prompt, group.responses, tuple(len(ending) for _ in prompts for ending in endings))

    def plan(self, group: Group) -> Plan:
        return Plan.of(group, self._cost, trees=self.trees, budget=self.room.tokens)

    def steps(self, order: Sequence[int]) -> list[Sequence[int]]:
        """The groups of each optimiser step, in the given order."""
        size = self.prompts_per_step
        return [order[start : start + size] for start in range(0, len(order), size)]

    def shares(self, groups: Sequence[Group], step: Sequence[int]) -> list[Share]:
        """This process's part of a step, in micro-batches.

        What is learned depends on the step, what fits in memory on the micro-batch.
        """
        mine = step[self.processes.process_index :: self.processes.num_processes]
        return shares({i: self.plan(groups[i]) for i in mine}, mine, self.room.tokens)

    def pack(self, groups: Sequence[Group], batch: Sequence[Piece], *, masked: bool) -> Packed:
        return pack([build_tree(groups[i], members) for i, members in batch], masked=masked).to(self.model.device)

    def log_prob(self, packed: Packed, **options: Any) -> tuple[Tensor, Tensor | None]:
        """See `response_log_prob`."""
        return (self.shards or partial(response_log_prob, self.model))(packed, **options)

    def even(self, passes: Sequence[Callable[[], object]], *, learning: bool = False) -> None:
        """Do the forward passes, or forward and backward ones, of a step: over a model in shards all processes do
        equally many."""
        if self.shards is None:
            for run in passes:
                run()
        else:
            idle = self.shards.idle
            self.shards.even(passes, (lambda: torch.autograd.backward(idle())) if learning else idle)

    def working(self) -> AbstractContextManager[None]:
        """While forward and backward passes are done."""
        return nullcontext() if self.shards is None else self.shards.working()

    def score(
        self,
        groups: Sequence[Group],
        statistic: Statistic | None,
        progress: Progress,
        token_log_prob: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Per response of each group, all of one size: log-prob, and mean of the statistic (zeros without one).

        token_log_prob: [P, K, T] zeros on the CPU, to be filled as far as each response goes.
        """
        k = len(groups[0])
        log_prob, mean = torch.zeros(len(groups) * k), torch.zeros(len(groups) * k)
        every = None if token_log_prob is None else token_log_prob.view(len(groups) * k, -1)

        def fill(step: Sequence[int]) -> None:
            some = self.shares(groups, step)
            self.even([partial(score, batch, share.masked) for share in some for batch in share.batches])

        def score(batch: Sequence[Piece], masked: bool) -> None:
            packed = self.pack(groups, batch, masked=masked)
            place = torch.tensor([i * k + member for i, members in batch for member in members])
            each: list[Tensor] = []
            values, means = self.log_prob(packed, statistic=statistic, each=each)
            log_prob[place] = values.cpu()
            if means is not None:
                mean[place] = means.cpu()
            if every is not None:
                every[place] = by_response(each[0], packed, every.shape[-1]).cpu()

        done = 0
        with torch.no_grad(), self.working():
            for step in self.steps(range(len(groups))):
                self.room.within(partial(fill, step))
                done += len(step)
                progress(done, len(groups))
        if token_log_prob is not None:
            token_log_prob.copy_(gather(self.processes, token_log_prob))
        whole = (values.view(len(groups), k) for values in (log_prob, mean))
        first, second = (gather(self.processes, values) for values in whole)
        return first, second
