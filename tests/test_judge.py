"""The judge on a scripted model, where every verdict is known, and on a tiny real one against its own forward."""

from __future__ import annotations

import importlib
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer
from reference import alone
from torch import Tensor

from srlm.errors import UserError
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.rewards.judge import USUAL
from srlm.rewards.judging import LEAST_MASS, ROOM, Judging, fitting, question
from srlm.rewards.rubric import read_rubric
from srlm.rewards.table import reward_function
from srlm.types import Prompts, Rollouts

MODULE = importlib.import_module("srlm.rewards.judging")
RUBRICS = [read_rubric(name).template for name in USUAL]
OPENING, GRADES = read_rubric(USUAL[0]).opening, read_rubric(USUAL[0]).words
Script = Callable[[str, Sequence[str]], Sequence[float]]  # (judge's prompt, choices) -> probabilities


class Scripted:
    """A policy that says what it is told to."""

    def __init__(self, script: Script, context: int = 10_000) -> None:
        self.script, self.context = script, context
        self.asked: list[str] = []

    def texts(self, responses: list[list[str]]) -> list[list[str]]:
        return responses

    def fits(self, item: str, spare: int, *, drawn: bool = False) -> bool:
        return len(item) + spare <= self.context

    def choice_log_prob(self, items: Sequence[Sequence[str]], opening: str, choices: Sequence[str]) -> Tensor:
        self.asked += [item for row in items for item in row]
        assert all(self.fits(item, len(opening)) for item in self.asked)
        return torch.tensor([[self.script(item, choices) for item in row] for row in items]).log()


def rollouts(texts: list[list[str]], items: Sequence[object] = ("What is up?", "And down?")) -> Rollouts:
    shape = (len(texts), len(texts[0]))
    return Rollouts(0, Prompts.uniform(items), texts, torch.zeros(shape), torch.full(shape, 1 / shape[1]))


def rubric_of(item: str) -> int:
    (number,) = [i for i, rubric in enumerate(RUBRICS) if item.startswith(rubric[:20])]
    return number


def certain(grade: int) -> list[float]:
    return [float(g == grade) for g in range(6)]


TEXTS = [["SKY", "CEILING", "MU"], ["FLOOR", "SKY", "CORE"]]


def by_text(verdicts: dict[str, list[float]]) -> Script:
    return lambda item, choices: next(p for text, p in verdicts.items() if text in item)


# Grades


def test_the_score_is_the_expected_grade() -> None:
    verdicts = {
        "SKY": [0.1, 0.0, 0.2, 0.0, 0.3, 0.4],
        "CEILING": [0.0, 0.05, 0.0, 0.0, 0.15, 0.0],  # of 0.2 in all: expectations are of grades alone
        "MU": certain(0),
        "FLOOR": certain(5),
        "CORE": [1 / 6] * 6,
    }
    score = reward_function("judge")(Scripted(by_text(verdicts)), rollouts(TEXTS))
    torch.testing.assert_close(score, torch.tensor([[3.6, 3.25, 0.0], [5.0, 3.6, 2.5]]))


def test_every_response_is_judged_by_every_rubric_with_its_question() -> None:
    policy = Scripted(lambda item, choices: certain(rubric_of(item)))
    score = reward_function("judge")(policy, rollouts(TEXTS))
    torch.testing.assert_close(score, torch.full((2, 3), sum(range(len(RUBRICS))) / len(RUBRICS)))
    assert len(policy.asked) == len(set(policy.asked)) == 6 * len(RUBRICS)
    for asked, row in zip(("What is up?", "And down?"), TEXTS, strict=True):
        for text in row:
            assert sum(asked in item and text in item for item in policy.asked) == len(RUBRICS)


def test_what_is_no_grade_is_dropped_and_counted() -> None:
    """The first rubric is not understood at all; one response of the first prompt is graded by none."""

    def script(item: str, choices: Sequence[str]) -> Sequence[float]:
        if rubric_of(item) == 0 or "MU" in item:
            return [LEAST_MASS / 7] * 6
        return certain(rubric_of(item) + (2 if "SKY" in item else 0))

    notes: dict[str, float] = {}
    score = reward_function("judge", note=notes.__setitem__)(Scripted(script), rollouts(TEXTS))
    # MU, without a grade, gets the mean of its group: that moves it nowhere
    torch.testing.assert_close(score, torch.tensor([[3.5, 1.5, 2.5], [1.5, 3.5, 1.5]]))
    assert notes == {"unparsed": pytest.approx((6 + 2) / 18)}


