"""Engines of their own: the same policy draws, whoever draws; what differs is measured; what breaks is one sentence."""

from __future__ import annotations

import http.client
import importlib.machinery
import importlib.util
import json
import math
import re
import shutil
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_tokenizer
from fake_vllm import FakeVllm, served_model
from support import (
    SETTINGS,
    command,
    records,
    refused,
    save_adapter,
    sentence,
    table,
    train_words,
    tree,
    write_held_out,
    write_prompts,
)

from srlm.config import SelfRewardConfig
from srlm.errors import UserError
from srlm.policies.transformer.engines import servers as servers_module
from srlm.policies.transformer.engines.inside import Inside
from srlm.policies.transformer.engines.servers import Servers
from srlm.policies.transformer.engines.trust import importance, mismatch, untouched_is_nearer
from srlm.policies.transformer.engines.vllm import VllmEngine
from srlm.policies.transformer.engines.wire import Asked, Said, read, request
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.processes import processes, silent
from srlm.training import parts
from srlm.training.weighing import Weighing
from srlm.types import Prompts

RECORDED = json.loads((Path(__file__).parent / "vllm-0.32.0.json").read_text())
TINY = {"rounds": 2, "num_samples": 4, "max_new_tokens": 5, "held_out_samples": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("served")
    served_model().save_pretrained(made)
    make_tokenizer().save_pretrained(made)
    return made


@pytest.fixture
def data(tmp_path) -> dict[str, Path]:
    return {"prompts": write_prompts(tmp_path), "held_out": write_held_out(tmp_path)}


@pytest.fixture(autouse=True)
def soon(monkeypatch) -> None:
    monkeypatch.setattr(servers_module, "PAUSE", 0.01)


def fetched(fake: FakeVllm, method: str, path: str, body: Any) -> tuple[int, Any]:
    return fake.answer(method, path, body)


# The fake is held against what the real one said


@pytest.mark.parametrize("number", range(len(RECORDED)))
def test_the_fake_answers_as_vllm_did(folder, number):
    said = RECORDED[number]
    with FakeVllm(folder) as fake:
        status, answer = fetched(fake, said["method"], said["path"], said["body"])
    assert status == said["status"]
    if said["path"] == "/v1/completions" and status == 200:
        alike(answer, said["answer"], said["body"])
    elif status >= 400:
        mine, theirs = (one.get("error", one) for one in (answer, said["answer"]))
        assert mine.keys() == theirs.keys()
        text = mine.get("message", "")
        assert theirs.get("message", "").startswith(text.split("Valid")[0].split("=300")[0][:40])
    elif isinstance(answer, dict):
        assert shape_of(answer).items() <= shape_of(said["answer"]).items()


def shape_of(value: Any, path: str = "") -> dict[str, type]:
    if isinstance(value, dict):
        return {k: v for key, one in value.items() for k, v in shape_of(one, f"{path}.{key}").items()}
    if isinstance(value, list):
        return shape_of(value[0], f"{path}[]") if value else {}
    return {path: type(value)}


def alike(mine: Any, theirs: Any, body: Any) -> None:
    assert len(mine["choices"]) == len(theirs["choices"]) == body["n"]
    model = served_model()
    for ours, real in zip(mine["choices"], theirs["choices"], strict=True):
        assert ours.keys() <= real.keys() and real["prompt_token_ids"] == body["prompt"]
        assert real["logprobs"]["tokens"] == [f"token_id:{i}" for i in real["token_ids"]]
        ids = torch.tensor([[*body["prompt"], *real["token_ids"]]])
        with torch.no_grad():
            log_p = torch.log_softmax(model(ids).logits[0, len(body["prompt"]) - 1 : -1], -1)
        own = log_p[range(len(real["token_ids"])), real["token_ids"]]
        assert torch.allclose(own, torch.tensor(real["logprobs"]["token_logprobs"]), atol=1e-4)  # raw, of the model
        if not body["temperature"]:
            assert real["token_ids"] == ours["token_ids"]
        text = make_tokenizer().decode(real["token_ids"])
        ended = {None: "length"}.get(real["stop_reason"], "stop")
        assert real["finish_reason"] == ended
        if isinstance(real["stop_reason"], int):
            assert real["token_ids"][-1] == real["stop_reason"]
            assert not set(real["token_ids"][:-1]) & set(body["stop_token_ids"])
        elif real["stop_reason"]:
            assert real["stop_reason"] in text
            assert not any(one in make_tokenizer().decode(real["token_ids"][:-1]) for one in body["stop"])
        else:
            assert len(real["token_ids"]) == body["max_tokens"]


def test_what_is_sent_is_what_was_recorded():
    asked = Asked([1, 50, 60, 70], 2, 6, 1.0, 1.0, frozenset({2}), (), 7)
    (recorded, *_) = [one["body"] for one in RECORDED if one["path"] == "/v1/completions"]
    assert request(asked, "served", "srlm-1", seeds=False) == recorded
    assert request(asked, "served", "srlm-1", seeds=True) == recorded | {"seed": 7}


def test_every_recorded_answer_is_read():
    for one in RECORDED:
        body = one["body"]
        if one["path"] == "/v1/completions" and one["status"] == 200:
            asked = Asked(body["prompt"], body["n"], body["max_tokens"], 1.0, 1.0, frozenset(), (), None)
            assert [said.tokens for said in read(one["answer"], asked, "u")] == [
                choice["token_ids"] for choice in one["answer"]["choices"]
            ]


# Whole runs


def run(folder: Path, output: Path, data: dict[str, Path], engine: str, **more: Any) -> Any:
    options = SETTINGS | TINY | {"model": folder, "output": output, "engine": engine} | data | more
    return command(*train_words(**options))


@pytest.mark.parametrize("carrier", ["folder", "adapter"])
def test_a_run_whose_responses_servers_draw(folder, data, tmp_path, carrier):
    with FakeVllm(folder) as one, FakeVllm(folder) as two:
        outcome = run(folder, tmp_path / "run", data, f"{one.url},{two.url}", engine_weights=carrier)
        assert outcome.code == 0, outcome
        asked = [fake.completions() for fake in (one, two)]
    assert f"responses drawn by {one.url},{two.url}" in outcome.out
    assert all(asked) and sum(map(len, asked)) == 3 * (4 + 6 + 3 + 3)  # both worked, nothing was asked twice
    found = records(tmp_path / "run")
    for t, record in enumerate(found):
        assert record["sync_difference_sample_rollouts"] < 1e-4
        gains = carrier == "adapter" and t > 0
        assert gains or 0 < record["mismatch_absolute"] < 1e-4 < record["mismatch_effective"] <= 1
        assert not gains or "mismatch_absolute" not in record  # its log-probs are those without the gain
    temperatures = {body["temperature"] for bodies in asked for body in bodies}
    gains = [record["gain"] for record in found]
    expected = {1.0, 0.0} | ({1 / gain for gain in gains} if carrier == "adapter" else set())
    assert sorted(temperatures) == pytest.approx(sorted(expected)) and gains[-1] != 1
    assert not (tmp_path / "run" / "engine").exists()
    kept = table(tmp_path / "run", 1)
    assert ("engine_log_prob" in kept) == (carrier == "folder")
    assert all(len(row) <= TINY["max_new_tokens"] for row in kept["tokens"])


def test_log_probs_of_what_is_drawn_from_are_compared_where_an_adapter_goes_with_a_temperature(folder, data, tmp_path):
    with FakeVllm(folder, mode="processed_logprobs") as one:
        outcome = run(folder, tmp_path / "run", data, one.url, engine_weights="adapter")
    assert outcome.code == 0, outcome
    assert all(record["mismatch_absolute"] < 1e-4 for record in records(tmp_path / "run"))


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_auto_takes_folders_where_it_can(folder, data, tmp_path, lora_rank):
    with FakeVllm(folder) as one:
        outcome = run(folder, tmp_path / "run", data, one.url, lora_rank=lora_rank, rounds=1)
        assert outcome.code == 0, outcome
        assert any(path == "/collective_rpc" and "method" in body for path, body, _ in one.asked)
    with FakeVllm(folder, dev=False) as one:
        outcome = run(folder, tmp_path / "other", data, one.url, lora_rank=lora_rank, rounds=1)
        assert outcome.code == (0 if lora_rank else 2)
        if not lora_rank:
            assert "VLLM_SERVER_DEV_MODE=1" in sentence(outcome.err)


@pytest.mark.parametrize("carrier", ["folder", "adapter"])
def test_weights_that_do_not_arrive_end_the_run(folder, data, tmp_path, carrier):
    with FakeVllm(folder, deaf=True) as one:
        outcome = run(folder, tmp_path / "run", data, one.url, engine_weights=carrier)
    assert outcome.code == 2
    assert "the weights did not arrive" in sentence(outcome.err)
    assert len(records(tmp_path / "run")) == 1  # round 0 was honest: nothing had changed
    outcome = command("train", "--resume", tmp_path / "run", "--engine", "builtin")  # nothing is lost
    assert outcome.code == 0 and f"responses drawn by builtin (the run began with {one.url})" in outcome.out
    assert len(records(tmp_path / "run")) == 3


def test_another_model_is_found_out(folder, tiny, data, tmp_path):
    with FakeVllm(tiny) as one:
        outcome = run(folder, tmp_path / "run", data, one.url, engine_weights="adapter", lora_rank=4)
    assert outcome.code == 2 and "does not take the weights" in sentence(outcome.err)


@pytest.mark.parametrize("carrier", ["folder", "adapter"])
def test_a_model_of_the_same_shape_is_found_out(folder, data, tmp_path, carrier):
    other = served_model()
    with torch.no_grad():
        other.model.norm.weight.mul_(1.5)
    other.save_pretrained(shutil.copytree(folder, tmp_path / "other"))
    with FakeVllm(tmp_path / "other") as one:
        outcome = run(folder, tmp_path / "run", data, one.url, engine_weights=carrier)
    if carrier == "folder":  # which are its weights from then on
        assert outcome.code == 0, outcome
    else:
        assert outcome.code == 2 and "let it serve the very model that is trained" in sentence(outcome.err)


def test_a_server_that_dies_costs_its_unfinished_prompts(folder, data, tmp_path):
    with FakeVllm(folder) as one, FakeVllm(folder) as two:
        one.dies_after = 12
        outcome = run(folder, tmp_path / "run", data, f"{one.url},{two.url}")
        assert outcome.code == 0, outcome
        answered = len(one.completions()) + len(two.completions())
    assert f"the engine at {one.url} does not answer" in outcome.out
    rounds = TINY["rounds"] + 1
    assert answered == rounds * (4 + 6 + 3 + 3)  # check, rollouts, held out, greedy: none was answered twice
    assert all(record["mismatch_absolute"] < 1e-4 for record in records(tmp_path / "run"))


def test_a_server_that_comes_back_gets_its_weights_again(folder, tmp_path):
    policy = loaded(folder)
    with FakeVllm(folder) as one:
        engine = engine_on(policy, tmp_path, one.url)
        nudge(policy)
        engine.sync(policy)
        port = one.port
        one.stop()
        with FakeVllm(folder, port=port) as again:
            again.started += 1  # two fakes live in one process
            responses = engine.sample(IDS, 4, policy.decoding, [5, 6], silent)
            assert [path for path, _, _ in again.asked].count("/collective_rpc") == 1
    assert apart(policy, responses) < 1e-4


def test_the_last_prompts_are_not_lost_by_hands_that_had_nothing_to_do(folder, tmp_path, monkeypatch):
    """A dozen of them, each of which would send the prompt to the server that has just died."""
    monkeypatch.setattr(servers_module, "PAUSE", 0.5)
    policy, prompts = loaded(folder), [IDS[0]] * 12
    with FakeVllm(folder) as one:
        engine = engine_on(policy, tmp_path, one.url)
        nudge(policy)
        engine.sync(policy)
        one.dies_after = 11
        found: list[FakeVllm] = []

        def start_again() -> None:
            while not one.dead:
                time.sleep(0.005)
            one.stop()
            time.sleep(0.2)
            found.append(FakeVllm(folder, port=one.port))
            found[0].started += 1

        supervisor = threading.Thread(target=start_again)
        supervisor.start()
        try:
            made = engine.sample(prompts, 2, policy.decoding, list(range(12)), silent)
        finally:
            supervisor.join()
            found[0].stop()
    each = torch.zeros(made.tokens.shape)
    policy.scorer.score(policy.scorer.groups(prompts, made), None, silent, each)
    assert float((each - made.log_prob).abs().max()) < 1e-4


def test_a_server_that_was_started_anew_while_it_had_nothing_to_do_gets_its_weights_again(folder, tmp_path):
    policy, prompts = loaded(folder), [IDS[0]] * 4
    with FakeVllm(folder) as idle, FakeVllm(folder) as other:
        engine = engine_on(policy, tmp_path, idle.url, other.url)
        nudge(policy)
        engine.sync(policy)
        done, untouched, each_has_one = threading.Event(), FakeVllm(folder), threading.Barrier(4, timeout=10)

        def answers(answer: Any) -> Any:
            if not done.is_set():
                each_has_one.wait()
            return answer

        def dies(answer: Any) -> Any:
            each_has_one.wait()
            done.wait(10)
            other.dead = True
            raise ConnectionError

        def progress(count: int, total: int) -> None:
            if count == 2:  # the other one has the rest
                idle.base, idle.started = untouched.base, idle.started + 1
                done.set()

        idle.mangle, other.mangle, other._server.handle_error = answers, dies, lambda *_: None
        made = engine.sample(prompts, 2, policy.decoding, list(range(4)), progress)
        untouched.stop()
    each = torch.zeros(made.tokens.shape)
    policy.scorer.score(policy.scorer.groups(prompts, made), None, silent, each)
    assert float((each - made.log_prob).abs().max()) < 1e-4


@pytest.mark.parametrize("carrier", ["folder", "adapter"])
@pytest.mark.parametrize("metrics", [(404, {"detail": "Not Found"}), (200, "process_start_time_seconds \n")])
def test_a_server_that_comes_back_and_does_not_tell_gets_its_weights_again(folder, tmp_path, carrier, metrics):
    policy = loaded(folder)

    def silent_about_it(fake: FakeVllm) -> None:
        answer = fake.answer
        fake.answer = lambda method, path, body: metrics if path == "/metrics" else answer(method, path, body)

    with FakeVllm(folder) as one:
        silent_about_it(one)
        engine = engine_on(policy, tmp_path, one.url, carrier=carrier)
        nudge(policy, gain=0.0)
        engine.sync(policy)
        port = one.port
        one.stop()
        with FakeVllm(folder, port=port) as again:
            silent_about_it(again)
            responses = engine.sample(IDS, 4, policy.decoding, [5, 6], silent)
    assert apart(policy, responses) < 1e-4


def test_no_server_is_left_and_the_run_goes_on_elsewhere(folder, data, tmp_path):
    with FakeVllm(folder) as one:
        one.dies_after = 30
        outcome = run(folder, tmp_path / "run", data, one.url)
    assert outcome.code == 2
    assert "are unanswered: start them again and go on with --resume" in sentence(outcome.err)
    before = len(records(tmp_path / "run"))
    with FakeVllm(folder) as two:
        outcome = command("train", "--resume", tmp_path / "run", "--engine", two.url)
    assert outcome.code == 0, outcome
    assert before < len(records(tmp_path / "run")) == 3


def test_the_token_is_sent_and_not_written_down(folder, data, tmp_path, monkeypatch):
    with FakeVllm(folder, key="s3cr3t") as one:
        monkeypatch.setenv("SRLM_ENGINE_KEY", "wrong")
        assert "SRLM_ENGINE_KEY" in sentence(run(folder, tmp_path / "no", data, one.url).err)
        for unfit in ("s3cr3t\nX-More: yes", "s3cr3t\u2028x", "s3cr3t€"):
            monkeypatch.setenv("SRLM_ENGINE_KEY", unfit)
            said = sentence(run(folder, tmp_path / "no", data, one.url).err)
            assert "SRLM_ENGINE_KEY holds a control character" in said and "s3cr3t" not in said
        monkeypatch.setenv("SRLM_ENGINE_KEY", "s3cr3t\r\n")  # as a file with it ends
        outcome = run(folder, tmp_path / "run", data, one.url, rounds=1)
        assert outcome.code == 0, outcome
        assert {key for _, _, key in one.asked[-20:]} == {"Bearer s3cr3t"}
    assert "s3cr3t" not in outcome.out + outcome.err
    for file in tree(tmp_path / "run"):
        path = tmp_path / "run" / file
        assert path.is_dir() or b"s3cr3t" not in path.read_bytes(), file


def test_importance_weights_change_what_is_learned_and_say_so(folder, data, tmp_path):
    def noisy(answer: Any) -> Any:
        for choice in answer["choices"]:
            pairs = zip(choice["token_ids"], choice["logprobs"]["token_logprobs"], strict=True)
            choice["logprobs"]["token_logprobs"] = [value + 0.01 * (i % 3 - 1.2) for i, value in pairs]
        return answer

    found = {}
    for cap in (0.0, 1.01):
        with FakeVllm(folder) as one:
            one.mangle = noisy
            outcome = run(folder, tmp_path / f"run{cap}", data, one.url, engine_correction=cap, rounds=1)
        assert outcome.code == 0, outcome
        found[cap] = records(tmp_path / f"run{cap}")
    assert "correction" not in found[0.0][0]
    assert 0.9 < found[1.01][0]["correction"] < 1.01 and 0 < found[1.01][0]["correction_cut"] < 1
    kept = table(tmp_path / "run1.01", 0)
    raw = [
        theirs - ours
        for row in zip(kept["engine_log_prob"], kept["token_log_prob"], strict=True)
        for theirs, ours in zip(*row, strict=True)
    ]
    assert found[1.01][0]["mismatch"] == pytest.approx(sum(raw) / len(raw), abs=1e-6) != 0  # nothing is cut from it
    weight = [min(math.exp(a - sum(b)), 1.01) for a, b in zip(kept["log_prob"], kept["engine_log_prob"], strict=True)]
    assert found[1.01][0]["correction"] == pytest.approx(sum(weight) / len(weight), abs=1e-5)


def test_importance_weights_need_the_log_probs_of_what_is_drawn_from(folder, data, tmp_path):
    with FakeVllm(folder) as one:
        outcome = run(folder, tmp_path / "run", data, one.url, engine_correction=2.0, engine_weights="adapter")
    assert outcome.code == 2 and "processed_logprobs" in sentence(outcome.err)


# Bad input


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("vllm", "which is not installed: pip install 'srlm[vllm]'"),
        ("localhost:8000", "expected builtin, vllm, or addresses such as http://host:8000"),
        ("ftp://host", "expected builtin, vllm, or addresses"),
        ("http://", "expected builtin, vllm, or addresses"),
        ("http://a:8000,", "expected builtin, vllm, or addresses"),
        ("http://me:secret@host:8000", "without a user or token"),
        ("http://host:99999", "expected builtin, vllm, or addresses"),
        ("VLLM", "expected builtin, vllm, or addresses"),
        ("http://127.0.0.1:9", "which does not answer"),
    ],
)
def test_engines_that_are_none(tiny, data, tmp_path, engine, expected, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    said = refused(*train_words(model=tiny, output=tmp_path / "run", engine=engine, **data))
    assert expected in said
    assert not (tmp_path / "run").exists()


def test_a_server_that_is_none_of_vllm(tiny, data, tmp_path, folder):
    with FakeVllm(folder) as one:
        one.answer = lambda *_: (200, "<html>hello</html>")
        assert "not as vLLM does" in refused(*train_words(model=tiny, output=tmp_path / "r", engine=one.url, **data))
        one.answer = lambda *_: (404, {"detail": "Not Found"})
        assert "not as vLLM does" in refused(*train_words(model=tiny, output=tmp_path / "r", engine=one.url, **data))


def test_a_server_that_goes_while_it_is_met(tiny, data, tmp_path, folder):
    for path in ("/metrics", "/collective_rpc", "/server_info"):
        with FakeVllm(folder) as one:
            answer = one.answer

            def fails(method, asked, body, answer=answer, path=path):
                return (502, "bad gateway") if asked.startswith(path) else answer(method, asked, body)

            one.answer = fails
            said = refused(*train_words(model=tiny, output=tmp_path / "run", engine=one.url, **data))
            assert "which does not answer (502: bad gateway)" in said


def test_a_server_that_does_not_tell_when_it_was_started(folder, data, tmp_path):
    with FakeVllm(folder) as one:
        answer = one.answer
        one.answer = lambda method, path, body: (
            (404, {"detail": "Not Found"}) if path == "/metrics" else answer(method, path, body)
        )
        outcome = run(folder, tmp_path / "run", data, one.url, rounds=1)
    assert outcome.code == 0, outcome


def test_a_server_may_take_its_time_to_tell_about_itself(folder, monkeypatch):
    waits, real = {}, http.client.HTTPConnection.request

    def noted(connection: Any, method: str, path: str, *rest: Any) -> None:
        waits[path.partition("?")[0]] = connection.timeout
        real(connection, method, path, *rest)

    monkeypatch.setattr(http.client.HTTPConnection, "request", noted)
    with FakeVllm(folder) as one:
        Servers([one.url], "auto", print)
    assert waits["/server_info"] == 120 and waits["/version"] == 20


def test_a_connection_that_is_lost_in_silence_is_noticed(folder, monkeypatch):
    """The system asks the other end while a server computes and says nothing."""
    found, real = [], http.client.HTTPConnection.getresponse

    def noted(connection: Any) -> Any:
        asks = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        some = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT") if sys.platform == "linux" else ()
        numbers = [connection.sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in some]
        found.append((bool(asks), numbers))
        return real(connection)

    monkeypatch.setattr(http.client.HTTPConnection, "getresponse", noted)
    with FakeVllm(folder) as one:
        Servers([one.url], "auto", print)
    assert found and all(asks and numbers in ([], [30, 10, 3]) for asks, numbers in found), found


def test_a_server_without_endpoints_for_weights(tiny, data, tmp_path, folder):
    with FakeVllm(folder, dev=False, lora=False) as one:
        said = refused(*train_words(model=tiny, output=tmp_path / "run", engine=one.url, **data))
        assert "no endpoint to take new weights" in said and "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in said


def test_a_server_that_reads_other_ids_or_gives_none(folder, data, tmp_path):
    def other(answer: Any) -> Any:
        answer["choices"][0]["prompt_token_ids"] = [1, *answer["choices"][0]["prompt_token_ids"]]
        return answer

    def none(answer: Any) -> Any:
        del answer["choices"][0]["token_ids"]
        return answer

    for mangle, expected in ((other, "read other token ids than it was sent"), (none, "as token ids with")):
        with FakeVllm(folder) as one:
            one.mangle = mangle
            assert expected in sentence(run(folder, tmp_path / expected.replace(" ", ""), data, one.url).err)


def test_an_answer_that_is_no_json_is_a_sentence(folder, tmp_path):
    policy = loaded(folder)
    with FakeVllm(folder) as one:
        engine = engine_on(policy, tmp_path, one.url)
        one.mangle = lambda _: "<html>Sign in to go on</html>"
        with pytest.raises(UserError, match="answers without 2 responses as token ids"):
            engine.sample(IDS, 2, policy.decoding, [1, 2], silent)


def twice(choices: list[Any]) -> None:
    choices[1] = choices[0]


def unsure(value: Any) -> Any:
    def mangled(choices: list[Any]) -> None:
        choices[-1]["logprobs"]["token_logprobs"][0] = value

    return mangled


def named(token: Any) -> Any:
    def mangled(choices: list[Any]) -> None:
        choices[0]["token_ids"][-1] = token

    return mangled


@pytest.mark.parametrize(
    "mangled", [twice, unsure(math.nan), unsure(-math.inf), unsure(None), unsure("-1.0"), named("65"), named(-1)]
)
def test_an_answer_that_is_half_one_is_a_sentence(folder, tmp_path, mangled):
    """The same response for another, log-probs that are none, ids that are none."""
    policy = loaded(folder)

    def mangle(answer: Any) -> Any:
        mangled(answer["choices"])
        return answer

    with FakeVllm(folder) as one:
        engine = engine_on(policy, tmp_path, one.url)
        engine.sync(policy)
        one.mangle = mangle
        with pytest.raises(UserError, match="answers without 2 responses as token ids with their log-probs"):
            engine.sample(IDS, 2, policy.decoding, [1, 2], silent)


def test_an_engine_that_goes_on_behind_an_end_is_cut_there(folder, tmp_path):
    policy = loaded(folder)

    def deaf(answer: Any) -> Any:
        for choice in answer["choices"]:
            choice["token_ids"][1] = 2
        return answer

    with FakeVllm(folder) as one:
        one.mangle = deaf
        made = engine_on(policy, tmp_path, one.url).sample(IDS, 3, policy.decoding, [1, 2], silent)
    assert made.finished.all() and (made.length == 2).all() and (made.tokens[..., 1] == 2).all()
    assert not made.tokens[..., 2:].any() and not made.log_prob[..., 2:].any()


def test_a_context_that_is_too_small_for_the_engine(folder, data, tmp_path, monkeypatch):
    """vLLM would cut responses in silence, and be asked for the rest of them when all are drawn."""
    seen: dict[str, Any] = {}
    as_in_vllm(folder, monkeypatch, seen)
    for most in (10, 20):  # no room for a word, or for some of a response
        expected = (
            rf"a prompt has \d+ tokens, which with \d+ new ones exceeds the max_model_len of {most} of the engine"
        )
        with FakeVllm(folder, most=most) as one:
            assert re.search(expected, sentence(run(folder, tmp_path / f"served{most}", data, one.url).err))
            assert len(one.completions()) <= 4  # what weights are checked with
        inside = run(folder, tmp_path / f"in{most}", data, "vllm", engine_options=[f"max_model_len={most}"])
        assert re.search(expected, sentence(inside.err))
    assert seen["asked"] <= 4
    again = ("train", "--resume", tmp_path / "in20", "--engine-options")
    seen["fails"] = True
    assert "vLLM does not answer these prompts (no room)" in sentence(command(*again, "max_model_len=256").err)
    seen["fails"] = False
    assert command(*again, "max_model_len=256").code == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"engine_weights": "usb"}, "auto, folder or adapter"),
        ({"engine_correction": -1}, "a finite number of 0 or more"),
        ({"engine_options": ["max_model_len"]}, "name=value words"),
        ({"engine": "http://127.0.0.1:9", "engine_correction": 2.0, "top_k": 3}, "(1, 1 and 0)"),
    ],
)
def test_settings_out_of_range(tiny, data, tmp_path, options, expected):
    assert expected in refused(*train_words(model=tiny, output=tmp_path / "run", **data, **options))


