"""What `srlm export` writes, opened by vLLM and by llama.cpp: `make test-exits`. Where they are missing, skipped."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tokenizer
from fake_vllm import served_model
from gguf_models import save_family
from support import command, train_words, write_prompts

from srlm.export import export
from srlm.export.source import Source
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.responses import Responses
from srlm.policies.transformer.save.gguf import save_gguf
from srlm.types import Prompts

QUESTIONS = ("Say 7", "Spell abc")
TOKENS = 10
VLLM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

def main():
    base, adapter, temperature, prompts = json.loads(sys.argv[1])
    llm = LLM(model=base, dtype="float32", enforce_eager=True, max_model_len=256, enable_lora=True, max_lora_rank=8,
              logprobs_mode="processed_logprobs")
    how = SamplingParams(temperature=temperature, top_p=1, top_k=0, max_tokens=10, logprobs=1, ignore_eos=True)
    asked = [{"prompt_token_ids": ids} for ids in prompts]
    said = llm.generate(asked, how, use_tqdm=False, lora_request=LoRARequest("run", 1, adapter))
    rows = [one.outputs[0] for one in said]
    told = [[list(row.token_ids), [at[i].logprob for i, at in zip(row.token_ids, row.logprobs)]] for row in rows]
    print("TOLD", json.dumps(told))

if __name__ == "__main__":
    main()
"""


def trained(folder: Path, model: Path, **options: Any) -> Path:
    made = {"prompts": write_prompts(folder), "output": folder / "run", "model": model, "rounds": 1, "num_samples": 4}
    outcome = command(*train_words(**made | {"held_out_share": 0, "max_new_tokens": 12} | options))
    assert outcome.code == 0, outcome
    return folder / "run"


def policy_of(run: Path) -> TransformerPolicy:
    return Source.of(run).policy({})


def log_prob(policy: TransformerPolicy, question: str, tokens: list[int]) -> float:
    """Of these tokens behind a question, in nats."""
    responses = Responses(
        torch.tensor([[tokens]], dtype=torch.int32), torch.tensor([[len(tokens)]]), torch.tensor([[True]])
    )
    return float(policy.log_prob(Prompts.uniform([question]), responses))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")
def test_vllm_serves_the_adapter_at_its_temperature(tmp_path):
    """What it draws is as probable as the policy finds it."""
    base = tmp_path / "base"
    served_model().save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    run = trained(tmp_path, base, learning_rate=2e-2, epochs=6)
    adapter = export(run, tmp_path / "out", "adapter") / "adapter"
    temperature = json.loads((adapter / "generation_config.json").read_text())["temperature"]
    policy = policy_of(run)
    prompts = [policy.encode(question) for question in QUESTIONS]
    script = tmp_path / "serve.py"
    script.write_text(VLLM)
    words = [sys.executable, str(script), json.dumps([str(base), str(adapter), temperature, prompts])]
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    made = subprocess.run(words, env=os.environ | quiet, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr[-2000:]
    (line,) = (line for line in made.stdout.splitlines() if line.startswith("TOLD "))
    for question, (tokens, told) in zip(QUESTIONS, json.loads(line.removeprefix("TOLD ")), strict=True):
        assert sum(told) == pytest.approx(log_prob(policy, question, tokens), abs=0.02 * len(tokens))
    plain = TransformerPolicy.load(str(base), lora_rank=0, dtype="fp32", max_new_tokens=4)
    assert abs(sum(told) - log_prob(plain, question, tokens)) > 0.1  # which the base does not


@pytest.fixture
def llama_cpp():
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("pip install xllamacpp")
    import xllamacpp

    def opened(file: Path, adapter: Path | None = None) -> Any:
        how = xllamacpp.CommonParams()
        how.model.path, how.n_ctx, how.n_parallel, how.warmup, how.verbosity = str(file), 256, 1, False, -1
        how.cpuparams.n_threads = 1
        if adapter is not None:
            how.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        return xllamacpp.Server(how)

    return opened


def told(server: Any, ids: list[int]) -> tuple[list[int], float]:
    """Tokens that are likeliest, and their log-prob."""
    said = server.handle_completions(
        {"prompt": ids, "n_predict": TOKENS, "n_probs": 1, "temperature": 0.0, "ignore_eos": True}
    )
    steps = said["choices"][0]["logprobs"]["content"]
    return [step["id"] for step in steps], sum(step["logprob"] for step in steps)


@pytest.mark.slow
def test_llama_cpp_reads_model_and_adapter(tmp_path, llama_cpp):
    """The whole model as the policy; the adapter on its base as the policy without its gain."""
    base = save_family(tmp_path / "base", "llama", tie_word_embeddings=True)
    run = trained(tmp_path, base, stop=["e", "a"], learning_rate=2e-2, epochs=6)
    made = export(run, tmp_path / "out", "gguf", "adapter", merged_dtype="fp32")
    policy = policy_of(run)
    plain = TransformerPolicy.load(str(base), lora_rank=0, dtype="fp32", max_new_tokens=4)
    save_gguf(plain, tmp_path / "base.gguf", "fp32", [])
    whole = llama_cpp(made / "model.gguf")
    for question in QUESTIONS:
        tokens, value = told(whole, policy.encode(question))
        assert len(tokens) == TOKENS and value == pytest.approx(log_prob(policy, question, tokens), abs=0.02)
    joined = llama_cpp(tmp_path / "base.gguf", made / "adapter.gguf")
    with policy.ungained():
        for question in QUESTIONS:
            tokens, value = told(joined, policy.encode(question))
            assert value == pytest.approx(log_prob(policy, question, tokens), abs=0.02)
    assert abs(value - log_prob(plain, question, tokens)) > 0.2
