"""Independent computations that tests compare with, and tiny random models of many architectures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 97
WINDOW = 4  # shorter than the responses of the tests
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 64}
_ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 16,
}
# Models that read prefix trees: attention, whatever its window, positions, normalisation and head.
TREES: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {},
    "qwen2 with a window": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {},
    "qwen3_moe": _EXPERTS,
    "gemma2": {
        **_ALTERNATING,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {**_ALTERNATING, "query_pre_attn_scalar": 8},
    "mistral": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW},
    "gpt2": _GPT,
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.7},
    "gpt_oss": {**_ALTERNATING, **_EXPERTS},
}
# Models of which one thing or another is tried.
MORE: dict[str, dict[str, object]] = {
    "laguna": {**_EXPERTS, "num_attention_heads_per_layer": [4, 4], "shared_expert_intermediate_size": 16},
    "jetmoe": {**_EXPERTS, "kv_channels": 8},
    "codegen": {**_GPT, "rotary_dim": 8, "n_ctx": 256},
    "moshi": {"ffn_dim": 64, "sliding_window": WINDOW},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "head_dim": 16,
        "num_key_value_heads": 4,
        "mamba_d_state": 8,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": WINDOW},
}
# Models whose positions are slots of a row: no padding on the left.
SLOTS: dict[str, dict[str, object]] = {
    "bart": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
}
# Models that mix tokens by more than masked attention: one plain row per response.
ROWS: dict[str, dict[str, object]] = {
    "mamba": {"state_size": 8},
    "qwen3_next": {**_LINEAR, **_EXPERTS},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "lm_head_multiplier": 0.5,
    },
    # Its window counts slots, not depths, and is longer than what a probe can afford to try.
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 200},
    "llama4_text": {**_EXPERTS, "num_experts_per_tok": 1, "attention_chunk_size": WINDOW, "intermediate_size_mlp": 64},
    "inkling_text": {
        **_EXPERTS,
        "sliding_window_size": WINDOW,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "d_rel": 8,
        "rel_extent": 64,
        "n_routed_experts": 4,
        "logits_mup_width_multiplier": 3.0,
    },
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},  # ALiBi
}


def build(name: str, scale: float = 5.0, **changes: object) -> PreTrainedModel:
    """A random model, away from uniform, so that a wrong mask, position or scale shows in the log-probs."""
    options = {**_SIZES, **(TREES | SLOTS | ROWS | MORE).get(name, {}), **changes}
    config = AutoConfig.for_model(name.split()[0], **options)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(scale)
    return model


@torch.no_grad()
def next_logits(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """fp32 logits [T, V] that predict each token of the response: the model's own forward, no cache, no padding."""
    row = torch.tensor([[*prompt, *response]])
    return model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1].float()


def alone(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> float:
    """log pi(y|x) of one response, in a row of its own."""
    log_p = torch.log_softmax(next_logits(model, prompt, response).double(), -1)
    return float(log_p.gather(-1, torch.tensor(response)[:, None]).sum())


def first_above(probability: np.ndarray, uniform: float) -> int:
    """Inverse CDF by definition: the first word whose cumulative probability exceeds u."""
    total = 0.0
    for word, mass in enumerate(probability):
        total += float(mass)
        if total > uniform:
            return word
    raise AssertionError("uniform lies beyond the total mass")
