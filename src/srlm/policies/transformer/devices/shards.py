"""A model in shards (FSDP2): of every parameter each process holds a part, and all of it for as long as it computes.

A parameter is cut along its first axis. Around the forward pass of a layer, and again around its backward pass, the
parts are gathered; gradients are summed and cut where they arise (reduce-scatter), so masters and moments are parts
too. Every forward and backward pass is therefore one of all processes: `even` gives those an idle one who have none
left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import PreTrainedModel

from srlm.errors import UserError
from srlm.policies.transformer.devices.asked import Sharding, refuse_precision
from srlm.policies.transformer.devices.parts import Parts, length
from srlm.policies.transformer.layout.group import Group
from srlm.policies.transformer.layout.pack import Packed, pack
from srlm.policies.transformer.layout.tree import build_tree
from srlm.policies.transformer.load.checks import first_line
from srlm.policies.transformer.log_prob import Statistic, response_log_prob
from srlm.policies.transformer.processes import gather


class _Scoring(nn.Module):
    """What FSDP takes for the model: a forward pass to log-probs, inside which the head's weight is whole."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, packed: Packed, statistic: Statistic | None) -> tuple[Tensor, Tensor | None, Tensor]:
        each: list[Tensor] = []
        values, means = response_log_prob(self.model, packed, statistic=statistic, each=each)
        return values, means, each[0]


class Shards(Parts):
    """Of `model`, cut over all processes. whole: parameters that every process keeps. reshard: after its forward pass a
    layer goes back to parts."""

    def __init__(
        self, model: PreTrainedModel, asked: Sharding, whole: Sequence[Tensor], together: PartialState
    ) -> None:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        refuse_precision(model.dtype)
        self.model, self._together, self.reshard = model, together, asked.reshard
        self._root: Any = _Scoring(model)
        try:
            chosen = fsdp2_prepare_auto_wrap_policy(asked.plugin, cast(nn.Module, model))
            layers = [module for module in cast(nn.Module, model).modules() if chosen is not None and chosen(module)]
        except ValueError as error:
            raise self._unfit(error) from error
        self._mesh = init_device_mesh(together.device.type, (together.num_processes,))
        for value in whole:
            value.data = value.data.to(together.device)
        options: dict[str, Any] = {
            "mesh": self._mesh,
            "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),  # gradients of bf16 layers add up in fp32
            "ignored_params": set(whole),
        }
        try:
            for layer in reversed(layers):  # what lies inside others first
                fully_shard(layer, reshard_after_forward=asked.reshard, **options)
            fully_shard(self._root, **options)
        except ValueError as error:
            raise self._unfit(error) from error
        self.units = [module for module in self._root.modules() if isinstance(module, FSDPModule)]
        for unit in self.units:  # sums, as one process would make them
            unit.set_force_sum_reduction_for_comms(True)
            unit.set_gradient_divide_factor(1.0)
        outermost = cast(Any, self._root)
        outermost.set_reduce_scatter_unused_params(True)  # experts that nobody asked here were asked elsewhere
        for buffer in cast(nn.Module, model).buffers():
            buffer.data = buffer.data.to(together.device)
        idle = Group.of([0], [[0]])
        self._idle = pack([build_tree(idle, [0])], masked=False).to(together.device)
        try:
            with torch.no_grad(), self.working():
                self.idle()
        except ValueError as error:  # torch looks at the whole when it runs for the first time
            raise self._unfit(error) from error

    def _unfit(self, error: Exception) -> UserError:
        return UserError(
            f"model class {type(self.model).__name__} cannot be cut into shards: {first_line(error)}; use a config "
            "without FSDP, so that each process holds the whole model"
        )

    # Passes

    def __call__(
        self, packed: Packed, *, statistic: Statistic | None = None, each: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `response_log_prob`, by all processes at once."""
        values, means, tokens = self._root(packed, statistic)
        if each is not None:
            each.append(tokens)
        return values, means

    def idle(self) -> Tensor:
        """A forward pass that comes to nothing; its gradients are 0."""
        return self(self._idle)[0].sum() * 0.0

    def even(self, passes: Sequence[Callable[[], object]], idle: Callable[[], object]) -> None:
        """Do the passes; where others have more of them, idle ones."""
        most = -self.least(-len(passes))
        for run in passes:
            run()
        for _ in range(most - len(passes)):
            idle()

    def least(self, number: int) -> int:
        """Of what all processes say."""
        found = torch.tensor(number, device=self._together.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
        return int(found)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Afterwards all parameters are shards again."""
        try:
            yield
        finally:
            self._rest()

    @contextmanager
    def gathered(self, units: Sequence[Any] | None = None) -> Iterator[None]:
        """Meanwhile parameters, of all units or of some, are whole in every process, which may do as it likes."""
        some = self.units if units is None else units
        for unit in some:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in some:
                unit.set_reshard_after_forward(self.reshard and unit is not self._root, recurse=False)
            self._rest()

    def _rest(self) -> None:
        for unit in self.units:
            unit.reshard()

    # Parts and wholes

    def local(self, value: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        if not isinstance(value, DTensor):
            return value
        with torch.no_grad():
            return value.to_local()

    def part(self, whole: Tensor, parameter: Tensor) -> Tensor:
        if not self.divides(parameter):
            return whole
        pieces = torch.chunk(whole, self._together.num_processes)
        rank = self._together.process_index
        return pieces[rank] if rank < len(pieces) else whole[:0]

    def whole(self, part: Tensor, parameter: Tensor) -> Tensor:
        """On the host of the main process, nothing elsewhere; on the devices it is whole meanwhile."""
        from torch.distributed.tensor import DTensor, Shard

        if isinstance(parameter, DTensor):
            spread = DTensor.from_local(
                part, self._mesh, [Shard(0)], run_check=False, shape=parameter.shape, stride=parameter.stride()
            )
            part = spread.full_tensor()
        return self.kept(part)

    def divides(self, parameter: Tensor) -> bool:
        from torch.distributed.tensor import DTensor

        return isinstance(parameter, DTensor)

    def norm(self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], together: PartialState) -> Tensor:
        cut = [self.divides(parameter) for parameter in parameters]
        cut += [False] * (len(gradients) - len(cut))
        parts, others = (
            [gradient for gradient, one in zip(gradients, cut, strict=True) if one is wanted]
            for wanted in (True, False)
        )
        square = length(parts).square() if parts else torch.zeros((), device=together.device)
        square = gather(together, square)
        return torch.sqrt(square + length(others).square()) if others else square.sqrt()

    def kept(self, value: Tensor) -> Tensor:
        """On the host of the main process; nothing elsewhere."""
        return value.detach().to("cpu", copy=True) if self._together.is_main_process else value.new_empty(0)
