"""A tiny random fp32 model of any class of transformers, and a byte-level tokenizer for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>")
ENDS = ("pad_token_id", "bos_token_id", "eos_token_id")
VOCABULARY = 256 + len(SPECIAL)
MOST_PARAMETERS = 20_000_000
SCALE = 6.0  # of random matrices: away from uniform, so that a wrong mask or position shows

# value -> fields that take it, where a config has them
SIZES: dict[int, str] = {
    128: "index_topk",  # of keys, by a score that ties where greedy text repeats itself: longer than that text
    512: "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length max_target_positions "
    "max_source_positions original_max_position_embeddings rel_extent keep_window_size",
    VOCABULARY: "vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size shape_vocab_size "
    "pronunciation_vocab_size",
    64: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim dim_ff dff d_inner ffn_hidden_size "
    "feed_forward_size dense_intermediate_size intermediate_size_mlp mamba_d_ssm ffn_inner_hidden_size "
    "ngram_vocab_size_base n_inner",
    32: "hidden_size d_model n_embd embedding_size emb_dim word_embed_proj_dim lru_width input_embedding_size "
    "output_embedding_size shape_embed_dim pronunciation_embed_dim embedding_dim ple_embed_dim hidden_size_global "
    "index_n_heads",
    16: "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size shared_intermediate_size "
    "shared_experts_intermediate_size moe_shared_expert_intermediate_size q_lora_rank kv_lora_rank o_lora_rank "
    "v_head_dim hidden_size_per_layer_input router_hidden_size dim_model_base gated_norm_rank mamba_chunk_size "
    "chunk_size hc_lowrank sliding_window sliding_window_size window_size attention_window_size local_attention "
    "attention_chunk_size index_head_dim adapter_rank laurel_rank prompt_mid_dim mamba_d_head "
    "mamba_head_dim",
    8: "head_dim dim_head d_head qk_nope_head_dim qk_rope_head_dim linear_key_head_dim linear_value_head_dim "
    "linear_head_dim swa_head_dim mamba_d_state ssm_state_size state_size kv_channels attention_head_size "
    "rotary_dim time_step_rank mamba_dt_rank query_pre_attn_scalar conv1d_width block_multiple_of d_rel "
    "split_ngram_parts make_ngram_vocab_size_divisible_by",
    4: "num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads decoder_attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads linear_num_value_heads "
    "linear_num_heads mamba_n_heads mamba_num_heads num_experts num_local_experts n_routed_experts moe_num_experts "
    "index_block_size",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
    "num_decoder_layers linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k n_group "
    "num_expert_group o_groups n_groups n_mamba_heads zero_expert_num index_topk_blocks hc_mult hc_count "
    "num_layers_per_stack heads_per_ngram num_blocks",
    1: "topk_group num_nextn_predict_layers first_k_dense_replace moe_layer_end_index num_kv_shared_layers",
}
SMALL = {name: value for value, names in SIZES.items() for name in names.split()}
FEW = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "num_kv_shared_layers")  # never raised
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_query_groups")

_DEPTH = {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16}
_DOTS = {  # layers that slide have sizes of their own
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 16,
    "head_dim": 16,
    "num_key_value_heads": 4,
}
# model type -> what sizes alone do not get right, or defaults leave out
EXTRA: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 1000},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}, "ffn_config": {"moe_top_k": 2}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": _DOTS,
    "gemma3n_text": {"intermediate_size": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_hidden_layers": 16},  # what its stacks and cycles come to
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "mllama": {"text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1]}},
    "moshi": {"sliding_window": 512},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": {**_INDEXER, "indexer_compress_ratio": 4}},
    "qwen4_exp_text": {**_INDEXER, "indexer_compress_ratio": 4},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 32]},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "youtu": {"initializer_range": 0.02},
    "zamba": _DEPTH,
    "zamba2": _DEPTH,
}


def tiny_config(kind: str) -> PreTrainedConfig:
    """The default configuration of a class, shrunk: one layer of every kind that it has, at least two."""
    return _shrunk(CONFIG_MAPPING[kind](), EXTRA.get(kind, {}))


def _shrunk(default: Any, more: Mapping[str, Any]) -> Any:
    fields = default.to_dict()
    changes = {name: value for name, value in SMALL.items() if isinstance(fields.get(name), int) and fields[name] > 0}
    changes |= {name: min(changes[name], fields[name]) for name in FEW if name in changes}
    heads = fields.get(default.attribute_map.get("num_attention_heads", "num_attention_heads"))
    for name in KEY_VALUE_HEADS:
        if isinstance(count := fields.get(name), int):
            changes[name] = {heads: 4, 1: 1}.get(count, 2)
    changes |= _layers(default, fields)
    changes |= {name: i for i, name in enumerate(ENDS) if fields.get(name) is not None}
    if "is_decoder" in fields:
        changes["is_decoder"] = True
    for name in default.sub_configs:
        if isinstance(part := getattr(default, name, None), PreTrainedConfig):
            changes[name] = _shrunk(part, more.get(name, {})).to_dict()
    return type(default)(**changes | {name: value for name, value in more.items() if name not in default.sub_configs})


def _layers(default: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Lists with an entry a layer, cut to the first layer of each kind."""
    count = getattr(default, "num_hidden_layers", 0)
    lists = {
        name: value
        for name, value in fields.items()
        if isinstance(value, list) and len(value) == count > 2 and value != list(range(count))
    }
    if not lists:
        return {}
    firsts = {repr(layer): number for number, layer in reversed([*enumerate(zip(*lists.values(), strict=True))])}
    kept = sorted(firsts.values())
    kept += [number for number in range(count) if number not in kept][: max(0, 2 - len(kept))]
    counter = default.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    return {name: [value[i] for i in sorted(kept)] for name, value in lists.items()} | {counter: len(kept)}


def tiny_model(kind: str) -> PreTrainedModel:
    """
    Raises:
        ValueError: it stays large, whatever is asked.
    """
    config = tiny_config(kind)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size / 1e6:.0f}M parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(SCALE)
        for module in model.modules():  # that of the padding token begins at zero, which would hide a leak
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].normal_(0, 0.02 * SCALE)
    return model


def tiny_tokenizer() -> FastTokenizer:
    """A token for every byte, without a chat template."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    names = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    return FastTokenizer(tokenizer_object=core, **names)
