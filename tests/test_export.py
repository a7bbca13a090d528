"""What a run made, opened by whoever it is for."""

from __future__ import annotations

import json
import math
import re
import shutil
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import gguf
import peft
import pyarrow.parquet as parquet
import pytest
import safetensors.torch
import torch
from conftest import CHAT
from gguf_models import FAMILIES, TEXT, byte_fallback, byte_level, save_family
from support import command, refused, save_adapter, table, train_words, write_held_out, write_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaTokenizer

from srlm import UserError
from srlm.export import export, refuse_used
from srlm.export import write as writing
from srlm.export.pairs import Count, preferences
from srlm.export.rollouts import write_rollouts
from srlm.export.settings import KINDS
from srlm.export.source import Source
from srlm.policies.transformer.load import gguf as conversion
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.save import gguf as saving
from srlm.policies.transformer.save import gguf_vocabulary
from srlm.policies.transformer.save.gguf import save_gguf
from srlm.policies.transformer.save.gguf_adapter import save_gguf_adapter
from srlm.run.rounds import run_and_round


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_family(tmp_path_factory.mktemp("base"), "llama", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def run(base, tmp_path_factory) -> Path:
    """Two rounds, of which every response ends by itself or is cut off."""
    folder = tmp_path_factory.mktemp("run")
    trained(folder, base, held_out=write_held_out(folder), held_out_share=0.1, rounds=2, num_samples=8)
    return folder / "run"


def trained(folder: Path, model: Path, **options: Any) -> Path:
    made: dict[str, Any] = {"prompts": write_prompts(folder), "output": folder / "run", "model": model}
    made |= {"rounds": 1, "held_out_share": 0, "stop": ["e", "a"], "max_new_tokens": 12, "num_samples": 4}
    outcome = command(*train_words(**made | options))
    assert outcome.code == 0, outcome
    return folder / "run"


def exported(run: Path | str, folder: Path, *words: object) -> Path:
    outcome = command("export", run, "--output", folder, *words)
    assert outcome.code == 0, outcome
    return folder


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def groups(run: Path, round: int, finished: bool = True) -> dict[int, list[dict[str, Any]]]:
    """prompt -> its responses, by another way than the export takes."""
    columns = table(run, round)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["finished"] or not finished:
            found.setdefault(row["prompt_index"], []).append(row)
    return found


# Responses


def test_preferences_are_the_best_against_the_worst_that_ended(run, tmp_path):
    found = lines(exported(run, tmp_path / "out", "--preferences") / "preferences.jsonl")
    expected = []
    for prompt, rows in groups(run, 2).items():
        of_text: dict[str, dict[str, Any]] = {}  # as other tokens it may have scored less
        for row in rows:
            of_text[row["response"]] = max(of_text.get(row["response"], row), row, key=lambda row: row["reward"])
        best, worst = (pick(of_text.values(), key=lambda row: row["reward"]) for pick in (max, min))
        if best["reward"] > worst["reward"] and best["response"] != worst["response"]:
            expected.append((prompt, best, worst))
    assert len(expected) >= 2
    assert [row["prompt_index"] for row in found] == [prompt for prompt, *_ in expected]
    for row, (_, best, worst) in zip(found, expected, strict=True):
        assert row["prompt"] == [{"role": "user", "content": best["prompt"]}]
        assert row["chosen"] == [{"role": "assistant", "content": best["response"]}]
        assert row["rejected"] == [{"role": "assistant", "content": worst["response"]}]
        assert (row["score_chosen"], row["score_rejected"]) == (best["reward"], worst["reward"])
        assert row["margin"] == pytest.approx(best["reward"] - worst["reward"])
        assert (row["log_prob_chosen"], row["log_prob_rejected"]) == (best["log_prob"], worst["log_prob"])
        assert row["round"] == 2


def test_of_one_text_in_several_tokens_the_best_counts():
    scored = [("a", 1.0), ("b", 3.0), ("c", -1.0), ("b", 2.0)]
    about = {"prompt": "say", "prompt_index": 0, "finished": True}
    rows = [about | {"response": text, "reward": score, "log_prob": score} for text, score in scored]
    source: Any = SimpleNamespace(groups=lambda names: iter([rows]), chat=False, round=0, template={})
    (pair,) = preferences(source, Count())
    assert (pair["chosen"], pair["score_chosen"], pair["rejected"]) == ("b", 3.0, "c")


def test_all_pairs_of_an_earlier_round_with_what_was_cut_off(run, tmp_path):
    words = ("--preferences", "--pairs", "all", "--unfinished", "--margin", "1")
    found = lines(exported(f"{run}@1", tmp_path / "out", *words) / "preferences.jsonl")
    number = 0
    for rows in groups(run, 1, finished=False).values():
        distinct = {row["response"]: row["reward"] for row in sorted(rows, key=lambda row: row["reward"])}
        number += sum(one - other > 1 for one in distinct.values() for other in distinct.values())
    assert len(found) == number > 20
    assert {row["round"] for row in found} == {1}
    assert min(row["margin"] for row in found) > 1


def test_best_responses(run, tmp_path):
    found = lines(exported(run, tmp_path / "one", "--sft") / "sft.jsonl")
    best = [max(rows, key=lambda row: row["reward"]) for rows in groups(run, 2).values()]
    assert [row["completion"][0]["content"] for row in found] == [row["response"] for row in best]
    talks = lines(exported(run, tmp_path / "two", "--sft", "--messages") / "sft.jsonl")
    assert [row["messages"] for row in talks] == [row["prompt"] + row["completion"] for row in found]


def test_plain_text_stays_plain_text(base, tmp_path):
    trained(tmp_path, base, raw_prompts=True)
    words = ("--preferences", "--sft", "--unfinished")
    found = exported(tmp_path / "run", tmp_path / "out", *words)
    assert {type(row[name]) for row in lines(found / "preferences.jsonl") for name in ("prompt", "chosen")} == {str}
    assert {type(row["completion"]) for row in lines(found / "sft.jsonl")} == {str}
    said = refused("export", tmp_path / "run", "--output", tmp_path / "x", "--sft", "--messages", "--unfinished")
    assert "read its prompts as plain text, expected a chat template for --messages: leave it out" in said
    assert not (tmp_path / "x").exists()


def test_what_the_template_was_told_goes_along(tmp_path):
    """TRL then dresses a prompt as the run did."""
    base = save_family(tmp_path / "base", "llama")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% if tone %}<{{ tone }}>{% endif %}" + tokenizer.chat_template
    tokenizer.save_pretrained(base)
    run = trained(tmp_path, base, chat_template_kwargs=["tone=true"])
    found = exported(run, tmp_path / "out", "--preferences", "--sft", "--unfinished")
    ids = {row["prompt"]: row["tokens"] for row in parquet.read_table(run / "prompts" / "rollouts.parquet").to_pylist()}
    for row in [*lines(found / "preferences.jsonl"), *lines(found / "sft.jsonl")]:
        assert row["chat_template_kwargs"] == {"tone": True}
        dressed = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_dict=False, **row["chat_template_kwargs"]
        )
        assert dressed == ids[row["prompt"][0]["content"]]


