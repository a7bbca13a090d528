"""The gradient of a step: over its micro-batches, and over processes while it comes about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import torch
from accelerate import PartialState
from torch import Tensor

from srlm.policies.transformer.devices.parts import Parts
from srlm.policies.transformer.limits import BUCKET

Bucket: TypeAlias = list[Tensor]  # parameters whose gradients travel together


class Sums:
    """Gradients of `parameters`, added up in fp32: a bf16 model would round each sum.

    Over processes they travel in buckets, those of the last layers first, while the backward pass of a process's last
    micro-batch goes on. A bucket leaves once all its parameters have had theirs and the buckets before it have left, so
    all processes send the same in the same order. What is in shards is summed elsewhere, with every backward pass,
    of which processes have different ones: what is whole of such a model waits until they are over.
    """

    def __init__(self, parameters: Sequence[Tensor], parts: Parts, together: PartialState | None = None) -> None:
        self.parameters, self._parts = parameters, parts
        self._sums: dict[Tensor, Tensor] = {}
        self._buckets: list[Bucket] = []
        if together is not None and together.num_processes > 1:
            self._buckets = _buckets([p for p in reversed(parameters) if not parts.divides(p)])
        self._ahead = not any(map(parts.divides, parameters))
        self._home = {p: number for number, bucket in enumerate(self._buckets) for p in bucket}
        self._gone = 0  # buckets that have left
        self._missing: list[int] | None = None  # gradients each bucket waits for, once the last micro-batch is here
        self._travelling: list[tuple[Bucket, Tensor, torch.distributed.Work]] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Meanwhile gradients are added up, from nothing. A step that is done again, for want of memory, comes to the
        same: what has left stays as it was."""
        gone = {p for bucket in self._buckets[: self._gone] for p in bucket}
        self._sums = {p: value for p, value in self._sums.items() if p in gone}
        self._missing = None
        for parameter in self.parameters:
            parameter.grad = None

        def add(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient, parameter.grad = self._parts.local(parameter.grad).float(), None
            if parameter in gone:
                return
            self._sums[parameter] = self._sums[parameter].add_(gradient) if parameter in self._sums else gradient
            if self._missing is not None and parameter in self._home:
                self._missing[self._home[parameter]] -= 1
                self._send()

        hooks = [cast(Any, p).register_post_accumulate_grad_hook(add) for p in self.parameters]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def last(self) -> None:
        """The backward pass that comes is this process's last one of the step."""
        if self._ahead:
            self._missing = [len(bucket) for bucket in self._buckets]

    def collect(self) -> dict[Tensor, Tensor]:
        """What came of the step, over all processes; the next one begins from nothing."""
        self._missing = [0] * len(self._buckets)  # no more will come
        self._send()
        while self._travelling:
            self._arrive()
        found, self._sums, self._gone, self._missing = self._sums, {}, 0, None
        return found

    def _send(self) -> None:
        assert self._missing is not None
        while self._gone < len(self._buckets) and self._missing[self._gone] == 0:
            bucket = self._buckets[self._gone]
            flat = torch.cat([self._of(p).flatten() for p in bucket])
            self._travelling.append((bucket, flat, torch.distributed.all_reduce(flat, async_op=True)))
            self._gone += 1
            if len(self._travelling) > 1:  # or a second copy of all of them would come about
                self._arrive()

    def _of(self, parameter: Tensor) -> Tensor:
        found = self._sums.get(parameter)
        return torch.zeros_like(parameter, dtype=torch.float32) if found is None else found

    def _arrive(self) -> None:
        bucket, flat, work = self._travelling.pop(0)
        work.wait()
        for parameter, summed in zip(bucket, torch.split(flat, [p.numel() for p in bucket]), strict=True):
            self._sums[parameter] = summed.view_as(parameter)


def _buckets(parameters: Sequence[Tensor]) -> list[Bucket]:
    """Of `BUCKET` elements, or one parameter more."""
    found: list[Bucket] = []
    size = BUCKET
    for parameter in parameters:
        if size >= BUCKET:
            found.append([])
            size = 0
        found[-1].append(parameter)
        size += parameter.numel()
    return found
