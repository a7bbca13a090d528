"""A pure LoRA adapter as llama.cpp takes it beside a GGUF file of its base (`llama-cli --lora adapter.gguf`)."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import safetensors.torch

from srlm.errors import UserError
from srlm.policies.transformer.load.brought import CONFIG, WEIGHTS
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.save.gguf import family_of, gguf_name, permuted


def save_gguf_adapter(policy: TransformerPolicy, adapter: Path, file: Path) -> None:
    """Write the adapter in the folder `adapter`, which `save_pure_lora` left, as one GGUF file.

    A layer is W x + (alpha / r) B A x; A is [r, in], B [out, r], whose rows stand in llama.cpp's order.

    Raises:
        UserError: a family that is not known here, an adapter of several scales, or one with more than A and B.
    """
    config = policy.model.config.get_text_config()
    family = family_of(config)
    said = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    if said.get("alpha_pattern") or said.get("rank_pattern") or said.get("use_rslora") or said.get("use_dora"):
        raise UserError("the adapter has layers of several scales, or is not plain LoRA, which llama.cpp does not take")
    state = safetensors.torch.load_file(adapter / WEIGHTS)
    if more := [key for key in state if not key.endswith((".lora_A.weight", ".lora_B.weight"))]:
        raise UserError(f"the adapter holds {more[0]}, a bias or an embedding perhaps, which llama.cpp does not take")
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[family.architecture])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(said["lora_alpha"]))
    for key, value in state.items():
        layer, _, part = key.removeprefix("base_model.model.").partition(".lora_")
        value = value.float()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
            layer.rpartition(".")[2]
        )
        if family.permute and heads and part == "B.weight":
            value = permuted(value, heads)
        name = gguf_name(family, config.num_hidden_layers, f"{layer}.weight")
        writer.add_tensor(f"{name}.lora_{part[0].lower()}", value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