def test_one_table_of_all_rounds(run, tmp_path):
    file = exported(run, tmp_path / "out", "--rollouts") / "rollouts.parquet"
    found = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(found) == 3 * (6 * 8 + 3 * 3 + 3)
    for t in range(3):
        own = found.filter(lambda row, t=t: row["round"] == t and row["table"] == "rollouts")
        assert own["response"][:] == table(run, t)["response"]
        assert own["reward"][:] == table(run, t)["reward"]
    assert {row["log_prob_next"] for row in found if row["round"] == 2 and row["table"] == "rollouts"} == {None}
    assert sorted(set(found["table"])) == ["greedy", "held_out", "rollouts"]


def test_votes_are_among_all_responses(base, tmp_path):
    run = trained(tmp_path, base, reward="majority", votes=7)
    file = exported(run, tmp_path / "out", "--rollouts") / "rollouts.parquet"
    tables = parquet.read_table(file)["table"].to_pylist()
    assert tables.count("votes") == tables.count("rollouts") * 3 / 4 > 0


def test_strings_among_conversations_are_conversations(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    file = copy / "round-001" / "held_out.parquet"
    rows = parquet.read_table(file)
    turns = [[{"role": "user", "content": prompt}] for prompt in rows["prompt"].to_pylist()]
    parquet.write_table(rows.set_column(rows.column_names.index("prompt"), "prompt", [turns]), file)
    write_rollouts(Source.of(copy).run, tmp_path / "all.parquet")
    prompts = parquet.read_table(tmp_path / "all.parquet")["prompt"].to_pylist()
    assert all(isinstance(turn, dict) for prompt in prompts for turn in prompt)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trl") is None, reason="pip install trl")
@pytest.mark.parametrize("raw", [False, True])
def test_trl_trains_on_the_preferences(tmp_path, raw):
    """And finds the log-probs that the run wrote down, where its template adds nothing behind a response."""
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    base = save_family(tmp_path / "base", "llama", scale=1.0)  # which ends a response now and then
    run = trained(tmp_path, base, raw_prompts=raw, num_samples=64, max_new_tokens=60, stop=[])
    found = exported(f"{run}@0", tmp_path / "out", "--preferences", "--sft")
    preferences, best = (
        datasets.load_dataset("json", data_files=str(found / name), split="train", cache_dir=str(tmp_path / "cache"))
        for name in ("preferences.jsonl", "sft.jsonl")
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    common = {"per_device_train_batch_size": 2, "max_steps": 2, "report_to": [], "use_cpu": True, "bf16": False}
    how = DPOConfig(str(tmp_path / "dpo"), precompute_ref_log_probs=True, **common)
    trainer = DPOTrainer(model, args=how, train_dataset=preferences, processing_class=tokenizer)
    reference = trainer.train_dataset["ref_chosen_logps"]
    assert trainer.train().training_loss > 0
    if raw:  # where a text is read as the tokens that were sampled, which a random model's seldom is
        sampled = {row["response"]: row["tokens"] for rows in groups(run, 0).values() for row in rows}
        read = [tokenizer(row["chosen"], add_special_tokens=False)["input_ids"] for row in preferences]
        same = [i for i, row in enumerate(preferences) if [*read[i], 2] == sampled[row["chosen"]]]
        assert same
        expected = [preferences[i]["log_prob_chosen"] for i in same]
        assert [reference[i] for i in same] == pytest.approx(expected, abs=1e-3)
    how = SFTConfig(str(tmp_path / "sft"), **common)
    assert SFTTrainer(model, args=how, train_dataset=best, processing_class=tokenizer).train().training_loss > 0


# Models


def metaspace() -> LlamaTokenizer:
    """As transformers makes that of Llama 2 anew: a space before the first word, put there by no normalizer."""
    said = json.loads(byte_fallback().backend_tokenizer.to_str())["model"]
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    made = LlamaTokenizer(vocab=said["vocab"], merges=[tuple(pair) for pair in said["merges"]], **named)
    made.chat_template = CHAT.replace("<|im_start|>", "<start_of_turn>").replace("<|im_end|>", "<end_of_turn>")
    return made


def of_family(folder: Path, family: str) -> Path:
    """A Llama 2 is a Llama with a tokenizer of its own."""
    if family != "llama2":
        return save_family(folder, family)
    tokenizer = metaspace()
    save_family(folder, "llama", vocab_size=len(tokenizer), bos_token_id=2, eos_token_id=1, pad_token_id=0)
    tokenizer.save_pretrained(folder)
    return folder


def policy_of(run: Path, round: int = 2) -> TransformerPolicy:
    return Source.of(f"{run}@{round}").policy({})


@torch.no_grad()
def log_probs(model: Any, gain: float = 1.0) -> torch.Tensor:
    ids = torch.arange(3, 90)[None]
    return torch.log_softmax(model(input_ids=ids).logits.float() * gain, -1)


def test_an_adapter_is_lora_alone_and_a_temperature(run, base, tmp_path):
    folder = exported(run, tmp_path / "out", "--adapter") / "adapter"
    assert all(".lora_" in key for key in safetensors.torch.load_file(folder / "adapter_model.safetensors"))
    said = json.loads((folder / "adapter_config.json").read_text())
    assert said["modules_to_save"] is None and said["base_model_name_or_path"] == str(base)
    temperature = json.loads((folder / "generation_config.json").read_text())["temperature"]
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert temperature == pytest.approx(1 / records[2]["gain"], rel=1e-3) and abs(temperature - 1) > 0.02
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    joined = peft.PeftModel.from_pretrained(plain, folder)
    policy = policy_of(run)
    assert torch.allclose(log_probs(joined, 1 / temperature), log_probs(policy.model), atol=1e-4)
    assert not torch.allclose(log_probs(joined), log_probs(policy.model), atol=1e-1)


def test_a_base_is_sampled_from_as_before_and_the_policy_at_the_gain_alone(run, base, tmp_path):
    """generation_config.json is for what the whole model gives by default; what is the policy is said beside it."""
    other, copy = shutil.copytree(base, tmp_path / "base"), shutil.copytree(run, tmp_path / "run")
    usual = json.loads((other / "generation_config.json").read_text())
    usual |= {"do_sample": True, "temperature": 0.7, "top_p": 0.8}
    (other / "generation_config.json").write_text(json.dumps(usual))
    manifest = json.loads((copy / "manifest.json").read_text()) | {"model": str(other)}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    outcome = command("export", copy, "--output", tmp_path / "out", "--adapter")
    gain = json.loads((copy / "records.jsonl").read_text().splitlines()[2])["gain"]
    found = json.loads((tmp_path / "out" / "adapter" / "generation_config.json").read_text())
    assert found["temperature"] == pytest.approx(0.7 / gain, rel=1e-3) and found["top_p"] == 0.8
    said = " ".join(outcome.out.split())
    (cpp,) = re.findall(r"--temp (\S+),", said)
    assert float(cpp) == pytest.approx(1 / gain, rel=1e-3)
    assert f"is temperature {cpp}, at which it is the trained policy" in said
    (served,) = re.findall(r"as the base does \(temperature 0\.7, top_p 0\.8\), at temperature (\S+) for", said)
    assert float(served) == pytest.approx(0.7 / gain, rel=1e-3)
    a = tmp_path / "out" / "adapter"
    line = f"vllm serve {other} --enable-lora --max-lora-rank 8 --lora-modules run={a} --generation-config {a}"
    assert line in said
    plain = command("export", run, "--output", tmp_path / "plain", "--adapter")
    assert "as the base does" not in plain.out


def test_an_adapter_on_a_model_whose_own_was_ignored(base, tmp_path):
    """It lies on the model as it is in its folder, but for that adapter; where it was merged there is no such model."""
    both = shutil.copytree(base, tmp_path / "both")
    save_adapter(base, both)
    run = trained(tmp_path, both, adapter="ignore")
    outcome = command("export", run, "--output", tmp_path / "out", "--adapter")
    assert outcome.code == 0, outcome
    assert "holds an adapter that the run ignored, and others put on: serve a copy of it without" in outcome.out
    folder = tmp_path / "out" / "adapter"
    temperature = json.loads((folder / "generation_config.json").read_text())["temperature"]
    joined = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    assert torch.allclose(log_probs(joined, 1 / temperature), log_probs(policy_of(run, 1).model), atol=1e-4)

    (tmp_path / "merged").mkdir()
    merged = trained(tmp_path / "merged", both, adapter="merge")
    said = refused("export", merged, "--output", tmp_path / "no", "--adapter")
    assert "merged into its base, so that what its own lies on is no model on disk" in said


def test_or_the_gain_lies_in_the_norm_of_a_base(run, tmp_path):
    folder = exported(run, tmp_path / "out", "--adapter", "--gain", "norm")
    said = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(folder / "base")
    assert not (folder / "adapter" / "generation_config.json").exists()
    plain = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    joined = peft.PeftModel.from_pretrained(plain, folder / "adapter")
    assert torch.allclose(log_probs(joined), log_probs(policy_of(run).model), atol=1e-4)


def test_the_adapter_for_llama_cpp_is_what_its_model_gains(run, base, tmp_path):
    """(alpha / r) B A, in llama.cpp's order of rows, against the difference of two GGUF files."""
    after = exported(run, tmp_path / "out", "--adapter", "--gguf")
    plain = TransformerPolicy.load(str(base), lora_rank=0, dtype="fp32", max_new_tokens=4)
    save_gguf(plain, tmp_path / "base.gguf", "fp32", [])
    old, new, lora = (
        {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(f).tensors}
        for f in (tmp_path / "base.gguf", after / "model.gguf", after / "adapter.gguf")
    )
    alpha = gguf.GGUFReader(after / "adapter.gguf").fields["adapter.lora.alpha"].contents()
    assert len(lora) == 2 * 2 * 7
    for name in (name.removesuffix(".lora_a") for name in lora if name.endswith(".lora_a")):
        a, b = lora[f"{name}.lora_a"], lora[f"{name}.lora_b"]
        assert alpha / len(a) * (b @ a) == pytest.approx(new[name] - old[name], abs=1e-4), name


def test_more_than_lora_is_no_adapter_for_llama_cpp(run, tmp_path):
    folder = exported(run, tmp_path / "out", "--adapter") / "adapter"
    state = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    state["base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias"] = torch.ones(4)
    safetensors.torch.save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"holds .*q_proj\.lora_B\.bias, a bias or an embedding perhaps"):
        save_gguf_adapter(policy_of(run), folder, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_a_whole_model_in_another_dtype(run, tmp_path, dtype):
    folder = exported(run, tmp_path / "out", "--merged", "--merged-dtype", dtype) / "merged"
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    expected = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    assert {value.dtype for value in saved.parameters()} == {expected}
    policy = policy_of(run)
    with policy.merged():
        mine = policy.weights.plain_state()
        for name, value in saved.named_parameters():
            assert torch.equal(value, mine[name].to(expected)), name


def test_a_weight_that_a_dtype_does_not_hold_is_refused(tmp_path, base):
    copy = shutil.copytree(base, tmp_path / "base")
    state = safetensors.torch.load_file(copy / "model.safetensors")
    state["model.layers.0.mlp.down_proj.weight"][0, 0] = 1e6
    safetensors.torch.save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    policy = TransformerPolicy.load(str(copy), lora_rank=0, dtype="fp32", max_new_tokens=4)
    with pytest.raises(ValueError, match=r"goes up to 1e\+06, more than float16 holds: choose bf16 or fp32"):
        policy.weights.save_model(tmp_path / "out", policy.tokenizer, dtype=torch.float16)


@pytest.mark.parametrize("family", [*FAMILIES, "llama2"])
def test_gguf_files_of_families(family, tmp_path, monkeypatch):
    monkeypatch.setenv("SRLM_CACHE", str(tmp_path / "cache"))
    policy = TransformerPolicy.load(str(of_family(tmp_path / "m", family)), dtype="fp32", max_new_tokens=4)
    with torch.no_grad():
        for name, value in policy.trainable().items():
            value.copy_(value * 1.2 + (0.05 * torch.randn_like(value) if "lora_B" in name else 0))
    texts = ["Say 123 and don't", " two  spaces\n\n", "é漢 <|im_end|>"]
    for dtype in ("fp32", "bf16"):
        save_gguf(policy, tmp_path / f"{dtype}.gguf", dtype, texts)
    read = TransformerPolicy.load(str(tmp_path / "fp32.gguf"), dtype="fp32", lora_rank=0, max_new_tokens=4)
    with policy.merged():
        assert torch.allclose(log_probs(read.model), log_probs(policy.model), atol=1e-3)
    assert read.encode([{"role": "user", "content": "Say 7"}]) == policy.encode([{"role": "user", "content": "Say 7"}])
    assert read.decoding.eos >= policy.decoding.eos


LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama3(tmp_path: Path, **changes: Any) -> Path:
    return save_family(tmp_path / "m", "llama", head_dim=64, rope_parameters=LLAMA3 | changes)


@pytest.mark.parametrize("piecemeal", [True, False])
def test_gguf_files_with_the_positions_of_llama_3(piecemeal, tmp_path, monkeypatch):
    """As llama.cpp has them: a number for each frequency of a head, by which it is divided."""
    monkeypatch.setenv("SRLM_CACHE", str(tmp_path / "cache"))
    if not piecemeal:
        monkeypatch.setattr(conversion, "spill", lambda *_: False)
    policy = TransformerPolicy.load(str(llama3(tmp_path)), dtype="fp32", lora_rank=0, max_new_tokens=4)
    save_gguf(policy, tmp_path / "x.gguf", "fp32", [])
    (scales,) = (t.data for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors if t.name == "rope_freqs.weight")
    expected = []
    for number in range(32):  # of 64 dimensions
        turns = 8192 / (2 * math.pi * 5e5 ** (number / 32))  # in the context that it was trained for at first
        share = min(max((turns - 1) / 3, 0), 1)
        expected.append(1 / (share + (1 - share) / 32))
    assert len({*expected}) > 1 and scales.tolist() == pytest.approx(expected, rel=1e-5)
    read = TransformerPolicy.load(str(tmp_path / "x.gguf"), dtype="fp32", lora_rank=0, max_new_tokens=4)
    assert read.model.config.rope_parameters == LLAMA3
    assert torch.allclose(log_probs(read.model), log_probs(policy.model), atol=1e-3)


@pytest.mark.parametrize(
    ("family", "where", "name", "broken", "said"),
    [
        ("llama", saving, "permuted", lambda value, heads: value, "what was meant"),
        ("llama", gguf_vocabulary, "_cut", lambda cut: "gpt-2", "as other tokens"),
        ("llama2", gguf_vocabulary, "_prepends", lambda step: False, "the space before the first word"),
        ("gemma2", gguf_vocabulary, "_prepends", lambda step: True, "the space before the first word"),
        ("gemma2", saving, "FAMILIES", {"gemma2": saving.Family(gguf.MODEL_ARCH.GEMMA2, shift=0.5)}, "what was meant"),
    ],
)
def test_a_file_that_reads_differently_is_refused(family, where, name, broken, said, tmp_path, monkeypatch):
    folder = of_family(tmp_path / "m", family)
    if family == "llama":
        byte_level("llama-bpe").save_pretrained(folder)
    policy = TransformerPolicy.load(str(folder), dtype="fp32", max_new_tokens=4)
    policy.encode.keep(["x"], [list(range(3, 60))])
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(ValueError, match=said):
        save_gguf(policy, tmp_path / "x.gguf", "fp32", TEXT[-60:])


@pytest.mark.parametrize(("family", "space"), [("llama2", True), ("gemma2", False)])
def test_llama_cpp_is_told_of_the_space_before_the_first_word(family, space, tmp_path):
    folder = of_family(tmp_path / "m", family)
    policy = TransformerPolicy.load(str(folder), dtype="fp32", lora_rank=0, max_new_tokens=4)
    assert policy.tokenizer.tokenize("Hi")[0].startswith("▁") == space
    save_gguf(policy, tmp_path / "x.gguf", "fp32", ["Hi"])
    assert gguf.GGUFReader(tmp_path / "x.gguf").fields["tokenizer.ggml.add_space_prefix"].contents() == space


def test_scores_merge_as_the_tokenizer_does(tmp_path):
    """llama.cpp: of all neighbours that make a piece, those whose piece has the highest score become one, from the
    left; transformers reads no scores of Gemma's files, so that reading back says nothing of them."""
    folder = save_family(tmp_path / "m", "gemma2")
    policy = TransformerPolicy.load(str(folder), dtype="fp32", lora_rank=0, max_new_tokens=4)
    save_gguf(policy, tmp_path / "x.gguf", "fp32", [])
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    tokens, scores = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores"))
    score, number = dict(zip(tokens, scores, strict=True)), {token: i for i, token in enumerate(tokens)}
    for text in (text for text in TEXT[:90] if "<" not in text):
        pieces = list(text.replace(" ", "▁"))
        while pairs := [
            (-score[one + other], i) for i, (one, other) in enumerate(pairwise(pieces)) if one + other in score
        ]:
            _, i = min(pairs)
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        if all(piece in number for piece in pieces):
            assert [number[piece] for piece in pieces] == policy.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("gpt2", {"n_embd": 32}, "models of the type gpt2 are not written"),
        ("gemma2", {"query_pre_attn_scalar": 144}, "attention of another scale"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 2}, "layers that slide elsewhere"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "by dynamic"),
        ("llama", {"rope_parameters": LLAMA3 | {"high_freq_factor": 8.0}}, "by llama3"),
        ("qwen2", {"rope_parameters": LLAMA3}, "by llama3"),
    ],
)
def test_what_gguf_cannot_say_is_refused(family, options, said, tmp_path):
    policy = TransformerPolicy.load(str(save_family(tmp_path / "m", family, **options)), lora_rank=0, max_new_tokens=4)
    with pytest.raises(ValueError, match=f"{said}.*--merged"):
        save_gguf(policy, tmp_path / "x.gguf", "fp32", [])


