"""LoRA adapters that a folder brings along: merged, or trained on."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from srlm.errors import UserError
from srlm.policies.transformer.bits import quantised
from srlm.policies.transformer.fold import folded
from srlm.policies.transformer.gain import Gain
from srlm.policies.transformer.load.checks import first_line
from srlm.policies.transformer.load.packed import in_dtype

MOST_MERGED = 0.1  # nats; bf16 rounds what is merged
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def holds_adapter_alone(folder: Path) -> bool:
    """Some trainers write the config of the base beside an adapter, and no weights."""
    weights = [file for file in folder.glob("*.safetensors") if not file.name.startswith("adapter_")]
    return (folder / CONFIG).is_file() and not ((folder / "config.json").is_file() and weights)


def base_of(folder: Path, adapter: str) -> str | None:
    """What the model of a folder with an adapter is without it: a name, or the folder itself; None if it has none.

    Raises:
        UserError: a whole model lies beside the adapter and it was not said what that is, or the adapter has no base.
    """
    if not (folder / CONFIG).is_file():
        return None
    if not holds_adapter_alone(folder):
        if adapter == "auto":
            raise UserError(
                f"folder {folder} holds a whole model and a LoRA adapter: say --adapter ignore if the weights are "
                "merged already, or --adapter merge or continue if they are those of the base"
            )
        return str(folder)
    try:
        base = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} names no base model: give the base, or mend the file") from error
    if adapter == "ignore" or not base:
        raise UserError(
            f"folder {folder} holds nothing but a LoRA adapter: leave --adapter ignore out, or give its base model"
        )
    return str(base)


@contextmanager
def without_adapter(folder: str) -> Iterator[str]:
    """The folder as it is but for its adapter, which transformers would put on whatever is asked of it."""
    if not (Path(folder) / CONFIG).is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory() as bare:
        for file in Path(folder).resolve().iterdir():
            if not file.name.startswith("adapter_"):
                (Path(bare) / file.name).symlink_to(file)
        yield bare


def merged_from(folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """The model with a folder's adapter merged into its weights.

    Raises:
        UserError: the adapter does not fit.
    """
    _refuse_without_weights(folder)
    try:
        joined: Any = PeftModel.from_pretrained(cast(Any, model), str(folder))
        left = set_peft_model_state_dict(joined, safetensors.torch.load_file(folder / WEIGHTS)).unexpected_keys
        joined.eval()
        beside = _said(model)
        _part(model)
    except Exception as error:  # peft and torch raise what they like where shapes or names differ
        raise _misfit(folder, error) from error
    try:
        merged = cast(PreTrainedModel, joined.merge_and_unload())
    except Exception as error:
        raise _unmerged(folder, error) from error
    if left:  # peft passes over them
        raise UserError(
            f"peft finds no place for {len(left)} of the weights of the LoRA adapter of {folder} in its base model "
            f"({min(left)}, ...): give a model into which it is merged already"
        )
    never = beside == -torch.inf  # words that a model masks
    apart = (beside.exp() * (beside - _said(merged))).masked_fill(never, 0.0)
    far = float(apart.sum(-1).max())
    if not far <= MOST_MERGED:
        raise UserError(
            f"the LoRA adapter of {folder} says something else when it is merged (KL {far:.3g} nats a word, expected "
            "next to 0): give a model into which it is merged already"
        )
    return merged


@torch.no_grad()
def _said(model: PreTrainedModel) -> Tensor:
    """Next-token log-probs along some ids."""
    size = cast(Any, model.config).get_text_config().vocab_size
    ids = [(7919 * i + 13) % size for i in range(16)]
    logits = cast(Any, model)(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    return torch.log_softmax(logits[0].float(), -1)


def _refuse_without_weights(folder: Path) -> None:
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"folder {folder} has no {WEIGHTS}: save the adapter as safetensors")


def _misfit(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"the LoRA adapter of {folder} does not fit its base model: {first_line(error)}; give the base that it was "
        "trained on"
    )


def _unmerged(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"the LoRA adapter of {folder} cannot be merged into its base model: {first_line(error)}; expected plain LoRA "
        "layers: give another adapter, or a model without"
    )


def continued(model: PreTrainedModel, folder: Path, *, gain: bool) -> tuple[PreTrainedModel, PeftModel]:
    """The model with a folder's LoRA layers, to be trained on, and peft's view of it. gain: as in `with_lora`.

    Raises:
        UserError: the adapter is of another kind, or does not fit.
    """
    _refuse_without_weights(folder)
    norm = Gain.of(model) if gain else None
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
        if not isinstance(config, LoraConfig):
            raise ValueError(f"it is of the type {config.peft_type}, expected LORA")
        if config.trainable_token_indices:
            raise ValueError("it trains single tokens (trainable_token_indices), which cannot go on being trained here")
        config.inference_mode = False
        if norm is not None and norm.name not in (saved := list(config.modules_to_save or [])):
            config.modules_to_save = [*saved, norm.name]
        peft_model = cast(PeftModel, get_peft_model(model, config, autocast_adapter_dtype=False))
        if isinstance(model.get_output_embeddings(), LoraLayer):
            raise UserError(
                f"the LoRA adapter of {folder} has layers at the head, expected none if it is to be trained on: merge "
                "it with --adapter merge"
            )
        brought = _trained(safetensors.torch.load_file(folder / WEIGHTS), model)
        own = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
        if unknown := brought.keys() - own.keys():
            raise ValueError(f"{min(unknown)} has no place in it")
        if missing := {key for key in own if "lora_" in key} - brought.keys():
            raise ValueError(f"{min(missing)} is missing")
        # own: the final norm, if the adapter left it alone
        if left := set_peft_model_state_dict(peft_model, own | brought).unexpected_keys:
            raise ValueError(f"peft finds no place for {min(left)}")
        _part(model)
        own_head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if own_head is not None and own_head.weight is not embedding.weight:  # a copy of one is trained
            _say_untied(model)
    except UserError:
        raise
    except Exception as error:  # peft and torch raise what they like where shapes or names differ
        raise _misfit(folder, error) from error
    in_dtype(model, peft_model)
    peft_model.eval()
    _refuse_unmerged(model, folder)
    return cast(PreTrainedModel, peft_model.get_base_model()), peft_model


def _trained(brought: dict[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """Without what peft saves of an embedding that is as it was."""
    base = {name: value for name, value in model.named_parameters() if name.endswith(".base_layer.weight")}
    return {
        name: value
        for name, value in brought.items()
        if (own := base.get(name.removeprefix("base_model.model."))) is None
        or own.shape != value.shape
        or not torch.equal(own, value.to(own.device, own.dtype))
    }


def _part(model: PreTrainedModel) -> None:
    """An embedding or a head with LoRA layers has a weight of its own: merged into one that both have, they would
    change the other, too.

    Raises:
        ValueError: other layers have one in common.
    """
    every = (module._parameters.get("weight") for module in model.modules())
    holders = Counter(id(weight) for weight in every if weight is not None)
    for name, layer in model.named_modules():
        base: Any = layer.get_base_layer() if isinstance(layer, LoraLayer) else None
        weight = None if base is None else base._parameters.get("weight")
        if weight is None or holders[id(weight)] == 1:
            continue
        if layer is not model.get_input_embeddings() and layer is not model.get_output_embeddings():
            raise ValueError(f"it trains {name}, whose weight is another layer's, too")
        holders[id(weight)] -= 1
        base.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        _say_untied(model)


def _say_untied(model: PreTrainedModel) -> None:
    for config in (model.config, cast(Any, model.config).get_text_config()):
        config.tie_word_embeddings = False


def _refuse_unmerged(model: PreTrainedModel, folder: Path) -> None:
    """
    Raises:
        UserError: a layer cannot take its adapter up, as it does while responses are drawn.
    """
    if quantised(model) != "none":
        return
    kinds = {
        (type(layer), getattr(layer.get_base_layer(), "bias", None) is None): layer
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
    }
    for layer in kinds.values():
        try:
            with folded([layer]):
                pass
        except Exception as error:
            raise _unmerged(folder, error) from error
