"""What a round costs from 0.1B to 70B parameters on 1 to 64 devices: the table of docs/scaling.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

from srlm.config import SelfRewardConfig
from srlm.errors import UserError
from srlm.estimate import Estimate, workload
from srlm.estimate.rates import ACCELERATORS, PER_MACHINE
from srlm.estimate.settings import Asked
from srlm.estimate.view import duration, quantity
from srlm.estimate.view import table as markdown
from srlm.policies.transformer.anatomy import of_config, shape_of
from srlm.policies.transformer.load.hub import DTYPES
from srlm.training.beforehand import on

DEVICES = (1, 8, 64)


def _llama(vocabulary: int, hidden: int, inner: int, layers: int, heads: int, cached: int, tied: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=cached,
        max_position_embeddings=32768,
        tie_word_embeddings=tied,
    )


def _qwen(hidden: int, inner: int, layers: int, heads: int, cached: int, vocabulary: int, tied: bool) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=cached,
        tie_word_embeddings=tied,
    )


def models() -> dict[str, PretrainedConfig]:
    """Published configurations."""
    return {
        "SmolLM2 135M": _llama(49152, 576, 1536, 30, 9, 3, True),
        "Qwen2.5 0.5B": _qwen(896, 4864, 24, 14, 2, 151936, True),
        "Qwen2.5 1.5B": _qwen(1536, 8960, 28, 12, 2, 151936, True),
        "Qwen2.5 7B": _qwen(3584, 18944, 28, 28, 4, 152064, False),
        "Qwen2.5 32B": _qwen(5120, 27648, 64, 40, 8, 152064, False),
        "Llama 3.1 70B": _llama(128256, 8192, 28672, 80, 64, 8, False),
    }


def table(config: SelfRewardConfig, asked: Asked) -> str:
    """Markdown, a row for a model, a way to train it and a number of devices.

    Raises:
        UserError: no accelerator is named.
    """
    if asked.accelerator is None:
        raise UserError(
            f"--table was given without --accelerator, expected one of {', '.join(ACCELERATORS)}: name the device that "
            "it is for"
        )
    rows = [_row(made, name) for name, made in _estimates(config, asked)]
    heads = ("model", "trained", "devices", "divided", "a device holds", "sample", "score", "update", "a round")
    return markdown(rows, heads)


def _estimates(config: SelfRewardConfig, asked: Asked) -> Iterator[tuple[str, Estimate]]:
    dtype = "fp32" if config.dtype == "fp32" else "bf16"
    number = asked.num_prompts or 256
    held = min(64, int(config.held_out_share * number))
    for name, layout in models().items():
        for rank in (config.lora_rank or 16, 0):
            shape = shape_of(name, of_config(name, layout, DTYPES[dtype], rank=rank))
            for devices in DEVICES:
                chosen = dataclasses.replace(config, prompts_per_step=max(config.prompts_per_step, devices))
                made = None
                # Weights that fit in parts alone leave it to others to draw responses, which takes them whole.
                ways = (("none", True), ("zero2", True), ("fsdp", True), ("none", False), ("fsdp", False))
                for shard, built_in in ways:
                    if devices == 1 and shard != "none":
                        continue
                    work = workload(
                        chosen,
                        [asked.prompt_length] * number,
                        [asked.prompt_length] * held,
                        expected=asked.expected_length,
                        devices=devices,
                        shard=shard,
                    )
                    work = dataclasses.replace(work, built_in=built_in)
                    here = dataclasses.replace(asked, devices=devices, shard=shard)
                    made = on(shape, work, chosen, here, device=torch.device("cpu"))
                    if made.fits:
                        break
                assert made is not None
                yield name, made


def _row(made: Estimate, name: str) -> tuple[str, tuple[str, ...]]:
    kinds: dict[str, float] = {"sample": 0.0, "score": 0.0, "update": 0.0}
    for stage in made.later:
        kinds[stage.name.split()[0]] += stage.seconds or 0.0
    work = made.work
    machines = -(-work.devices // PER_MACHINE)
    where = f"{work.devices}" + (f" ({machines} machines)" if machines > 1 else "")
    trained = "all weights" if made.shape.whole else "LoRA"
    divided = {"none": "–", "zero2": "optimiser, gradients", "fsdp": "weights too"}[work.shard]
    holds = quantity(made.memory.peak.total, "B")
    if not made.fits:
        return name, (trained, where, divided, f"{holds}: does not fit", "–", "–", "–", "–")
    said = dict(zip(kinds, map(duration, kinds.values()), strict=True))
    if not work.built_in:
        said["sample"] = "elsewhere"
    return name, (trained, where, divided, holds, *said.values(), duration(sum(kinds.values())))
