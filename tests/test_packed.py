"""Bases in 4 and 8 bits. What needs bitsandbytes is skipped without it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from conftest import make_tokenizer
from support import (
    WORDS,
    alive,
    command,
    losses,
    records,
    refused,
    run_and_die,
    save_adapter,
    table,
    train_words,
    weights,
    write_held_out,
    write_prompts,
)
from support import words as words_of
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from srlm import SelfRewardConfig, UserError
from srlm.estimate import Rates, workload
from srlm.estimate.stages import learning, sampling, scoring
from srlm.estimate.workload import laid_out
from srlm.policies.transformer import anatomy, pace
from srlm.policies.transformer.bits import quantised
from srlm.policies.transformer.load import load_model, packed
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.processes import silent
from srlm.policies.transformer.responses import Responses
from srlm.policies.transformer.shape import PACKED
from srlm.starting import as_trained, beginning
from srlm.types import Prompts

PROMPTS = Prompts.uniform(["Say abc", "n", "op op"])
KINDS = ("4bit", "8bit")


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Layers of at least one block of 64."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=259,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            tie_word_embeddings=True,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
        for layer in model.model.layers:
            layer.input_layernorm.weight[:3] = 2.5  # now and then what LLM.int8() would call outliers
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def installed(monkeypatch) -> None:
    """bitsandbytes is, as far as is looked before a model is loaded."""
    monkeypatch.setattr(packed, "installed", lambda: True)


# Refused


def test_settings_that_do_not_go_with_it_are_refused():
    with pytest.raises(UserError, match="--quantize is '3bit', expected none, 4bit or 8bit"):
        SelfRewardConfig(quantize="3bit")
    with pytest.raises(UserError, match="--quantize is '4bit', expected none, since packed weights are not trained"):
        SelfRewardConfig(quantize="4bit", lora_rank=0)
    with pytest.raises(UserError, match="--quantize is '8bit' beside --engine vllm, expected the builtin engine"):
        SelfRewardConfig(quantize="8bit", engine="vllm")


def test_without_bitsandbytes_it_is_said_how_to_get_it(wide, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "installed", lambda: False)
    said = refused(*train_words(model=wide, prompts=write_prompts(tmp_path), output=tmp_path / "run", quantize="4bit"))
    assert "bitsandbytes, which packs the weights, is not installed: run `pip install 'srlm[qlora]'`" in said
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_not_merged_into_packed_weights(wide, tmp_path, installed):
    save_adapter(wide, tmp_path / "adapter")
    with pytest.raises(UserError, match="expected one that need not be merged into packed weights: continue it"):
        TransformerPolicy.load(str(tmp_path / "adapter"), quantize="4bit", max_new_tokens=4)


@pytest.mark.parametrize("method", ["gptq", "fp8", "bitsandbytes"])
def test_weights_that_are_quantised_otherwise_are_refused(wide, tmp_path, installed, method):
    for file in wide.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((wide / "config.json").read_text()) | {"quantization_config": {"quant_method": method}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"has weights quantised with {method}, expected plain ones for --quantize"):
        TransformerPolicy.load(str(tmp_path), quantize="4bit", max_new_tokens=4)


def test_packed_weights_are_not_cut_into_shards(wide, installed, monkeypatch):
    monkeypatch.setattr(packed, "processes", lambda: SimpleNamespace(num_processes=2))
    monkeypatch.setattr(packed, "sharding", lambda: SimpleNamespace())
    with pytest.raises(UserError, match="beside an accelerate config with FSDP, expected none"):
        TransformerPolicy.load(str(wide), quantize="8bit", max_new_tokens=4)


def test_packed_layers_are_estimated_as_such(wide):
    model = anatomy.unloaded(str(wide), dtype="bf16", rank=4, trust_remote_code=False)
    plain, four, eight = (anatomy.shape_of("wide", model, quantize=q) for q in ("none", *KINDS))
    linear = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    assert (plain.packed, plain.folded) == (0, linear) and (four.packed, four.folded) == (linear, 0)
    assert plain.weights - four.weights == pytest.approx(linear * (2 - (4 + 1 / 8 + 1 / 512) / 8))
    assert plain.weights - eight.weights == linear


@pytest.mark.parametrize("kind", KINDS)
def test_unpacking_is_estimated_by_its_bytes(wide, kind):
    """4 bits: by every pass; 8 bits: where gradients go back. LoRA is beside the weights while words are drawn."""
    model = anatomy.unloaded(str(wide), dtype="bf16", rank=4, trust_remote_code=False)
    plain, few = (anatomy.shape_of("wide", model, quantize=q) for q in ("none", kind))
    work = workload(SelfRewardConfig(num_samples=4, max_new_tokens=6, token_budget=64, epochs=1), [9] * 6, [])
    batches = laid_out(work.prompts, 4, work, few)
    passes, forward = len(batches.batches) * batches.times, kind == "4bit"
    once = few.packed * (PACKED[kind] + 2)
    assert scoring(batches, few, work).unpack == passes * forward * once
    assert not any(batch.several or batch.large for batch in batches.batches)
    assert learning(batches, few, work).unpack == passes * (1 + forward) * once
    drawn, merged = (sampling(work.prompts, 4, shape, work, cpu=True) for shape in (few, plain))
    assert drawn.unpack == (5 + 1) * forward * once  # 5 of 6 words are fed, behind one pass over all prompts
    assert drawn.decode - merged.decode == pytest.approx(2 * 5 * 6 * 4 * few.adapter)
    assert (drawn.fold, merged.unpack) == (0, 0) and merged.fold > 0
    assert merged.weights - drawn.weights == (0 if forward else 5 * few.packed)
    rates = Rates.plain(1e9, 1e6, "given")
    without = dataclasses.replace(drawn, unpack=0).seconds(rates)
    assert drawn.seconds(rates) - without == pytest.approx(drawn.unpack / 1e6)


def test_an_estimate_says_that_unpacking_was_not_timed(wide, monkeypatch):
    asked = ("estimate", "--model", wide, "--num-prompts", 4, "--max-new-tokens", 4, "--lora-rank", 4)
    given = ("--flops", 1e9, "--bandwidth", 1e9)
    said = "unpacking 4bit layers is counted by its bytes, its time is not known (--measure)"
    assert said in command(*asked, *given, "--quantize", "4bit").out
    assert "unpacking" not in command(*asked, *given).out
    monkeypatch.setattr(packed, "installed", lambda: False)
    assert "is not installed: run `pip install 'srlm[qlora]'`" in refused(*asked, "--measure", "--quantize", "4bit")


def asks(tmp_path: Path) -> dict[str, list[object]]:
    """Commands that ask a model, whichever."""
    held = write_held_out(tmp_path)
    few = {"number": 2, "written_examples": 2, "written_tokens": 4}
    return {
        "evaluate": ["evaluate", "--prompts", held, "--match", "regex", "--num-samples", 2],
        "diagnose": ["diagnose", "--prompts", held, "--match", "regex", "--samples", 2, "--search-budget", 8],
        "prompts": ["prompts", "--seeds", held, "--output", tmp_path / "new.jsonl", *words_of(**few)],
    }


@pytest.fixture(scope="module")
def unpacked(wide, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    words = train_words(model=wide, prompts=write_prompts(folder), rounds=1, epochs=1, output=folder / "run")
    assert command(*words).code == 0
    return folder / "run"


@pytest.mark.parametrize("name", ["evaluate", "diagnose", "prompts"])
def test_whoever_asks_a_run_asks_it_as_it_was_trained(unpacked, tmp_path, name):
    ask = asks(tmp_path)[name]
    said = refused(*ask, "--model", unpacked, "--quantize", "4bit")
    assert f"--quantize is '4bit', but {unpacked} was trained with 'none', expected the same: leave it out" in said
    if name == "diagnose":
        assert "was trained with 'none'" in refused(*ask, "--run", unpacked, "--quantize", "8bit")


def test_an_adapter_that_is_asked_packed_lies_on_its_base(tmp_path):
    assert as_trained("model", None, "auto", "4bit") == {"adapter": "auto", "quantize": "4bit", "lora_rank": 0}
    assert as_trained("model", None, "continue", "8bit") == {"adapter": "continue", "quantize": "8bit", "lora_rank": 1}
    assert as_trained("model", None, "continue") == {"adapter": "continue", "quantize": "none", "lora_rank": 0}


# With bitsandbytes


@pytest.mark.parametrize("name", ["evaluate", "diagnose", "prompts"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_asked_can_be_packed(wide, tmp_path, monkeypatch, name, kind):
    pytest.importorskip("bitsandbytes")
    found: list[TransformerPolicy] = []
    begin = TransformerPolicy.__init__

    def noted(self, *given, **options):
        begin(self, *given, **options)
        found.append(self)

    monkeypatch.setattr(TransformerPolicy, "__init__", noted)
    said = command(*asks(tmp_path)[name], "--model", wide, "--quantize", kind)
    assert said.code == 0 or "passed the filters" in said.err, said
    (policy,) = found
    assert policy.quantised == kind and not policy.weights.peft_model


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_a_packed_base_is_asked(wide, tmp_path, kind):
    pytest.importorskip("bitsandbytes")
    save_adapter(wide, tmp_path / "adapter")
    ask = [*asks(tmp_path)["evaluate"], "--model", tmp_path / "adapter", "--quantize", kind]
    assert "continue it with --adapter continue" in refused(*ask)
    assert command(*ask, "--adapter", "continue").code == 0


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_are_timed_are_packed(wide, kind, monkeypatch):
    pytest.importorskip("bitsandbytes")
    timed: list[str] = []

    def seconds(work, device, spend=0.0):
        work()
        (model,) = [c.cell_contents for c in work.__closure__ or () if isinstance(c.cell_contents, nn.Module)] or [None]
        if model is not None:
            timed.append(quantised(model))
        return 1.0

    monkeypatch.setattr(pace, "_seconds", seconds)
    words = ("--num-prompts", 4, "--max-new-tokens", 4, "--lora-rank", 4, "--quantize", kind, "--measure", "--json")
    found = json.loads(command("estimate", "--model", wide, *words).out)
    assert found["rates"]["sure"] and found["rates"]["unpack"] is None
    assert not any("unpacking" in line for line in found["assumed"])
    assert timed and {*timed} == {kind}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_memory_is_packed_as_one_that_is_read(wide, kind):
    pytest.importorskip("bitsandbytes")
    plain = AutoModelForCausalLM.from_pretrained(wide, dtype=torch.float32).eval()
    made, read = packed.in_memory(plain, kind), load_model(str(wide), dtype="fp32", quantize=kind)[0]
    assert quantised(made) == kind and quantised(plain) == "none"
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(made(input_ids=ids).logits, read(input_ids=ids).logits)


def loaded(folder: Path, kind: str, **options) -> TransformerPolicy:
    pytest.importorskip("bitsandbytes")
    given = {"max_new_tokens": 8, "lora_rank": 4, "dtype": "fp32"} | options
    return TransformerPolicy.load(str(folder), quantize=kind, **given)


def perturbed(policy: TransformerPolicy) -> TransformerPolicy:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return policy


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_packed_and_lora_and_the_gain_are_trained(wide, kind):
    policy = loaded(wide, kind)
    names = {type(m).__name__ for m in policy.model.modules()}
    assert {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[kind] in names and policy.quantised == kind
    trained = policy.trainable()
    assert sum("lora_A" in name for name in trained) == 2 * 7 and any("norm" in name for name in trained)
    assert all(value.dtype == torch.float32 for value in trained.values())
    shape = anatomy.shape_of("wide", policy.model, quantize=kind)
    told = anatomy.shape_of("wide", anatomy.unloaded(str(wide), dtype="fp32", rank=4, trust_remote_code=False))
    assert (shape.parameters, shape.packed, shape.cost) == (told.parameters, told.folded, told.cost)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_has_the_dtype_of_the_model(wide, kind):
    policy = loaded(wide, kind, dtype="bf16")
    assert policy.model.dtype == torch.bfloat16
    assert {value.dtype for value in policy.trainable().values()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_scoring_and_training_give_the_same_log_probs(wide, kind, dtype):
    """So that the first log-ratio is 0, and the loss has a gradient in all that is trained."""
    policy = perturbed(loaded(wide, kind, dtype=dtype))
    responses = policy.sample(PROMPTS, 3, torch.Generator().manual_seed(0))
    groups = policy.groups(PROMPTS, responses)
    scored = policy.log_prob(PROMPTS, responses).flatten()
    learnt = torch.zeros_like(scored)
    for share in policy.scorer.shares(groups, range(len(groups))):
        for batch in share.batches:
            values, _ = policy.scorer.log_prob(policy.scorer.pack(groups, batch, masked=share.masked))
            values.sum().backward()
            learnt[[i * 3 + member for i, members in batch for member in members]] = values.detach()
    assert torch.equal(learnt, scored)
    assert all(value.grad is not None and bool(value.grad.any()) for value in policy.trainable().values())


@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_do_not_depend_on_what_shares_a_batch(wide, kind):
    policy = perturbed(loaded(wide, kind))
    responses = policy.sample(PROMPTS, 3, torch.Generator().manual_seed(0))
    groups = policy.groups(PROMPTS, responses)
    alone = [policy.scorer.score([group], None, silent)[0] for group in groups]
    together = policy.scorer.score(groups, None, silent)[0]
    assert torch.allclose(torch.cat(alone), together, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_leaves_packed_weights_alone(wide, kind):
    """And draws from the policy with its adapter: another one draws otherwise."""
    policy = loaded(wide, kind)
    base = policy.greedy(PROMPTS)
    perturbed(policy)
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    drawn = policy.greedy(PROMPTS)
    after = policy.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not torch.equal(base.tokens, drawn.tokens)
    for p, row in enumerate(policy.ids(PROMPTS)):  # argmax by the model's own forward
        for n, token in enumerate(drawn.tokens[p, 0, : drawn.length[p, 0]].tolist()):
            ids = torch.tensor([[*row, *drawn.tokens[p, 0, :n].tolist()]])
            with torch.no_grad():
                logits = policy.model(input_ids=ids, use_cache=False).logits[0, -1]
            assert float(logits.max() - logits[token]) < (1e-4 if kind == "4bit" else 0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_are_not_saved_as_a_model(wide, tmp_path, kind):
    policy = loaded(wide, kind)
    with pytest.raises(UserError, match=f"packed into {kind}, which LoRA is not merged into"):
        policy.weights.save_model(tmp_path, policy.tokenizer)


@pytest.fixture(scope="module", params=KINDS)
def run(wide, tmp_path_factory, request) -> tuple[str, Path]:
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp(f"run-{request.param}")
    words = written(folder, wide, request.param)
    outcome = command(*words, "--output", folder / "run")
    assert outcome.code == 0, outcome
    assert f"adapter saved in {folder / 'run' / 'model'}, on {wide} ({request.param} here)" in outcome.err + outcome.out
    return request.param, folder / "run"


def written(folder: Path, wide: Path, kind: str) -> list[str]:
    return train_words(
        model=wide, prompts=write_prompts(folder), held_out=write_held_out(folder), quantize=kind, epochs=4
    )


def test_a_run_learns(run):
    _, folder = run
    rounds = [losses(folder, t) for t in range(2)]
    assert all(each[-1] < each[0] for each in rounds), rounds
    assert records(folder)[1]["gain"] != 1.0
    first = table(folder, 0)
    assert max(abs(a - b) for a, b in zip(first["log_prob"], first["log_prob_next"], strict=True)) > 0.1


def test_a_run_that_dies_goes_on_as_it_would_have(run, wide, tmp_path):
    kind, folder = run
    words = written(tmp_path, wide, kind)
    assert alive(run_and_die, tmp_path / "run", words, 12) < 0
    assert command(*words, "--resume", tmp_path / "run").code == 0
    ours, theirs = tmp_path / "run", folder
    for t in (0, 1, 2):
        assert table(ours, t) == table(theirs, t)
    assert weights(ours / "model" / "adapter_model.safetensors") == weights(
        theirs / "model" / "adapter_model.safetensors"
    )


def test_what_is_left_is_an_adapter_that_peft_opens_on_its_base(run, wide):
    kind, folder = run
    config = json.loads((folder / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(wide.resolve())
    assert json.loads((folder / "manifest.json").read_text())["config"]["quantize"] == kind
    assert not (folder / "model" / "model.safetensors").exists()
    assert "library_name: peft" in (folder / "model" / "README.md").read_text()
    policy = loaded(wide, kind)
    policy.load_weights(folder / "model")
    opened = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(
            wide, dtype=torch.float32, **packed.packing("wide", SimpleNamespace(), kind, torch.float32)
        ),
        folder / "model",
    )
    packed.settle(opened.get_base_model())
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.allclose(opened(input_ids=ids).logits, policy.model(input_ids=ids).logits, atol=1e-4)


def test_an_exported_model_is_the_base_as_it_was_and_the_adapter(run, wide, tmp_path):
    _, folder = run
    assert command("export", folder, "--output", tmp_path / "out", "--merged").code == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged", dtype=torch.float32)
    assert not (tmp_path / "out" / "merged" / "adapter_config.json").exists()
    assert not getattr(merged, "is_quantized", False) and not hasattr(merged.config, "quantization_config")
    plain = AutoModelForCausalLM.from_pretrained(wide, dtype=torch.float32)
    joined = peft.PeftModel.from_pretrained(plain, folder / "model")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, joined(input_ids=ids).logits, atol=1e-3)


def test_a_run_is_evaluated_as_it_was_trained_and_goes_on(run, wide, tmp_path):
    kind, folder = run
    name, begun, _ = beginning(str(folder))
    assert as_trained(name, begun) == {"quantize": kind, "adapter": "continue", "lora_rank": 1}
    assert as_trained(name, begun, quantize=kind) == as_trained(name, begun)
    with pytest.raises(UserError, match=f"was trained with '{kind}', expected the same: leave it out"):
        as_trained(name, begun, quantize={"4bit": "8bit", "8bit": "4bit"}[kind])
    held = write_held_out(tmp_path)
    assert command("evaluate", "--model", folder, "--prompts", held, "--match", "regex", "--dtype", "fp32").code == 0
    policy = TransformerPolicy.load(name, dtype="fp32", max_new_tokens=6, trained=False, **as_trained(name, begun))
    kept = table(folder, 2)  # the first row is of the first prompt
    tokens = torch.tensor([[kept["tokens"][0]]], dtype=torch.int32)
    length = torch.tensor([[tokens.shape[-1]]])
    said = Responses(tokens, length, torch.ones_like(length, dtype=torch.bool))
    found = policy.log_prob(Prompts.uniform([f"Say {WORDS[0]}"]), said)
    assert float(found) == pytest.approx(kept["log_prob"][0], abs=1e-3 if kind == "4bit" else 0.1)
    more = {"model": folder, "prompts": write_prompts(tmp_path), "output": tmp_path / "on", "rounds": 1}
    said = refused(*train_words(**more, quantize=kind))
    assert "continue it with --adapter continue" in said
    outcome = command(*train_words(**more, quantize=kind, adapter="continue"))
    assert outcome.code == 0, outcome