def test_without_a_single_grade_nothing_is_preferred() -> None:
    notes: dict[str, float] = {}
    for nothing in (0.0, math.nan):
        policy = Scripted(lambda item, choices, p=nothing: [p] * len(choices))
        judge = reward_function("judge", note=notes.__setitem__)
        assert torch.equal(judge(policy, rollouts(TEXTS)), torch.full((2, 3), 2.5))
        pairwise = reward_function("judge_pairwise", note=notes.__setitem__)
        assert torch.equal(pairwise(policy, rollouts(TEXTS)), torch.full((2, 3), 0.5))
        assert notes == {"unparsed": 1.0, "unparsed_pairs": 1.0}


def test_all_is_read_at_the_threshold() -> None:
    notes: dict[str, float] = {}
    policy = Scripted(lambda item, choices: [0.0] * 5 + [1.01 * LEAST_MASS])
    score = reward_function("judge", note=notes.__setitem__)(policy, rollouts(TEXTS))
    assert notes == {"unparsed": 0.0} and torch.equal(score, torch.full((2, 3), 5.0))


def test_a_part_of_a_mixture() -> None:
    policy = Scripted(by_text({text: certain(g) for g, text in enumerate(["SKY", "CEILING", "MU", "FLOOR", "CORE"])}))
    given = rollouts(TEXTS)
    notes: dict[str, float] = {}
    score = reward_function("0.5*judge - 2*log_likelihood", note=notes.__setitem__)(policy, given)
    torch.testing.assert_close(score, torch.tensor([[0.0, 0.5, 1.0], [1.5, 0.0, 2.0]]))
    assert notes == {"unparsed": 0.0}


# What is asked


def test_conversations_are_shown_as_text() -> None:
    user, system = {"role": "user", "content": "Up?"}, {"role": "system", "content": "Be brief."}
    assert question("Up?") == question((user,)) == "Up?"
    assert question((system, user)) == "system: Be brief.\nuser: Up?"
    policy = Scripted(lambda item, choices: certain(1))
    reward_function("judge")(policy, rollouts([["SKY"], ["{FLOOR}"]], ["{question}?", (system, user)]))
    assert sum("{question}?" in item for item in policy.asked) == len(RUBRICS)  # braces are text
    assert sum("Be brief.\nuser: Up?" in item and "{FLOOR}" in item for item in policy.asked) == len(RUBRICS)


def test_what_is_too_long_is_judged_by_its_beginning() -> None:
    longest = max(len(rubric) for rubric in RUBRICS) + 60
    policy = Scripted(lambda item, choices: certain(item.count("x") % 6), context=longest)
    reward_function("judge")(policy, rollouts([["x" * 500, "short"], ["x" * 30, ""]]))
    assert len(policy.asked) == 4 * len(RUBRICS)
    full = [item for item in policy.asked if "x" * 31 in item]
    assert len(full) == len(RUBRICS) and all(len(item) == longest - ROOM for item in full)  # not a character to spare

    def build(n: int) -> str:
        return "ab" * n

    assert [len(fitting(Scripted(lambda *_: [], ROOM + size), build, 9)) for size in (0, 1, 2, 17, 18, 99)] == [
        *(0, 0, 2, 16, 18, 18)
    ]


def test_no_room_for_the_question_is_said() -> None:
    policy = Scripted(lambda item, choices: certain(1), context=200)
    for name in ("judge", "judge_pairwise"):
        with pytest.raises(UserError, match=r"no room for the judge's question \(\d+ characters"):
            reward_function(name)(policy, rollouts(TEXTS))


# Pairs


def comparison(item: str) -> tuple[str, str]:
    first, second = (item.split(f"Response {letter}: ")[1].split("\n")[0] for letter in "AB")
    return first, second


