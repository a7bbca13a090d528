"""Settings of the model, of how it responds, and of how it is trained."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from srlm.errors import expect

_PYTHON = {"True": "true", "False": "false", "None": "null"}


@dataclass(frozen=True)
class DecodingSettings:
    """Prompts and responses as text"""

    stop: tuple[str, ...] = ()
    """Strings that end a response exactly like EOS."""
    raw_prompts: bool = False
    """Take `prompt` strings as they are; otherwise a tokenizer with a chat template reads each as one user turn."""
    chat_template_kwargs: tuple[str, ...] = ()
    """Variables of the chat template, such as enable_thinking=false."""
    temperature: float = 1.0
    """Sampling of what is learned from (exploration): scores, and held-out samples, are always those of the full
    distribution at temperature 1."""
    top_p: float = 1.0
    """Exploration, like temperature."""
    top_k: int = 0
    """Exploration: sample from this many most probable words, before top_p; 0 is from all."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", strings(self.stop))
        expect(self, "stop", all(self.stop), "non-empty strings")
        named = all(one.partition("=")[0].isidentifier() and "=" in one for one in self.chat_template_kwargs)
        expect(self, "chat_template_kwargs", named, "name=value, such as enable_thinking=false")
        exploring = math.isfinite(self.temperature) and self.temperature > 0
        expect(self, "temperature", exploring, "a finite number above 0")
        expect(self, "top_k", self.top_k >= 0, "0 or more")
        expect(self, "top_p", 0 < self.top_p <= 1, "above 0 and at most 1")


def strings(given: str | Sequence[str]) -> tuple[str, ...]:
    """One string is one, and not its letters."""
    return (given,) if isinstance(given, str) else tuple(given)


def plain_value(text: str) -> Any:
    """As JSON, or as Python writes the same (True, None), or else as text."""
    try:
        return json.loads(_PYTHON.get(text, text))
    except ValueError:
        return text


def named_values(given: Sequence[str]) -> dict[str, Any]:
    """name=value -> the value as JSON, or else as text."""
    found: dict[str, Any] = {}
    for one in given:
        name, _, value = one.partition("=")
        found[name] = plain_value(value)
    return found


@dataclass(frozen=True)
class EngineSettings:
    """Who draws responses"""

    engine: str = "builtin"
    """builtin, vllm (installed beside srlm), or the addresses of vLLM servers, comma-separated:
    http://one:8000,http://two:8000. A token in SRLM_ENGINE_KEY is sent along. Scores are srlm's own, whoever draws."""
    engine_weights: str = "auto"
    """How servers get the weights of each round: folder (a whole model, in engine/ of the run folder, which they have
    to see under the same path), adapter (LoRA alone, and sampling at a temperature for the gain), or auto: folder
    where they can take it."""
    engine_options: tuple[str, ...] = ()
    """For --engine vllm: arguments of vllm.LLM, such as max_model_len=4096 gpu_memory_utilization=0.5."""
    engine_correction: float = 0.0
    """Weigh each response by min(pi(y|x) / mu(y|x), this), with mu what an engine of its own says it drew it from; 0
    leaves the difference between the two alone. It is recorded in any case."""

    def __post_init__(self) -> None:
        given = self.engine in ("builtin", "vllm") or all(map(_is_address, self.engine.split(",")))
        known = "builtin, vllm, or addresses such as http://host:8000, comma-separated and without a user or token"
        expect(self, "engine", given, known)
        expect(self, "engine_weights", self.engine_weights in ("auto", "folder", "adapter"), "auto, folder or adapter")
        pairs = all("=" in option and option.split("=")[0].isidentifier() for option in self.engine_options)
        expect(self, "engine_options", pairs, "name=value words")
        cap = self.engine_correction
        expect(self, "engine_correction", math.isfinite(cap) and cap >= 0, "a finite number of 0 or more")

    @property
    def servers(self) -> tuple[str, ...]:
        """Addresses, if servers draw."""
        return () if self.engine in ("builtin", "vllm") else tuple(url.strip() for url in self.engine.split(","))

    @property
    def needs_trust(self) -> bool:
        """Do prompts and a token leave this machine, or is vLLM told more than numbers, such as whose code to run?"""
        away = any(urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1") for url in self.servers)
        return away or any(not _NUMBER.fullmatch(option) for option in self.engine_options)


_NUMBER = re.compile(r"(?!trust_remote_code)\w+=(true|false|[-+.\de]+)", re.IGNORECASE)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url.strip())
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    bare = not ("@" in parts.netloc or parts.query or parts.fragment or re.search(r"\s", url.strip()))
    return whole and bare