# What a response is


IDS = [[1, 50, 60, 70], [1, 80, 81]]


def loaded(folder: Path, **options: Any) -> TransformerPolicy:
    chosen: dict[str, Any] = {"max_new_tokens": 8, "dtype": "fp32", "lora_rank": 4} | options
    policy = TransformerPolicy.load(str(folder), **chosen)
    policy.ids(Prompts.uniform(["Say a", "Say b"]))
    return policy


def engine_on(policy: TransformerPolicy, scratch: Path, *urls: str, carrier: str = "auto") -> VllmEngine:
    policy.engine = VllmEngine(Servers(urls, carrier, print), scratch / "engine", processes())
    return policy.engine


def nudge(policy: TransformerPolicy, gain: float = 0.3) -> None:
    """Train it, as it were."""
    policy.weights.keep_initial()
    torch.manual_seed(5)
    with torch.no_grad():
        for name, value in policy.trainable().items():
            if "lora_B" in name:
                value.normal_(0, 0.1)
    if gain:
        policy.gain.put([p.detach().float().clone() for p in policy.gain.parameters], torch.tensor(gain))


def apart(policy: TransformerPolicy, responses: Any) -> float:
    each = torch.zeros(responses.tokens.shape)
    policy.scorer.score(policy.scorer.groups(IDS, responses), None, silent, each)
    return float((each - responses.log_prob).abs().max())