def test_positions_that_were_lost_are_seen(tmp_path, monkeypatch):
    """Prompts are too short to show them."""
    policy = TransformerPolicy.load(str(llama3(tmp_path)), dtype="fp32", lora_rank=0, max_new_tokens=4)
    monkeypatch.setattr(saving, "scales_of", lambda config: torch.ones(32))
    with pytest.raises(UserError, match=r"positions in x\.gguf are not scaled as in the model"):
        save_gguf(policy, tmp_path / "x.gguf", "fp32", [])


# Refusals


def test_what_gguf_cannot_say_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    base = save_family(tmp_path / "m", "llama", rope_parameters=LLAMA3 | {"high_freq_factor": 8.0})
    run = trained(tmp_path, base)
    monkeypatch.setattr(Source, "policy", lambda *_: pytest.fail("it was loaded"))
    monkeypatch.setattr(writing, "write_rollouts", lambda *_: pytest.fail("it was written"))
    with pytest.raises(UserError, match=r"positions that are scaled by llama3, which GGUF files .*--merged"):
        export(run, tmp_path / "out", "rollouts", "merged", "gguf")


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    said = refused("export", run, "--output", tmp_path / "used", "--sft")
    assert said == f"output {tmp_path / 'used'} is not an empty folder: choose another --output"
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["mine.txt"]
    assert "holds a run already" in refused("export", run, "--output", run, "--sft")


