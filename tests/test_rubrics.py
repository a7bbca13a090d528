"""Rubrics of all kinds, judgements that are written, several at a time, and judgements that are judged."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import command, records, refused, table, train_words
from test_judge import STRENGTH, TEXTS, Scripted, comparison, rollouts, roomy

from srlm.config import SelfRewardConfig
from srlm.errors import UserError
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.sample import Decoding
from srlm.rewards.judge_pairwise import opponents
from srlm.rewards.judging import Judging
from srlm.rewards.rubric import read_rubric, shipped
from srlm.rewards.table import reward_function
from srlm.training.parts import judging_of
from srlm.types import Prompts


class Writer(Scripted):
    """Writes what it is told to: (question, number of the judgement) -> text."""

    def __init__(self, says, script=lambda item, choices: [0.5] * len(choices)) -> None:
        super().__init__(script)
        self.says, self.seeds, self.longest, self.temperature = says, list[int](), 0, math.nan

    def written(
        self,
        items: Sequence[str],
        openings: Sequence[str],
        number: int,
        seeds,
        *,
        max_new_tokens: int,
        temperature: float,
    ):
        self.temperature = temperature
        assert len(openings) == len(seeds) == len(items) and self.fits(items[0], max_new_tokens)
        self.seeds, self.longest = [*self.seeds, *seeds], max_new_tokens
        self.asked += items
        return SimpleNamespace(texts=[[self.says(item, n) for n in range(number)] for item in items])


def judged(name: str, policy: Scripted, texts=TEXTS, **how):
    notes: dict[str, float] = {}
    reward = reward_function(name, note=notes.__setitem__, judging=Judging(**how))
    return reward(policy, rollouts(texts)), notes


@pytest.mark.parametrize(
    ("name", "text", "grade"),
    [
        ("additive", "Score: 4", 4),
        ("additive", "**Score:** 3/5, since it ...", 3),
        ("additive", "score: <2>", 2),
        ("additive", "Score: 4.5", 4.5),
        ("additive", "Score: 1\nNext one. Score: 5", 1),  # without reasons the rest is talk
        ("additive-reasons", "Score: 1 for relevance. In all\nScore: 5", 5),
        ("additive", "Score: 7", math.nan),
        ("additive", "Score: -1", math.nan),
        ("additive", "Score: 3/10", math.nan),
        ("additive", "Score: <points>", math.nan),
        ("additive", "4 points", math.nan),
        ("additive", "Underscore: 4", math.nan),
        ("step-by-step", "Step 1 holds.\nScore: 10", 10),
        ("step-by-step", "Score: 11", math.nan),
        ("pairwise", "Response B is better", 0),
        ("pairwise", "response a", 1),
        ("pairwise", "Response Apple", math.nan),
        ("pairwise-reasons", 'B is wrong.\nBetter response: "A"', 1),
        ("pairwise-reasons", "Better response: Response A", 1),
        ("pairwise-reasons", "Better response: a tie", math.nan),
        ("pairwise", "The response, a long one, is fine", math.nan),
        ("pairwise", "response a is better", 1),
        ("meta-judge", "Judgement B", 0),
        ("pairwise", "", math.nan),
    ],
)
def test_a_verdict_is_read_where_it_stands(name: str, text: str, grade: float) -> None:
    assert read_rubric(name).read(text) == pytest.approx(grade, nan_ok=True)


def test_every_rubric_that_comes_along_reads_the_verdict_it_asks_for() -> None:
    assert {"additive", "additive-reasons", "step-by-step", "pairwise", "pairwise-reasons", "meta-judge"} <= {
        *shipped()
    }
    for name in shipped():
        rubric = read_rubric(name)
        asked = rubric.asks(question="Q?", response="{first}", first="{question}", second="S")
        assert "Q?" in asked and ("{question}" if rubric.pairs else "{first}") in asked  # braces of others are text
        for word, value in zip(rubric.words, rubric.values, strict=True):
            assert rubric.read(f"It is fine.\n{rubric.opening} {word}") == value


@pytest.mark.parametrize("opening", ["### Score:", "**Points**", "评分：", "(Score)"])
def test_an_opening_may_begin_and_end_with_any_sign(tmp_path: Path, opening: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"scale: [0, 5]\nopening: '{opening}'\ntemplate: '{{question}} {{response}} {{first}} {{else}}'\n")
    rubric = read_rubric(str(file))
    for before in ("", "It is fine.\n", "It is fine. "):
        assert rubric.read(f"{before}{opening} 4") == 4
    assert math.isnan(rubric.read("4"))
    assert rubric.asks(question="Q", response="R") == "Q R {first} {else}"  # not one of its places: text


SCALE = "scale: [0, 5]\n"
TEMPLATE = "template: '{question} {response}'\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TEMPLATE, r"has no scale, expected scale: \[0, 5\] .*: add one"),
        (TEMPLATE + "scale: high", "the scale .* is 'high', expected"),
        (TEMPLATE + "scale: [5, 0]", r"the scale .* is \[5, 0\]"),
        (TEMPLATE + "scale: [A, a]", "the scale"),
        (SCALE, "has no template"),
        (SCALE + "template: '{question}'", r"no \{response\}, expected \{question\}, \{response\}"),
        ("scale: [A, B]\n" + TEMPLATE, r"no \{first\}"),
        (SCALE + TEMPLATE + "grades: 3", "unknown key grades"),
        (SCALE + TEMPLATE + "reasons: often", "expected true or false"),
        (SCALE + TEMPLATE + "opening: 3", "opening"),
        ("a: [", "is not YAML"),
        ("- 1", "has no template"),
    ],
)
def test_a_bad_rubric_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=says) as error:
        read_rubric(str(file))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_judgements_are_averaged_and_those_without_a_grade_counted_and_dropped() -> None:
    said = {"SKY": ["Score: 4", "Score: 1", "none"], "MU": ["?"] * 3}

    def says(item: str, n: int) -> str:
        return next((row[n] for text, row in said.items() if f"Response: {text}" in item), f"Score: {n}")

    policy = Writer(says)
    score, notes = judged("judge", policy, rubrics=("additive-reasons",), samples=3)
    # SKY 2.5 of two; MU, without any, gets the mean of its group; the others (0 + 1 + 2) / 3
    torch.testing.assert_close(score, torch.tensor([[2.5, 1.0, 1.75], [1.0, 2.5, 1.0]]))
    assert notes == {"unparsed": pytest.approx((1 + 3 + 1) / 18), "judgements": 18.0}
    again = Writer(says)
    assert policy.longest == 256
    judged("judge", again, rubrics=("additive-reasons",), samples=3)
    assert policy.seeds == again.seeds and len(set(policy.seeds)) == 6
    other = Writer(says)
    judged("judge", other, rubrics=("additive-reasons",), samples=3, tokens=7, seed=1)
    assert other.longest == 7
    assert not {*other.seeds} & {*policy.seeds}


def test_rubrics_of_another_scale_are_not_averaged() -> None:
    with pytest.raises(UserError, match="different scales"):
        judged("judge", Writer(lambda *_: ""), rubrics=("additive", "step-by-step"), samples=1)


def test_reasons_have_to_be_written() -> None:
    for rubric in ("additive-reasons", "step-by-step"):
        with pytest.raises(UserError, match="give --judge-samples 1 or more"):
            reward_function("judge", judging=Judging((rubric,)))


def test_written_comparisons_are_asked_in_both_orders() -> None:
    def says(item: str, n: int) -> str:
        a, b = (STRENGTH[text] for text in comparison(item))
        return "Better response: A" if a > b else "Better response: B"

    score, notes = judged("judge_pairwise", Writer(says), rubrics=("pairwise-reasons",), samples=2)
    torch.testing.assert_close(score, torch.tensor([[1.0, 0.0, 0.5], [0.5, 1.0, 0.0]]))
    assert notes == {"unparsed_pairs": 0.0, "judgements_pairs": 24.0}
    first = Writer(lambda item, n: "Better response: A")
    score, _ = judged("judge_pairwise", first, rubrics=("pairwise-reasons",), samples=2)
    assert torch.equal(score, torch.full((2, 3), 0.5))  # who stands first does not count


def test_everyone_has_as_many_opponents_and_both_ways() -> None:
    for k, number, least in [(8, 3, 4), (8, 2, 2), (5, 4, 4), (5, None, 4), (6, 5, 5), (2, 1, 1), (4, 3, 3), (8, 7, 7)]:
        found = opponents(k, number, 0, 1)
        assert {len(row) for row in found} == {least}
        assert all(i in found[j] and j != i for i, row in enumerate(found) for j in row)
    assert opponents(8, 2, 0, 1) != opponents(8, 2, 0, 2)
    assert opponents(8, 2, 0, 1) == opponents(8, 2, 0, 1)


def test_of_some_opponents_every_one_is_asked_once_each_way() -> None:
    policy = Scripted(lambda item, choices: [0.5, 0.5])
    judged("judge_pairwise", policy, texts=[["a", "b", "c", "d", "e"], ["f", "g", "h", "i", "j"]], opponents=2)
    pairs = [*map(comparison, policy.asked)]
    assert len(pairs) == len({*pairs}) == 2 * 5 * 2 and {(b, a) for a, b in pairs} == {*pairs}


def test_judgements_that_are_judged_better_count_more() -> None:
    """The meta-judge knows the good judgement, which says 4; the other says 1, and the third nothing."""

    def script(item: str, choices: Sequence[str]) -> Sequence[float]:
        sides = re.findall(r"Judgement [AB]:\n(\w+)", item)
        worth = {"good": 3.0, "poor": 1.0, "lost": 50.0}
        a, b = (worth[side] for side in sides)
        return [a / (a + b), b / (a + b)]

    says = ["good Score: 4", "poor Score: 1", "lost"]
    policy = Writer(lambda item, n: says[n], script)
    score, notes = judged("meta_judge", policy, samples=3)
    torch.testing.assert_close(score, torch.full((2, 3), 0.75 * 4 + 0.25 * 1))  # "lost" is not asked about
    assert notes == {"unparsed": pytest.approx(1 / 3), "judgements": 18.0, "unparsed_meta": 0.0}
    blind = Writer(lambda item, n: says[n], lambda item, choices: [0.9, 0.1])
    torch.testing.assert_close(judged("meta_judge", blind, samples=3)[0], torch.full((2, 3), 2.5))
    silent = Writer(lambda item, n: "", script=lambda item, choices: [0.5, 0.5])
    assert torch.equal(judged("meta_judge", silent, samples=2)[0], torch.full((2, 3), 2.5))
    with pytest.raises(UserError, match=r"--judge-samples is 1, but --reward meta_judge .* at least 2"):
        reward_function("meta_judge", judging=Judging(samples=1))
    for rubrics, kind in ((("additive", "rating"), "points"), (("meta-judge", "pairwise"), "pairs")):
        with pytest.raises(UserError, match=f"2 rubrics of {kind}, but --reward meta_judge takes one of each kind"):
            reward_function("meta_judge", judging=Judging(samples=2, rubrics=rubrics))


def test_what_a_real_model_writes_has_the_probability_that_it_says(tmp_path: Path) -> None:
    policy = TransformerPolicy.load(str(roomy(tmp_path)), dtype="fp32", lora_rank=0, max_new_tokens=8)
    asked, openings, seeds = ["Up or down?", "Left?"], ["So:", ""], [3, 4]
    made = policy.written(asked, openings, 3, seeds, max_new_tokens=5, stop=("q",))
    again = policy.written(asked[1:], openings[1:], 3, seeds[1:], max_new_tokens=5, stop=("q",))
    assert made.texts[1] == again.texts[0] and made.texts[0] != made.texts[1]
    assert made.log_prob.shape == made.finished.shape == (2, 3) and (made.log_prob < 0).all()
    assert not any("q" in text for row in made.texts for text in row)
    policy.scorer.score = None  # a judge who reads what was written needs no pass over it
    unscored = policy.written(asked, openings, 3, seeds, max_new_tokens=5, stop=("q",))
    assert unscored.texts == made.texts and torch.equal(unscored.finished, made.finished)
    # the samples of a question are those of a prompt that is written out so
    out = policy.encode("Up or down?") + policy.tokenizer("So:")["input_ids"]
    drawn = policy.engine.sample([out], 3, Decoding(5, policy.decoding.eos), [3], lambda *_: None)
    assert [text.split("q")[0] for text in policy.texts(drawn)[0]] == made.texts[0]


def test_judgements_are_written_at_their_temperature() -> None:
    assert judging_of(SelfRewardConfig()).temperature == 1
    judging = judging_of(SelfRewardConfig(reward="judge", judge_samples=2, judge_temperature=0.3))
    policy = Writer(lambda item, n: "Score: 2")
    reward_function("judge", judging=judging)(policy, rollouts(TEXTS))
    assert policy.temperature == 0.3


def test_a_run_with_written_judgements_counts_them_and_goes_on(tiny: Path, prompts_file: Path, tmp_path: Path) -> None:
    rubric = tmp_path / "r.yaml"
    rubric.write_text("scale: [0, 9]\nopening: 'x'\ntemplate: '{question}{response}'\n")
    run = tmp_path / "run"
    given = {"model": tiny, "prompts": prompts_file, "output": run, "rounds": 1, "reward": "judge", "rubric": rubric}
    given |= {"judge_samples": 2, "judge_tokens": 4}
    assert command(*train_words(**given)).code == 0
    record = records(run)[0]
    assert record["judgements_reward_rollouts"] == 6 * 4 * 2 and 0 <= record["unparsed_reward_rollouts"] <= 1
    assert len(table(run, 0)["reward"]) == 24
    rubric.write_text(rubric.read_text() + "# another\n")
    assert "began with rubrics" in refused("train", "--resume", run)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"judge_samples": 2}, "--judge-samples was given, but --reward log_likelihood does not judge"),
        ({"rubric": "additive"}, "--rubric was given"),
        ({"reward": "judge", "rubric": "pairwise"}, "the rubric pairwise is one of pairs"),
        ({"reward": "judge_pairwise", "rubric": "additive"}, "the rubric additive is one of points"),
        ({"reward": "judge", "rubric": "none.yaml"}, "the rubric none.yaml cannot be read"),
        ({"reward": "judge", "judge_tokens": 9}, "--judge-tokens is 9, but no judgement is written"),
        ({"reward": "judge", "judge_temperature": 0.5}, "--judge-temperature is 0.5, but no judgement is written"),
        ({"reward": "judge", "judge_temperature": 0.0}, "--judge-temperature is 0.0, expected a finite number above 0"),
        ({"reward": "judge", "judge_opponents": 2}, "compares no responses"),
        ({"reward": "judge_pairwise", "judge_opponents": 0}, "--judge-opponents is 0, expected at least 1"),
        ({"reward": "judge", "judge_samples": -1}, "--judge-samples is -1, expected 0 or more"),
        ({"reward": "meta_judge"}, "--judge-samples is 0, but --reward meta_judge"),
    ],
)
def test_settings_of_judges_that_do_nothing_are_refused(tiny, prompts_file, tmp_path, options, says) -> None:
    given = {"model": tiny, "prompts": prompts_file, "output": tmp_path / "run"}
    assert says in refused(*train_words(**given | options))
    assert not (tmp_path / "run").exists()


def test_prompts_of_the_policy_are_questions_of_its_judge() -> None:
    """The judge is asked about the prompt as text, whatever it is."""
    policy = Writer(lambda item, n: "Score: 2")
    reward = reward_function("judge", judging=Judging(("additive-reasons",), 1))
    given = rollouts([["SKY"]], [({"role": "user", "content": "Up?"},)])
    assert reward(policy, given).tolist() == [[2.0]] and "Question: Up?" in policy.asked[0]
    assert isinstance(given.prompts, Prompts)