@pytest.mark.parametrize(
    ("eos", "stop"),
    [((2,), ()), (range(2, 100), ()), ((2,), ("a", "e")), ((2, 40), ("a", "b", "c", "d", "e", "f", "gh"))],
)
def test_responses_end_as_the_built_in_ones_do(folder, tmp_path, eos, stop):
    policy = loaded(folder, stop=stop)
    how = replace(policy.decoding, max_new_tokens=12, eos=frozenset(eos), temperature=1.3, top_p=0.95)
    with FakeVllm(folder) as one:
        engine = engine_on(policy, tmp_path, one.url)
        engine.sync(policy)
        made = engine.sample(IDS, 16, how, [3, 4], silent)
        assert all(len(body["stop"]) <= 4 for body in one.completions())
        assert {(b["temperature"], b["top_p"], b["top_k"]) for b in one.completions()[-2:]} == {(1.3, 0.95, 0)}
    own = policy_builtin(policy).sample(IDS, 16, how, [3, 4], silent)
    for responses in (made, own):
        for p in range(2):
            for row, finished in zip(responses.ids(p), responses.finished[p].tolist(), strict=True):
                assert finished == how.ended(row) and (finished or len(row) == 12)
                assert not any(how.ended(row[:n]) for n in range(1, len(row)))
    assert made.finished.any() or eos == (2,)


