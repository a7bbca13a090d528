"""The real vLLM, in this process and as a server: `make test-vllm`. Elsewhere these are skipped."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import served_model
from support import SETTINGS, command, records, sentence, table, words, write_held_out, write_prompts
from test_engines import IDS, RECORDED, TINY, apart, engine_on, loaded, nudge, policy_builtin, run, shape_of
from test_engines import folder as folder  # a fixture

from srlm.policies.transformer.engines.inside import Inside
from srlm.policies.transformer.engines.vllm import VllmEngine
from srlm.policies.transformer.processes import processes, silent

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")
OPTIONS = ["max_model_len=256", "enforce_eager=true"]
SERVED = [
    *("--max-model-len", "256", "--enforce-eager", "--dtype", "float32", "--served-model-name", "served"),
    *("--enable-lora", "--max-lora-rank", "16"),
]
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class Served:
    """A server that can be killed and started again on its port."""

    def __init__(self, model: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model = model
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        allowed = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
        module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        self.process = subprocess.Popen(
            [*module, "--model", str(self.model), "--port", str(self.port), "--host", "127.0.0.1", *SERVED],
            env=os.environ | QUIET | allowed,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = time.monotonic() + 600
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None, "the server ended"
                time.sleep(1)
        raise AssertionError("the server does not start")

    def kill(self) -> None:
        """All its processes."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=600) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            status, text = refused.code, refused.read().decode()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    made = Served(folder)
    yield made
    made.kill()


@pytest.fixture(scope="module")
def inside() -> Iterator[Inside]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        made = Inside("fp32", OPTIONS, trust_remote_code=False)
        yield made
        made.close()


@pytest.fixture(params=["folder", "adapter", "inside"])
def engine_of(request, folder, tmp_path):
    """A policy with an engine of its own, both anew."""

    def made(**options: Any) -> Any:
        policy = loaded(folder, **options)
        if request.param == "inside":
            policy.engine = VllmEngine(request.getfixturevalue("inside"), tmp_path / "engine", processes())
        else:
            server = request.getfixturevalue("server")
            if request.param == "adapter":  # whatever was put in place of the model before
                server.answer(
                    "POST", "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
                )
            engine_on(policy, tmp_path, server.url, carrier=request.param)
        return policy

    return made


@pytest.mark.parametrize("number", range(len(RECORDED)))
def test_what_was_recorded_is_what_it_says(server, number):
    said = RECORDED[number]
    status, answer = server.answer(said["method"], said["path"], said["body"])
    assert status == said["status"]
    if isinstance(answer, dict):
        expected = shape_of(said["answer"])
        found = shape_of(answer)
        assert {key: found.get(key) for key in expected if "top_logprobs" not in key} == {
            key: kind for key, kind in expected.items() if "top_logprobs" not in key
        } or said["body"]["stop"] + said["body"]["stop_token_ids"] != [2]  # why one ended differs by what was drawn


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8)])
def test_first_words_are_drawn_from_the_policy(engine_of, temperature, top_p):
    """Chi-squared of the first words of 4,000 responses against the exact distribution, as a z-score."""
    policy = engine_of(temperature=temperature, top_p=top_p)
    nudge(policy, gain=0.5)
    policy.engine.sync(policy)
    how = replace(policy.decoding, max_new_tokens=1)
    made = policy.engine.sample([IDS[0]] * 20, 200, how, list(range(20)), silent)
    assert made.length.unique().tolist() == [1]
    with torch.no_grad(), policy.merged():
        logits = policy.model(torch.tensor([IDS[0]])).logits[0, -1].double() / temperature
    chance, words = torch.softmax(logits, -1).sort(descending=True)
    chance[chance.cumsum(0) - chance >= top_p] = 0
    chance = torch.zeros(len(chance), dtype=torch.float64).index_copy(0, words, chance / chance.sum())
    count = torch.bincount(made.tokens.flatten(), minlength=len(chance)).double()
    assert not count[chance == 0].any()
    likely = chance * 4000 >= 5
    expected = torch.cat([chance[likely] * 4000, (chance[~likely].sum() * 4000)[None]]).clamp_min(1e-9)
    found = torch.cat([count[likely], count[~likely].sum()[None]])
    squares = ((found - expected) ** 2 / expected).sum()
    degrees = len(expected) - 1
    assert abs(float((squares - degrees) / (2 * degrees) ** 0.5)) < 4.5


def test_responses_end_as_the_built_in_ones_do(engine_of):
    stop = ("a", "b", "c", "d", "e", "f")
    policy = engine_of(stop=stop)
    policy.engine.sync(policy)
    for eos in (frozenset({2}), frozenset(range(2, 20))):
        how = replace(policy.decoding, max_new_tokens=12, eos=eos, temperature=1.3, top_p=0.95)
        made = policy.engine.sample(IDS, 32, how, [3, 4], silent)
        for p in range(2):
            for row, finished in zip(made.ids(p), made.finished[p].tolist(), strict=True):
                assert finished == how.ended(row) and (finished or len(row) == 12)
                assert not any(how.ended(row[:n]) for n in range(1, len(row)))
    assert made.finished.any() and not made.finished.all()


