"""Models as people have them: what runs is what the file holds, what is saved is what was trained, or one sentence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch as st
import torch
from conftest import CHAT, make_model, make_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from reference import build
from support import command, refused, save_adapter, train_words, words, write_rows
from test_load import cache, with_code, write_gguf  # noqa: F401
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    LlamaForSequenceClassification,
)
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

from srlm import SelfRewardConfig
from srlm.errors import UserError
from srlm.policies.transformer import TransformerPolicy, anatomy
from srlm.policies.transformer.load import brought as brought_module
from srlm.policies.transformer.load.hub import adapter_folder, load_model
from srlm.policies.transformer.log_prob import reads_trees
from srlm.prompts import sources
from srlm.prompts.sources import load_prompts
from srlm.types import Prompts


def saved(folder: Path, model: torch.nn.Module, chat: str | None = CHAT, **tokenizer) -> Path:
    model.save_pretrained(folder)
    made = make_tokenizer()
    made.chat_template = chat
    for name, value in tokenizer.items():
        setattr(made, name, value)
    made.save_pretrained(folder)
    return folder


def config_of(folder: Path, **changes) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def load(folder: Path, **options) -> TransformerPolicy:
    return TransformerPolicy.load(str(folder), **({"dtype": "fp32", "lora_rank": 0, "max_new_tokens": 6} | options))


# The model that runs is the model in the file


def test_weights_that_the_model_does_not_use(tmp_path):
    fewer = config_of(saved(tmp_path / "fewer", make_model()), num_hidden_layers=1)
    with pytest.raises(UserError, match=r"holds 9 weights that a LlamaForCausalLM .* \(model.layers.1"):
        load_model(str(fewer))
    head = LlamaForSequenceClassification(make_model().config)
    with pytest.raises(UserError, match=r"score\.weight"):
        load_model(str(saved(tmp_path / "head", head)))
    biased = saved(tmp_path / "biased", build("llama", attention_bias=True, vocab_size=259))
    with pytest.raises(UserError, match="bias"):
        load_model(str(config_of(biased, attention_bias=False)))


def test_buffers_of_old_checkpoints_are_no_weights(tmp_path):
    folder = saved(tmp_path / "old", make_model())
    file = folder / "model.safetensors"
    tensors = st.load_file(file) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    st.save_file(tensors, file, metadata={"format": "pt"})
    load_model(str(folder))


def test_encoder_decoders_are_refused_by_name(tmp_path):
    config = BartConfig(
        vocab_size=259, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"encoder–decoder \(bart\), of which only the decoder"):
        load_model(str(config_of(saved(tmp_path / "bart", BartForCausalLM(config)), is_encoder_decoder=True)))


def test_a_model_that_looks_ahead_is_no_causal_one(tmp_path):
    folder = config_of(saved(tmp_path / "both", build("gemma3_text", vocab_size=259)), use_bidirectional_attention=True)
    with pytest.raises(UserError, match="lets a token change what stands before it"):
        load_model(str(folder), dtype="fp32")


def test_weights_that_are_no_numbers(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = torch.nan
    with pytest.raises(UserError, match=r"not finite numbers \(model.layers.1.mlp.up_proj.weight\)"):
        load_model(str(saved(tmp_path / "nan", model)))


def test_a_parent_folder_names_the_checkpoint_in_it(tmp_path):
    saved(tmp_path / "out" / "checkpoint-500", make_model())
    with pytest.raises(UserError, match=r"give .*checkpoint-500"):
        load_model(str(tmp_path / "out"))


def test_attention_of_another_machine(tmp_path):
    folder = config_of(saved(tmp_path / "flash", make_model()), attn_implementation="flash_attention_2")
    model, _ = load_model(str(folder))
    assert model.config._attn_implementation == "sdpa"


ROPE = {"rope_theta": 10000.0}


@pytest.mark.usefixtures("cache")
class TestGGUF:
    def test_a_part_of_a_split_file(self, tmp_path):
        file = write_gguf(tmp_path / "a-00001-of-00002.gguf", more=lambda w: w.add_uint16("split.count", 2))
        with pytest.raises(UserError, match="one of 2 parts of a split model: merge them first"):
            load_model(str(file))

    def test_tensors_that_are_missing_or_unknown(self, tmp_path):
        file = write_gguf(tmp_path / "a.gguf", keep=lambda name: "blk.1.ffn_up" not in name)
        with pytest.raises(UserError, match=r"lacks 1 of the weights .*model.layers.1.mlp.up_proj"):
            load_model(str(file))

        def bias(writer):
            writer.add_tensor("blk.0.attn_q.bias", torch.ones(32).numpy())

        with pytest.raises(UserError, match="holds 32 numbers more than a LlamaForCausalLM has"):
            load_model(str(write_gguf(tmp_path / "b.gguf", more=bias)))

    @pytest.mark.parametrize(
        ("kind", "more"), [("linear", {}), ("yarn", {"original_max_position_embeddings": 64})], ids=["linear", "yarn"]
    )
    def test_scaled_positions_are_kept(self, tmp_path, kind, more):
        scaling = {"rope_parameters": ROPE | {"rope_type": kind, "factor": 4.0} | more}

        def write(writer):
            writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
            writer.add_rope_scaling_factor(4.0)
            if more:
                writer.add_rope_scaling_orig_ctx_len(64)

        model, _ = load_model(str(write_gguf(tmp_path / "a.gguf", more=write, **scaling)), dtype="fp32")
        row = torch.arange(3, 200)[None]
        assert torch.allclose(model(row).logits, make_model(vocab=260, **scaling)(row).logits, atol=1e-3)
        assert not torch.allclose(model(row).logits, make_model(vocab=260)(row).logits, atol=1e-1)

    def test_positions_scaled_in_another_way_are_refused(self, tmp_path):
        odd = torch.tensor([1.0, 2.0, 3.0, 4.0]).numpy()
        file = write_gguf(tmp_path / "a.gguf", more=lambda w: w.add_tensor("rope_freqs.weight", odd))
        with pytest.raises(UserError, match=r"scales its positions \(rope_freqs\) in a way that is dropped"):
            load_model(str(file))

    def test_the_end_of_a_turn_is_an_end(self, tmp_path):
        file = write_gguf(tmp_path / "a.gguf", more=lambda w: w.add_eot_token_id(0))
        assert load(file).decoding.eos == {0, 2}


# Prompts and templates


def test_the_end_of_turn_of_a_base_models_template_ends_a_response(tmp_path):
    folder = saved(tmp_path / "base", make_model(), eos_token="<|endoftext|>")
    for name in ("config.json", "generation_config.json"):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 0}))
    assert load(folder).decoding.eos == {0, 2}
    assert load(folder, raw_prompts=True).decoding.eos == {0}


@pytest.mark.parametrize("odd", [{}, [[2]], "2", None])
def test_ends_that_are_no_ids_are_left_out(tmp_path, odd):
    file = saved(tmp_path / "odd", make_model()) / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": odd}))
    assert load(file.parent).decoding.eos == {2}


def test_a_prompt_that_brings_its_own_bos_has_one(tmp_path):
    folder = saved(tmp_path / "bos", make_model(), chat=None)
    policy = load(folder)
    policy.tokenizer._tokenizer.post_processor = None
    from tokenizers.processors import TemplateProcessing

    policy.tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    assert policy.encode("Hi")[0] == 1 and policy.encode("<|im_start|>Hi") == policy.encode("Hi")


TEMPLATES = {
    "raises": ("{{ raise_exception('System role not supported') }}", "System role not supported"),
    "is broken": ("{% for m in messages %}{{ m['content'] }", "unexpected"),
    "knows no such name": ("{{ messages[0].nothing.at_all }}", "no attribute"),
    "never ends": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x",
        "it took more than 0.3 s",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_fails_is_a_sentence(tmp_path, monkeypatch, name):
    template, said = TEMPLATES[name]
    if name == "never ends":
        monkeypatch.setattr("srlm.policies.transformer.encode.TEMPLATE_SECONDS", 0.3)
        monkeypatch.setattr("srlm.policies.transformer.text.TEMPLATE_SECONDS", 0.3)
    folder = saved(tmp_path / "model", make_model(), chat=template)
    file = write_rows(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    sentence = refused("train", *words(model=folder, prompts=file, output=tmp_path / "run", held_out_share=0))
    assert "does not take prompt 1 with the turns user" in sentence and said in sentence
    assert not (tmp_path / "run").exists()


def test_tokens_beyond_the_embeddings(tmp_path):
    folder = tmp_path / "model"
    make_model().save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["[PAD]"])
    tokenizer.save_pretrained(folder)
    file = write_rows(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "What does [PAD] mean?"}])
    said = refused("train", *words(model=folder, prompts=file, output=tmp_path / "run", held_out_share=0))
    assert "prompt 2 holds the token '[PAD]' with id 259, but" in said and "embeds 259 ids only" in said


# Positions and windows


def test_positions_that_switch_are_refused_before_they_do(tmp_path):
    rope = {
        **ROPE, "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    model = build("phi3", vocab_size=259, rope_parameters=rope, original_max_position_embeddings=64)
    policy = load(saved(tmp_path / "phi3", model, chat=None), max_new_tokens=40)
    policy.check_prompts(Prompts.uniform(["a" * 24]), 2)
    with pytest.raises(UserError, match=r"exceeds the context of 64 .*from 64 tokens on its longrope"):
        policy.check_prompts(Prompts.uniform(["a" * 25]), 2)


def test_a_window_through_which_the_model_does_not_look():
    plain, mistral = build("llama"), build("mistral", sliding_window=40)
    assert reads_trees(plain) and reads_trees(mistral)
    plain.config.sliding_window = 60  # longer than a plain probe
    assert not reads_trees(plain)
    assert plain.config.sliding_window == 60


# The model that is saved is the model that was trained


def fp8(folder: Path) -> Path:
    """As Qwen3-FP8 and DeepSeek are stored: blocks of 128 with a scale each."""
    model = build(
        "qwen3", scale=2.0, vocab_size=259, hidden_size=128, intermediate_size=128, head_dim=32, num_key_value_heads=4
    )
    saved(folder, model)
    tensors = {}
    for name, value in st.load_file(folder / "model.safetensors").items():
        if name.endswith("proj.weight"):
            blocks = value.view(value.shape[0] // 128, 128, value.shape[1] // 128, 128)
            scale = blocks.abs().amax((1, 3)) / 448
            tensors[name] = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn).view(value.shape)
            tensors[f"{name}_scale_inv"] = scale
        else:
            tensors[name] = value
    st.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    how = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3"}
    return config_of(folder, quantization_config=how)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_quantised_weights_are_trained_and_saved_as_plain_ones(tmp_path, prompts_file, lora_rank):
    given = {"model": fp8(tmp_path / "fp8"), "prompts": prompts_file, "output": tmp_path / "run", "rounds": 1}
    assert command(*train_words(**given, lora_rank=lora_rank, learning_rate=1e-3)).code == 0
    assert "quantization_config" not in json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")


def test_other_quantised_weights_are_refused(tmp_path):
    folder = config_of(saved(tmp_path / "m", make_model()), quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UserError, match="quantised with gptq, which training cannot write back"):
        load_model(str(folder))


def test_a_model_that_brings_its_code_is_trained_and_saved(tiny, prompts_file, tmp_path):
    folder = with_code(tiny, tmp_path / "own", tmp_path / "ran", "own")
    given = {"model": folder, "prompts": prompts_file, "output": tmp_path / "run", "rounds": 1}
    assert command(*train_words(**given, trust_remote_code=True)).code == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("room", [True, False])
def test_a_model_that_is_not_saved_as_it_was_trained_is_not_called_saved(
    tiny, prompts_file, tmp_path, monkeypatch, room
):
    if not room:  # for a second model on the device: weights are compared instead

        def full(*_):
            raise torch.OutOfMemoryError

        monkeypatch.setattr("srlm.policies.transformer.weights._apart", full)
        given = {"model": tiny, "prompts": prompts_file, "output": tmp_path / "fine", "rounds": 1}
        assert command(*train_words(**given)).code == 0
    from srlm.policies.transformer.weights import Weights

    save = Weights.save_model

    def forgets_the_adapter(self, folder, tokenizer):
        save(self, folder, tokenizer)
        shutil.copy(tiny / "model.safetensors", folder / "model.safetensors")

    monkeypatch.setattr(Weights, "save_model", forgets_the_adapter)
    run = tmp_path / "run"
    said = refused(*train_words(model=tiny, prompts=prompts_file, output=run, rounds=1))
    assert "differs from the one that was trained by" in said
    assert not (run / "model").exists() and (run / "round-001" / "adapter").exists()
    monkeypatch.undo()
    assert command("train", "--resume", run).code == 0 and (run / "model").exists()


def test_a_router_gets_no_adapter(tmp_path, prompts_file):
    model = build("phimoe", vocab_size=259, num_local_experts=4, num_experts_per_tok=2)
    given = {"model": saved(tmp_path / "m", model), "prompts": prompts_file, "output": tmp_path / "run", "rounds": 1}
    assert command(*train_words(**given)).code == 0


def test_a_linear_layer_of_its_own_class_gets_one(tmp_path):
    torch.manual_seed(0)
    config = FalconConfig(vocab_size=259, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    adapted = load(saved(tmp_path, FalconForCausalLM(config)), lora_rank=4)
    names = " ".join(adapted.trainable())
    assert all(f"{name}.lora_A" in names for name in ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"))


def test_a_cache_that_cannot_branch(tmp_path, prompts_file):
    model = build("minimax", vocab_size=259, num_local_experts=4, num_experts_per_tok=2)
    given = {"model": saved(tmp_path / "m", model), "prompts": prompts_file, "output": tmp_path / "run", "rounds": 1}
    assert "keeps its state in a way srlm cannot branch" in refused(*train_words(**given, lora_rank=0))


# Adapters in folders


ROW = torch.arange(3, 60)[None]


def logits(folder: Path, **options) -> torch.Tensor:
    with torch.no_grad():
        return load_model(str(folder), dtype="fp32", **options)[0](input_ids=ROW).logits


def test_an_adapter_folder_is_its_base_with_it(tiny, tmp_path, prompts_file):
    merged = save_adapter(tiny, tmp_path / "adapter")
    wanted = merged(input_ids=ROW).logits
    assert torch.allclose(logits(tmp_path / "adapter"), wanted, atol=1e-4)
    given = {"model": tmp_path / "adapter", "prompts": prompts_file, "output": tmp_path / "run", "rounds": 1}
    outcome = command(*train_words(**given))
    assert outcome.code == 0 and f"is merged into {tiny}: what is trained starts from there" in outcome.out
    assert "holds nothing but a LoRA adapter" in refused(
        *train_words(**given | {"output": tmp_path / "no"}, adapter="ignore")
    )


def test_an_adapter_goes_on_being_trained(tiny, tmp_path, prompts_file):
    merged = save_adapter(tiny, tmp_path / "adapter")
    start = TransformerPolicy.load(str(tmp_path / "adapter"), adapter="continue", dtype="fp32", max_new_tokens=4)
    wanted = merged(input_ids=ROW).logits
    assert torch.allclose(start.model(input_ids=ROW).logits, wanted, atol=1e-4)
    run, again = tmp_path / "run", tmp_path / "again"
    given = {"model": tmp_path / "adapter", "prompts": prompts_file, "adapter": "continue", "rounds": 2}
    outcome = command(*train_words(**given, output=run))
    assert outcome.code == 0 and "(rank 4) goes on being trained" in outcome.out + outcome.err
    assert not torch.allclose(logits(run / "model"), wanted, atol=1e-3)

    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    saved = PeftModel.from_pretrained(base, str(run / "adapter")).eval()  # peft's own reading, on the base it names
    assert saved.peft_config["default"].base_model_name_or_path == str(tiny)
    assert torch.allclose(saved(input_ids=ROW).logits, logits(run / "model"), atol=1e-4)

    start.load_weights(run / "round-002" / "adapter")
    with start.initial():
        assert torch.allclose(start.model(input_ids=ROW).logits, wanted, atol=1e-4)
    assert not torch.allclose(start.model(input_ids=ROW).logits, wanted, atol=1e-3)
    start.reset()
    assert torch.allclose(start.model(input_ids=ROW).logits, wanted, atol=1e-4)

    shutil.copytree(run, again)
    assert command("train", "--resume", again, "--from-round", "1").code == 0
    assert torch.equal(logits(again / "model"), logits(run / "model"))


def test_an_adapter_that_cannot_go_on(tiny, tmp_path, prompts_file):
    save_adapter(tiny, tmp_path / "adapter")
    given = {"model": tmp_path / "adapter", "prompts": prompts_file, "output": tmp_path / "run", "adapter": "continue"}
    assert "--adapter is 'continue', expected merge" in refused(*train_words(**given, lora_rank=0))
    config = tmp_path / "adapter" / "adapter_config.json"
    about = json.loads(config.read_text())
    config.write_text(json.dumps(about | {"r": 3}))
    assert "does not fit its base model" in refused(*train_words(**given))
    config.write_text(json.dumps(about | {"trainable_token_indices": [5]}))
    assert "trains single tokens" in refused(*train_words(**given))
    config.write_text(json.dumps(about | {"peft_type": "IA3"}))
    assert "expected LORA" in refused(*train_words(**given))


def brought(folder: Path, *, tied: bool = True, whole: bool = False, **config) -> torch.Tensor:
    """A folder with an adapter on a model in a folder beside it; next-token log-probs of peft's own reading. whole: the
    weights of embeddings that have layers are saved, too, as peft does by itself."""
    model = make_model()
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0).clone())
    base = saved(folder / "base", model)
    joined = get_peft_model(model, LoraConfig(r=4, **config))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in joined.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                value.normal_(0, 0.3)
        joined.peft_config["default"].base_model_name_or_path = str(base)
        joined.save_pretrained(folder / "adapter", save_embedding_layers=whole)
        return joined.eval()(input_ids=ROW).logits.log_softmax(-1)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layer", ["embed_tokens", "lm_head"])
def test_layers_at_embedding_or_head_are_of_one_of_them(tmp_path, layer, tied, whole):
    wanted = brought(tmp_path, tied=tied, whole=whole, target_modules=["q_proj", layer])
    assert torch.allclose(logits(tmp_path / "adapter").log_softmax(-1), wanted, atol=1e-4)
    given = {"adapter": "continue", "dtype": "fp32", "max_new_tokens": 4}
    if layer == "lm_head":
        with pytest.raises(UserError, match=r"layers at the head.*merge it with --adapter merge"):
            TransformerPolicy.load(str(tmp_path / "adapter"), **given)
        return
    policy = TransformerPolicy.load(str(tmp_path / "adapter"), **given)
    with torch.no_grad():
        assert torch.allclose(policy.model(input_ids=ROW).logits.log_softmax(-1), wanted, atol=1e-4)
        with policy.merged():
            assert torch.allclose(policy.model(input_ids=ROW).logits.log_softmax(-1), wanted, atol=1e-4)
    policy.save_model(tmp_path / "saved")
    assert torch.allclose(logits(tmp_path / "saved").log_softmax(-1), wanted, atol=1e-4)


@pytest.mark.parametrize("how", ["merge", "continue"])
@pytest.mark.parametrize("config", [{"lora_bias": True}, {"alora_invocation_tokens": [5]}])
def test_layers_that_cannot_be_merged_are_refused_when_they_are_read(tmp_path, config, how):
    brought(tmp_path, target_modules=["q_proj"], **config)
    with pytest.raises(UserError, match="cannot be merged into its base model"):
        TransformerPolicy.load(str(tmp_path / "adapter"), adapter=how, dtype="fp32", max_new_tokens=4)


def test_words_that_a_model_masks_keep_no_adapter_from_being_merged(tmp_path, monkeypatch):
    wanted, said = brought(tmp_path, target_modules=["q_proj"]), brought_module._said

    def masked(model: Any) -> torch.Tensor:
        return said(model).index_fill(-1, torch.tensor([0]), -torch.inf)

    monkeypatch.setattr(brought_module, "_said", masked)
    assert torch.allclose(logits(tmp_path / "adapter").log_softmax(-1), wanted, atol=1e-4)


def test_an_adapter_that_says_something_else_once_merged_is_refused(tmp_path, monkeypatch):
    brought(tmp_path, target_modules=["q_proj"])
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: 0 * self.weight)
    with pytest.raises(UserError, match="says something else when it is merged"):
        load_model(str(tmp_path / "adapter"), dtype="fp32")


def test_a_model_beside_an_adapter_has_to_be_explained(tiny, tmp_path):
    both = shutil.copytree(tiny, tmp_path / "both")
    merged = save_adapter(tiny, both)
    with pytest.raises(UserError, match="say --adapter ignore if the weights are merged already, or --adapter merge"):
        load_model(str(both))
    assert torch.allclose(logits(both, adapter="ignore"), logits(tiny), atol=1e-6)
    assert torch.allclose(logits(both, adapter="merge"), merged(input_ids=ROW).logits, atol=1e-4)


def test_an_adapter_of_another_model(tiny, tmp_path):
    save_adapter(tiny, tmp_path / "adapter")
    other = saved(tmp_path / "other", make_model(layers=1))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(saved(other, build("gpt2", vocab_size=259)))})
    )
    with pytest.raises(UserError, match="does not fit its base model"):
        load_model(str(tmp_path / "adapter"))


def test_an_adapter_on_the_hub_is_fetched_and_put_on_its_base(tiny, tmp_path, monkeypatch):
    """As the Hub's cache holds it; there is no network here."""
    home = tmp_path / "hub" / "models--someone--adapter"
    merged = save_adapter(tiny, home / "snapshots" / ("0" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    for name, value in {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": True}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    adapter_folder.cache_clear()
    assert adapter_folder("someone/adapter") == home / "snapshots" / ("0" * 40)
    assert torch.allclose(logits("someone/adapter"), merged(input_ids=ROW).logits, atol=1e-4)
    policy = TransformerPolicy.load("someone/adapter", adapter="continue", dtype="fp32", max_new_tokens=4)
    assert any("someone/adapter" in note and "goes on being trained" in note for note in policy.notes)
    assert adapter_folder("someone/else") == Path("someone/else")
    adapter_folder.cache_clear()


# Sizes and names


def test_more_than_a_machine_holds(tiny, tmp_path, prompts_file):
    given = {"model": tiny, "prompts": prompts_file, "output": tmp_path / "run"}
    for option in ({"num_samples": 10**11}, {"max_new_tokens": 10**12}):
        assert "GB for their tokens alone" in refused(*train_words(**given | option))
    assert "expected at most 32, the full rank" in refused(*train_words(**given, lora_rank=10**8))
    assert not (tmp_path / "run").exists()


def test_memory_that_is_too_small(tiny, tmp_path, prompts_file, monkeypatch):
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError(),
    ):

        def fails(*_, error=error, **__):
            raise error

        monkeypatch.setattr(TransformerPolicy, "sample", fails)
        run = tmp_path / type(error).__name__
        said = refused(*train_words(model=tiny, prompts=prompts_file, output=run))
        assert "memory is too small" in said and "--token-budget" in said and "--resume" in said


@pytest.mark.parametrize("name", ["a\udcffb", "a\0b"])
def test_names_that_are_no_text(tiny, name, prompts_file):
    assert "--output is" in refused(*train_words(model=tiny, prompts=prompts_file, output=name))
    assert "--prompts is" in refused(*train_words(model=tiny, prompts=name))
    assert "folders is" in refused("report", name)
    with pytest.raises(UserError, match="--output is"):
        SelfRewardConfig(output=name)


@pytest.mark.parametrize("words", [["--help"], ["train", "--help-all"], ["train", "--print-config"]])
def test_a_reader_that_has_enough(words):
    reading, writing = os.pipe()
    os.close(reading)
    made = subprocess.run([sys.executable, "-m", "srlm.cli", *words], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert made.returncode in (0, 128 + signal.SIGPIPE) and not made.stderr  # argparse drops what it cannot print


@pytest.mark.parametrize("column", ["prompt", "answer"])
def test_a_parquet_file_that_expands(tmp_path, column, monkeypatch):
    """A dictionary of one long text, and many rows that name it."""
    monkeypatch.setattr(sources, "MOST_BYTES", 2**20)
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 50_000, pa.int32()), pa.array(["x" * 10_000]))
    rows = pa.table({"prompt": pa.array(["a"] * 50_000)} | {column: text.cast(pa.string())[:50_000]})
    pq.write_table(rows, tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 2**18
    with pytest.raises(UserError, match=r"bomb\.parquet holds more than .* of prompts"):
        load_prompts(tmp_path / "bomb.parquet")
    monkeypatch.setattr(sources, "MOST_BYTES", 2**10)
    with pytest.raises(UserError, match=r"bomb\.parquet holds a row group of"):
        load_prompts(tmp_path / "bomb.parquet")


def test_an_adapter_of_which_peft_drops_a_part(tmp_path):
    base = saved(tmp_path / "base", build("laguna", vocab_size=259))
    load(base, lora_rank=4).save_weights(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"peft finds no place for 6 of the weights .*shared_experts"):
        load_model(str(tmp_path / "adapter"))


# What readers found


def test_a_raw_prompt_keeps_the_end_that_was_written(tmp_path):
    policy = load(saved(tmp_path / "a", make_model()), raw_prompts=True)
    written, plain = policy.encode("Hi<|im_end|>"), policy.encode("Hi")
    assert written == [*plain, 2] and 2 in policy.decoding.eos
    from tokenizers.processors import TemplateProcessing

    policy = load(tmp_path / "a", raw_prompts=True)
    core = policy.tokenizer._tokenizer
    core.post_processor = TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", 2)])
    assert policy.encode("Hi") == plain and policy.encode("Hi<|im_end|>") == written


def test_a_saved_model_ends_where_it_was_trained_to(tmp_path):
    folder = saved(tmp_path / "base", make_model(), eos_token="<|endoftext|>")
    for name in ("config.json", "generation_config.json"):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 0}))
    for raw, ends in ((False, [0, 2]), (True, 0)):
        policy = load(folder, raw_prompts=raw)
        policy.encode("Hi")
        policy.save_model(tmp_path / f"out-{raw}")
        assert json.loads((tmp_path / f"out-{raw}" / "generation_config.json").read_text())["eos_token_id"] == ends


