"""What is done where memory is too small: the same, in smaller pieces."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import command, refused, train_words, write_prompts
from test_update import load, rollouts_of, run

from srlm.objectives.regression import regression
from srlm.policies.transformer import respond, score
from srlm.policies.transformer import room as room_module
from srlm.policies.transformer.limits import LARGEST, fitting
from srlm.policies.transformer.room import Room, room_for


@pytest.fixture
def small(monkeypatch):
    """A device on which micro-batches of more than so many padded tokens do not fit."""

    real, admit = score.response_log_prob, respond.Batch.admit

    def limit(tokens: int) -> None:
        def limited(model, packed, **options):
            if packed.input_ids.numel() > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(model, packed, **options)

        def limited_admit(batch, units):
            admit(batch, units)
            if len(batch) * (batch.longest + batch._how.max_new_tokens) > 8 * tokens:
                raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(score, "response_log_prob", limited)
        monkeypatch.setattr(respond.Batch, "admit", limited_admit)

    return limit


def test_work_begins_anew_with_half_as_much() -> None:
    room, said, tried = Room(100), [], []
    room.say = said.append

    def work() -> str:
        tried.append(room.tokens)
        if room.tokens > 30:
            raise torch.OutOfMemoryError
        return "done"

    assert room.within(work) == "done"
    assert tried == [100, 50, 25]
    assert len(said) == 1 and "--token-budget 25" in said[0]
    assert room.within(work) == "done" and len(said) == 1  # remembered
    with pytest.raises(torch.OutOfMemoryError):
        Room(100).within(_never)


def _never() -> None:
    raise torch.OutOfMemoryError


def test_what_is_measured_in_shards_is_given_up_by_all(monkeypatch) -> None:
    """One that went on to the next collective would leave the others in the middle of the pass for ever."""
    text = SimpleNamespace(max_position_embeddings=64)
    model: Any = SimpleNamespace(device=torch.device("cuda"), config=SimpleNamespace(get_text_config=lambda: text))
    shards: Any = SimpleNamespace(working=nullcontext, least=lambda number: number)
    monkeypatch.setattr(room_module, "_peak", lambda *_: _never())
    assert room_for(model, "auto", trained=True, held=1, shards=None).tokens == 64
    with pytest.raises(torch.OutOfMemoryError):
        room_for(model, "auto", trained=True, held=1, shards=shards)


@pytest.mark.parametrize(("fixed", "each"), [(0, 1000), (10**7, 1000), (5, 123_456)])
def test_what_fits(fixed: int, each: int) -> None:
    free = 10**10
    found = fitting(free, fixed + 512 * each, fixed + 4 * 512 * each, 512)
    assert found in {2**n for n in range(17)}
    assert fixed + found * each <= 0.7 * free + 1
    assert found == LARGEST or fixed + 2 * found * each > 0.7 * free
    assert fitting(0, 10, 40, 1) == 1
    assert fitting(-(10**9), 10, 40, 512) == 512  # no less than a row


def test_what_is_learned_does_not_change(tiny, small) -> None:
    def learned(limit: int | None) -> torch.Tensor:
        policy = load(tiny, prompts_per_step=4)
        if limit:
            small(limit)
        run(policy, rollouts_of(policy), objective=partial(regression, beta=1.0))
        assert policy.room.tokens < 2048 or limit is None
        return torch.cat([p.detach().flatten() for p in policy.trainable().values()])

    assert (learned(None) - learned(120)).abs().max() <= 1e-5


def test_a_run_says_it_goes_on_and_remembers(tiny, tmp_path, small) -> None:
    write_prompts(tmp_path)
    given = {"model": tiny, "prompts": tmp_path / "prompts.jsonl", "dtype": "fp32"}
    small(100)
    outcome = command(*train_words(**given, output=tmp_path / "run"))
    assert outcome.code == 0
    said = [line for line in (outcome.out + outcome.err).splitlines() if "memory was too small" in line]
    assert len(said) <= 2  # where sampling needs less room than learning, each finds out
    assert said
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["token_budget"] <= 100
    small(10**6)
    again = command("train", "--resume", tmp_path / "run", "--from-round", 1, "--token-budget", 700)
    assert again.code == 0
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["token_budget"] == 700
    small(0)
    assert "memory is too small for this" in refused(*train_words(**given, output=tmp_path / "no"))
    again = command("train", "--resume", tmp_path / "run", "--from-round", 1)
    assert again.code == 2 and "--token-budget 64" not in again.out + again.err


@pytest.mark.parametrize("tokens", [1, 40, 10**6])
def test_responses_to_a_prompt_are_drawn_in_as_many_batches_as_there_is_room_for(tiny, tokens) -> None:
    policy = load(tiny)
    whole_ = rollouts_of(policy).responses
    policy.room.tokens = tokens
    again = rollouts_of(policy).responses
    assert torch.equal(again.tokens, whole_.tokens) and torch.equal(again.length, whole_.length)