def test_log_probs_and_greedy_words_are_ours_after_every_change(engine_of):
    policy = engine_of()
    for change in (lambda: None, lambda: nudge(policy, 0.0), lambda: nudge(policy, 0.4), policy.reset):
        change()
        report = policy.engine.sync(policy)
        assert report.difference < 1e-4
        made = policy.engine.sample(IDS, 1, policy.decoding, None, silent)
        own = policy_builtin(policy).sample(IDS, 1, policy.decoding, None, silent)
        assert torch.equal(made.tokens, own.tokens)
        drawn = policy.engine.sample(IDS, 8, policy.decoding, [1, 2], silent)
        assert drawn.log_prob is None or apart(policy, drawn) < 1e-3


def test_the_same_seeds_draw_the_same_inside(folder, inside, tmp_path):
    policy = loaded(folder)
    policy.engine = VllmEngine(inside, tmp_path / "engine", processes())
    policy.engine.sync(policy)
    # One response alone: which requests vLLM takes up together, and so what each draws, goes with the machine's load.
    draw = partial(policy.engine.sample, IDS[:1], 1, policy.decoding, progress=silent)
    one, two, other = (draw(seeds=[seed]) for seed in (1, 1, 3))
    assert torch.equal(one.tokens, two.tokens) and not torch.equal(one.tokens, other.tokens)


@pytest.fixture
def data(tmp_path) -> dict[str, Path]:
    return {"prompts": write_prompts(tmp_path), "held_out": write_held_out(tmp_path)}


@pytest.mark.parametrize("carrier", ["folder", "adapter"])
def test_a_run_on_a_server(folder, server, data, tmp_path, carrier):
    server.answer("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
    outcome = run(folder, tmp_path / "run", data, server.url, engine_weights=carrier)
    assert outcome.code == 0, outcome
    found = records(tmp_path / "run")
    assert all(record["sync_difference_sample_rollouts"] < 1e-4 for record in found)
    assert carrier == "adapter" or all(record["mismatch_absolute"] < 1e-4 for record in found)


def test_a_run_inside(folder, data, tmp_path):
    outcome = in_a_process(folder, tmp_path / "run", data, engine="vllm", engine_options=OPTIONS)
    assert outcome.returncode == 0, outcome.stderr
    assert all(record["mismatch_absolute"] < 1e-4 for record in records(tmp_path / "run"))


def in_a_process(folder: Path, output: Path, data: Any, **more: Any) -> Any:
    return subprocess.run(line(folder, output, data, **more), env=os.environ | QUIET, capture_output=True, text=True)


def line(folder: Path, output: Path, data: Any, **more: Any) -> list[str]:
    options = SETTINGS | TINY | {"model": folder, "output": output} | data | more
    return [sys.executable, "-m", "srlm.cli", "train", *words(**options), "--quiet"]


def test_kill_9_of_the_server_of_the_trainer_and_of_both(folder, data, tmp_path):
    """Mid-round each; what was sampled before is kept as it is."""
    server = Served(folder)
    try:
        output = tmp_path / "run"
        more = {"engine": server.url, "rounds": 3, "max_new_tokens": 40, "num_samples": 8}
        kept: dict[int, Any] = {}
        begin = line(folder, output, data, **more)
        resume = [sys.executable, "-m", "srlm.cli", "train", "--resume", str(output), "--quiet"]
        for t, victims in enumerate(["server", "trainer", "both"]):
            trainer = subprocess.Popen(resume if t else begin, stderr=subprocess.PIPE, text=True)
            until = time.monotonic() + 300
            while not (output / f"round-{t:03d}" / "stages.json").exists() and time.monotonic() < until:
                time.sleep(0.01)
            if victims != "trainer":
                server.kill()
            if victims != "server":
                trainer.kill()
            _, err = trainer.communicate(timeout=300)
            if victims == "server":
                assert trainer.returncode == 2 and "--resume" in sentence(err.splitlines()[-1] + "\n")
            if victims != "trainer":
                server.start()
            found = sorted(path for path in output.glob("round-*/rollouts.parquet"))
            kept |= {t: table(output, t)["tokens"] for t in range(len(found))}
        ended = subprocess.run(resume, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert len(records(output)) == 4 and all(r["mismatch_absolute"] < 1e-4 for r in records(output))
        assert all(table(output, t)["tokens"] == tokens for t, tokens in kept.items())
    finally:
        server.kill()


def test_model_and_context_that_it_does_not_serve(folder, server, data, tmp_path):
    said = sentence(run(folder, tmp_path / "run", data, server.url, max_new_tokens=300).err)
    assert "max_model_len" in said
    served_model()
    assert command("train", "--resume", tmp_path / "run").code == 2