def test_words_that_make_no_export(run, base, tmp_path):
    out = ("--output", tmp_path / "out")
    assert "no folder to write to was given" in refused("export", run, "--sft")
    assert "nothing to export was named: choose some of --preferences" in refused("export", run, *out)
    assert "0 runs were given, expected one" in refused("export", *out, "--sft")
    assert "is not a run folder" in refused("export", base, *out, "--sft")
    assert "the round is 7, expected one of 0, 1, 2" in refused("export", f"{run}@7", *out, "--sft")
    assert "--margin is 2.0, expected its default without --preferences" in refused(
        "export", run, *out, "--sft", "--margin", 2
    )
    assert "--pairs is 'some', expected best_worst or all" in refused(
        "export", run, *out, "--preferences", "--pairs", "some"
    )
    assert "leaves nothing for preferences.jsonl" in refused("export", run, *out, "--preferences", "--margin", 1e6)
    assert "has no adapter: choose a later round" in refused("export", f"{run}@0", *out, "--adapter")
    for said, words in {
        r"--pairs is 'some'": {"pairs": "some"},
        r"--margin is nan": {"margin": math.nan},
        r"--gain is 'none'": {"gain": "none"},
        r"--merged-dtype is 'int8'": {"merged_dtype": "int8"},
    }.items():
        with pytest.raises(UserError, match=said):
            export(run, tmp_path / "out", *KINDS, **words)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".partial*"))