def test_there_has_to_be_an_adapter_to_go_on_with(tiny, tmp_path, prompts_file):
    said = refused(*train_words(model=tiny, prompts=prompts_file, output=tmp_path / "run", adapter="continue"))
    assert "brings no LoRA adapter" in said
    save_adapter(tiny, tmp_path / "adapter")
    given = {"model": tmp_path / "adapter", "prompts": prompts_file, "adapter": "continue", "lora_alpha": 8.0}
    assert "--lora-alpha is 8.0, which nothing would heed" in refused(*train_words(**given, output=tmp_path / "run"))
    laid_out = anatomy.unloaded(
        str(tmp_path / "adapter"), dtype="fp32", adapter="continue", rank=16, trust_remote_code=False
    )
    assert {layer.r["default"] for layer in laid_out.modules() if isinstance(layer, Linear)} == {4}


def test_a_config_beside_an_adapter_is_no_whole_model(tiny, tmp_path):
    merged = save_adapter(tiny, tmp_path / "adapter")
    shutil.copy(tiny / "config.json", tmp_path / "adapter")
    model, _ = load_model(str(tmp_path / "adapter"), dtype="fp32")
    assert torch.allclose(model(input_ids=ROW).logits, merged(input_ids=ROW).logits, atol=1e-4)