@pytest.mark.parametrize("carrier", ["folder", "adapter"])
def test_an_engine_explores_as_it_is_asked_to(folder, tmp_path, carrier):
    policy = loaded(folder)
    nudge(policy)
    how = replace(policy.decoding, temperature=0.8, top_k=3, top_p=0.9)
    with FakeVllm(folder) as one:
        engine = engine_on(policy, tmp_path, one.url, carrier=carrier)
        engine.sync(policy)
        made = engine.sample(IDS, 3, how, [3, 4], silent)
        gain = policy.sharpness() if carrier == "adapter" else 1.0
        for body in one.completions()[-2:]:
            assert body["temperature"] == pytest.approx(0.8 / gain) and (body["top_p"], body["top_k"]) == (0.9, 3)
        plain = engine.sample(IDS, 3, replace(how, temperature=1.0, top_p=1.0, top_k=3), [3, 4], silent)
    # The engine's are of the model: not without the gain, which goes as a temperature.
    assert (made.log_prob is None) == (plain.log_prob is None) == (carrier == "adapter")


def test_vllm_beside_us_is_asked_the_same_and_sleeps_meanwhile(folder, tmp_path, monkeypatch):
    """On an accelerator, where requests have seeds of their own."""
    seen: dict[str, Any] = {"given": []}
    as_in_vllm(folder, monkeypatch, seen)
    kept = Params.__init__

    def told(self: Params, **given: Any) -> None:
        seen["given"].append(dict(given))
        kept(self, **(given | {"seed": None}))

    monkeypatch.setattr(Params, "__init__", told)
    llm = sys.modules["vllm"].LLM
    for name in ("sleep", "wake_up"):
        monkeypatch.setattr(llm, name, lambda self, name=name, **_: seen["called"].append(name), raising=False)
    seen["called"] = []
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        backend = Inside("fp32", [], trust_remote_code=False)
    assert Inside("fp32", ["max_model_len=64"], trust_remote_code=False).context == 64
    backend.put(folder, "one")
    assert seen["options"]["enable_sleep_mode"] is True and 0 < seen["options"]["gpu_memory_utilization"] < 1
    asked = [Asked(ids, 2, 4, 0.7, 0.9, frozenset([2]), (), seed, 5) for ids, seed in zip(IDS, (11, 12), strict=True)]
    for _ in range(2):
        backend.complete(asked, lambda done: None)
    backend.put(folder, "two")
    assert seen["called"] == ["sleep", "wake_up", "sleep", "wake_up", "reload_weights"]
    for given, one in zip(seen["given"][-2:], asked, strict=True):
        found = {name: given[name] for name in ("seed", "temperature", "top_p", "top_k", "n", "max_tokens")}
        assert found == {"seed": one.seed, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "n": 2, "max_tokens": 4}
    backend.close()


