"""`python -m benchmarks.families` on a few classes, and whether it would see what it is there to see."""

from __future__ import annotations

import json

import pytest

from benchmarks.families import checks, page, training
from benchmarks.families.__main__ import main
from benchmarks.families.tiny import tiny_model, tiny_tokenizer
from srlm.policies.transformer import log_prob
from srlm.policies.transformer.policy import TransformerPolicy

STAGES = ("scoring", "decoding", "search", "lora", "full")


def test_three_classes(tmp_path, capsys):
    file, written = tmp_path / "families.jsonl", tmp_path / "models.md"
    words = ["--output", str(file), "--classes", "gemma3_text", "mamba", "bert", "--write", str(written)]
    main(words)
    before = file.read_text()
    trees, rows, refused = map(json.loads, before.splitlines())
    assert [page.layout(record) for record in (trees, rows, refused)] == ["trees", "rows", "refused"]
    assert all(page.right(trees, stage) for stage in STAGES)
    assert all(page.right(rows, stage) for stage in STAGES if stage != "lora")
    assert "peft cannot adapt model class MambaForCausalLM" in rows["lora"]["refused"]
    assert "BertLMHeadModel computes its logits" in refused["loaded"]["refused"] and "scoring" not in refused
    assert not any(map(page.wrong, (trees, rows, refused))) and capsys.readouterr().out == ""
    lines = written.read_text().splitlines()
    assert sum(line.startswith(("| gemma3_text |", "| mamba |", "| bert |")) for line in lines) == 3
    assert "| 3 | 1 | 1 | 1 | 0 |" in lines
    main(words)
    assert file.read_text() == before  # nothing was tried again


def test_a_class_that_hangs_ends_alone(tmp_path, capsys):
    file = tmp_path / "families.jsonl"
    main(["--output", str(file), "--classes", "llama", "--seconds", "0"])
    assert json.loads(file.read_text())["ended"] == "not done after 0 s"
    assert capsys.readouterr().out == "llama: ended\n"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    policy = TransformerPolicy.load(str(folder), dtype="fp32", lora_rank=0, max_new_tokens=6)
    return policy, training.own_model(folder)


def test_scoring_sees_a_wrong_mask(llama, monkeypatch):
    policy, own = llama
    assert checks.scoring(policy, own) <= page.TOLERANCE["scoring"]
    mask = log_prob.attention_mask
    monkeypatch.setattr(
        log_prob, "attention_mask", lambda model, visible, *positions: mask(model, visible | visible.mT, *positions)
    )
    assert checks.scoring(policy, own) > 100 * page.TOLERANCE["scoring"]


@pytest.mark.parametrize("check", [checks.decoding, checks.search])
def test_another_model_is_seen(llama, check):
    policy, own = llama
    assert check(policy, own) <= page.TOLERANCE[check.__name__]
    assert check(policy, training.own_model(policy.name).apply(shift)) > 10 * page.TOLERANCE[check.__name__]


def shift(module):
    if hasattr(module, "rotary_emb"):
        module.rotary_emb.inv_freq.mul_(1.1)