STRENGTH = {"SKY": 4.0, "CEILING": 1.0, "MU": 3.0, "FLOOR": 2.0, "CORE": 0.5}


def test_the_reward_is_the_mean_win_rate() -> None:
    """Bradley-Terry strengths, told in a third of the mass."""

    def script(item: str, choices: Sequence[str]) -> Sequence[float]:
        a, b = (STRENGTH[text] for text in comparison(item))
        return [a / (a + b) / 3, b / (a + b) / 3]

    policy = Scripted(script)
    score = reward_function("judge_pairwise")(policy, rollouts(TEXTS))
    expected = [
        [sum(STRENGTH[a] / (STRENGTH[a] + STRENGTH[b]) for b in row if b != a) / 2 for a in row] for row in TEXTS
    ]
    torch.testing.assert_close(score, torch.tensor(expected))
    asked = sorted(map(comparison, policy.asked))
    assert asked == sorted((a, b) for row in TEXTS for a in row for b in row if a != b)  # K(K - 1) of each prompt


def test_a_judge_of_positions_alone_prefers_nothing() -> None:
    policy = Scripted(lambda item, choices: [0.9, 0.1])
    assert reward_function("judge_pairwise")(policy, rollouts(TEXTS)) == pytest.approx(0.5)


def test_an_unparsed_order_takes_its_pair_with_it() -> None:
    def script(item: str, choices: Sequence[str]) -> Sequence[float]:
        pair = comparison(item)
        if pair == ("SKY", "MU") or "FLOOR" in pair:
            return [0.0, 0.01]
        return [1.0, 0.0] if STRENGTH[pair[0]] > STRENGTH[pair[1]] else [0.0, 1.0]

    notes: dict[str, float] = {}
    score = reward_function("judge_pairwise", note=notes.__setitem__)(Scripted(script), rollouts(TEXTS))
    # SKY beat CEILING, MU beat it too. FLOOR has no pair: it gets the mean of SKY and CORE
    torch.testing.assert_close(score, torch.tensor([[1.0, 0.0, 1.0], [0.5, 1.0, 0.0]]))
    assert notes == {"unparsed_pairs": pytest.approx((1 + 4) / 12)}


# A real model


def roomy(folder: Path, chat: bool = True) -> Path:
    """A tiny model with room for a rubric, spelled out byte by byte."""
    model = make_model(scale=10.0)
    model.config.max_position_embeddings = 4096
    model.save_pretrained(folder)
    make_tokenizer(chat).save_pretrained(folder)
    return folder


def load(folder: Path, **options) -> TransformerPolicy:
    return TransformerPolicy.load(str(folder), dtype="fp32", lora_rank=0, max_new_tokens=8, **options)


def spelled(policy: TransformerPolicy, item: str, text: str) -> float:
    """log pi of a text behind a prompt and its opening, by the model's own forward on one row."""
    ids = policy.tokenizer(text)["input_ids"]
    return alone(policy.model, policy.encode(item) + policy.tokenizer("So:")["input_ids"], ids)


@pytest.mark.parametrize("choices", [("yes", "no", "n"), ("0", "1", "2")])
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_choices_are_those_of_the_models_own_forward(tmp_path: Path, chat: bool, shared: bool, choices) -> None:
    policy = load(roomy(tmp_path, chat))
    assert policy.shared
    policy.scorer.trees = shared
    items = [["Up or down?", "Up or left, please?", "Up"], ["", "x", "xx"]] if chat else [["abc", "abd", "ab"]] * 2
    expected = torch.tensor(
        [
            [[math.log(sum(math.exp(spelled(policy, i, f"{s}{c}")) for s in ("", " "))) for c in choices] for i in row]
            for row in items
        ]
    )
    assert expected.std() > 0.1
    torch.testing.assert_close(policy.choice_log_prob(items, "So:", choices), expected, atol=1e-4, rtol=1e-5)


def test_prompts_without_a_common_beginning_are_scored_apart(tmp_path: Path) -> None:
    policy = load(roomy(tmp_path, chat=False))
    items = ["abc", "xyz", "x"]
    expected = torch.tensor(
        [[math.log(sum(math.exp(spelled(policy, item, text)) for text in ("1", " 1")))] for item in items]
    )
    torch.testing.assert_close(policy.choice_log_prob([items], "So:", ("1",))[0], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["judge", "judge_pairwise"])
