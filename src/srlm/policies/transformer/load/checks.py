"""Is what was read what the file holds, all of it, and all that the model has?"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from srlm.errors import UserError

# Buffers that older versions of models saved and newer ones compute: nothing is lost without them.
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|\.attn\.bias$|position_ids$|\.attention\.bias$")
_DEQUANTISED = ("fp8", "mxfp4")  # what transformers turns back into plain weights by itself


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300].rstrip(".")


def refuse_misfit(name: str, model: PreTrainedModel, missing: Collection[str], unused: Collection[str]) -> None:
    """
    Raises:
        UserError: weights of the model that are not in the file (transformers would go on with random numbers in their
            place), or weights in the file that the model does not use.
    """
    kind = type(model).__name__
    if missing:
        raise UserError(
            f"model {name} lacks {len(missing)} of the weights of a {kind} ({min(missing)}, ...): give a complete "
            "causal LM"
        )
    unused = [key for key in unused if not _COMPUTED.search(key)]
    if unused:
        raise UserError(
            f"model {name} holds {len(unused)} weights that a {kind} with its config.json does not use ({min(unused)}, "
            "...): give the config that belongs to the weights, or a causal LM of a kind that uses them"
        )


def refuse_unlike_causal(name: str, config: Any) -> None:
    """
    Raises:
        UserError: an encoder–decoder, which would be loaded without its encoder.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"model {name} is an encoder–decoder ({config.model_type}), of which only the decoder would be loaded: "
            "give a causal (decoder-only) LM"
        )


def plain_weights(name: str, config: Any) -> dict[str, Any]:
    """How to load quantised weights so that they can be trained and saved as what they are then: dequantised.

    Raises:
        UserError: they are quantised in a way that cannot be undone here.
    """
    quantised = getattr(config, "quantization_config", None)
    if quantised is None:
        return {}
    method = str(quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method)
    method = method.rsplit(".", 1)[-1].lower()
    if method not in _DEQUANTISED:
        raise UserError(
            f"model {name} has weights quantised with {method}, which training cannot write back: give the model "
            "before it was quantised"
        )
    from transformers import FineGrainedFP8Config, Mxfp4Config

    kind: Any = FineGrainedFP8Config if method == "fp8" else Mxfp4Config
    return {"quantization_config": kind(dequantize=True)}


def forget_quantisation(model: PreTrainedModel) -> None:
    """Left in place, these marks make transformers refuse to save, or reload, dequantised weights, or save them under
    the names of quantised ones."""
    vars(model).pop("_weight_conversions", None)
    for mark in ("quantization_method", "hf_quantizer"):
        setattr(model, mark, None)
    cast(Any, model).is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


@torch.no_grad()
def refuse_broken(name: str, model: PreTrainedModel) -> None:
    """
    Raises:
        UserError: weights that are not numbers, or a model that looks ahead.
    """
    tables = [
        table.weight for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table is not None
    ]
    for key, value in model.named_parameters():  # a broken row of a table concerns those alone who say its word
        if any(value is table for table in tables):
            continue
        if value.is_floating_point() and not bool(value.sum(dtype=torch.float32).isfinite()):
            raise UserError(
                f"model {name} has weights that are not finite numbers ({key}): its file is damaged, or --dtype is too "
                "narrow for it"
            )
    ids = torch.arange(13, 25, device=model.device)[None] % cast(Any, model.config).get_text_config().vocab_size
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 7) % cast(Any, model.config).get_text_config().vocab_size
    one, two = (cast(Any, model)(input_ids=row, use_cache=False).logits[0, :-1].float() for row in (ids, other))
    far, size = float((one - two).abs().max()), float(one.abs().max())
    if far > 0.05 * max(size, 1.0):  # bf16 is good to a hundredth
        raise UserError(
            f"model {name} ({type(model).__name__}) lets a token change what stands before it, so it is no causal LM: "
            "give a decoder-only model"
        )
