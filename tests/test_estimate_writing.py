"""What the writing of prompts will cost: asked as in a run, counted as drawing and scoring."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_model
from support import command, words, write_prompts

from srlm import SelfRewardConfig
from srlm.estimate import Workload, Writing, workload
from srlm.estimate.memory import memory
from srlm.estimate.stages import sampling, scoring, stages, writing
from srlm.estimate.workload import laid_out
from srlm.policies.transformer.anatomy import shape_of
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.shape import Shape
from srlm.training.beforehand import writing_of
from srlm.writing.filters import FILTERS
from srlm.writing.settings import WritingSettings
from srlm.writing.write import Pool, write

SEEDS = [f"Tell me about the {word} of the {place}." for word in ("colour", "size") for place in ("sky", "sea", "sun")]
CONFIG = SelfRewardConfig(num_samples=4, max_new_tokens=12, token_budget=256, written_prompts=5, written_examples=3)


class Author:
    """Whatever it writes is kept."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def fits(self, item: str, spare: int, *, drawn: bool = False) -> bool:
        return True

    def written(self, items: Sequence[str], openings: Sequence[str], number: int, seeds: Any, **how: Any) -> Any:
        self.batches.append([item + opening for item, opening in zip(items, openings, strict=True)])
        number = len(items)
        said = {"texts": [["new"]] * number, "finished": torch.ones(number, 1), "log_prob": torch.zeros(number, 1)}
        return SimpleNamespace(**said)


def work(number: int, asked: int = 100, mean: float = 10, **changes: Any) -> Workload:
    config = dataclasses.replace(CONFIG, written_prompts=number, **changes)
    return workload(config, [20] * 6, [20] * 2, writing=Writing.of(number, [asked], mean, 16))


@pytest.fixture(scope="module")
def shape() -> Shape:
    return shape_of("tiny", make_model())


@pytest.mark.parametrize("number", [1, 5, 9, 64, 70, 200])
def test_as_many_are_asked_for_at_once_as_in_a_run(number: int) -> None:
    author, settings = Author(), WritingSettings(written_examples=3)
    keep: Any = SimpleNamespace(keep=lambda text, over: True, dropped=dict.fromkeys(FILTERS, 0))
    write(author, Pool(SEEDS, 3, "seeds"), number, keep, settings, seed=0)
    said = [len(asked) for asked, times in work(number).writing_batches() for _ in range(int(times))]
    assert said == [len(batch) for batch in author.batches]


def test_what_is_asked_is_as_long_as_in_a_run(tiny: Path) -> None:
    policy = TransformerPolicy.load(str(tiny), max_new_tokens=4, dtype="fp32")
    starts: list[int] = []

    class Drawn(Exception):
        pass

    def drawn(ids: Sequence[Sequence[int]], *_: object) -> None:
        starts.extend(map(len, ids))
        raise Drawn

    pool = Pool(SEEDS, 3, "seeds")
    made = writing_of(CONFIG, pool, lambda some: [len(policy.encode.passing(item)) for item in some])
    policy._drawn = drawn  # type: ignore[method-assign,assignment]
    with pytest.raises(Drawn):
        write(policy, pool, 5, SimpleNamespace(), CONFIG, seed=CONFIG.seed)  # type: ignore[arg-type]
    assert list(made.asked) == starts and len(starts) == 8
    text = sum(map(len, SEEDS)) / len(SEEDS)  # a token is a byte
    assert made.mean == pytest.approx(text + 1, rel=0.02)


def test_it_is_drawn_and_scored_in_every_round(shape: Shape) -> None:
    made = work(70)
    spent, tokens = writing(shape, made, cpu=True)
    own = dataclasses.replace(made, longest=16, expected=10.0)
    parts = [
        part
        for size in (64, 8)
        for part in (
            sampling([100] * size, 1, shape, own, cpu=True),
            scoring(laid_out([100] * size, 1, own, shape), shape, own),
        )
    ]
    assert spent.flops == pytest.approx(sum(part.flops for part in parts))
    assert spent.bytes == pytest.approx(sum(part.bytes for part in parts))
    assert tokens == 72 * 10
    for later in (False, True):
        first = stages(shape, made, None, later=later, cpu=True)[0]
        assert (first.name, first.flops, first.tokens) == ("write prompts", spent.flops, 720)
    elsewhere = dataclasses.replace(made, built_in=False)
    assert writing(shape, elsewhere, cpu=True)[0].flops == pytest.approx(parts[1].flops + parts[3].flops)
    assert all(s.name != "write prompts" for s in stages(shape, workload(CONFIG, [9], []), None, later=False, cpu=True))


def test_long_examples_take_memory(shape: Shape) -> None:
    long = work(8, 4000)
    with_it, without = (
        next(m for m in memory(shape, w, cpu=False).moments if m.name == "sampling").parts["KV cache"]
        for w in (long, dataclasses.replace(long, writing=None))
    )
    assert with_it >= shape.cached(4000) > without


def test_what_is_written_is_never_longer_than_it_may_be() -> None:
    assert [Writing.of(1, [9], mean, 16).mean for mean in (0.2, 7.5, 40)] == [1.0, 7.5, 16.0]


@pytest.mark.parametrize("given", [False, True])
def test_the_estimate_says_what_it_takes(tiny: Path, tmp_path: Path, given: bool) -> None:
    prompts = {"prompts": write_prompts(tmp_path)} if given else {"num_prompts": 6, "prompt_length": 30}
    more = {"written_prompts": 2, "written_examples": 3, "max_new_tokens": 4, "flops": 1e9, "bandwidth": 1e9}
    asked = ("estimate", *words(model=tiny, **prompts, **more))
    found = json.loads(command(*asked, "--json").out)
    for stages_of in found["rounds"].values():
        assert stages_of[0]["name"] == "write prompts" and stages_of[0]["seconds"] > 0
    assert any("as their examples do, and none is dropped (up to 10 times" in line for line in found["assumed"])
    assert not any("not counted" in line for line in found["assumed"])
    assert "prompts, 2 of them written, × 8 responses" in command(*asked).out
