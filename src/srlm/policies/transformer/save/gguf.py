"""The policy as one GGUF file, read back by our own loader and compared."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from srlm.errors import UserError
from srlm.policies.transformer.load.gguf import dequantised
from srlm.policies.transformer.load.positions import LLAMA3, SCALES, scales_of
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.save.gguf_vocabulary import write_vocabulary

KINDS = {"fp32": gguf.GGMLQuantizationType.F32, "bf16": gguf.GGMLQuantizationType.BF16}
KINDS["fp16"] = gguf.GGMLQuantizationType.F16
FILE_TYPES = {"fp32": gguf.LlamaFileType.ALL_F32, "bf16": gguf.LlamaFileType.MOSTLY_BF16}
FILE_TYPES["fp16"] = gguf.LlamaFileType.MOSTLY_F16
logging.getLogger("gguf").setLevel(logging.ERROR)  # what is wrong is said in one sentence, or found by reading back
OTHERWISE = "write the model with --merged and convert it with llama.cpp's convert_hf_to_gguf.py"
TEXTS = 64  # prompts whose token ids are compared


@dataclass(frozen=True)
class Family:
    """permute: llama.cpp rotates pairs of neighbours where transformers rotates halves. shift: of the weights of norms,
    which multiply by shift + weight."""

    architecture: Any
    permute: bool = False
    shift: float = 0.0


FAMILIES = {
    "llama": Family(gguf.MODEL_ARCH.LLAMA, permute=True),
    "mistral": Family(gguf.MODEL_ARCH.LLAMA, permute=True),
    "qwen2": Family(gguf.MODEL_ARCH.QWEN2),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3),
    "gemma": Family(gguf.MODEL_ARCH.GEMMA, shift=1.0),
    "gemma2": Family(gguf.MODEL_ARCH.GEMMA2, shift=1.0),
    "gemma3_text": Family(gguf.MODEL_ARCH.GEMMA3, shift=1.0),
}


def save_gguf(policy: TransformerPolicy, file: Path, dtype: str, texts: Sequence[str]) -> str:
    """Write adapter and gain merged. Matrices in `dtype` (fp32, bf16 or fp16), vectors in fp32. texts: whose token ids
    must be the same when the file is read.

    Returns:
        What was compared, in words.

    Raises:
        UserError: a family, position scaling or tokenizer that is not known here, or a file that reads differently.
    """
    config = policy.model.config.get_text_config()
    family = refuse_unwritten(policy.name, config)
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[family.architecture])
    _write_sizes(writer, family, config)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(FILE_TYPES[dtype])
    name = Path(policy.name).name
    writer.add_name("srlm" if "mistral" in name.lower() else name)  # by which transformers would choose a reader
    rows = policy.model.get_input_embeddings().weight.shape[0]
    with tempfile.TemporaryDirectory() as folder:
        policy.tokenizer.save_pretrained(folder)
        write_vocabulary(writer, Path(folder), rows, sorted(policy.decoding.eos))
    with policy.weights.merged():
        for name, value in _tensors(policy, family, config):
            kind = KINDS[dtype] if value.ndim > 1 else KINDS["fp32"]
            writer.add_tensor(name, gguf.quants.quantize(value.numpy(), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return _compared(policy, file, dtype, texts)


def family_of(config: Any) -> Family:
    """
    Raises:
        UserError: it is not known here.
    """
    kind = config.model_type
    if kind not in FAMILIES:
        raise UserError(
            f"models of the type {kind} are not written as GGUF here, expected {', '.join(FAMILIES)}: {OTHERWISE}"
        )
    return FAMILIES[kind]


def gguf_name(family: Family, layers: int, name: str) -> str:
    """
    Raises:
        UserError: GGUF has no tensor of this kind in this family.
    """
    found = gguf.get_tensor_name_map(family.architecture, layers).get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise UserError(f"GGUF has no name for the weight {name} in this family: {OTHERWISE}")
    return found


def permuted(value: Tensor, heads: int) -> Tensor:
    """Rows [H D] of a projection, those of the two halves of a head in turns."""
    return value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _tensors(policy: TransformerPolicy, family: Family, config: Any) -> Iterator[tuple[str, Tensor]]:
    """As the file holds them, in fp32."""
    if config.rope_parameters.get("rope_type") == "llama3":
        yield SCALES, scales_of(config)
    state = policy.weights.plain_state()
    own = {name for name, _ in policy.model.named_parameters(remove_duplicate=False)}
    tied = policy.model.get_input_embeddings().weight.data_ptr()
    for name, value in state.items():
        if name == "lm_head.weight" and value.data_ptr() == tied:
            continue
        if ".rotary_emb." in name or (name not in own and "norm" not in name and not name.endswith(("weight", "bias"))):
            continue
        value = value.detach().cpu().float()
        if family.permute and ".q_proj." in name:
            value = permuted(value, config.num_attention_heads)
        if family.permute and ".k_proj." in name:
            value = permuted(value, config.num_key_value_heads)
        if family.shift and name.endswith("norm.weight"):
            value = value + family.shift
        yield gguf_name(family, config.num_hidden_layers, name), value


def refuse_unwritten(name: str, config: Any) -> Family:
    """config: of a text model, all that need be known of it.

    Raises:
        UserError: the family is not known here, or the model has what llama.cpp does not expect of its family.
    """
    family = family_of(config)
    rope = config.rope_parameters
    parts = (rope.get("full_attention", rope), rope.get("sliding_attention", {}))
    odd = {part.get("rope_type", "default") for part in parts} - {"default", "linear", "yarn"}
    if family.architecture == gguf.MODEL_ARCH.LLAMA and rope.items() >= LLAMA3.items():
        odd -= {"llama3"}
    every = {"gemma2": 2, "gemma3_text": 6}.get(config.model_type, 1)
    slide = [(number + 1) % every != 0 for number in range(config.num_hidden_layers)]
    slides = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ()]
    head = getattr(config, "head_dim", None)
    unlike = {
        f"positions that are scaled by {', '.join(odd)}": bool(odd),
        "a sliding window": not family.shift and bool(getattr(config, "use_sliding_window", False)),
        "a head of its own": bool(family.shift) and not config.tie_word_embeddings,
        "attention of another scale than its heads'": getattr(config, "query_pre_attn_scalar", head) != head,
        "layers that slide elsewhere": every > 1 and slides != slide,
    }
    for what, there in unlike.items():
        if there:
            raise UserError(f"{name} has {what}, which GGUF files of its family cannot say: {OTHERWISE}")
    return family


def _write_sizes(writer: gguf.GGUFWriter, family: Family, config: Any) -> None:
    gemma = bool(family.shift)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None)
    context = config.max_position_embeddings
    writer.add_block_count(config.num_hidden_layers)
    # llama.cpp does not slide in this family; within the window nothing differs.
    writer.add_context_length(min(context, window) if window and config.model_type == "mistral" else context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_vocab_size(config.vocab_size)
    if not gemma:
        writer.add_rope_dimension_count(head)
    rope = config.rope_parameters
    whole = rope.get("full_attention", rope)
    if theta := whole.get("rope_theta"):
        writer.add_rope_freq_base(theta)
    if theta := rope.get("sliding_attention", {}).get("rope_theta"):
        writer.add_rope_freq_base_swa(theta)
    if whole.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(whole["rope_type"]))
        writer.add_rope_scaling_factor(whole["factor"])
        if original := whole.get("original_max_position_embeddings"):
            writer.add_rope_scaling_orig_ctx_len(original)
    if gemma and window:
        writer.add_sliding_window(window)
    if cap := getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(cap)
    if cap := getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(cap)


@torch.no_grad()
def _compared(policy: TransformerPolicy, file: Path, dtype: str, texts: Sequence[str]) -> str:
    """Inside `merged`.

    Raises:
        UserError: weights, token ids or log-probs of what the file holds are others.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = dequantised(file, Path(scratch) / "read")
        saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        mine = policy.weights.plain_state()
        for name, value in saved.named_parameters():
            meant = mine[name].detach().cpu().float()
            rounded = meant if meant.ndim == 1 else _rounded(meant, dtype)
            if not torch.allclose(value, rounded, rtol=1e-6, atol=1e-7):
                raise UserError(f"the weight {name} in {file.name} is not what was meant: {OTHERWISE}")
        frequencies = dict(policy.model.named_buffers())
        for name, value in saved.named_buffers():
            own = frequencies.get(name)
            if own is not None and not torch.allclose(value, own.cpu().to(value.dtype), rtol=1e-2, atol=0):
                raise UserError(f"positions in {file.name} are not scaled as in the model ({name}): {OTHERWISE}")
        for text in texts[:TEXTS]:
            given = {"add_special_tokens": False}
            if tokenizer(text, **given)["input_ids"] != policy.tokenizer(text, **given)["input_ids"]:
                raise UserError(f"the tokenizer in {file.name} reads {text[:60]!r} as other tokens: {OTHERWISE}")
        # transformers takes the family's habit, llama.cpp what the file says.
        said = gguf.GGUFReader(file).fields.get("tokenizer.ggml.add_space_prefix")
        if said is not None and said.contents() != policy.tokenizer.tokenize("x")[0].startswith("▁"):
            raise UserError(f"the space before the first word in {file.name} is not the tokenizer's: {OTHERWISE}")
        # Weights are those; what is left are sizes, positions and scales, which the same weights show.
        state = {name: value.to(policy.model.dtype) for name, value in saved.state_dict().items()}
        saved.to(policy.model.dtype).load_state_dict(state)
        far = 0.0
        for ids in policy.encode.some(4) or [[0, 1, 2, 3]]:
            row = torch.tensor([ids])
            one, other = (
                torch.log_softmax(model(input_ids=row.to(model.device), use_cache=False).logits.float().cpu(), -1)
                for model in (policy.model, saved)
            )
            far = max(far, float((one.exp() * (one - other)).sum(-1).mean().abs()))
        if not far <= 0.05:
            raise UserError(f"{file.name} read back is {far:.2g} nats a token from what was written: {OTHERWISE}")
    number = len(texts[:TEXTS])
    return f"read back: every weight, the token ids of {number} prompts, log-probs up to {far:.1g} nats a token"


def _rounded(value: Tensor, dtype: str) -> Tensor:
    kind = KINDS[dtype]
    return torch.from_numpy(np.asarray(gguf.quants.dequantize(gguf.quants.quantize(value.numpy(), kind), kind)))