def test_an_adapter_that_was_there_before_does_not_go_alone(folder, tmp_path):
    save_adapter(folder, tmp_path / "adapter")
    policy = loaded(tmp_path / "adapter", adapter="continue")
    with FakeVllm(folder) as one, pytest.raises(UserError, match="was there before"):
        engine_on(policy, tmp_path, one.url, carrier="adapter").sync(policy)


def test_several_processes_need_servers(monkeypatch):
    config = SelfRewardConfig(engine="vllm")
    monkeypatch.setattr(parts, "processes", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(UserError, match="--engine vllm was given to 2 processes, expected one: start vLLM servers"):
        parts.engine_of(config, Path(), print)


def policy_builtin(policy: TransformerPolicy) -> Any:
    from srlm.policies.transformer.engines.builtin import Builtin

    return Builtin(policy.model, policy.weights, policy.room, policy.processes)


def test_greedy_responses_are_those_of_the_built_in_decoder(folder, tmp_path):
    policy = loaded(folder)
    nudge(policy)
    for carrier in ("folder", "adapter"):
        with FakeVllm(folder) as one:
            engine = engine_on(policy, tmp_path, one.url, carrier=carrier)
            engine.sync(policy)
            made = engine.sample(IDS, 1, policy.decoding, None, silent)
        own = policy_builtin(policy).sample(IDS, 1, policy.decoding, None, silent)
        assert torch.equal(made.tokens, own.tokens) and torch.equal(made.finished, own.finished)


def test_a_server_that_ends_early_is_asked_for_the_rest(folder, tmp_path):
    policy = loaded(folder)

    def early(answer: Any) -> Any:
        for choice in answer["choices"]:
            choice["token_ids"] = choice["token_ids"][:3]
            choice["logprobs"]["token_logprobs"] = choice["logprobs"]["token_logprobs"][:3]
        return answer

    with FakeVllm(folder) as one:
        one.mangle = early
        engine = engine_on(policy, tmp_path, one.url)
        engine.sync(policy)
        made = engine.sample(IDS, 3, policy.decoding, [1, 2], silent)
    assert all((made.length == 8).flatten() | made.finished.flatten())
    assert apart(policy, made) < 1e-4


def test_a_stop_string_across_the_end_of_a_first_answer_ends_a_response(folder, tmp_path):
    """The engine looks for stop strings in what it says to one request; this one begins in the request before."""
    policy = loaded(folder, stop=("never",))
    ids = policy.ids(Prompts.uniform(["Say a"]))
    said = policy.greedy(Prompts.uniform(["Say a"])).ids(0)[0]
    # As a stop string that the first four tokens make, of which the first answer has three.
    how = replace(policy.decoding, stopped=lambda tokens: len(tokens) == 4, window=4)

    def early(answer: Any) -> Any:
        for choice in answer["choices"]:
            choice["token_ids"] = choice["token_ids"][:3]
            choice["logprobs"]["token_logprobs"] = choice["logprobs"]["token_logprobs"][:3]
        return answer

    ids = policy.ids(Prompts.uniform(["Say a"]))
    with FakeVllm(folder) as one:
        one.mangle = early
        made = engine_on(policy, tmp_path, one.url).sample(ids, 1, how, None, silent)
    own = policy_builtin(policy).sample(ids, 1, how, None, silent)
    assert own.ids(0) == made.ids(0) == [said[:4]] and bool(made.finished.all())


def test_an_engine_that_says_nothing_is_not_asked_for_ever(folder, tmp_path):
    class Mute:
        name, carrier, log_probs, context = "mute", "folder", "", math.inf

        def __init__(self, *lengths: int) -> None:
            self.lengths = list(lengths)

        def complete(self, asked: Any, progress: Any) -> Any:
            length = self.lengths.pop(0)
            return [[Said([65] * length, [-1.0] * length)] for _ in asked]

    policy = loaded(folder)
    for lengths in ((0,), (3, 0)):
        engine = VllmEngine(Mute(*lengths), tmp_path / "engine", processes())
        with pytest.raises(UserError, match="no token"):
            engine.sample(IDS, 1, policy.decoding, [1, 2], silent)
    nobody = VllmEngine(Mute(), tmp_path / "engine", processes()).sample([], 2, policy.decoding, [], silent)
    assert list(nobody.tokens.shape) == [0, 2, 8]


def test_token_ids_of_another_model_are_refused(folder, tmp_path):
    def foreign(answer: Any) -> Any:
        answer["choices"][-1]["token_ids"][0] = words
        return answer

    policy = loaded(folder)
    words = policy.model.get_input_embeddings().weight.shape[0]
    with FakeVllm(folder) as one:
        engine = engine_on(policy, tmp_path, one.url)
        engine.sync(policy)
        one.mangle = foreign
        with pytest.raises(UserError, match=f"answers with the token id {words}, expected ids below {words}, as many"):
            engine.sample(IDS, 2, policy.decoding, [1, 2], silent)


def test_seeds_go_to_servers_that_can_take_them(folder, tmp_path):
    for device, sent in (("cpu", [None, None]), ("cuda", [11, 12])):
        policy = loaded(folder)
        with FakeVllm(folder, device=device) as one:
            engine = engine_on(policy, tmp_path, one.url)
            engine.sample(IDS, 2, policy.decoding, [11, 12], silent)
            assert sorted((body.get("seed") for body in one.completions()), key=str) == sent


def test_weights_go_once_for_each_change(folder, tmp_path):
    policy = loaded(folder)
    prompts = Prompts.uniform(["Say a", "Say b"])
    with FakeVllm(folder) as one:
        engine_on(policy, tmp_path, one.url)

        def put() -> int:
            policy.sample(prompts, 2, torch.Generator().manual_seed(0))
            policy.greedy(prompts)
            return [path for path, _, _ in one.asked].count("/collective_rpc") - 1  # one asked whether it is there

        assert [put(), put()] == [1, 1]
        nudge(policy)
        assert [put(), put()] == [2, 2]
        policy.reset()
        assert [put(), put()] == [3, 3]
        assert len(list((tmp_path / "engine").iterdir())) == 1


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_weights_that_were_put_aside_and_back_do_not_go_again(folder, tmp_path, lora_rank):
    policy = loaded(folder, lora_rank=lora_rank)
    prompts = Prompts.uniform(["Say a", "Say b"])
    with FakeVllm(folder) as one:
        engine_on(policy, tmp_path, one.url)

        def put() -> int:
            policy.greedy(prompts)
            return [path for path, _, _ in one.asked].count("/collective_rpc") - 1  # one asked whether it is there

        policy.weights.keep_initial()
        with torch.no_grad():
            for value in policy.trainable().values():
                value.mul_(1.01)
        assert put() == 1
        with policy.initial():
            policy.log_prob(prompts, policy_builtin(policy).sample(IDS, 1, policy.decoding, None, silent))
        with policy.weights.in_place(policy.weights.at_first()):
            pass
        assert put() == 1
        with policy.weights.in_place(policy.weights.at_first()):
            assert put() == 2  # other weights, for a while
        assert put() == 3
        writes = 2 * len(policy.trainable())
        with torch.no_grad():
            for value in policy.trainable().values():
                for _ in range(writes):  # as many writes as there were, and others besides
                    value.mul_(1.01)
        assert put() == 4


def test_a_policy_without_its_gain_is_itself_otherwise(folder):
    policy = loaded(folder)
    nudge(policy, gain=0.0)
    responses = policy.sample(Prompts.uniform(["Say a"]), 3, torch.Generator().manual_seed(0))
    before = policy.log_prob(Prompts.uniform(["Say a"]), responses)
    nudge(policy, gain=0.4)
    after = policy.log_prob(Prompts.uniform(["Say a"]), responses)
    with policy.ungained():
        assert torch.allclose(policy.log_prob(Prompts.uniform(["Say a"]), responses), before, atol=1e-4)
    assert torch.equal(policy.log_prob(Prompts.uniform(["Say a"]), responses), after)
    assert not torch.allclose(before, after, atol=1e-2)


# Formulas


def test_mismatch_by_hand():
    torch.manual_seed(0)
    length = torch.tensor([[3, 1], [5, 2]])
    ours, theirs = torch.randn(2, 2, 5), torch.randn(2, 2, 5)
    found = mismatch(ours, theirs, length)
    rows = [
        [float(theirs[p, k, t] - ours[p, k, t]) for t in range(int(length[p, k]))] for p in range(2) for k in range(2)
    ]
    flat = torch.tensor([d for row in rows for d in row], dtype=torch.float64)
    weights = [math.exp(-sum(row)) for row in rows]
    assert found["mismatch"] == pytest.approx(float(flat.mean()))
    assert found["mismatch_absolute"] == pytest.approx(float(flat.abs().mean()))
    assert found["mismatch_q99"] == pytest.approx(float(flat.abs().quantile(0.99)))
    assert found["mismatch_beyond"] == pytest.approx(sum(abs(float(d)) > 0.1 for d in flat) / len(flat))
    assert found["mismatch_response"] == pytest.approx(sum(abs(sum(row)) for row in rows) / 4)
    effective = sum(weights) ** 2 / sum(w * w for w in weights) / 4
    assert found["mismatch_effective"] == pytest.approx(effective)
    assert found["mismatch_median"] == pytest.approx(float(flat.abs().quantile(0.5)))
    whole = torch.tensor([abs(sum(row)) for row in rows], dtype=torch.float64)
    assert found["mismatch_response_q99"] == pytest.approx(float(whole.quantile(0.99))) and len(found) == 8


@pytest.mark.parametrize("moved", [0.0, 0.002, 0.02])
def test_weights_that_moved_less_than_rounding_are_not_said_to_be_lost(moved):
    """16 responses, of which 4 are said 4 times each; engine and trainer are .037 nats a token apart, as measured."""
    draw = torch.Generator().manual_seed(0)
    new = torch.tensor([True, False, False, False]).repeat_interleave(16).repeat(4)
    alarms = found = 0
    for _ in range(2000):
        noise, step = (
            (torch.randn(4, 1, 16, generator=draw) * size).expand(4, 4, 16).flatten() for size in (0.046, moved)
        )
        alarms += untouched_is_nearer(noise.abs(), (noise + step).abs(), new, 0.01) > 0
        found += untouched_is_nearer((noise + 10 * step).abs(), noise.abs(), new, 0.01) > 0
    assert alarms == 0
    assert found == 2000 or moved < 0.02  # .16 nats a token that did not arrive


def test_importance_weights_leave_a_prompt_its_share(monkeypatch):
    """Else the mean of a group's rewards, tens of nats of a log-likelihood, would come into every objective."""
    cut = torch.tensor([[0.9, 0.3], [0.5, 0.5]])
    monkeypatch.setattr(Weighing, "_correction", lambda self, rollouts: (cut, {}))
    responses = SimpleNamespace(finished=torch.ones(2, 2, dtype=torch.bool))
    rollouts = SimpleNamespace(prompts=[0, 1], weight=torch.full((2, 2), 0.5), responses=responses)
    weight = Weighing(SelfRewardConfig(output="run"), None, None).weight(rollouts, torch.zeros(2, 2))
    assert torch.allclose(weight, torch.tensor([[0.75, 0.25], [0.5, 0.5]]))


def test_importance_weights_are_cut():
    ours, theirs = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -1.5]])
    weight, said = importance(ours, theirs, 2.0)
    assert weight.tolist() == [[2.0, pytest.approx(math.exp(-0.5))]]
    assert said == {"correction": pytest.approx((2 + math.exp(-0.5)) / 2), "correction_cut": 0.5}


