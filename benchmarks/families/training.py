"""A round of training on a tiny model, and whether what was saved is what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pyarrow import parquet
from transformers import AutoModelForCausalLM

from benchmarks.families.forward import response_log_prob
from srlm.config import SelfRewardConfig
from srlm.console import Display
from srlm.training.trainer import SelfRewardTrainer

LORA_RANK = 4
PROMPTS = ("abc", "def", "gh", "ijklm", "n", "op")


def write_prompts(file: Path) -> None:
    file.write_text("".join(json.dumps({"prompt": f"Say {word}"}) + "\n" for word in PROMPTS))


def own_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def trained(model: Path, prompts: Path, output: Path, rank: int) -> dict[str, float]:
    """Largest difference in nats between what the run's table says of the trained policy's log-probs and what is found
    by whoever loads `model/`, or `adapter/` with peft; `moved`: by how much training changed any of them."""
    config = SelfRewardConfig(
        output=str(output),
        rounds=1,
        num_samples=3,
        max_new_tokens=6,
        epochs=2,
        learning_rate=1e-3,
        dtype="fp32",
        lora_rank=rank,
        held_out_share=0.0,
        guard=False,
    )
    SelfRewardTrainer(str(model), config, prompts, display=Display(silent=True)).train()
    table = parquet.read_table(output / "round-000" / "rollouts.parquet").to_pydict()
    read = parquet.read_table(output / "prompts" / "rollouts.parquet").to_pydict()["tokens"]
    ids = [row for row in read for _ in range(config.num_samples)]

    def differs(candidate: Any, column: str) -> float:
        return max(
            abs(response_log_prob(candidate, prompt, response) - value)
            for prompt, response, value in zip(ids, table["tokens"], table[column], strict=True)
        )

    found = {
        "moved": max(abs(a - b) for a, b in zip(table["log_prob"], table["log_prob_next"], strict=True)),
        "difference": differs(own_model(output / "model"), "log_prob_next"),
    }
    if rank:
        adapted = PeftModel.from_pretrained(own_model(model), str(output / "adapter")).eval()
        found["adapter"] = differs(adapted, "log_prob_next")
    return found
