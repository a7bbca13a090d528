"""What the accelerate config asks for, as `accelerate launch` hands it on: in environment variables."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin

from srlm.errors import UserError
from srlm.policies.transformer.devices.deepspeed import follow_zero, followed_zero

_IDLE = ("", "0", "1", "no", "false", "none")


@dataclass(frozen=True)
class Sharding:
    """plugin: accelerate's reading of the config. reshard: after its forward pass a layer goes back to shards.
    recompute: activations are. note: what a person should know of it."""

    plugin: Any
    reshard: bool
    recompute: bool
    note: str


def sharding() -> Sharding | None:
    """None where no shards are asked for: then each process holds the whole model.

    Raises:
        UserError: the config asks for what is not there.
    """
    env = os.environ
    read_config(env)
    if env.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    if env.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            f"the accelerate config asks for FSDP of version {env.get('FSDP_VERSION', '1')}, expected 2: write "
            "fsdp_version: 2 under fsdp_config (accelerate to-fsdp2 converts a config)"
        )
    if env.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise UserError(
            "the accelerate config asks for fsdp_offload_params, expected shards that stay on their devices: leave it "
            "out, and use more processes or LoRA where memory is too small"
        )
    # It would leave other processes with empty models; here each reads its own from the files that they share.
    env["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    try:
        from torch.distributed.fsdp import FSDPModule

        enough = hasattr(FSDPModule, "set_reduce_scatter_unused_params")
    except ImportError:
        enough = False
    if not enough:
        raise UserError(
            f"the accelerate config asks for FSDP, and torch is {torch.__version__}, expected 2.13 or newer with "
            "torch.distributed: upgrade torch, or take a config without FSDP"
        )
    try:
        plugin = FullyShardedDataParallelPlugin()
    except (ValueError, ImportError) as error:
        raise UserError(f"the accelerate config cannot be followed: {error}; correct its fsdp_config") from error
    if plugin.ignored_modules is not None:
        raise UserError(
            "the accelerate config sets fsdp_ignored_modules, expected every weight in shards: leave it out"
        )
    return Sharding(
        plugin, bool(plugin.reshard_after_forward), bool(plugin.activation_checkpointing), followed_zero(env)
    )


def read_config(env: MutableMapping[str, str]) -> None:
    """DeepSpeed becomes FSDP2.

    Raises:
        UserError: the config asks for something that neither sharded nor plain processes do here.
    """
    follow_zero(env)

    def on(name: str) -> bool:
        return env.get(name, "").lower() not in _IDLE or env.get(name, "").lower() == "true"

    def refuse(what: str, expected: str) -> None:
        raise UserError(f"the accelerate config asks for {what}, expected {expected}")

    if env.get("ACCELERATE_USE_MEGATRON_LM", "").lower() == "true":
        refuse("Megatron-LM", "FSDP2 (srlm's configs/accelerate/fsdp2.yaml) or none: change distributed_type")
    precision = env.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", "bf16", "fp32"):
        refuse(f"mixed_precision: {precision}", "no or bf16: correct it (what srlm computes in is its --dtype)")
    if on("ACCELERATE_DYNAMO_BACKEND"):
        refuse(f"dynamo_backend {env['ACCELERATE_DYNAMO_BACKEND']}", "models that are not compiled: leave it out")
    if env.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") not in ("", "1", "auto"):
        refuse(
            f"gradient_accumulation_steps: {env['ACCELERATE_GRADIENT_ACCUMULATION_STEPS']}",
            "1: --prompts-per-step says what a step is, --token-budget how many pieces it is computed in",
        )
    for name, value in sorted(env.items()):
        if name.startswith("PARALLELISM_CONFIG_") and name.endswith("_SIZE") and value not in _IDLE:
            kind = name.removeprefix("PARALLELISM_CONFIG_").lower()
            if kind != "dp_shard_size":
                refuse(
                    f"{kind}: {value}", "shards over all processes and nothing else: leave the parallelism_config out"
                )


def refuse_precision(dtype: torch.dtype) -> None:
    """
    Raises:
        UserError: the config's mixed precision is not what the model computes in.
    """
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() == "bf16" and dtype != torch.bfloat16:
        raise UserError(
            f"the accelerate config asks for mixed_precision: bf16, and the model is {str(dtype)[6:]}: write "
            "mixed_precision: 'no', or give --dtype bf16 (masters and moments are fp32 in either case)"
        )


def refuse_too_many(local: int, started: int, there: int) -> None:
    """local: number of this process on its machine. started, there: processes and accelerators of the machine.

    Raises:
        UserError: there are fewer accelerators.
    """
    if 0 < there <= local:
        raise UserError(
            f"{started} processes were started on this machine, which has {there} "
            f"{'accelerator' if there == 1 else 'accelerators'}, expected one for each: set num_processes"
        )
