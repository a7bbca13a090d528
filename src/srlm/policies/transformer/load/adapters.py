"""New LoRA layers, put into a model."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from srlm.errors import UserError
from srlm.policies.transformer.gain import Gain
from srlm.policies.transformer.load.checks import first_line
from srlm.policies.transformer.load.packed import in_dtype
from srlm.policies.transformer.log_prob import UNFIT


def with_lora(
    model: PreTrainedModel, *, rank: int, alpha: float | None, gain: bool, seed: int
) -> tuple[PreTrainedModel, PeftModel]:
    """The model with new LoRA layers, of scale alpha / rank (alpha is twice the rank by default), and peft's view of
    it. gain: the final norm is trained beside them.

    Raises:
        UserError: peft cannot adapt the model.
    """
    most = max((min(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)), default=rank)
    if rank > most:
        raise UserError(
            f"--lora-rank is {rank}, expected at most {most}, the full rank of the largest layer of "
            f"{type(model).__name__}: lower it, or train all weights with --lora-rank 0"
        )
    torch.manual_seed(seed)
    norm = Gain.of(model) if gain else None
    lora = LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha or 2 * rank),
        target_modules="all-linear",
        exclude_modules=_routers(model) + _shared(model),
        modules_to_save=[norm.name] if norm is not None else None,
    )
    # fp32 adapters inside a bf16 model would compute in fp32; the optimiser keeps fp32 masters instead.
    try:
        peft_model = cast(PeftModel, get_peft_model(model, lora, autocast_adapter_dtype=False))
    except ValueError as error:
        raise UserError(
            f"peft cannot adapt model class {type(model).__name__}: {first_line(error)}; "
            "train all weights with --lora-rank 0"
        ) from error
    in_dtype(model, peft_model)
    peft_model.eval()
    return cast(PreTrainedModel, peft_model.get_base_model()), peft_model


def _shared(model: PreTrainedModel) -> list[str]:
    """Linear layers with a weight in common (Zamba): merged, it would hold the adapters of all of them at once."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    number = Counter(id(layer.weight) for layer in layers.values())
    return [name for name, layer in layers.items() if number[id(layer.weight)] > 1]


@torch.no_grad()
def _routers(model: PreTrainedModel) -> list[str]:
    """Linear layers by class that return more than a product, or the product of parts: an adapter would not know what
    to add to."""
    suspects = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward
    }
    if not suspects:
        return []
    plain: set[str] = set()

    def look(name: str, layer: nn.Linear, given: Tensor, output: Any) -> None:
        if isinstance(output, Tensor) and output.shape == (*given.shape[:-1], layer.out_features):
            plain.add(name)

    hooks = [
        module.register_forward_hook(lambda layer, given, output, name=name: look(name, layer, given[0], output))
        for name, module in suspects.items()
    ]
    try:
        if model.device.type != "meta":
            cast(Any, model)(input_ids=torch.zeros(1, 4, dtype=torch.long, device=model.device), use_cache=False)
        else:  # what a router says cannot be looked at there, so the layers behind it are not reached
            for layer in suspects.values():
                with suppress(*UNFIT):
                    layer(layer.weight.new_zeros(1, 4, layer.in_features))
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in suspects if name not in plain]
