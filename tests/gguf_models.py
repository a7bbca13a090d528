"""Tiny models of the families that GGUF files are written of, with tokenizers that have merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from conftest import CHAT, SPECIAL
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from srlm.policies.transformer.load.cuts import CUTS

TEXT = [line for line in (Path(__file__).parent / "gguf_models.py").read_text().split("\n") if line]
BYTES = [f"<0x{number:02X}>" for number in range(256)]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")


def byte_level(cut: str = "gpt-2") -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = CUTS[cut], decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=400, special_tokens=[*SPECIAL], initial_alphabet=alphabet, show_progress=False),
    )
    bos, eos, unk = SPECIAL[1], SPECIAL[2], SPECIAL[0]
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token=eos, unk_token=unk)
    made.chat_template = CHAT
    return made


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Gemma has it."""
    named = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=named + BYTES, show_progress=False)
    core.train_from_iterator([line.replace(" ", "▁") for line in TEXT], trainer)
    said = json.loads(core.to_str())
    said["added_tokens"] = [token for token in said["added_tokens"] if token["content"] in named]
    core = Tokenizer.from_str(json.dumps(said))
    core.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos>:1 $B:1", [("<bos>", 2)])
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=core, **tokens)
    turns = CHAT.replace("<|im_start|>", "<start_of_turn>").replace("<|im_end|>", "<end_of_turn>")
    made.chat_template = "{{ bos_token }}" + turns
    return made


def save_family(folder: Path, family: str, scale: float = 6.0, **options: Any) -> Path:
    gemma, head = family.startswith("gemma"), {"qwen3": 128, "gemma2": 256, "gemma3_text": 256}.get(family)
    tokenizer = byte_fallback() if gemma else byte_level("qwen2" if family.startswith("qwen") else "gpt-2")
    bos, eos, pad = (2, 1, 0) if gemma else (1, 2, 2)
    own: dict[str, Any] = {} if head is None else {"head_dim": head}
    own |= {"query_pre_attn_scalar": 256, "sliding_window": 64} if gemma else {}
    own |= {"sliding_window": None} if family == "mistral" else {}
    config = transformers.AutoConfig.for_model(
        family,
        **{
            "vocab_size": len(tokenizer) + 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            **dict(bos_token_id=bos, eos_token_id=eos, pad_token_id=pad, **own),
            **options,
        },
    )
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from what they are by default, so that a lost one shows
            parameter.copy_(parameter * scale if parameter.ndim == 2 else parameter + 0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
