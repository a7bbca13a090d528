"""What a run is: written when it begins, held against what is asked of it when it goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from srlm import __version__
from srlm.config import SelfRewardConfig
from srlm.deprecated import RETIRED
from srlm.errors import UserError
from srlm.prompts.select import PromptSet
from srlm.run.files import damaged

# On resume: a run may move, be told of elsewhere, have less memory, and let somebody else draw its responses.
FREE_TO_CHANGE = (
    *("output", "report_to", "push_to_hub", "token_budget", "engine", "engine_weights", "engine_options"),
)
NEWER = (  # settings whose default is what runs without them did
    *("prompts_per_round", "consistency_band", "votes", "teacher", "labelled", "top_k"),
    *("split", "dataset_config", "system_prompt", "instruction", "overlong", "chat_template_kwargs"),
    *("prompt_column", "answer_column", "adapter", "step", "length_normalised", "ratio_clip"),
    *("engine", "engine_weights", "engine_options", "engine_correction"),
    *("rubric", "judge_samples", "judge_tokens", "judge_temperature", "judge_opponents", "written_"),
    *("streaming", "quantize", "carry_optimizer"),
)
_ADDRESS = re.compile(" at 0x[0-9a-fA-F]+>")
TEXTS, OBJECTS = ("state", "model"), ("guard", "skipped")  # of a manifest; the objects where they are there
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy")


def new_manifest(
    model: str,
    config: SelfRewardConfig,
    train: PromptSet,
    held_out: PromptSet | None,
    *,
    held_out_given: bool,
    labels_used: bool,
    rubrics: Sequence[str] = (),
) -> dict[str, Any]:
    """held_out_given: rather than set aside from the prompts. labels_used: the reward sees answers. rubrics: texts of
    those that a judge was given."""
    data = {"prompts": {"source": train.source, "number": len(train.prompts), "fingerprint": train.fingerprint}}
    if held_out is not None:
        data["held_out"] = {
            "source": held_out.source,
            "number": len(held_out.prompts),
            "fingerprint": held_out.fingerprint,
        }
        # What accuracies of one run are compared by; training knows nothing of it.
        data["held_out_answers"] = {"fingerprint": _fingerprint(held_out)}
    if train.columns is not None:  # which a check of the user's sees
        data["prompts_columns"] = {"fingerprint": hashlib.sha256(_columns_text(train.columns).encode()).hexdigest()}
    if rubrics:
        data["rubrics"] = {"fingerprint": hashlib.sha256("\0".join(rubrics).encode()).hexdigest()}
    if labels_used:
        data["prompts_answers"] = {"fingerprint": _fingerprint(train)}
    return {
        "srlm": __version__,
        "state": "running",
        "model": model,
        "config": settings(config),
        "data": data,
        "labels_used": labels_used,
        "held_out_given": held_out_given,
        "command": sys.argv,
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def read_manifest(path: Path, option: str = "--resume") -> dict[str, Any]:
    """
    Raises:
        UserError: `path` holds none.
    """
    file = path / "manifest.json"
    try:
        found = dict(json.loads(file.read_bytes()))
    except OSError as error:
        raise UserError(
            f"{path} is not a run folder (no readable manifest.json): give {option} the folder of a run"
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(file, "it is not JSON") from error
    if odd := [name for name in OBJECTS if not isinstance(found.get(name, {}), dict)]:
        raise damaged(file, f"its {odd[0]} is no object")
    if odd := [name for name in TEXTS if not isinstance(found.get(name), str)]:
        raise damaged(file, f"its {odd[0]} is no text")
    return found


def run_config(manifest: dict[str, Any], folder: Path) -> tuple[SelfRewardConfig, str, str | None]:
    """What the run in `folder` was begun with: its configuration, prompts and, if they were given, held-out prompts.
    Thresholds of the guard, and settings of NEWER, that the run did not know yet are at their defaults; those of
    RETIRED are left out.

    Raises:
        UserError: another version wrote the manifest, which had other settings of training.
    """
    try:
        kept = _without_retired(manifest["config"])
        config: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()}
        for field in dataclasses.fields(SelfRewardConfig):
            if field.name not in config and not field.name.startswith(("guard_", *NEWER)):
                raise KeyError(field.name)
        texts = {field.name for field in dataclasses.fields(SelfRewardConfig) if isinstance(field.default, str)}
        for name, value in config.items():
            if isinstance(value, dict) or (isinstance(value, tuple) and any(isinstance(v, dict | list) for v in value)):
                raise TypeError(f"{name} is an object, or holds one")
            if name in texts and isinstance(value, tuple):
                raise TypeError(f"{name} is a list")
        config["output"] = str(folder)
        data = manifest["data"]
        if odd := [name for name, entry in data.items() if not isinstance(entry["fingerprint"], str)]:
            raise TypeError(f"the fingerprint of {odd[0]} is no text")
        held_out = data["held_out"]["source"] if manifest["held_out_given"] else None
        return SelfRewardConfig(**config), data["prompts"]["source"], held_out
    except (AttributeError, KeyError, TypeError, OverflowError, ValueError) as error:
        raise UserError(
            f"the manifest of {folder} is not one that srlm {__version__} wrote ({error}): use the version that began "
            "the run, or restore manifest.json from a copy"
        ) from error


def code_of(config: SelfRewardConfig) -> dict[str, Any]:
    """Settings that make whoever obeys them run code: code of a model's, or a function of somebody's."""
    named = {
        "reward": re.search(r"\w:\w", config.reward),
        "answers": ":" in config.answers and not config.answers.startswith("regex:"),
        "match": ":" in config.match,
        "trust_remote_code": config.trust_remote_code,
    }
    return {name: getattr(config, name) for name, runs in named.items() if runs}


def refuse_code(folder: Path, config: SelfRewardConfig, given: Mapping[str, Any]) -> None:
    """A folder may come from a stranger: it is not to say whose code runs here.

    Args:
        given: what the user asked for now.

    Raises:
        UserError: the run in `folder` needs code that was not asked for.
    """
    for name, value in code_of(config).items():
        if given.get(name) != value:
            option = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            raise UserError(
                f"the run {folder} was begun with {option}, which runs code that the folder names: give {option} again "
                "if you trust it"
            )


def taken_up(run: Path, now: dict[str, Any]) -> dict[str, Any]:
    """The manifest in `run`, which goes on as the run that `now` is the manifest of.

    Raises:
        UserError: it began with something else, or cannot be read by this version.
    """
    was = read_manifest(run)
    run_config(was, run)
    if was["config"]["objective"] == "grpo" and "ratio_clip" not in was["config"]:
        raise UserError(
            f"the run {run} began with a grpo of one ratio per response, which is no longer there, expected one per "
            "token: start a new run in another --output, or go on with the version that began it"
        )
    was["config"] = settings(SelfRewardConfig()) | _without_retired(was["config"])
    then, asked = _facts(was), _facts(now)
    for key in sorted(then.keys() | asked.keys()):
        if then.get(key) != asked.get(key):
            raise UserError(
                f"the run {run} began with {key} = {then.get(key)}, now it is {asked.get(key)}: go on with what it "
                "began with, or start a new run in another --output"
            )
    return was


def _without_retired(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in RETIRED}


def settings(config: SelfRewardConfig) -> dict[str, Any]:
    """As JSON gives them back."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(config).items()
    }


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs the same."""
    data = {
        name: (f"{entry['number']} prompts " if "number" in entry else "") + entry["fingerprint"][:12]
        for name, entry in manifest["data"].items()
    }
    own = {name: value for name, value in manifest["config"].items() if name not in FREE_TO_CHANGE}
    return {"model": manifest["model"]} | own | data


def _fingerprint(labelled: PromptSet) -> str:
    return hashlib.sha256(repr(labelled.answers).encode()).hexdigest()


def _columns_text(columns: Any) -> str:
    try:
        return json.dumps(columns, sort_keys=True, default=_as_text)
    except TypeError:
        return json.dumps(_alike(columns), sort_keys=True, default=str)


def _as_text(value: Any) -> str:
    text = str(value)
    if isinstance(value, set | frozenset) or _ADDRESS.search(text):
        raise TypeError
    return text


def _alike(value: Any) -> Any:
    """Equal for equal values of a column, in any process: the text of an image, say, has its address in memory."""
    if isinstance(value, Mapping):
        return {str(key): _alike(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_alike(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, bytes) or hasattr(value, "tobytes"):
        return hashlib.sha256(value if isinstance(value, bytes) else value.tobytes()).hexdigest()
    return type(value).__name__ if not isinstance(value, str) and _ADDRESS.search(str(value)) else value


def _git_commit() -> str | None:
    """Of the project that the user runs this in."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
