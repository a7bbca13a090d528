"""A model by its name, with the layers of it that are trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from srlm.errors import UserError
from srlm.policies.transformer.load.adapters import with_lora
from srlm.policies.transformer.load.brought import base_of, continued
from srlm.policies.transformer.load.hub import adapter_folder, load_model


@dataclass(frozen=True)
class Trainable:
    """peft_model: None where all weights train. base: what the LoRA layers lie on, where they were trained before and
    go on being trained. notes: what a person should know of it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    peft_model: PeftModel | None
    base: str | None
    notes: list[str] = field(default_factory=list)


def load_trainable(
    name: str,
    *,
    dtype: str,
    trust_remote_code: bool,
    adapter: str,
    quantize: str,
    lora_rank: int,
    lora_alpha: float | None,
    gain: bool,
    seed: int,
) -> Trainable:
    """lora_rank 0: all weights train, or none that an adapter would not be merged into."""
    folder = adapter_folder(name)
    base = base_of(folder, adapter)
    if adapter == "continue" and base is None:
        raise UserError(
            f"--adapter is continue, but {name} brings no LoRA adapter, expected a folder with adapter_config.json: "
            "give a round of a run (RUN@2) or its adapter/, or leave --adapter out"
        )
    on = adapter == "continue" and base is not None and lora_rank > 0
    if adapter == "continue" and not on:
        adapter = "merge"
    model, tokenizer = load_model(
        name, dtype=dtype, trust_remote_code=trust_remote_code, adapter=adapter, quantize=quantize
    )
    peft_model = None
    if on:
        model, peft_model = continued(model, folder, gain=gain)
    elif lora_rank > 0:
        model, peft_model = with_lora(model, rank=lora_rank, alpha=lora_alpha, gain=gain, seed=seed)
    notes = [] if base is None else [f"the LoRA adapter in {name} {_becomes(adapter, base, peft_model)}"]
    return Trainable(model, tokenizer, peft_model, base if on else None, notes)


def _becomes(adapter: str, base: str, peft_model: PeftModel | None) -> str:
    """Of an adapter that a folder brought."""
    if adapter == "ignore":
        return "is ignored"
    if adapter == "continue" and peft_model is not None:
        return f"(rank {cast(Any, peft_model.peft_config['default']).r}) goes on being trained, on top of {base}"
    return f"is merged into {base}: what is trained starts from there"
