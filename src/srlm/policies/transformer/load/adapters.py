"""LoRA layers: new ones put into a model, and those that a folder brings along."""

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
from torch import Tensor, nn
from transformers import PreTrainedModel

from srlm.errors import UserError
from srlm.policies.transformer.gain import Gain
from srlm.policies.transformer.load.checks import first_line
from srlm.policies.transformer.load.packed import in_dtype


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
        brought = safetensors.torch.load_file(folder / WEIGHTS)
        own = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
        if unknown := brought.keys() - own.keys():
            raise ValueError(f"{min(unknown)} has no place in it")
        if missing := {key for key in own if "lora_" in key} - brought.keys():
            raise ValueError(f"{min(missing)} is missing")
        # own: the final norm, if the adapter left it alone
        if left := set_peft_model_state_dict(peft_model, own | brought).unexpected_keys:
            raise ValueError(f"peft finds no place for {min(left)}")
    except Exception as error:  # peft and torch raise what they like where shapes or names differ
        raise _misfit(folder, error) from error
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
        cast(Any, model)(input_ids=torch.zeros(1, 4, dtype=torch.long, device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in suspects if name not in plain]


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def base_of(folder: Path, adapter: str) -> str | None:
    """What the model of a folder with an adapter is without it: a name, or the folder itself; None if it has none.

    Raises:
        UserError: a whole model lies beside the adapter and it was not said what that is, or the adapter has no base.
    """
    if not (folder / CONFIG).is_file():
        return None
    if (folder / "config.json").is_file():
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
        merged = cast(PreTrainedModel, joined.merge_and_unload())
    except Exception as error:  # peft and torch raise what they like where shapes or names differ
        raise _misfit(folder, error) from error
    if left:  # peft passes over them
        raise UserError(
            f"peft finds no place for {len(left)} of the weights of the LoRA adapter of {folder} in its base model "
            f"({min(left)}, ...): give a model into which it is merged already"
        )
    return merged


def _refuse_without_weights(folder: Path) -> None:
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"folder {folder} has no {WEIGHTS}: save the adapter as safetensors")


def _misfit(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"the LoRA adapter of {folder} does not fit its base model: {first_line(error)}; give the base that it was "
        "trained on"
    )
