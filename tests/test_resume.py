"""A run that was killed goes on as if nothing had happened, and a finished one is left alone."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pytest
from pyarrow import parquet
from support import (
    SETTINGS,
    WORDS,
    alive,
    command,
    damage,
    learned,
    losses,
    refused,
    run_and_die,
    sentence,
    train_words,
    tree,
    whole,
    write_held_out,
    write_prompts,
    write_rows,
)

from srlm import SelfRewardConfig, SelfRewardTrainer
from srlm.console import Display
from srlm.errors import UserError
from srlm.run.files import SCRATCH
from srlm.run.manifest import PACKAGES, _facts
from srlm.tasks import runs_code
from srlm.training.trainer import _in_common

MIDDLE = "round-001/rollouts/00-tokens.parquet"  # the first thing that round 1 writes


class Story:
    """An uninterrupted run, and the folder as kill -9 would have left it in the middle of each of its writes.

    A kill loses nothing that the operating system already has, so what resuming meets is what lay in the folder. The
    file being written is cut in half.
    """

    def __init__(self, folder, model, data, **options):
        self.folder = folder
        self.given = {"model": model, "prompts": data / "prompts.jsonl", "held_out": data / "held-out.jsonl"} | options
        self.run = folder / "run"
        self.moments: list[tuple[str, Path]] = []
        replace, rename = os.replace, os.rename

        def renamed(source, target, **more):
            """All at once, so nothing is cut: killed before it."""
            if Path(source).is_relative_to(self.run):
                moment = folder / f"moment-{len(self.moments):03d}"
                shutil.copytree(self.run, moment)
                self.moments.append((str(Path(target).relative_to(self.run)), moment))
            return rename(source, target, **more)

        def watched(source, target, **more):
            name = str(Path(target).relative_to(self.run))
            moment = folder / f"moment-{len(self.moments):03d}"
            shutil.copytree(self.run, moment)
            damage(moment / Path(source).relative_to(self.run))
            self.moments.append((name, moment))
            return replace(source, target, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", watched)
            patch.setattr(os, "rename", renamed)
            assert command(*self.command(output=self.run)).code == 0
        self.whole = whole(self.run)

    def command(self, **options):
        return train_words(**(self.given | options))


@pytest.fixture(scope="module")
def story(tmp_path_factory, tiny, data):
    return Story(tmp_path_factory.mktemp("lora"), tiny, data)


@pytest.fixture(scope="module")
def full_story(tmp_path_factory, tiny, data):
    return Story(tmp_path_factory.mktemp("full"), tiny, data, lora_rank=0, learning_rate=2e-3, carry_optimizer=True)


def go_on(folder, *more):
    outcome = command("train", "--resume", folder, *more)
    assert outcome.code == 0, outcome
    return outcome


# Killed


def test_story_is_complete(story):
    """The moments of the next tests are those that matter."""
    names = [name for name, _ in story.moments]
    for t in range(SETTINGS["rounds"]):
        assert names.count(f"round-{t:03d}/update.safetensors") == len(losses(story.run, t)) == 6
        parts = ("00-tokens", "01-log_prob", "02-reward", "03-update")
        files = [f"rollouts/{part}.parquet" for part in parts] + ["held_out/04-log_prob_next.parquet"]
        files += ["rollouts.parquet", "stages.json", "held_out.parquet", "greedy.parquet"]
        assert {f"round-{t:03d}/{file}" for file in files} <= set(names)
    assert {"manifest.json", "records.jsonl", "round-002/adapter", "model", "adapter"} <= set(names)
    assert {"prompts/rollouts.parquet", "prompts/held_out.parquet"} <= set(names)
    assert all([*moment.rglob(f"{SCRATCH}-*")] for _, moment in story.moments)


def test_resumed_equals_uninterrupted_wherever_it_was_killed(story, tmp_path):
    goes_on_from(story, tmp_path, number=10)


def test_resumed_equals_uninterrupted_with_all_weights_trained(full_story, tmp_path):
    goes_on_from(full_story, tmp_path, number=2)


def goes_on_from(story, folder, number):
    """From the first write of every kind in the middle of the run, and from random moments."""
    middle = next(i for i, (name, _) in enumerate(story.moments) if name == MIDDLE)
    kinds = {}
    for i, (name, _) in enumerate(story.moments):
        if i >= middle:
            kinds.setdefault(re.sub(r"^round-\d+/", "", name), i)
    chosen = sorted({*kinds.values(), *random.sample(range(1, len(story.moments)), number)})
    for i in chosen:
        name, moment = story.moments[i]
        run = shutil.copytree(moment, folder / moment.name)
        outcome = go_on(run)
        assert "begins anew" not in outcome.out + outcome.err
        assert whole(run) == story.whole, f"killed while writing {name} ({moment.name})"


def test_killed_before_there_was_a_manifest(story, tmp_path):
    name, moment = story.moments[0]
    assert name == "manifest.json"
    run = shutil.copytree(moment, tmp_path / "run", dirs_exist_ok=True)
    for leftover in run.glob(f"{SCRATCH}*"):
        leftover.write_text("{")
    (run / "manifest.json").unlink(missing_ok=True)
    assert command(*story.command(output=run)).code == 0
    assert whole(run) == story.whole


def test_really_killed_again_and_again(story, tmp_path):
    """kill -9 by the process itself, in the middle of a write, after a random number of others."""
    seed = int(time.time())
    dice = random.Random(seed)
    run, lives = tmp_path / "run", 0
    while alive(run_and_die, run, story.command(), dice.randint(5, 40)) == -signal.SIGKILL:
        lives += 1
        assert lives < 30
    assert lives >= 1, seed
    assert whole(run) == story.whole, f"seed {seed}"


def test_command_line_killed_from_outside(story, tmp_path):
    """At whatever moment it happens to be in round 1 or later."""
    run = tmp_path / "run"
    console = subprocess.Popen(
        [sys.executable, "-m", "srlm.cli", *story.command(output=run)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    wait = random.uniform(0, 0.3)
    deadline = time.time() + 120
    while not (run / "round-001").exists() and console.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    time.sleep(wait)
    console.kill()
    _, err = console.communicate()
    assert not err.strip() and (run / "manifest.json").exists()
    go_on(run)
    assert whole(run) == story.whole, f"killed {wait} s into round 1"


class Watch(Display):
    """Notes what every stage reports."""

    def __init__(self):
        super().__init__(silent=True)
        self.reports = {}

    @contextmanager
    def stage(self, name):
        reports = self.reports.setdefault(name, [])
        yield lambda done, total: reports.append((done, total))


def resumed(story, folder):
    watch = Watch()
    config = SelfRewardConfig(**(SETTINGS | {"output": str(folder)}))
    given = story.given
    SelfRewardTrainer(
        str(given["model"]), config, given["prompts"], given["held_out"], resume=True, display=watch
    ).train()
    return watch.reports


def test_an_update_goes_on_from_its_last_step(story, tmp_path):
    """Killed while the checkpoint of step 4 of 6 was written: the one of step 3 stands."""
    checkpoints = [m for name, m in story.moments if name == "round-001/update.safetensors"]
    folder = shutil.copytree(checkpoints[3], tmp_path / "run")
    reports = resumed(story, folder)
    assert reports["round 1 · update"] == [(4, 6), (5, 6), (6, 6)]
    # What was finished is not done again.
    assert not [name for name in reports if name.startswith("round 0")]
    assert "round 1 · sample rollouts" not in reports and "round 2 · sample rollouts" in reports
    assert whole(folder) == story.whole


def test_a_finished_update_is_not_done_again(story, tmp_path):
    moment = next(m for name, m in story.moments if name == MIDDLE)
    folder = shutil.copytree(moment, tmp_path / "run")
    assert "round 0 · update" not in resumed(story, folder)


@pytest.mark.parametrize("steps", [4, 100])
def test_checkpoints_are_written_as_often_as_asked(tiny, data, tmp_path, steps):
    counted = []
    replace = os.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda a, b: (counted.append(Path(b).name), replace(a, b)))
        options = {"model": tiny, "prompts": data / "prompts.jsonl", "rounds": 1, "output": tmp_path / "run"}
        assert command(*train_words(**options, checkpoint_steps=steps)).code == 0
    assert counted.count("update.safetensors") == {4: 2, 100: 1}[steps]  # of 6 steps, the last always


# A full disk


@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.8, 0.99])
def test_full_disk_is_a_sentence_and_the_run_goes_on_later(story, tmp_path, share):
    run = tmp_path / "run"
    left = int(share * len(story.moments))
    sync = os.fsync

    def full(handle):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = refused(*story.command(output=run))
    assert str(run) in said and "No space left on device" in said and "--resume" in said
    assert not list(run.rglob(f"{SCRATCH}-*")) and not (run / ".lock").exists()
    go_on(run)
    assert whole(run) == story.whole


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 600 kB, if this machine lets us make one; and how to enlarge it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a file system here")
    try:
        yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full(full_story, small_disk):
    disk, enlarge = small_disk
    said = refused(*full_story.command(output=disk / "run"))
    assert str(disk / "run") in said and "No space left on device" in said and "--resume" in said
    enlarge()
    go_on(disk / "run")
    assert whole(disk / "run") == full_story.whole


# Finished


def test_a_finished_run_is_not_overwritten(story):
    before = tree(story.run)
    for options in ({}, {"seed": 77}):
        said = refused(*story.command(output=story.run, **options))
        assert "never overwritten" in said and "--resume" in said
    assert tree(story.run) == before


def test_resuming_a_finished_run_says_so_and_changes_nothing(story):
    before, times = tree(story.run), {p: p.stat().st_mtime_ns for p in story.run.rglob("*")}
    assert "finished already" in go_on(story.run).out
    assert tree(story.run) == before
    assert {p: p.stat().st_mtime_ns for p in story.run.rglob("*")} == times


@pytest.mark.parametrize("reported", [False, True])
def test_a_run_that_was_killed_just_before_its_end_is_whole_again(story, tmp_path, reported):
    run = shutil.copytree(story.run, tmp_path / "run")
    if not reported:
        (run / "report.html").unlink()
    (run / ".lock").touch()
    go_on(run)
    assert whole(run) == story.whole


# Another run than it was


@pytest.fixture(scope="module")
def unfinished(story, tmp_path_factory):
    moment = next(moment for name, moment in story.moments if name == "round-001/update.safetensors")
    folder = shutil.copytree(moment, tmp_path_factory.mktemp("unfinished") / "run")
    shutil.copytree(story.run / "round-000", folder / "round-000", dirs_exist_ok=True)
    manifest = json.loads((story.run / "manifest.json").read_text()) | {"state": "running"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("begun", "asks"),
    [
        ({"engine": "http://stranger:8000"}, True),
        ({"engine": "http://localhost:8000"}, False),
        ({"engine": "vllm", "engine_options": ["trust_remote_code=true"]}, True),
        ({"engine": "vllm", "engine_options": ["max_model_len=64", "worker_extension_cls=x.Y"]}, True),
        ({"engine": "vllm", "engine_options": ["max_model_len=64", "gpu_memory_utilization=0.5"]}, False),
    ],
)
def test_a_folder_does_not_say_whom_to_trust(unfinished, tmp_path, begun, asks):
    """A stranger's run would have prompts and a token sent somewhere, or vLLM run somebody's code."""
    run = shutil.copytree(unfinished, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"config": manifest["config"] | begun}))
    said = refused("train", "--resume", run)
    assert ("give that again if you trust it" in said) is asks
    if asks:
        assert f"--engine {begun['engine']}" in said and "SRLM_ENGINE_KEY" in said
        assert command("train", "--resume", run, "--engine", "builtin").code == 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"beta": 2.0}, "beta"),
        ({"rounds": 5}, "rounds"),
        ({"seed": 4}, "seed"),
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"stop": "x"}, "stop"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"max_prompts": 3}, "max_prompts"),
    ],
)
def test_another_setting_is_refused_by_name(unfinished, options, name):
    before = tree(unfinished)
    said = refused("train", "--resume", unfinished, *train_words(**options)[1:])
    assert f"began with {name} = " in said
    assert tree(unfinished) == before


def test_a_setting_that_is_newer_than_the_run_is_at_its_default(unfinished, tmp_path):
    run = shutil.copytree(unfinished, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["config"]["guard_auroc"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    said = refused("train", "--resume", run, *train_words(guard_auroc=0.4)[1:])
    assert "began with guard_auroc = 0.5, now it is 0.4" in said
    go_on(run)


def test_a_threshold_that_is_no_longer_asked_is_left_out(unfinished, tmp_path):
    run = shutil.copytree(unfinished, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"]["guard_displacement"] = -1.0
    (run / "manifest.json").write_text(json.dumps(manifest))
    go_on(run)


@pytest.mark.parametrize("objective", ["grpo", "dpo"])
def test_a_grpo_that_had_one_ratio_per_response_is_no_longer_there(unfinished, tmp_path, objective):
    run = shutil.copytree(unfinished, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"]["objective"] = objective
    for name in ("ratio_clip", "length_normalised"):
        del manifest["config"][name]
    (run / "manifest.json").write_text(json.dumps(manifest))
    before = tree(run)
    if objective == "grpo":
        assert "began with a grpo of one ratio per response" in refused("train", "--resume", run)
        assert tree(run) == before
    else:
        go_on(run)


def test_a_kl_term_that_is_refused_today_goes_on(unfinished, tmp_path):
    run = shutil.copytree(unfinished, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"] |= {"objective": "dpo", "kl_initial": 0.5}
    (run / "manifest.json").write_text(json.dumps(manifest))
    go_on(run)


@pytest.mark.parametrize("change", [{}, {"config": []}, {"config": {}}, {"config": {"wisdom": 3}}])
def test_a_manifest_of_another_version_is_refused(unfinished, tmp_path, change):
    run = shutil.copytree(unfinished, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    if change.get("config"):
        change["config"] = manifest["config"] | change["config"]
    else:
        del manifest["config"]["gain_learning_rate"]
    (run / "manifest.json").write_text(json.dumps(manifest | change))
    assert "use the version that began the run" in refused("train", "--resume", run)


def test_what_was_said_when_it_stopped_holds_no_longer(unfinished, tmp_path, monkeypatch):
    run = shutil.copytree(unfinished, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    ended = manifest | {"state": "stopped: diverged", "guard": {"events": [], "chosen": 0}}
    (run / "manifest.json").write_text(json.dumps(ended))

    def killed(*_):
        raise UserError("killed")

    monkeypatch.setattr(SelfRewardTrainer, "_train", killed)
    assert "killed" in refused("train", "--resume", run)
    del manifest["guard"]
    assert json.loads((run / "manifest.json").read_text()) == manifest


def test_another_model_or_file_is_refused_by_name(unfinished, tiny_base, tmp_path):
    before = tree(unfinished)
    other = write_rows(tmp_path / "other.jsonl", [{"prompt": word} for word in WORDS])
    assert "model" in refused("train", "--resume", unfinished, "--model", tiny_base)
    assert "prompts" in refused("train", "--resume", unfinished, "--prompts", other)
    assert "held_out" in refused("train", "--resume", unfinished, "--held-out", other)
    assert tree(unfinished) == before


def test_changed_data_are_refused(story, tmp_path):
    """The same names, but not the same prompts or answers in the files."""
    prompts, held_out = write_prompts(tmp_path), write_held_out(tmp_path)
    run = shutil.copytree(story.moments[20][1], tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["data"]["prompts"]["source"], manifest["data"]["held_out"]["source"] = str(prompts), str(held_out)
    (run / "manifest.json").write_text(json.dumps(manifest))
    before = tree(run)
    write_rows(prompts, [{"prompt": f"Say {word}"} for word in [*WORDS[:-1], "other"]])
    assert "began with prompts = 6 prompts" in refused("train", "--resume", run)
    write_prompts(tmp_path)
    write_held_out(tmp_path, "[0-9]")
    assert "began with held_out_answers" in refused("train", "--resume", run)
    write_held_out(tmp_path)
    assert tree(run) == before
    go_on(run)
    assert learned(run) == learned(story.run)


def test_resume_of_what_is_no_run(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        assert "not a run folder" in refused("train", "--resume", folder)
    (tmp_path / "manifest.json").write_text('{"state": "running"}')
    assert "manifest" in refused("train", "--resume", tmp_path)


def test_a_run_can_move(story, tmp_path):
    folder = shutil.copytree(story.moments[-3][1], tmp_path / "elsewhere")
    go_on(folder)
    assert whole(folder) == story.whole


def test_interrupted_by_hand(story, tmp_path):
    """Ctrl-C: code 130, one sentence, and the run goes on later."""
    run = tmp_path / "run"
    calls = 0
    sync = os.fsync

    def interrupt(handle):
        nonlocal calls
        calls += 1
        if calls == 40:
            raise KeyboardInterrupt
        sync(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        outcome = command(*story.command(output=run))
    assert outcome.code == 130 and "--resume" in sentence(outcome.err)
    go_on(run)
    assert whole(run) == story.whole


# Bit rot


def flip(file):
    """One bit in the middle, where the numbers are; of a table, in those that a resumed run reads."""
    content = bytearray(file.read_bytes())
    at = len(content) // 2
    if file.suffix == ".parquet":
        group = parquet.read_metadata(file).row_group(0)
        chunk = next(c for c in map(group.column, range(group.num_columns)) if c.physical_type in ("FLOAT", "INT32"))
        chunk = next((c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "log_prob"), chunk)
        at = chunk.data_page_offset + chunk.total_compressed_size // 2
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("moment", "file"),
    [
        ("round-001/update.safetensors", "round-001/adapter/adapter_model.safetensors"),
        ("round-001/rollouts/01-log_prob.parquet", "round-001/rollouts/00-tokens.parquet"),
        ("round-001/update.safetensors", "round-000/rollouts.parquet"),
        ("round-001/update.safetensors", "prompts/rollouts.parquet"),
        ("round-001/update.safetensors", "round-001/update.safetensors"),
    ],
)
def test_a_flipped_bit_is_noticed(story, tmp_path, moment, file):
    """A run that goes on from other numbers than it had would end with another model, and code 0."""
    moments = [m for name, m in story.moments if name == moment]
    run = shutil.copytree(moments[-1], tmp_path / "run")
    flip(run / file)
    said = refused("train", "--resume", run)
    assert f"{run / file} is damaged" in said and "restore it from a copy" in said
    flip(run / file)
    go_on(run)
    assert whole(run) == story.whole


def test_a_damaged_optimiser_is_made_again_by_the_round_before(full_story, tmp_path):
    """Which the sentence names: going back to its own round would leave it as it is."""
    moments = [m for name, m in full_story.moments if name == "round-001/update.safetensors"]
    run = shutil.copytree(moments[0], tmp_path / "run")
    flip(run / "round-001" / "optimizer.safetensors")
    (run / "round-001" / "update.safetensors").unlink(missing_ok=True)
    said = refused("train", "--resume", run)
    assert "round-001/optimizer.safetensors is damaged" in said and "--from-round 0" in said
    go_on(run, "--from-round", "0")
    shutil.rmtree(run / "set-aside-001")
    assert whole(run) == full_story.whole


def test_damaged_sums_are_named_too(story, tmp_path):
    moments = [m for name, m in story.moments if name == "round-001/update.safetensors"]
    run = shutil.copytree(moments[-1], tmp_path / "run")
    (run / "round-001" / "adapter.sha256").write_text("{")
    assert "adapter.sha256 is damaged" in refused("train", "--resume", run)


def test_what_may_change_is_named_and_nothing_else(unfinished):
    """Whatever else is given otherwise would make one run of two."""
    manifest = json.loads((unfinished / "manifest.json").read_text())
    free = {field.name for field in fields(SelfRewardConfig)} - _facts(manifest).keys()
    assert free == {"output", "report_to", "push_to_hub", "token_budget", "engine", "engine_weights", "engine_options"}


def test_processes_are_alike_in_versions_too(unfinished):
    known = _in_common(json.loads((unfinished / "manifest.json").read_text()))
    assert {"srlm", "model", *(f"version of {name}" for name in ("python", *PACKAGES))} <= known.keys()
    assert {f"--{field.name.replace('_', '-')}" for field in fields(SelfRewardConfig)} <= known.keys()


def test_a_folder_does_not_say_whose_code_reads_a_tasks_answers(unfinished, tmp_path):
    run, source = shutil.copytree(unfinished, tmp_path / "run"), "reasoning-gym:chain_sum?size=4&answer=os%3Asystem"
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["data"]["prompts"]["source"] = source
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert f"was begun with --prompts {source!r}, whose answers code reads" in refused("train", "--resume", run)
    assert runs_code(source) and not runs_code(source.replace("os%3Asystem", "regex:a:b")) and not runs_code("a=b:c")
