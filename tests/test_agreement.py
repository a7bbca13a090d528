"""Command lines that must agree, as a table: the same in other words, in other pieces, on more processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed
import yaml
from support import (
    SETTINGS,
    alive,
    command,
    measured,
    records,
    run_and_die,
    table,
    train_words,
    whole,
    words,
    write_held_out,
    write_prompts,
)

from srlm import SelfRewardConfig, SelfRewardTrainer
from srlm.console import Display

BITS, CLOSE = 0.0, 2e-4  # how far apart two may be


def plain(run: Path, given: dict[str, Any]) -> Path:
    outcome = command(*train_words(**given, output=run))
    assert outcome.code == 0, outcome
    return run


def budget(run: Path, given: dict[str, Any]) -> Path:
    return plain(run, given | {"token_budget": 256})


def underscores(run: Path, given: dict[str, Any]) -> Path:
    line = train_words(**given, output=run)
    same = ["--" + word[2:].replace("-", "_") if word.startswith("--") else word for word in line]
    assert same != line and command(*same).code == 0
    return run


def from_yaml(run: Path, given: dict[str, Any]) -> Path:
    options = {name: str(value) if isinstance(value, Path) else value for name, value in (SETTINGS | given).items()}
    file = run.parent / "options.yaml"
    file.write_text(yaml.safe_dump(options | {"output": str(run)}))
    assert command("train", "--config", file).code == 0
    return run


def from_printed_config(run: Path, given: dict[str, Any]) -> Path:
    printed = command(*train_words(**given, output=run), "--print-config")
    file = run.parent / "printed.yaml"
    file.write_text(printed.out)
    assert command("train", "--config", file).code == 0
    return run


def command_line_wins(run: Path, given: dict[str, Any]) -> Path:
    file = run.parent / "other.yaml"
    file.write_text(yaml.safe_dump({name: str(value) for name, value in given.items()} | {"seed": 77, "beta": 9}))
    assert command("train", *words(**SETTINGS, beta=1.0, output=run), "--config", file).code == 0
    return run


def from_python(run: Path, given: dict[str, Any]) -> Path:
    config = SelfRewardConfig(**SETTINGS, output=str(run))
    SelfRewardTrainer(str(given["model"]), config, given["prompts"], given["held_out"], display=Display(True)).train()
    return run


def killed_and_resumed(run: Path, given: dict[str, Any]) -> Path:
    lives = 0
    while alive(run_and_die, run, train_words(**given), 23) == -signal.SIGKILL:
        lives += 1
    assert lives >= 2
    return run


def arm_of_a_comparison(run: Path, given: dict[str, Any]) -> Path:
    arms = ["--compare", "random, log_likelihood", "--quiet"]
    assert command(*train_words(**given, output=run), *arms).code == 0
    return run / "log_likelihood-seed-3"


def two_processes(run: Path, given: dict[str, Any]) -> Path:
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*torchrun, "-m", "srlm.cli", *train_words(**given, output=run)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return run


TABLE = {
    "--token-budget 256 ≡ 2048": (budget, CLOSE),
    "--num_samples ≡ --num-samples": (underscores, BITS),
    "YAML ≡ options": (from_yaml, BITS),
    "--print-config ≡ options": (from_printed_config, BITS),
    "options over YAML ≡ options": (command_line_wins, BITS),
    "Python ≡ options": (from_python, BITS),
    "killed and resumed ≡ whole": (killed_and_resumed, BITS),
    "arm of a comparison ≡ run": (arm_of_a_comparison, BITS),
    "two processes ≡ one": (two_processes, CLOSE),
}


@pytest.fixture(scope="module")
def given(tiny, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    return {"model": tiny, "prompts": write_prompts(data), "held_out": write_held_out(data)}


@pytest.fixture(scope="module")
def one(given, tmp_path_factory):
    return plain(tmp_path_factory.mktemp("one") / "run", given)


@pytest.mark.parametrize("name", TABLE)
def test_command_lines_agree(given, one, tmp_path, name):
    other, far = TABLE[name]
    run = other(tmp_path / "run", given)
    if far == BITS:
        assert whole(run) == whole(one)
        return
    for mine, theirs in zip(records(run), records(one), strict=True):
        numbers = {key: value for key, value in measured(theirs).items() if value is not None}
        assert {key: measured(mine)[key] for key in numbers} == pytest.approx(numbers, rel=far, abs=far)
    for t in range(SETTINGS["rounds"] + 1):
        for part in ("rollouts", "held_out", "greedy"):
            assert table(run, t, part)["tokens"] == table(one, t, part)["tokens"]


def test_the_table_can_fail(given, one, tmp_path):
    """Another seed is another run, by any of the measures above."""
    run = plain(tmp_path / "run", given | {"seed": 4})
    assert json.dumps(records(run)[0]["mean_log_prob"]) != json.dumps(records(one)[0]["mean_log_prob"])
    assert whole(run) != whole(one)
