"""A tiny random Llama with a byte-level tokenizer, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

settings.register_profile("shared machine", deadline=None)  # how long an example takes says nothing there
settings.load_profile("shared machine")

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def make_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """256 byte tokens and three special ones; pad is EOS, as in many real models."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[2], unk_token=SPECIAL[0]
    )
    tokenizer.chat_template = CHAT if chat else None
    return tokenizer


def make_model(seed: int = 0, layers: int = 2, vocab: int = 259, scale: float = 6.0, **options) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
        **options,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # away from uniform, so that a wrong mask or position shows in the log-probs
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder of a tiny chat model."""
    folder = tmp_path_factory.mktemp("tiny")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """Folder of a tiny base model: no chat template."""
    folder = tmp_path_factory.mktemp("tiny_base")
    make_model(seed=1).save_pretrained(folder)
    make_tokenizer(chat=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Folder of prompts.jsonl and held-out.jsonl, as `support` writes them."""
    from support import write_held_out, write_prompts

    folder = tmp_path_factory.mktemp("data")
    write_prompts(folder)
    write_held_out(folder)
    return folder


@pytest.fixture
def prompts_file(tmp_path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"Say {word}"}) + "\n" for word in ["abc", "def", "gh", "ijklm", "n", "op"])
    )
    return file


@pytest.fixture
def held_out_file(tmp_path) -> Path:
    file = tmp_path / "held-out.jsonl"
    rows = [{"prompt": f"Spell {word}", "answer": word} for word in ["x", "yy", "z"]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
