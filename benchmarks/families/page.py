"""Records of a sweep -> docs/models.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.timing import machine, table

TOLERANCE = {"scoring": 2e-4, "decoding": 2e-4, "search": 2e-4, "lora": 1e-4, "full": 1e-4}  # nats
MOVED = 1e-3  # nats that a round must have changed some log-prob by
HEAD = ("type in config.json", "class", "scoring", "decoding", "search", "LoRA", "full", "remark")
REMARK = 120  # characters

INTRODUCTION = """# Models

Which classes of transformers work with srlm: every class that `AutoModelForCausalLM` knows, tried by

    python -m benchmarks.families --output families.jsonl --write docs/models.md

on a tiny random model of it: the default configuration with small sizes, a layer of every kind that it has,
windows of 16 tokens, fp32, CPU. Numbers are the largest difference, in nats, from what the model's own plain forward
says (one row, no padding, no cache):

- **scoring**: log π(y|x) of 28 responses of up to 60 tokens behind prompts of up to 90;
- **decoding**: by how much a word that greedy decoding took falls short of the best, behind prompts of 1 to 70 tokens;
- **search**: log-probs of next words after prefixes that branch at random;
- **LoRA**, **full**: after a round of training, what the run's table says of the trained policy against what
  `AutoModelForCausalLM` makes of `run/model` (and peft of `run/adapter`).

**Bold** is beyond rounding: above 2e-4, or 1e-4 for saved models. "refused" is a sentence, which its remark begins.
Checkpoints of a class that works here can still have sizes, windows or code of their own: srlm probes each as it loads.
BART and its kind are their decoders here; a checkpoint with an encoder is refused.
"""


def layout(record: dict[str, Any]) -> str:
    """trees, rows, refused or unbuilt"""
    if "class" not in record.get("built", {}):
        return "unbuilt"
    return str(record.get("loaded", {}).get("layout", "refused"))


def right(record: dict[str, Any], stage: str) -> bool:
    outcome = record.get(stage, {})
    near = all(outcome.get(name, 0.0) <= TOLERANCE[stage] for name in ("difference", "adapter"))
    return "difference" in outcome and near and outcome.get("moved", 1.0) > MOVED


def wrong(record: dict[str, Any]) -> list[str]:
    """Stages that gave a wrong number or an exception, where a number or a refusal was expected."""
    stages = [s for s in TOLERANCE if s in record and not right(record, s) and "refused" not in record[s]]
    return stages + [s for s in ("loaded",) if "error" in record.get(s, {})] + ["ended"] * ("ended" in record)


def page(records: Sequence[dict[str, Any]]) -> str:
    groups = {kind: [r for r in records if layout(r) == kind] for kind in ("trees", "rows", "refused", "unbuilt")}
    tried = groups["trees"] + groups["rows"]
    counts = [f"{sum(right(r, stage) for r in tried)} of {len(tried)}" for stage in TOLERANCE]
    summary = table(
        ("classes", "read as trees", "as plain rows", "refused", "not built tiny"),
        [(str(len(records)), *(str(len(group)) for group in groups.values()))],
    )
    parts = [
        INTRODUCTION,
        *(line for line in machine("cpu", torch.float32).splitlines() if line.startswith(("- versions", "- date"))),
        "",
        summary,
        "",
        "Right to rounding, of those that are read:",
        "",
        table(HEAD[2:7], [counts]),
        "",
        "## Prefix trees",
        "",
        table(HEAD, map(line, groups["trees"])),
        "",
        "## Plain rows",
        "",
        "These mix tokens by more than attention, or look through windows that a mask cannot express.",
        "",
        table(HEAD, map(line, groups["rows"])),
        "",
        "## Refused",
        "",
        table((*HEAD[:2], HEAD[-1]), map(short, groups["refused"])),
        "",
        "## Not built tiny",
        "",
        "transformers raises, or has no way to make a small one; nothing is known of them.",
        "",
        table((HEAD[0], HEAD[-1]), (short(r)[::2] for r in groups["unbuilt"])),
    ]
    return "\n".join(parts) + "\n"


def line(record: dict[str, Any]) -> Sequence[str]:
    return (record["model_type"], record["built"]["class"], *(cell(record, s) for s in TOLERANCE), remark(record))


def short(record: dict[str, Any]) -> Sequence[str]:
    return record["model_type"], record["built"].get("class", ""), remark(record)


def cell(record: dict[str, Any], stage: str) -> str:
    outcome = record.get(stage, {})
    if "difference" not in outcome:
        return next((word for word in ("refused", "error") if word in outcome), "—")
    far = max(outcome["difference"], outcome.get("adapter", 0.0))
    number = f"{far:.0e}" if far else "0"
    return number if right(record, stage) else f"**{number}**"


def remark(record: dict[str, Any]) -> str:
    """How refusals and errors begin, each once."""
    said = [record["ended"]] if "ended" in record else []
    for outcome in record.values():
        if isinstance(outcome, dict) and (text := outcome.get("refused") or outcome.get("error")):
            text = re.sub(r"^cannot load model.*?\): ", "cannot be loaded, ", re.sub(r"^model class \w+ ", "", text))
            said.append(text.split(": ")[0] if "refused" in outcome else text)
        if isinstance(outcome, dict) and outcome.get("moved", 1.0) <= MOVED:
            said.append("training moved nothing")
        if isinstance(outcome, dict) and outcome.get("adapter", 0.0) > TOLERANCE["lora"]:
            said.append("peft reads run/adapter otherwise than it was trained")
    return "; ".join(text[:REMARK].replace("|", "\\|") for text in dict.fromkeys(said))