# vLLM in this process: its own classes, as far as they are asked anything


class Params:
    def __init__(self, **given: Any) -> None:
        self.given = given


def as_in_vllm(folder: Path, monkeypatch, seen: dict[str, Any]) -> None:
    class LLM:
        def __init__(self, model: str, **options: Any) -> None:
            seen["options"] = options
            self.model_config = SimpleNamespace(max_model_len=options.get("max_model_len", 512))
            self.fake = FakeVllm(Path(model))
            self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self.fake.stop))

        def collective_rpc(self, method: str, args: tuple[Any, ...] = (), kwargs: Any = None) -> None:
            seen.setdefault("called", []).append(method)
            if method == "reload_weights":
                assert self.fake.answer("POST", "/collective_rpc", {"method": method, "kwargs": kwargs})[0] == 200
            else:
                self.fake.generator.manual_seed(*args)

        def reset_prefix_cache(self) -> None: ...

        def generate(self, prompts: list[Any], params: list[Params], use_tqdm: Any) -> list[Any]:
            if seen.get("fails"):
                raise RuntimeError("no\nroom")
            seen["asked"] = seen.get("asked", 0) + len(prompts)
            bar = use_tqdm(total=len(prompts))
            answers = []
            for prompt, how in zip(use_tqdm(prompts), params, strict=True):
                body = how.given | {"prompt": prompt["prompt_token_ids"], "model": ""}
                body["max_tokens"] = min(body["max_tokens"], self.model_config.max_model_len - len(body["prompt"]))
                choices = [self.fake._choice(k, body) for k in range(body["n"])]
                answers.append(SimpleNamespace(outputs=[answered(choice) for choice in choices]))
                bar.update(body["n"])
            return answers

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=Params))
    monkeypatch.setitem(sys.modules, "psutil", memory(available=12, total=48))
    installed(monkeypatch, "vllm")


