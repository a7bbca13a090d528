"""DeepSpeed configs: what ZeRO divides among processes, FSDP2 divides here."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from srlm.errors import UserError

_ASKED = "ACCELERATE_USE_DEEPSPEED"
_STAGE = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
_UNSET = ("", "none", "auto", "None", None)


def follow_zero(env: MutableMapping[str, str]) -> None:
    """Where the accelerate config asks for DeepSpeed, write what FSDP2 is asked for by that name: ZeRO-3 divides
    weights, gradients, masters and moments, and so do ZeRO-1 and 2, whose weights stay gathered within a step; ZeRO-0
    divides nothing. DeepSpeed itself is not used.

    Raises:
        UserError: the config asks for what is not there.
    """
    if env.get(_ASKED, "").lower() != "true":
        return
    asked = _file(env["ACCELERATE_DEEPSPEED_CONFIG_FILE"]) if "ACCELERATE_DEEPSPEED_CONFIG_FILE" in env else {}
    zero = _part(asked, "zero_optimization")
    stage = str(zero.get("stage", env.get(_STAGE, "0" if asked else "2")))
    if stage not in ("0", "1", "2", "3"):
        _refuse(f"DeepSpeed ZeRO-{stage}", "stage 0, 1, 2 or 3: correct it")
    for what in ("optimizer", "param"):
        device = env.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what.upper()}_DEVICE")
        device = _part(zero, f"offload_{what}").get("device", device)
        if device not in _UNSET:
            _refuse(
                f"DeepSpeed's offload of {what} to {device}",
                "shards that stay on their devices: leave it out, and use more processes or LoRA where memory is small",
            )
    for name in ("optimizer", "scheduler"):
        if asked.get(name):
            _refuse(f"DeepSpeed's {name}", f"srlm's own (--learning-rate): leave its {name} out")
    if _part(asked, "fp16").get("enabled") is True:
        _refuse("DeepSpeed's fp16", "bf16 or neither: correct it (what srlm computes in is its --dtype)")
    if _part(asked, "bf16").get("enabled") is True:
        env["ACCELERATE_MIXED_PRECISION"] = "bf16"
    if (steps := asked.get("gradient_accumulation_steps")) not in _UNSET:
        env["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(steps)
    clipping = asked.get("gradient_clipping", env.get("ACCELERATE_GRADIENT_CLIPPING"))
    if clipping not in _UNSET and str(clipping) not in ("1", "1.0"):
        _refuse(f"gradient_clipping: {clipping}", "1.0, the norm at which srlm clips: correct it, or leave it out")
    env[_ASKED], env[_STAGE] = "false", stage
    if stage != "0":
        env.update(
            ACCELERATE_USE_FSDP="true",
            FSDP_VERSION="2",
            FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
            FSDP_RESHARD_AFTER_FORWARD="true" if stage == "3" else "false",
        )


def followed_zero(env: Mapping[str, str]) -> str:
    """What a person should know of a config that was read so; empty without one."""
    stage = env.get(_STAGE, "")
    done = stage not in ("", "0")
    return f"ZeRO-{stage} of the accelerate config is done by FSDP2, without DeepSpeed" if done else ""


def _file(name: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise UserError(f"the DeepSpeed config {name} cannot be read: {error}; correct it") from error
    return found


def _part(asked: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = asked.get(name)
    return found if isinstance(found, dict) else {}


def _refuse(what: str, expected: str) -> None:
    raise UserError(f"the accelerate config asks for {what}, expected {expected}")
