"""Every setting changes something that can be seen: one that nothing reads is a promise nobody keeps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from support import WORDS, command, save_adapter, train_words, whole, write_rows
from test_guard import CONFIG, HEALTHY, START
from transformers import AutoTokenizer

from srlm import SelfRewardConfig
from srlm.config import PARTS
from srlm.guard.decision import decide
from srlm.guard.settings import GuardSettings
from srlm.guard.signals import alarms
from srlm.sizes import Sizes

DPO = {"objective": "dpo"}
SPLITS = ("train", "test")
FIRST = "regex:[a-zA-Z]"


def sees(response: str, columns: Mapping[str, Any]) -> float:
    return len(response) if "answer" in columns else -len(response)


# name -> the value that differs from the default or from `support.SETTINGS`, and what else is set for both
CHANGED: dict[str, tuple[Any, dict[str, Any]]] = {
    "output": ("elsewhere", {}),
    "rounds": (2, {}),
    "num_samples": (3, {}),
    "max_new_tokens": (5, {}),
    "reward": ("random", {}),
    "answers": ("builtins:bool", {}),
    "beta": (2.0, {}),
    "step": (0.3, {}),
    "clip": (0.0, {}),
    "anchor": (0.0, {}),
    "objective": ("ipo", {}),
    "pairs": ("best_worst", DPO),
    "margin": (5.0, DPO),
    "label_smoothing": (0.3, DPO),
    "length_normalised": (True, DPO),
    "ratio_clip": ((0.01, 0.01), {"objective": "grpo", "clip": 8.0}),
    "nll": (1.0, DPO),
    "length_penalty": (1.0, {}),
    "length_window": ((0, 3), {"length_penalty": 1.0}),
    "kl_initial": (0.5, {}),
    "truncated": ("drop", {"stop": ["e", "t", "o", "a"]}),
    "learning_rate": (1e-2, {}),
    "gain_learning_rate": (0.0, {}),
    "epochs": (1, {}),
    "prompts_per_step": (3, {}),
    "token_budget": (64, {}),
    "carry_optimizer": (True, {"rounds": 2}),
    "checkpoint_steps": (100, {}),
    "gradient_checkpointing": (True, {}),
    "lora_rank": (2, {}),
    "lora_alpha": (3.0, {}),
    "adapter": ("merge", {"adapter": "ignore", "model": "both"}),
    "dtype": ("bf16", {}),
    "temperature": (2.0, {}),
    "top_p": (0.5, {}),
    "top_k": (3, {}),
    "stop": (("e", "t"), {}),
    "raw_prompts": (True, {}),
    "max_prompts": (3, {}),
    "max_held_out": (2, {}),
    "prompts_per_round": (2, {}),
    "consistency_band": ((0.0, 0.3), {"answers": FIRST, "num_samples": 4}),
    "votes": (9, {"reward": "majority", "answers": FIRST}),
    "teacher": ("initial", {"reward": "majority", "answers": FIRST, "rounds": 2}),
    "labelled": (True, {"reward": "check:test_settings:sees", "prompts": "labelled"}),
    "held_out_share": (0.5, {"held_out": None, "held_out_share": 0.34}),
    "held_out_samples": (2, {}),
    "match": ("exact", {}),
    "prompt_column": ("other", {}),
    "answer_column": ("reply", {}),
    "split": ("test", {"prompts": "saved", "held_out": None, "held_out_share": 0.34}),
    "dataset_config": ("second", {"prompts": "repository", "held_out": None, "held_out_share": 0.34}),
    "streaming": (4, {"prompts": "repository", "held_out": None, "held_out_share": 0.34}),
    "streaming_buffer": (20, {"streaming": 4, "prompts": "repository", "held_out": None, "held_out_share": 0.34}),
    "system_prompt": ("Be brief.", {}),
    "instruction": ("Be brief.", {}),
    "overlong": ("skip", {"prompts": "long"}),
    "chat_template_kwargs": (("greeting=Hello",), {"model": "greeting"}),
    "report_to": (("tensorboard",), {}),
    "push_to_hub": ("someone/model", {}),
    "trust_remote_code": (True, {}),
    "seed": (4, {}),
}


ELSEWHERE = {"engine", "engine_weights", "engine_options", "engine_correction"}  # test_engines.py, which has engines
# test_rubrics.py, which has judges
ELSEWHERE |= {"rubric", *(f"judge_{name}" for name in ("samples", "tokens", "temperature", "opponents"))}
ELSEWHERE |= {"quantize"}  # test_packed.py, which has bitsandbytes or goes without
ELSEWHERE |= {f"written_{name}" for name in ("prompts", "examples", "near", "length", "tokens", "temperature", "top_p")}


def test_no_setting_is_left_out():
    names = {field.name for field in fields(SelfRewardConfig)}
    guards = {field.name for field in fields(GuardSettings)} - {field.name for field in fields(Sizes)}
    assert set(CHANGED) | set(GUARDED) | ELSEWHERE == names and set(GUARDED) == guards
    parts = [name for part in PARTS for name in part.__annotations__]
    assert sorted(parts) == sorted(names)  # each in one part


@pytest.fixture(scope="module")
def observed(tiny, tmp_path_factory):
    """What a run leaves, says, asks of the model and writes."""
    data = tmp_path_factory.mktemp("data")
    train = [{"prompt": f"Say {word}", "other": f"Tell {word}"} for word in WORDS]
    held = [row | {"answer": "[a-mA-M]", "reply": "[^a-mA-M]"} for row in train[:3]]
    files = {"prompts": write_rows(data / "p.jsonl", train), "held_out": write_rows(data / "h.jsonl", held)}
    given = {"model": tiny, "rounds": 1} | files
    both = shutil.copytree(tiny, data / "both")
    save_adapter(tiny, both)
    places = {"both": both, "greeting": greeting(tiny, data), "saved": saved(data), "repository": repository(data)}
    places["long"] = write_rows(data / "long.jsonl", [*train, {"prompt": "x" * 600}])
    places["labelled"] = write_rows(data / "labelled.jsonl", [row | {"answer": "a"} for row in train])
    known: dict[str, dict[str, Any]] = {}

    def observe(options: dict[str, Any]) -> dict[str, Any]:
        key = repr(sorted(options.items()))
        if key in known:
            return known[key]
        folder = tmp_path_factory.mktemp("runs")
        every = given | {"output": "run"} | options
        every["output"] = run = folder / every["output"]
        for place in ("model", "prompts"):
            every[place] = places.get(every[place], every[place])
        if every["held_out"] is None:
            del every["held_out"]
        seen: dict[str, Any] = {"attention": 0, "written": [], "code": []}
        attend, name = torch.nn.functional.scaled_dot_product_attention, os.replace
        from srlm.policies.transformer.load import hub

        load = hub.AutoConfig.from_pretrained

        def attended(*arguments, **more):
            seen["attention"] += 1
            return attend(*arguments, **more)

        def named(source, target):
            seen["written"].append(str(Path(target).relative_to(folder)))
            name(source, target)

        def loaded(*arguments, **more):
            seen["code"].append(more["trust_remote_code"])
            return load(*arguments, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", attended)
            patch.setattr(os, "replace", named)
            patch.setattr(hub.AutoConfig, "from_pretrained", loaded)
            patch.setenv("HF_HUB_OFFLINE", "1")
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
            outcome = command(*train_words(**every))
        if options.get("prompts") == "long" and "overlong" not in options:
            return {"refused": outcome.err}
        assert outcome.code == 0, outcome
        known[key] = seen | whole(run, every["rounds"]) | {"pushed": "not pushed" in outcome.out}
        return known[key]

    return observe


def greeting(model: Path, folder: Path) -> Path:
    """A model whose chat template has a variable."""
    shutil.copytree(model, folder / "greeting")
    tokenizer = AutoTokenizer.from_pretrained(folder / "greeting")
    tokenizer.chat_template = "{{ greeting }}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder / "greeting")
    return folder / "greeting"


def saved(folder: Path) -> Path:
    parts = {split: datasets.Dataset.from_list([{"prompt": f"{split} {w}"} for w in WORDS]) for split in SPLITS}
    datasets.DatasetDict(parts).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def repository(folder: Path) -> Path:
    """A dataset as on the Hub, of two configurations."""
    home = folder / "repository"
    home.mkdir()
    for name in ("first", "second"):
        write_rows(home / f"{name}.jsonl", [{"prompt": f"{name} {w}"} for w in WORDS])
    parts = "".join(
        f"- config_name: {name}\n  data_files: {name}.jsonl\n{'  default: true' if name == 'first' else ''}\n"
        for name in ("first", "second")
    )
    (home / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")
    return home


@pytest.mark.parametrize("name", CHANGED)
def test_a_setting_changes_a_run(observed, name):
    value, others = CHANGED[name]
    assert observed(others) != observed(others | {name: value})


def test_a_run_is_observed_the_same_twice(observed):
    """Or else the test above could not fail."""
    assert observed({}) == observed({"seed": 3}) == observed({"quiet": True})


# Thresholds of the guard, on records that stand at its door

FELL = {"accuracy_sampled": 0.3, "accuracy_sampled_low": 0.25, "accuracy_sampled_high": 0.35}
HIGH = {"accuracy_sampled": 0.5, "accuracy_sampled_low": 0.45, "accuracy_sampled_high": 0.55}
DAMAGED = {"leak": -5.0}
GUARDED: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {  # value, and changes to the first and last record
    "guard": (False, {}, DAMAGED),
    "until": ("saturated", {"j0_gap": 1.0}, {"displacement_held_out": 0.0, "displacement": 0.0, "j0_gap": 1.0}),
    "patience": (2, {}, DAMAGED),
    "guard_false_alarm": (0.9, {}, {"achieved": -0.2}),
    "guard_kept_mass": (1.0, {}, {"leak_error": 0.01}),
    "guard_length": (1.0, {}, {}),
    "guard_truncation": (-1.0, {}, {}),
    "guard_repetition": (-1.0, {}, {}),
    "guard_same_response": (-1.0, {}, {"same_response": 0.02}),
    "guard_consistency": (0.9, {"self_consistency": 0.6}, {"self_consistency": 0.1}),
    "guard_accuracy_drop": (0.9, HIGH, FELL),
    "guard_auroc": (1.1, {}, {"auroc": 0.9, "auroc_high": 0.95}),
    "guard_stable": (99.0, {}, {}),
    "guard_saturated": (99.0, {}, {}),
}


@pytest.mark.parametrize("name", GUARDED)
def test_a_threshold_changes_what_the_guard_says(name):
    value, first, last = GUARDED[name]
    records = [START | first, HEALTHY | last]
    said = [(alarms(records, config), decide(records, config)) for config in (CONFIG, replace(CONFIG, **{name: value}))]
    assert said[0] != said[1]
