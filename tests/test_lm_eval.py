"""The folder that a run leaves is one for lm-evaluation-harness, which scores it as srlm does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from support import command, train_words, write_prompts, write_rows

from srlm import evaluate
from srlm.console import Display

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="pip install 'lm-eval[hf]'")

TASK = """
task: spelled
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["\\n"]
  do_sample: false
  max_gen_toks: 24
metric_list:
  - metric: !function judge.right
    aggregation: mean
    higher_is_better: true
"""
JUDGE = """
def right(references, predictions):
    return float(any(answer in text.lower() for answer in references for text in predictions))
"""


def holds(response: str, answers: tuple[str, ...]) -> bool:
    return any(answer in response.lower() for answer in answers)


def test_the_harness_reads_the_model_and_agrees(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_prompts(tmp_path)
    rows = [{"prompt": f"Spell {i}", "answer": "abcdefghijklmnopqrst"[i]} for i in range(20)]
    write_rows(tmp_path / "held-out.jsonl", rows)
    made = command(*train_words(model=tiny, prompts="prompts.jsonl", output="run", rounds=1, lora_rank=4))
    assert made.code == 0, made
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "spelled.yaml").write_text(TASK.format(file=tmp_path / "held-out.jsonl"))
    (tmp_path / "tasks" / "judge.py").write_text(JUDGE)
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "run" / "model"), "dtype": "float32"},
        tasks=["spelled"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        apply_chat_template=True,
        device="cpu",
        batch_size=1,
        bootstrap_iters=0,
    )
    harness = next(v for k, v in found["results"]["spelled"].items() if k.startswith(("right", "judge")))
    mine = evaluate(
        "run/model",
        "held-out.jsonl",
        match="test_lm_eval:holds",
        max_new_tokens=24,
        stop=("\n",),
        dtype="fp32",
        num_samples=1,
        display=Display(silent=True),
    )
    assert mine["accuracy_greedy"] == pytest.approx(harness) and 0 < harness < 1