LEARNING_RATE = 1.5e-4  # of LoRA; docs/evidence.md
WHOLE_LEARNING_RATE = 1e-5  # of all weights; docs/evidence.md


@dataclass(frozen=True)
class OptimisationSettings:
    """Optimisation"""

    learning_rate: float | None = None
    """Peak step size of AdamW, which falls linearly to zero within each round: 1.5e-4 by default, 1e-5 where all
    weights are trained."""
    gain_learning_rate: float = 0.1
    """Peak step size of the logarithm of the final norm's gain, which sharpens every next-token distribution alike; 0
    leaves the gain as it is."""
    epochs: int = 3
    """Passes over a round's rollouts."""
    prompts_per_step: int = 4
    """Prompts (with all their responses) per optimiser step, over all processes."""
    token_budget: int | Literal["auto"] = "auto"
    """Padded tokens per micro-batch of one process: memory, never what is learned. auto measures what fits on an
    accelerator, and is 2048 on a CPU; where memory is too small all the same, it is halved."""
    carry_optimizer: bool = False
    """Go on from round to round with AdamW's moments and fp32 weights, as online RL does, instead of beginning anew:
    for rounds of a step or a few, none of which bf16 then rounds away. Takes 12 bytes of disk a trained parameter."""
    checkpoint_steps: int = 10
    """Optimiser steps between checkpoints inside a round."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        for name in ("epochs", "prompts_per_step", "checkpoint_steps"):
            expect(self, name, getattr(self, name) >= 1, "at least 1")
        budget = self.token_budget
        fits = budget == "auto" if isinstance(budget, str) else budget >= 1
        expect(self, "token_budget", fits, "at least 1, or auto")
        rate, gain = self.learning_rate, self.gain_learning_rate
        fits = rate is None or (math.isfinite(rate) and rate > 0)
        expect(self, "learning_rate", fits, "a finite number above 0")
        expect(self, "gain_learning_rate", math.isfinite(gain) and gain >= 0, "a finite number of 0 or more")


@dataclass(frozen=True)
class ModelSettings:
    """Model"""

    lora_rank: int = 16
    """Rank of the LoRA adapter; 0 trains all weights."""
    lora_alpha: float | None = None
    """LoRA scale times rank; twice the rank by default."""
    adapter: str = "auto"
    """Of a model folder that holds a LoRA adapter: merge it into the weights before anything else, continue it (train
    these very layers on), or ignore it. auto merges it where the folder holds nothing else, and asks where a whole
    model lies beside it."""
    dtype: str = "auto"
    """bf16, fp32, or auto (bf16 where the hardware multiplies it natively)."""
    quantize: str = "none"
    """Pack the linear layers of the base into 4bit (NF4) or 8bit by bitsandbytes, LoRA on top of them (QLoRA): less
    memory. What is left is the adapter; `srlm export --merged` makes a whole model of it and the base as it was."""
    trust_remote_code: bool = False
    """Run code that a model repository brings along."""

    def __post_init__(self) -> None:
        alpha = self.lora_alpha
        expect(self, "lora_rank", self.lora_rank >= 0, "0 (all weights) or more")
        expect(self, "lora_alpha", alpha is None or (math.isfinite(alpha) and alpha > 0), "a finite number above 0")
        known = ("auto", "merge", "continue", "ignore")
        expect(self, "adapter", self.adapter in known, "auto, merge, continue or ignore")
        whole = self.adapter == "continue" and self.lora_rank == 0
        expect(self, "adapter", not whole, "merge, since all weights are trained (--lora-rank 0)")
        expect(self, "dtype", self.dtype in ("auto", "bf16", "fp32"), "auto, bf16 or fp32")
        expect(self, "quantize", self.quantize in ("none", "4bit", "8bit"), "none, 4bit or 8bit")
        packed = self.quantize != "none" and self.lora_rank == 0
        expect(self, "quantize", not packed, "none, since packed weights are not trained (--lora-rank 0)")