def test_an_adapter_that_transformers_put_on_unasked(tiny, tmp_path, monkeypatch):
    joined = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(r=2, target_modules=["q_proj"]))
    found = {"missing_keys": [], "unexpected_keys": []}
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: (joined.get_base_model(), found))
    with pytest.raises(UserError, match=r"brings a LoRA adapter beside its config\.json.*expected a folder"):
        load_model(str(tiny))


def test_a_trained_copy_of_a_tied_head_is_said(tmp_path):
    brought(tmp_path, target_modules=["q_proj"], modules_to_save=["lm_head"])
    policy = TransformerPolicy.load(str(tmp_path / "adapter"), adapter="continue", dtype="fp32", max_new_tokens=4)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.add_(0.1)
    policy.encode("Hi")
    policy.save_model(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert not torch.equal(plain.get_output_embeddings().weight, plain.get_input_embeddings().weight)


@pytest.mark.parametrize(("family", "takes"), [("llama", "sdpa"), ("gemma2", "eager")])
def test_who_asks_for_flash_attention_gets_what_there_is(tmp_path, monkeypatch, family, takes):
    folder = config_of(saved(tmp_path / "flash", build(family)), attn_implementation="flash_attention_2")
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", False)
    assert load_model(str(folder))[0].config._attn_implementation == takes


def test_a_broken_tokenizer_beside_an_adapter_is_a_sentence(tiny, tmp_path, prompts_file):
    save_adapter(tiny, tmp_path / "adapter")
    (tmp_path / "adapter" / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}')
    said = refused(*train_words(model=tmp_path / "adapter", prompts=prompts_file, output=tmp_path / "run"))
    assert "cannot load the tokenizer beside the adapter" in said
