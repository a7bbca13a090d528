"""What several processes learn, each with the whole model or with a part of it, is what one learns."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from ranks import FSDP2, die_with_even_steps, even_steps, small_buckets, together
from support import (
    SETTINGS,
    WORDS,
    alive,
    command,
    get_ready,
    measured,
    records,
    table,
    train_words,
    tree,
    write_held_out,
    write_prompts,
    write_rows,
)

from srlm.policies.transformer import processes
from srlm.policies.transformer.devices.asked import sharding
from srlm.policies.transformer.devices.weights import ShardedWeights
from srlm.policies.transformer.engines import SyncReport, vllm
from srlm.policies.transformer.engines.vllm import VllmEngine

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

# Groups of 4 responses in several micro-batches, of which some processes have more than others; in every second step
# one has nothing to do.
OPTIONS: dict[str, Any] = {"prompts_per_step": 5, "token_budget": 48}
FULL = OPTIONS | {"lora_rank": 0, "learning_rate": 2e-3}
CONFIGS = Path(__file__).parents[1] / "configs" / "accelerate"
COLUMNS = ("log_prob", "entropy", "reward", "log_prob_next", "log_prob_initial")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    get_ready()
    folder = tmp_path_factory.mktemp("devices")
    write_prompts(folder)
    write_held_out(folder)
    return folder


@pytest.fixture(scope="module")
def asked(place, tiny):
    """Words of a run by its name."""

    def words(name: str, **options: Any) -> list[str]:
        data = {"model": tiny, "prompts": place / "prompts.jsonl", "held_out": place / "held-out.jsonl"}
        return train_words(**(data | options), output=place / name)

    return words


@pytest.fixture(scope="module")
def alone(place, asked):
    """Runs of one process."""
    made: dict[str, Path] = {}

    def run(name: str, **options: Any) -> Path:
        if name not in made:
            assert command(*asked(name, **options)).code == 0
            made[name] = place / name
        return made[name]

    return run


def assert_same(mine: Path, theirs: Path, *, everywhere: bool = False) -> None:
    """Up to rounding in fp32: of log-probs of up to 40 nats, of numbers that are made of them, of weights; of nearly
    all of these, or of every one."""
    assert sorted(tree(mine)) == sorted(tree(theirs))
    for t in range(SETTINGS["rounds"] + 1):
        for name in ("rollouts", "held_out", "greedy"):
            one, other = table(mine, t, name), table(theirs, t, name)
            assert one["tokens"] == other["tokens"]
            for column in {*COLUMNS} & one.keys():
                assert one[column] == pytest.approx(other[column], rel=1e-5, abs=5e-5), (t, name, column)
    for one, other in zip(records(mine), records(theirs), strict=True):
        assert one.keys() == other.keys()
        numbers = {key: value for key, value in measured(other).items() if value is not None}
        assert {key: one[key] for key in numbers} == pytest.approx(numbers, rel=5e-5, abs=5e-5)
    for file in theirs.glob("**/*.safetensors"):
        one, other = (safetensors.torch.load_file(run / file.relative_to(theirs)) for run in (mine, theirs))
        assert one.keys() == other.keys()
        far = torch.cat([(one[key] - other[key]).abs().flatten() for key in other])
        # Where a gradient is next to nothing, Adam makes a step of its rounding: one weight of some 30,000; with steps
        # that are even (`even_steps`), none.
        share = float((far > 1e-5).double().mean())
        assert float(far.mean()) <= 1e-6 and share <= (0.0 if everywhere else 1e-3), (file, float(far.max()))


def test_two_plain_processes(place, asked, alone):
    expected = alone("one", **OPTIONS)
    said = together(place / "said-plain", 2, asked("plain", **OPTIONS), prepare=small_buckets)
    assert [one.code for one in said] == [0, 0], said
    assert_same(place / "plain", expected)


def test_shards_of_a_model_with_lora(place, asked, alone):
    said = together(place / "said-lora", 2, asked("lora", **OPTIONS), FSDP2)
    assert [one.code for one in said] == [0, 0], said
    assert_same(place / "lora", alone("one", **OPTIONS))
    assert said[1].out == ""


def test_shards_of_a_whole_model_in_more_processes_than_prompts(place, asked, alone):
    """Three processes, steps of two prompts; the vocabulary of 259 and the layers are cut unevenly."""
    options = FULL | {"prompts_per_step": 2}
    zero2 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    said = together(place / "said-full", 3, asked("full", **options), zero2)
    assert [one.code for one in said] == [0, 0, 0], said
    assert_same(place / "full", alone("one-full", **options))
    assert "ZeRO-2 of the accelerate config is done by FSDP2" in said[0].out


def test_a_process_is_killed_and_one_goes_on(place, asked, alone):
    """The main one, while it writes a checkpoint of an update; the other says so, and one process goes on."""
    name = "killed"
    # lock and manifest, prompts, stages and columns of round 0, ...: the step checkpoints come late in that
    said = together(place / f"said-{name}", 2, asked(name, **OPTIONS), killed=(0, 24))
    assert said[0].code == -9
    assert said[1].code == 2
    (line,) = [line for line in said[1].err.splitlines() if line.startswith("srlm: ")]
    assert re.search(r"process 0 of 2 \(pid \d+ on .*\) is gone, killed or crashed while in round \d · ", line), line
    assert "--resume" in line
    assert command("train", "--resume", place / name).code == 0
    assert_same(place / name, alone("one", **OPTIONS))


@pytest.fixture(scope="module")
def stopped(place, asked) -> Path:
    """A run of one process, of a whole model, that was killed in an update."""
    run = place / "stopped"
    *words, _, _ = asked(run.name, **FULL)  # without --output
    assert alive(die_with_even_steps, run, words, 24) == -9
    assert list(run.glob("round-*/update.safetensors")), "it was killed in an update"
    return run


@pytest.mark.parametrize("env", [{}, FSDP2], ids=["plain", "shards"])
def test_two_go_on_where_one_process_stopped(place, stopped, alone, env, monkeypatch):
    """A whole model; with even steps every single weight is what one process learns."""
    name = f"was-one-{len(env)}"
    shutil.copytree(stopped, place / name)
    said = together(place / f"said-{name}", 2, ["train", "--resume", str(place / name)], env, prepare=even_steps)
    assert [one.code for one in said] == [0, 0], said
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.AdamW)  # is put back
    even_steps()
    assert_same(place / name, alone("one-even", **FULL), everywhere=True)


def test_no_second_copy_of_the_model_is_held_on_the_host(tmp_path, monkeypatch):
    class Copy(dict[str, Any]): ...

    copies: list[Any] = []

    def collected() -> Copy:
        assert not held()
        copies.append(weakref.ref(made := Copy()))
        return made

    def held() -> list[Copy]:
        return [copy for one in copies if (copy := one()) is not None]

    model: Any = SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(3, 2))
    weights = ShardedWeights(model, None, "tiny", shards=cast(Any, None))
    monkeypatch.setattr(weights, "_collected_model", collected)
    monkeypatch.setattr(weights, "_write", lambda folder, tokenizer, state, dtype: None)
    weights.collect(model=True)
    weights.save_model(tmp_path, None)
    assert held()  # to be checked
    weights.collect(model=True)
    weights.save(tmp_path, None)
    assert not held()

    backend: Any = SimpleNamespace(carrier="folder", name="u", context=9.0, put=lambda *_: None)
    alone: Any = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    policy: Any = SimpleNamespace(weights=weights, model=model, tokenizer=None, context=9.0)
    monkeypatch.setattr(vllm, "checked", lambda *_, **__: SyncReport())
    VllmEngine(backend, tmp_path, alone).sync(policy)
    assert len(copies) == 3 and not held()


def refused_by_all(said: list[Any]) -> str:
    lines = [[line for line in one.err.splitlines() if line.startswith("srlm: ")] for one in said]
    assert all(one.code == 2 for one in said), said
    assert all(len(some) == 1 for some in lines), said
    return lines[0][0]


def test_processes_with_different_prompts_or_settings(place, asked):
    other = write_rows(place / "other.jsonl", [{"prompt": f"Say {word}"} for word in [*WORDS[1:], "else"]])
    words = [asked("unlike"), asked("unlike", prompts=other)]
    line = refused_by_all(together(place / "said-unlike", 2, words))
    assert "process 1 of 2 has the fingerprint of the prompts" in line
    line = refused_by_all(together(place / "said-unlike", 2, [asked("unlike"), asked("unlike", epochs=3)]))
    assert "process 1 of 2 has --epochs = 3, and process 0 has 2" in line
    assert not (place / "unlike").exists()


def test_a_folder_that_is_not_shared(tmp_path, tiny):
    """Relative to folders of their own, as on two machines."""
    from srlm.policies.transformer.devices import alike

    class Three:
        num_processes, process_index, is_main_process = 3, 0, True

        def wait_for_everyone(self) -> None:
            pass

    def others_see(seen: list[bool]):
        def gathered(every: list[Any], mine: Any) -> None:
            assert mine == [True, True]
            assert len(list(tmp_path.iterdir())) == 1
            every[:] = [mine, *([one, True] for one in seen)]

        return gathered

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "broadcast_object_list", lambda some, source: None)
        patch.setattr(torch.distributed, "all_gather_object", others_see([True, True]))
        alike.refuse_unshared(Three(), tmp_path / "run")
        patch.setattr(torch.distributed, "all_gather_object", others_see([True, False]))
        with pytest.raises(ValueError, match="process 2 of 3 does not see what process 0 writes"):
            alike.refuse_unshared(Three(), tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"FSDP_VERSION": "1"}, "FSDP of version 1, expected 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({"FSDP_AUTO_WRAP_POLICY": "BY_MOOD"}, "BY_MOOD"),
        ({"FSDP_TRANSFORMER_CLS_TO_WRAP": "NoLayer"}, "NoLayer"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed_precision: fp8, expected no or bf16"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed_precision: bf16, and the model is float32"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend INDUCTOR"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "--prompts-per-step"),
        ({"PARALLELISM_CONFIG_TP_SIZE": "2"}, "tp_size: 2"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "4"}, "DeepSpeed ZeRO-4"),
    ],
)
def test_configs_that_ask_for_what_is_not_there(env, expected, monkeypatch, tiny):
    from srlm.errors import UserError
    from srlm.policies.transformer.devices.asked import sharding
    from srlm.policies.transformer.devices.shards import Shards
    from srlm.policies.transformer.load import load_model
    from srlm.policies.transformer.processes import processes

    for name, value in (FSDP2 | env).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        found = sharding()
        assert found is not None
        Shards(load_model(str(tiny), dtype="fp32")[0], found, (), processes())
    assert "\n" not in str(caught.value)


def test_more_processes_than_accelerators():
    from srlm.errors import UserError
    from srlm.policies.transformer.devices.asked import refuse_too_many

    refuse_too_many(7, 8, 0)  # processors
    refuse_too_many(1, 2, 2)
    with pytest.raises(UserError, match="8 processes were started on this machine, which has 2 accelerators"):
        refuse_too_many(2, 8, 2)


def rank_of(run: Path, rank: int) -> int | None:
    """Its process, if it has begun with this run."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words, env = ((place / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        if str(run).encode() in words and f"RANK={rank}".encode() in env:
            return int(place.name)
    return None


