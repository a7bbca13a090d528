"""What an export is asked for; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from srlm.errors import expect

KINDS = ("preferences", "sft", "rollouts", "adapter", "merged", "gguf")


@dataclass(frozen=True)
class Export:
    """What is asked of `srlm export`."""

    output: str = ""
    """New folder for all that is written; it appears whole or not at all, and nothing is ever overwritten."""
    preferences: bool = False
    """preferences.jsonl: TRL's prompt, chosen and rejected, with scores, margins and log-probs."""
    sft: bool = False
    """sft.jsonl: the best response of each prompt, as prompt and completion."""
    rollouts: bool = False
    """rollouts.parquet: all responses of all rounds in one table."""
    adapter: bool = False
    """adapter/: LoRA layers and nothing else, as vLLM and others take them, the trained gain as a temperature."""
    merged: bool = False
    """merged/: the whole model, adapter and gain in its weights."""
    gguf: bool = False
    """model.gguf: the whole model for llama.cpp and whoever reads its files."""
    pairs: str = "best_worst"
    """For --preferences: of each prompt best_worst alone, or all pairs of different scores."""
    margin: float = 0.0
    """For --preferences: scores of a pair differ by more than this."""
    messages: bool = False
    """For --sft: conversations instead of prompt and completion."""
    unfinished: bool = False
    """For --preferences and --sft: also learn from responses that were cut off at the longest length."""
    gain: str = "temperature"
    """For --adapter: the gain as a temperature in generation_config.json, or merged into the final norm of a base that
    is written beside it (norm)."""
    merged_dtype: str | None = None
    """For --merged and --gguf: merge in fp32 and write fp32, bf16 or fp16; by default the run's own dtype."""

    def __post_init__(self) -> None:
        expect(self, "pairs", self.pairs in ("best_worst", "all"), "best_worst or all")
        expect(self, "margin", math.isfinite(self.margin) and self.margin >= 0, "a finite number of 0 or more")
        expect(self, "gain", self.gain in ("temperature", "norm"), "temperature or norm")
        known = (None, "fp32", "bf16", "fp16")
        expect(self, "merged_dtype", self.merged_dtype in known, "fp32, bf16 or fp16")
        for name, kinds in MATTERS_TO.items():
            unused = getattr(self, name) != getattr(type(self), name) and not any(getattr(self, k) for k in kinds)
            needs = " or ".join(f"--{kind}" for kind in kinds)
            expect(self, name, not unused, f"its default without {needs}, which alone heeds it")


MATTERS_TO = {
    "pairs": ("preferences",),
    "margin": ("preferences",),
    "messages": ("sft",),
    "unfinished": ("preferences", "sft"),
    "gain": ("adapter",),
    "merged_dtype": ("merged", "gguf"),
}
