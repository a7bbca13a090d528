"""LoRA layers, put into a model."""

from __future__ import annotations

from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from srlm.errors import UserError
from srlm.policies.transformer.gain import Gain
from srlm.policies.transformer.load.checks import first_line


def with_lora(
    model: PreTrainedModel, *, rank: int, alpha: float | None, gain: bool, seed: int
) -> tuple[PreTrainedModel, PeftModel]:
    """The model with new LoRA layers, of scale alpha / rank (alpha is twice the rank by default), and peft's view of
    it. gain: the final norm is trained beside them.

    Raises:
        UserError: peft cannot adapt the model.
    """
    torch.manual_seed(seed)
    norm = Gain.of(model) if gain else None
    lora = LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha or 2 * rank),
        target_modules="all-linear",
        # A router is a linear layer that returns more than one thing; an adapter would not know what to add to.
        exclude_modules=[
            key
            for key, module in model.named_modules()
            if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward
        ],
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
    peft_model.eval()
    return cast(PreTrainedModel, peft_model.get_base_model()), peft_model