def installed(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    others = importlib.util.find_spec
    found = importlib.machinery.ModuleSpec(package, None)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: found if name == package else others(name, *rest)
    )


def memory(**sizes: int) -> Any:
    """As psutil, which vLLM brings along, finds it."""
    return SimpleNamespace(virtual_memory=lambda: SimpleNamespace(**sizes))


def answered(choice: dict[str, Any]) -> Any:
    pairs = zip(choice["token_ids"], choice["logprobs"]["token_logprobs"], strict=True)
    return SimpleNamespace(
        token_ids=choice["token_ids"], logprobs=[{i: SimpleNamespace(logprob=value)} for i, value in pairs]
    )


def test_a_run_with_vllm_in_this_process(folder, data, tmp_path, monkeypatch):
    seen: dict[str, Any] = {}
    as_in_vllm(folder, monkeypatch, seen)
    options = ["max_model_len=256", "enforce_eager=true"]
    runs = [run(folder, tmp_path / name, data, "vllm", engine_options=options) for name in ("one", "two")]
    assert [outcome.code for outcome in runs] == [0, 0], runs
    given = seen["options"]
    assert (given["max_model_len"], given["enforce_eager"], given["dtype"]) == (256, True, "float32")
    assert given["gpu_memory_utilization"] == 0.125  # half of what is free: by itself it asks for more than there is
    assert seen["called"].count("reload_weights") == 2 * TINY["rounds"]  # it begins with those of round 0
    assert all(record["mismatch_absolute"] < 1e-4 for record in records(tmp_path / "one"))
    assert table(tmp_path / "one", 2)["tokens"] == table(tmp_path / "two", 2)["tokens"]  # its stream is seeded


def test_vllm_that_does_not_start(folder, data, tmp_path, monkeypatch):
    def fails(**_: Any) -> None:
        raise RuntimeError("no memory\nfor it")

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=fails, SamplingParams=Params))
    monkeypatch.setitem(sys.modules, "psutil", memory(available=12, total=48))
    installed(monkeypatch, "vllm")
    said = sentence(run(folder, tmp_path / "run", data, "vllm").err)
    assert "vLLM does not start with this model (no memory for it)" in said


def test_a_refusal_by_the_engine_is_a_user_error(folder):
    with FakeVllm(folder) as one, pytest.raises(UserError, match="prompt"):
        server = Servers([one.url], "auto", print)
        server.complete([Asked([], 1, 4, 1.0, 1.0, frozenset({2}), (), None)], lambda done: None)