@pytest.mark.parametrize("chat", [True, False])
def test_a_real_model_judges_itself(tmp_path: Path, name: str, chat: bool, monkeypatch) -> None:
    monkeypatch.setattr(MODULE, "LEAST_MASS", 0.0)  # a random model holds little mass on grades
    folder = roomy(tmp_path, chat)
    values = []
    for options in ({}, {"token_budget": 1}, {"prompts_per_step": 1}):
        policy = load(folder, **options)
        prompts = Prompts.uniform(["Up?", "Down?"])
        responses = policy.sample(prompts, 3, torch.Generator().manual_seed(1))
        log_prob = policy.log_prob(prompts, responses)
        given = Rollouts(0, prompts, responses, log_prob, torch.full_like(log_prob, 1 / 3))
        values.append(reward_function(name)(policy, given))
    value = values[0]
    assert value.shape == (2, 3) and value.dtype == log_prob.dtype and value.isfinite().all() and value.std() > 0
    assert value.min() >= 0 and value.max() <= (5 if name == "judge" else 1)
    if name == "judge_pairwise":
        assert value.mean(-1) == pytest.approx(0.5)
    for other in values[1:]:
        torch.testing.assert_close(other, value, atol=1e-4, rtol=1e-4)


def test_the_first_rubric_of_a_real_model_by_hand(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(MODULE, "LEAST_MASS", 0.0)
    policy = load(roomy(tmp_path))
    prompts = Prompts.uniform(["Up?"])
    responses = policy.sample(prompts, 2, torch.Generator().manual_seed(1))
    log_prob = policy.log_prob(prompts, responses)
    reward = reward_function("judge", judging=Judging(USUAL[:1]))
    score = reward(policy, Rollouts(0, prompts, responses, log_prob, torch.full_like(log_prob, 0.5)))
    for text, mine in zip(policy.texts(responses)[0], score[0].tolist(), strict=True):
        ids = policy.encode(RUBRICS[0].format(question="Up?", response=text)) + policy.tokenizer(OPENING)["input_ids"]
        mass = [
            sum(math.exp(alone(policy.model, ids, policy.tokenizer(s + g)["input_ids"])) for s in ("", " "))
            for g in GRADES
        ]
        assert mine == pytest.approx(sum(g * m for g, m in enumerate(mass)) / sum(mass), abs=1e-4)


def test_the_context_is_kept(tmp_path: Path) -> None:
    policy = load(roomy(tmp_path))
    assert policy.context == 4096
    size = len(policy.encode("x" * 100))
    assert policy.fits("x" * 100, 4096 - size) and not policy.fits("x" * 100, 4096 - size + 1)


@pytest.mark.parametrize("name", ["judge", "judge_pairwise"])
def test_many_responses_are_judged_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three prompts of two responses, two prompts at a time."""

    class Counted(Scripted):
        def choice_log_prob(self, items: Sequence[Sequence[str]], opening: str, choices: Sequence[str]) -> Tensor:
            sizes.append(len(items))
            return super().choice_log_prob(items, opening, choices)

    def script(item: str, choices: Sequence[str]) -> list[float]:
        return torch.rand(len(choices), generator=torch.Generator().manual_seed(zlib.crc32(item.encode()))).tolist()

    given = rollouts([["SKY", "CEILING"], ["FLOOR", "CORE"], ["MU", "SKY"]], ("Up?", "Down?", "Where?"))
    sizes: list[int] = []
    whole = reward_function(name)(Counted(script), given)
    assert max(sizes) == {"judge": 3, "judge_pairwise": 6}[name]
    sizes.clear()
    monkeypatch.setattr(
        importlib.import_module(f"srlm.rewards.{name}"), "TOGETHER", {"judge": 4, "judge_pairwise": 8}[name]
    )
    torch.testing.assert_close(reward_function(name)(Counted(script), given), whole, rtol=0, atol=0)
    assert max(sizes) == {"judge": 2, "judge_pairwise": 4}[name] and len(set(whole.flatten().tolist())) > 2
