"""Bases whose linear layers bitsandbytes packs into 4 or 8 bits while they are read; LoRA lies on them, never in them.

The output head, embeddings and norms stay as they are.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from srlm.errors import UserError
from srlm.policies.transformer.bits import quantised
from srlm.policies.transformer.devices.asked import sharding
from srlm.policies.transformer.processes import processes


def installed() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def refuse_unready(quantize: str, *, trained: bool) -> None:
    """Before anything is loaded.

    Raises:
        UserError: bitsandbytes is missing, or the model is to be cut into shards.
    """
    if quantize == "none":
        return
    if not installed():
        raise UserError(
            f"--quantize is {quantize!r}, and bitsandbytes, which packs the weights, is not installed: run "
            "`pip install 'srlm[qlora]'`"
        )
    if trained and processes().num_processes > 1 and sharding() is not None:
        raise UserError(
            f"--quantize is {quantize!r} beside an accelerate config with FSDP, expected none, since packed weights "
            "are not cut into shards: use a config without FSDP, so that each process holds the packed model, or leave "
            "--quantize out"
        )


def packing(name: str, config: Any, quantize: str, dtype: torch.dtype) -> dict[str, Any]:
    """How to load a model packed: 4bit is NF4 whose scales are quantised once more, computed with in `dtype`; 8bit is
    LLM.int8() without its outliers, which are the columns in which any token of a batch is large: log-probs would
    depend on what shares the batch, by up to a third of a nat a token (SmolLM2, bf16).

    Raises:
        UserError: its file holds quantised weights already.
    """
    if (own := getattr(config, "quantization_config", None)) is not None:
        method = own.get("quant_method") if isinstance(own, dict) else own.quant_method
        raise UserError(
            f"model {name} has weights quantised with {str(method).rsplit('.', 1)[-1].lower()}, expected plain ones "
            f"for --quantize {quantize}: give the model before it was quantised"
        )
    how: dict[str, Any] = {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    if quantize == "4bit":
        how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        how["bnb_4bit_compute_dtype"] = dtype
    # Packed where it is to stay.
    return {"quantization_config": BitsAndBytesConfig(**how), "device_map": {"": str(processes().device)}}


def in_memory(model: PreTrainedModel, quantize: str) -> PreTrainedModel:
    """The model, packed as one that is read would be.

    Raises:
        UserError: bitsandbytes is missing, or the weights are quantised already.
    """
    if quantize == "none":
        return model
    refuse_unready(quantize, trained=False)
    kind, config = cast(Any, type(model)), model.config
    how = packing(config.name_or_path, config, quantize, model.dtype)
    made = kind.from_pretrained(None, config=config, state_dict=model.state_dict(), dtype=model.dtype, **how).eval()
    settle(made)
    return cast(PreTrainedModel, made)


def settle(model: PreTrainedModel) -> None:
    """Of a packed model that was just loaded."""
    for module in cast(nn.Module, model).modules():
        # bitsandbytes would pack anew, for good and in bf16, whenever a layer reads without gradients on some CPUs:
        # scoring would be of other weights than training.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            cast(Any, module).support_avx512bf16_for_cpu = False
    # It says for every product of 8-bit layers that its input becomes fp16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def in_dtype(model: PreTrainedModel, peft_model: PeftModel) -> None:
    """LoRA layers on packed ones are fp32, of which peft knows no better, become those of the rest of the model."""
    if quantised(model) == "none":
        return
    for name, value in cast(nn.Module, peft_model).named_parameters():
        if "lora_" in name:
            value.data = value.data.to(model.dtype)