def test_a_run_whose_model_is_another_by_now(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    other = save_family(tmp_path / "other", "llama", tie_word_embeddings=True)
    state = safetensors.torch.load_file(other / "model.safetensors")
    state["model.layers.0.mlp.down_proj.weight"] *= 1.5
    safetensors.torch.save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    manifest = json.loads((copy / "manifest.json").read_text()) | {"model": str(other)}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    said = refused("export", copy, "--output", tmp_path / "out", "--adapter")
    assert "nats a token from those that the run wrote down, expected at most 0.05: put back the model" in said


def test_all_weights_are_no_adapter(base, tmp_path):
    trained(tmp_path, base, lora_rank=0)
    said = refused("export", tmp_path / "run", "--output", tmp_path / "out", "--adapter")
    assert "expected a LoRA adapter: export the whole model with --merged or --gguf" in said
    folder = exported(tmp_path / "run", tmp_path / "whole", "--merged", "--gguf")
    assert (folder / "merged" / "config.json").exists() and (folder / "model.gguf").exists()


def test_a_round_is_a_starting_point(run, base, tmp_path):
    """For a round of 1e-9: what it samples first is what the round said it would."""
    words = {"prompts": write_prompts(tmp_path), "held_out_share": 0, "rounds": 1, "num_samples": 4, "stop": ["e", "a"]}
    for round in (None, 0, 1, 2):
        name = run if round is None else f"{run}@{round}"
        out = tmp_path / f"run{round}"
        outcome = command(*train_words(model=name, output=out, **words))
        assert outcome.code == 0, outcome
        policy = Source.of(f"{out}@0").policy({})
        with policy.merged():
            assert torch.allclose(log_probs(policy.model), _merged(policy_of(run, 2 if round is None else round)))
    labelled = write_held_out(tmp_path)
    for name in (f"{run}@1", *(f"{tmp_path / begun}@{t}" for begun in ("runNone", "run1") for t in (0, 1))):
        assert command("evaluate", "--model", name, "--prompts", labelled, "--max-new-tokens", 4).code == 0, name
    said = refused(*train_words(model=f"{run}@9", output=tmp_path / "x", **words))
    assert said == f"the round of --model {run}@9 is 9, expected one of 0, 1, 2 in {run}: choose one"
    assert not (tmp_path / "x").exists()


def _merged(policy: TransformerPolicy) -> torch.Tensor:
    with policy.merged():
        return log_probs(policy.model)


def test_a_round_on_another_base_is_no_starting_point(run, tmp_path):
    copy, other = shutil.copytree(run, tmp_path / "run"), save_family(tmp_path / "other", "llama", scale=5.0)
    manifest = json.loads((copy / "manifest.json").read_text()) | {"model": str(other)}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    config = copy / "round-001" / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(json.loads(config.read_text())["base_model_name_or_path"], str(other)))
    (copy / "round-001" / "adapter.sha256").unlink()
    words = train_words(model=f"{copy}@1", prompts=write_prompts(tmp_path), output=tmp_path / "x")
    assert "put back the model that the run began with" in refused(*words)
    assert not (tmp_path / "x").exists()


def test_a_run_and_a_round(tmp_path):
    assert run_and_round("a/b@12") == (Path("a/b"), 12)
    assert run_and_round("a/b") == (Path("a/b"), None)
    (tmp_path / "x@3").mkdir()
    assert run_and_round(str(tmp_path / "x@3")) == (tmp_path / "x@3", None)


def test_what_a_killed_export_left_is_in_nobodys_way(tmp_path):
    left = tmp_path / ".partial-out"
    left.mkdir()
    (left / "half").write_text("of it")
    refuse_used(tmp_path / "out")
    assert not (tmp_path / "out").exists() and not left.exists()