@pytest.mark.parametrize(("there", "used"), [(None, False), ("mps", False), ("cuda", True)])
def test_metal_is_not_drawn_on(monkeypatch, there, used):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(there))
    assert processes._accelerated() is used


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found by what Linux says of them")
def test_a_launched_process_is_killed_and_one_goes_on(place, asked, alone):
    """By `accelerate launch` and the sample config of shards; the launcher tells the other one to end meanwhile."""
    run, said = place / "launched", place / "launched.txt"
    chosen = ("--config_file", str(CONFIGS / "fsdp2.yaml"), "--num_processes", "2", "--main_process_port", "0")
    words = [sys.executable, "-m", "accelerate.commands.launch", *chosen, "-m", "srlm"]
    with said.open("w") as both:
        made = subprocess.Popen([*words, *asked("launched", **OPTIONS)], stdout=both, stderr=both)
    try:
        deadline = time.monotonic() + 60
        while not (run / "round-000").exists():
            assert made.poll() is None and time.monotonic() < deadline, said.read_text()
            time.sleep(0.01)
        killed = rank_of(run, 1)
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        assert made.wait(60)
    finally:
        made.kill()
    lines = [line for line in said.read_text().splitlines() if "srlm: " in line]
    assert len(lines) == 1 and re.search(r"process 1 of 2 \(pid \d+ on .*\) is gone, killed or crashed", lines[0]), (
        lines
    )
    assert f"(pid {killed} on" in lines[0] and "[rank0]: Traceback" not in said.read_text()
    assert command("train", "--resume", run).code == 0
    assert_same(run, alone("one", **OPTIONS))


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_sample_config_is_followed(file, monkeypatch):
    """accelerate reads it, and what it hands on asks for nothing that is refused."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    words = ["--config_file", str(file), "--main_process_port", "0", "script.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    for name, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(name, value)
    found = sharding()
    assert (found is None) == (file.stem == "gpus")
    assert found is None or not found.note
