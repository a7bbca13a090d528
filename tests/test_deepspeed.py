"""Accelerate configs that ask for DeepSpeed are followed by FSDP2, or refused in a sentence."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml

from srlm.errors import UserError
from srlm.policies.transformer.devices.asked import sharding
from srlm.policies.transformer.devices.deepspeed import follow_zero, followed_zero

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

ASKED = {"ACCELERATE_USE_DEEPSPEED": "true"}


def launched(folder: Path, deepspeed: dict[str, Any], **config: Any) -> dict[str, str]:
    """What `accelerate launch` hands on of such a config."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    file = folder / "accelerate.yaml"
    usual = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 2, "machine_rank": 0}
    file.write_text(
        yaml.safe_dump(usual | config | {"distributed_type": "DEEPSPEED", "deepspeed_config": deepspeed}),
        encoding="utf-8",
    )
    words = ["--config_file", str(file), "--main_process_port", "0", "script.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    arguments.deepspeed_fields_from_accelerate_config = ",".join(deepspeed)  # as its `launch_command` does
    return dict(prepare_deepspeed_cmd_env(arguments)[1])


@pytest.mark.parametrize(("stage", "reshard"), [(1, False), (2, False), (3, True)])
@pytest.mark.parametrize("in_file", [False, True])
def test_zero_is_sharding(stage: int, reshard: bool, in_file: bool, tmp_path: Path) -> None:
    own = {"gradient_clipping": 1.0, "offload_optimizer_device": "none", "zero3_init_flag": True, "zero_stage": stage}
    if in_file:
        file = tmp_path / "ds.json"
        zero = {"stage": stage, "offload_param": {"device": "none"}, "reduce_bucket_size": "auto"}
        file.write_text(json.dumps({"zero_optimization": zero, "gradient_clipping": "auto"}), encoding="utf-8")
        own = {"deepspeed_config_file": str(file)}
    with patch.dict(os.environ, launched(tmp_path, own)):
        found, again = sharding(), sharding()
    assert found is not None and (found.reshard, found.recompute) == (reshard, False)
    assert found.note == f"ZeRO-{stage} of the accelerate config is done by FSDP2, without DeepSpeed"
    assert again is not None and (again.reshard, again.note) == (found.reshard, found.note)


def test_zero_0_divides_nothing(tmp_path: Path) -> None:
    env = launched(tmp_path, {"zero_stage": 0})
    follow_zero(env)
    assert env["ACCELERATE_USE_DEEPSPEED"] == "false" and env.get("ACCELERATE_USE_FSDP") != "true"
    assert followed_zero(env) == ""
    assert followed_zero({}) == ""


@pytest.mark.parametrize(
    ("env", "file", "said"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "5"}, None, "DeepSpeed ZeRO-5, expected stage 0, 1, 2 or 3"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, None, "offload of param to nvme"),
        (
            {},
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}},
            "offload of optimizer to cpu",
        ),
        ({}, {"optimizer": {"type": "AdamW"}}, "DeepSpeed's optimizer, expected srlm's own (--learning-rate)"),
        ({}, {"scheduler": {"type": "WarmupLR"}}, "DeepSpeed's scheduler"),
        ({}, {"fp16": {"enabled": True}}, "DeepSpeed's fp16, expected bf16 or neither"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, None, "gradient_clipping: 0.5, expected 1.0"),
        ({}, {"gradient_clipping": "much"}, "gradient_clipping: much"),
        ({}, "[1]", "cannot be read: it is no object"),
        ({}, "{", "cannot be read: Expecting"),
        (
            {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "nowhere.json"},
            None,
            "the DeepSpeed config nowhere.json cannot be read",
        ),
    ],
)
def test_what_is_not_there_is_refused(env: dict[str, str], file: Any, said: str, tmp_path: Path) -> None:
    if file is not None:
        place = tmp_path / "ds.json"
        place.write_text(file if isinstance(file, str) else json.dumps(file), encoding="utf-8")
        env = env | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(place)}
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        follow_zero(ASKED | env)
    assert "\n" not in str(caught.value)


def test_what_the_file_says_of_precision_and_steps_is_heeded(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"bf16": {"enabled": True}, "gradient_accumulation_steps": 4}), encoding="utf-8")
    env = ASKED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    follow_zero(env)
    assert env["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert env["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "4"  # which is refused like anyone's
