"""A model that a program has loaded already -> a folder of it in the cache, from which runs begin as from any other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from tokenizers import Tokenizer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from srlm.errors import UserError
from srlm.policies.transformer.load.checks import refuse_unlike_causal
from srlm.policies.transformer.load.gguf import cache_folder, kept_in

# What saving writes into a config, and what says nothing of the model.
_OF_FILES = ("architectures", "dtype", "transformers_version", "_name_or_path", "use_cache")
Loaded: TypeAlias = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def model_name(model: str | Path | Loaded) -> str:
    """A name as it is; of a (model, tokenizer) that are loaded, the folder in the cache that holds a copy of both. It
    is named after the class, weights, configuration and tokenizer, so that it is written once, and a run that goes on
    with another model is refused. The objects stay as they are.

    Raises:
        UserError: no such pair, or one that does not save as a plain causal LM.
    """
    if isinstance(model, str | Path):
        return str(model)
    pair = tuple(model) if isinstance(model, Sequence) else (model,)
    if len(pair) != 2 or not isinstance(pair[0], PreTrainedModel) or not isinstance(pair[1], PreTrainedTokenizerBase):
        found = ", ".join(type(one).__name__ for one in pair)
        hint = ": merge its adapter first (merge_and_unload)" if isinstance(pair[0], PeftModel) else ": give both"
        raise UserError(
            f"the model is ({found}), expected a name, or a causal LM of transformers and its tokenizer{hint}"
        )
    plain, tokenizer = pair
    _refuse_unplain(plain)
    target = cache_folder() / f"{type(plain).__name__}-{_digest(plain, tokenizer)}"
    if not (target / "config.json").exists():
        with kept_in(type(plain).__name__, target) as scratch:
            _save(plain, scratch)
            tokenizer.save_pretrained(scratch)
    return str(target)


def _refuse_unplain(model: Any) -> None:
    kind = type(model).__name__
    refuse_unlike_causal(f"object of class {kind}", model.config)
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise UserError(f"the {kind} has adapter layers, expected plain weights: merge them first (merge_and_unload)")
    if getattr(model, "is_quantized", False):
        raise UserError(f"the {kind} is quantised, expected weights that can be trained: load it without")
    if any(value.is_meta for value in model.parameters()):
        raise UserError(f"the {kind} lies in part on no device, expected all of its weights in memory: load it whole")


def _save(model: Any, folder: Path) -> None:
    generation, model.generation_config = model.generation_config, GenerationConfig()  # some flags are not saved
    try:
        model.save_pretrained(folder)
    finally:
        model.generation_config = generation
    if generation is not None:
        generation.to_json_file(folder / "generation_config.json")


def _digest(model: Any, tokenizer: Any) -> str:
    said = {name: value for name, value in model.config.to_diff_dict().items() if name not in _OF_FILES}
    digest = hashlib.sha256(repr(sorted(said.items(), key=str)).encode())
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None:
        core = Tokenizer.from_str(core.to_str())
        core.no_padding()  # which, like the next, stay with it from its last call
        core.no_truncation()
    digest.update((core.to_str() if core is not None else repr(sorted(tokenizer.get_vocab().items()))).encode())
    digest.update(repr((tokenizer.chat_template, sorted(tokenizer.special_tokens_map.items(), key=str))).encode())
    if model.generation_config is not None:
        digest.update(repr(sorted(model.generation_config.to_diff_dict().items(), key=str)).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
