"""One class of transformers, tried from its configuration to the model that a run leaves."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.families import checks, training
from benchmarks.families.tiny import tiny_model, tiny_tokenizer
from srlm.errors import UserError
from srlm.policies.transformer.policy import TransformerPolicy


def trial(kind: str, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each stage with its outcome: what it found, `refused` with srlm's sentence, or `error` and `where`. Nothing is
    tried of a model that could not be built or was not loaded."""
    model, prompts = folder / "model", folder / "prompts.jsonl"
    policies: list[TransformerPolicy] = []

    def build() -> dict[str, Any]:
        made = tiny_model(kind)
        made.save_pretrained(model)
        tiny_tokenizer().save_pretrained(model)
        training.write_prompts(prompts)
        return {"class": type(made).__name__, "parameters": sum(p.numel() for p in made.parameters())}

    def load() -> dict[str, Any]:
        policies.append(TransformerPolicy.load(str(model), dtype="fp32", lora_rank=0, max_new_tokens=6))
        return {"layout": "trees" if policies[0].shared else "rows"}

    for stage, run in (("built", build), ("loaded", load)):
        outcome = attempt(run)
        yield stage, outcome
        if "refused" in outcome or "error" in outcome:
            return
    (policy,), own = policies, training.own_model(model)
    for check in (checks.scoring, checks.decoding, checks.search):
        yield check.__name__, attempt(lambda check=check: {"difference": check(policy, own)})
    for stage, rank in (("lora", training.LORA_RANK), ("full", 0)):
        yield stage, attempt(lambda stage=stage, rank=rank: training.trained(model, prompts, folder / stage, rank))


def attempt(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return run()
    except UserError as error:
        return {"refused": str(error)}
    except Exception as error:  # whatever a class raises must not end the sweep
        frames = traceback.extract_tb(error.__traceback__)
        return {
            "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "where": [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[-6:]],
        }
