"""What is trained of a model in shards: put together where it is sampled from and where it is saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from srlm.errors import UserError
from srlm.policies.transformer.devices.shards import Shards
from srlm.policies.transformer.fold import folded
from srlm.policies.transformer.load.checks import refuse_misfit
from srlm.policies.transformer.weights import Weights, plain_names

_IN_FRONT = "base_model.model."  # of peft's keys


class ShardedWeights(Weights):
    """As `Weights`, of which the main process alone saves, after all have taken part in `collect`."""

    def __init__(
        self, model: PreTrainedModel, peft_model: PeftModel | None, name: str, *, begun: bool = False, shards: Shards
    ) -> None:
        super().__init__(model, peft_model, name, begun=begun)
        self.parts = self.shards = shards
        self._trained: dict[str, Tensor] = {}
        self._model: dict[str, Tensor] = {}

    @contextmanager
    def merged(self) -> Iterator[None]:
        """All weights whole in every process, LoRA folded into them."""
        with self.shards.gathered(), super().merged():
            yield

    def collect(self, *, model: bool = False) -> None:
        if model or self.peft_model is None:
            self.forget()  # or two of them lie on the host
            self._model = self._collected_model()
        else:
            self._trained = {n: self.shards.whole(self.shards.local(p), p) for n, p in self.trainable().items()}

    def forget(self) -> None:
        self._model = {}

    def _collected_model(self) -> dict[str, Tensor]:
        """On the host of the main process. One unit after the other is whole on the devices, its LoRA layers folded."""
        found: dict[str, Tensor] = {}
        seen: dict[int, Tensor] = {}
        for unit in self.shards.units:
            with self.shards.gathered([unit]):
                layers = [m for m in unit.modules() if isinstance(m, LoraLayer) and _is_whole(m)]
                with nullcontext() if self.peft_model is None else folded(layers):
                    for name, value in self._tensors():
                        if name not in found and _whole(value):
                            if id(value) not in seen:
                                seen[id(value)] = self.shards.kept(value)
                            found[name] = seen[id(value)]  # tied ones stay tied
        return plain_names({name: found[name] for name in self.model.state_dict()})

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Not by state_dict, before which FSDP makes shards of all."""
        model = cast(nn.Module, self.model)
        yield from model.named_parameters(remove_duplicate=False)
        yield from model.named_buffers(remove_duplicate=False)

    def save(self, folder: Path, tokenizer: Any) -> None:
        if self.peft_model is None:
            self.save_model(folder, tokenizer)
            self.forget()
            return
        state, self._trained = self._trained, {}
        self._save_adapter(folder, {_IN_FRONT + name: value for name, value in state.items()})

    def save_model(self, folder: Path, tokenizer: Any, *, dtype: torch.dtype | None = None, base: bool = False) -> None:
        assert dtype is None and not base, "models are exported by one process"
        self._write(folder, tokenizer, self._model, None)

    def check_saved(self, folder: Path, rows: Sequence[Sequence[int]]) -> None:
        """What was collected is still at hand: it is compared number by number."""
        state, self._model = self._model, {}
        kind: Any = type(self.model)
        saved, report = kind.from_pretrained(
            folder, dtype=self.model.dtype, use_safetensors=True, output_loading_info=True
        )
        refuse_misfit(str(folder), saved, report["missing_keys"], report["unexpected_keys"])
        for name, value in saved.named_parameters():
            if not torch.equal(value.detach(), state[name]):
                raise UserError(
                    f"the weight {name} in {folder} is not what was written there: look after the disk, and go on with "
                    "--resume; what the rounds made is kept in their folders"
                )


def _whole(value: Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return not isinstance(value, DTensor)


def _is_whole(layer: LoraLayer) -> bool:
    return all(_whole(value) for value in layer.parameters())


def weights_of(
    model: PreTrainedModel, peft_model: PeftModel | None, name: str, *, begun: bool, shards: Shards | None
) -> Weights:
    if shards is None:
        return Weights(model, peft_model, name, begun=begun)
    return ShardedWeights(model, peft_model, name, begun=begun, shards=shards)
