"""Rounds as the theory and the field have them: fresh prompts, a band of agreement, more votes than samples, a teacher,
and rewards that vote or check."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import WORDS, Outcome, command, learned, records, refused, table, train_words, write_rows

from srlm.answers import answer_classes
from srlm.config import SelfRewardConfig
from srlm.prompts.select import fresh
from srlm.prompts.sources import load_prompts
from srlm.rewards import reward_function
from srlm.run.manifest import new_manifest
from srlm.types import Prompts, Rollouts, Votes

FIRST = "regex:[a-zA-Z]"
letter = answer_classes(FIRST)


def half(response: str) -> bool | None:
    """Is its first letter one of the alphabet's first?"""
    first = letter(response)
    return None if first is None else str(first).lower() <= "m"


HALF = "test_rounds:half"


class Speaker:
    def texts(self, responses: list[list[str]]) -> list[list[str]]:
        return responses


def said(rows: list[list[str]], votes: list[list[str]] | None = None, alone: bool = False) -> Rollouts:
    shape = (len(rows), len(rows[0]))
    more = None if votes is None else Votes(votes, None, alone)
    prompts = Prompts.uniform([f"prompt {n}" for n in range(shape[0])])
    return Rollouts(0, prompts, rows, torch.full(shape, -1.0), torch.full(shape, 1 / shape[1]), votes=more)


def value(name: str, rollouts: Rollouts) -> list[list[float]]:
    return reward_function(name, classes=letter)(Speaker(), rollouts).tolist()


# Which prompts


def test_all_have_their_turn_before_one_comes_again() -> None:
    for number, size in ((7, 3), (6, 2), (5, 5), (9, 4), (3, 1)):
        seen: Counter[int] = Counter()
        for t in range(40):
            now = fresh(number, size, 3, t)
            assert now == sorted(set(now)) and len(now) == size and set(now) <= set(range(number))
            seen.update(now)
            assert max(seen.values()) - min(seen[n] for n in range(number)) <= 1
    assert fresh(9, 3, 0, 0) != fresh(9, 3, 1, 0)  # by the seed
    assert fresh(9, 3, 0, 0) != fresh(9, 3, 0, 3)  # in another order


# What votes are worth


def test_shares_logs_and_labels_of_a_vote() -> None:
    given = said([["a1", "a2", "b", "?"], ["c", "d", "d", "c"]])
    assert value("majority", given) == [[0.5, 0.5, 0.25, 0.0], [0.5] * 4]
    expected = [[math.log(x) for x in (0.5, 0.5, 0.25, 1 / 8)], [math.log(0.5)] * 4]
    assert value("log_majority", given) == [pytest.approx(row) for row in expected]
    assert value("hard_majority", given) == [[1, 1, 0, 0], [1, 0, 0, 1]]  # the first of equals
    assert value("hard_majority", said([["?", "!"]])) == [[0, 0]]


def test_log_shares_sharpen_answers_as_log_likelihood_does_responses() -> None:
    """THEORY: P_{t+1}(c) ~ P_t(c) exp(log P_t(c) / beta)."""
    row = ["a"] * 6 + ["b"] * 3 + ["c"]
    reward = torch.tensor(value("log_majority", said([row]))[0])
    beta = 0.7
    weight = torch.exp(reward / beta)
    share = torch.tensor([weight[:6].sum(), weight[6:9].sum(), weight[9:].sum()]) / weight.sum()
    escort = torch.tensor([0.6, 0.3, 0.1]) ** (1 + 1 / beta)
    assert torch.allclose(share, escort / escort.sum())


def test_a_vote_weighs_what_the_policy_was_sure_of() -> None:
    class Long(list[Any]):
        length = torch.tensor([[2.0, 2.0, 4.0]])

    probability = torch.tensor([[0.25, 0.25, 0.0625]])
    given = said([["a", "b", "b"]])
    given = Rollouts(0, given.prompts, Long(given.responses), probability.log(), given.weight)
    assert value("certain_majority", given) == [pytest.approx([1 / 3, 2 / 3, 2 / 3])]  # .5 for each
    given = Rollouts(0, given.prompts, given.responses, torch.tensor([[0.81, 0.01, 0.0001]]).log(), given.weight)
    assert value("certain_majority", given) == [pytest.approx([0.9 / 1.1, 0.2 / 1.1, 0.2 / 1.1])]


def test_others_vote_too_or_alone() -> None:
    rows, more = [["a", "b"]], [["b", "b", "?"]]
    assert value("majority", said(rows, more)) == [pytest.approx([1 / 5, 3 / 5])]
    assert value("majority", said(rows, more, alone=True)) == [pytest.approx([0, 2 / 3])]
    assert value("hard_majority", said(rows, [["c", "c"]], alone=True)) == [[0, 0]]  # nobody gave that answer
    assert value("log_majority", said(rows, more, alone=True))[0][0] == pytest.approx(math.log(1 / 6))


# Checks of a user's


def length_of(response: str, columns: Mapping[str, Any]) -> float:
    return float(len(response) <= columns["most"])


def tells(response: str, columns: Mapping[str, Any]) -> float:
    return float("answer" in columns)


def broken(response: str, columns: Mapping[str, Any]) -> float:
    return math.nan if columns.get("most") else 1 / 0


def test_a_check_sees_the_columns_of_its_prompt() -> None:
    rows = [{"most": 1}, {"most": 2}]
    given = said([["a", "bb"], ["bb", "ccc"]])
    reward = reward_function("majority + 0.5*check:test_rounds:length_of", classes=letter, columns=rows.__getitem__)
    assert reward(Speaker(), given).tolist() == [[1.0, 0.5], [1.0, 0.5]]


# Runs


@pytest.fixture
def run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Say {w}", "answer": w, "most": n} for n, w in enumerate(WORDS)]
    write_rows(tmp_path / "p.jsonl", rows)
    write_rows(tmp_path / "h.jsonl", [{"prompt": f"Spell {w}", "answer": "[a-m]", "most": 1} for w in ("x", "yy")])

    def train(output: str, **options: Any) -> Outcome:
        own = {"model": tiny, "prompts": "p.jsonl", "held_out": "h.jsonl", "output": output, "answers": FIRST} | options
        return command(*train_words(**own))

    return train


def ok(outcome: Outcome) -> str:
    assert outcome.code == 0, outcome
    return outcome.out


def test_fresh_prompts_each_round(run: Any) -> None:
    assert "6 prompts, 4 a round, × 4" in ok(run("a", prompts_per_round=4, rounds=3, reward="oracle", match="contains"))
    assert not any("length_change" in record for record in records(Path("a")))  # of other prompts than round 0's
    seen = [sorted(set(table(Path("a"), t)["prompt_index"])) for t in range(4)]
    assert seen == [fresh(6, 4, 3, t) for t in range(4)] and len({*map(tuple, seen)}) > 1
    for t in range(4):  # prompts keep their numbers, and their answers
        rollouts = table(Path("a"), t)
        assert rollouts["prompt"] == [f"Say {WORDS[i]}" for i in rollouts["prompt_index"]]
        both = zip(rollouts["prompt_index"], rollouts["response"], strict=True)
        right = [WORDS[i] in text.lower().split() for i, text in both]
        assert [bool(one) for one in rollouts["reward"]] == right
    assert "--prompts-per-round is 7, but p.jsonl has 6 prompts" in refused(
        *train_words(model="/none", prompts="p.jsonl", held_out="h.jsonl", output="b", prompts_per_round=7)
    )


def test_all_prompts_a_round_are_all_prompts(run: Any) -> None:
    ok(run("a", prompts_per_round=6))
    ok(run("b"))
    assert learned(Path("a")) == learned(Path("b"))


def test_prompts_outside_the_band_teach_nothing(run: Any) -> None:
    ok(run("a", consistency_band=(0.3, 0.6), rounds=1, answers=HALF))
    rollouts = table(Path("a"), 0)
    by_prompt: dict[int, list[str]] = {}
    for index, text in zip(rollouts["prompt_index"], rollouts["response"], strict=True):
        by_prompt.setdefault(index, []).append(text)
    shares = {}
    for index, texts in by_prompt.items():
        given = [one for one in map(half, texts) if one is not None]
        shares[index] = max(Counter(given).values(), default=0) / len(texts)
    assert [shares[i] for i in rollouts["prompt_index"]] == pytest.approx(rollouts["vote_share"])
    outside = [index for index, share in shares.items() if not 0.3 <= share <= 0.6]
    assert records(Path("a"))[0]["prompts_outside_band"] == len(outside)
    assert 0 < len(outside) < 6
    steps = json.loads(Path("a/round-000/stages.json").read_text())["loss"]
    assert len(steps) == 2 * math.ceil((6 - len(outside)) / 2)  # 2 epochs, 2 prompts a step: no step for the others
    assert abs(steps[0]) < 1e9 and None not in rollouts["log_prob_next"]


def test_the_first_log_ratio_of_a_part_is_0(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    from srlm.objectives import regression

    original = regression.regression

    def spied(log_ratio: torch.Tensor, *more: Any, **options: Any) -> Any:
        seen.append(log_ratio.detach().clone())
        return original(log_ratio, *more, **options)

    monkeypatch.setattr(regression, "regression", spied)
    ok(run("a", consistency_band=(0.3, 0.6), rounds=1, answers=HALF, dtype="bf16"))
    assert bool((seen[0] == 0).all())


def test_a_band_that_leaves_no_prompt(run: Any) -> None:
    outcome = run("a", consistency_band=(0.97, 0.99))
    assert outcome.code == 2
    assert "round 0: the commonest answers have shares of the votes from" in outcome.err
    assert "none of them within --consistency-band 0.97 0.99" in outcome.err and outcome.err.count("\n") == 1
    assert Path("a/model/config.json").exists()


def test_responses_none_of_which_ends(run: Any) -> None:
    outcome = run("a", truncated="drop", max_new_tokens=1)
    assert outcome.code == 2
    assert "round 0: no prompt that counts has two finished responses" in outcome.err
    assert "--truncated penalise" in outcome.err and outcome.err.count("\n") == 1
    assert Path("a/model/config.json").exists() and not Path("a/round-001").exists()


def test_more_votes_than_samples(run: Any) -> None:
    ok(run("a", votes=9, reward="majority", rounds=1))
    ok(run("b", reward="majority", rounds=1, held_out_samples=4))
    assert table(Path("a"), 0)["response"] == table(Path("b"), 0)["response"]  # the same are learned from
    assert len(table(Path("a"), 0)["response"]) == 6 * 4 and len(table(Path("a"), 0, "votes")["response"]) == 6 * 5
    for index in range(6):
        own, more = (
            [r for i, r in zip(t["prompt_index"], t["response"], strict=True) if i == index]
            for t in (table(Path("a"), 0), table(Path("a"), 0, "votes"))
        )
        assert own != more[:4]  # drawn for themselves: an untrained model does not say four texts twice
        count = Counter(map(letter, [*own, *more]))
        shares = [count[letter(r)] / 9 if letter(r) is not None else 0 for r in own]
        made = table(Path("a"), 0)
        rewards = [r for i, r in zip(made["prompt_index"], made["reward"], strict=True) if i == index]
        assert rewards == pytest.approx(shares)
    # Held-out samples are as many as the votes of b alone: no fit to what others asked for.
    fewer, alike = (records(Path(name))[1] for name in ("a", "b"))
    assert fewer["fidelity_r2_held_out"] is None and "mode_surprisal_forecast" not in fewer and "auroc" in fewer
    assert alike["fidelity_r2_held_out"] is not None and {"mode_surprisal_forecast", "auroc"} <= alike.keys()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"votes": 3, "reward": "majority"}, "--votes is 3 beside --num-samples 4, expected at least as many"),
        ({"objective": "grpo", "beta": 0.04}, "--beta is 0.04, which nothing would heed, expected --objective regress"),
        ({"objective": "grpo", "clip": 0.2}, "--clip is 0.2, which nothing would heed"),
        ({"objective": "dpo", "clip": 0.5}, "--clip is 0.5, which nothing would heed, expected --objective regression"),
        ({"objective": "ipo", "anchor": 0.5}, "--anchor is 0.5, which nothing would heed"),
        ({"objective": "imitation", "reward": "judge"}, "--reward is judge, which nothing would heed"),
        ({"objective": "imitation", "truncated": "penalise"}, "--truncated is penalise, which nothing would heed"),
        ({"engine_options": ("a=1",)}, "--engine-options is a=1, which nothing would heed, expected --engine vllm"),
        ({"engine": "vllm", "engine_weights": "adapter"}, "--engine-weights is adapter, which nothing would heed"),
        ({"pairs": "best_worst"}, "--pairs is best_worst, which nothing would heed, expected --objective dpo or ipo"),
        ({"margin": 1.0}, "--margin is 1.0, which nothing would heed"),
        ({"lora_rank": 0, "lora_alpha": 8.0}, "--lora-alpha is 8.0, which nothing would heed, expected --lora-rank 1"),
        ({"lora_rank": 0, "engine_weights": "adapter"}, "--engine-weights is adapter, which nothing would heed"),
        ({"written_near": 0.5}, "--written-near is 0.5, which nothing would heed, expected --written-prompts"),
        ({"engine_correction": 2.0}, "--engine-correction is 2.0, which nothing would heed, expected --engine"),
        ({"votes": 8}, "--votes is 8, but --reward log_likelihood takes no vote"),
        ({"teacher": "initial"}, "--teacher is initial, but --reward log_likelihood neither judges nor votes"),
        ({"teacher": "ema:1.5", "reward": "majority"}, "--teacher is 'ema:1.5', expected live, initial, or ema:"),
        ({"labelled": True, "reward": "majority"}, "--labelled was given, but --reward majority has no check"),
        ({"consistency_band": (0.8, 0.3)}, "expected two shares from 0 to 1, the lower one first"),
        ({"reward": "check:test_rounds:nothing"}, "cannot be imported"),
        *(
            (
                {"kl_initial": 0.5, "objective": one},
                f"--kl-initial is 0.5 beside --objective {one}, expected regression",
            )
            for one in ("dpo", "ipo", "best_of_k", "imitation", "grpo", "dapo", "gspo")
        ),
    ],
)
def test_what_contradicts_is_refused(run: Any, options: dict[str, Any], expected: str) -> None:
    own = {"model": "/none", "prompts": "p.jsonl", "held_out": "h.jsonl", "output": "b"} | options
    assert expected in refused(*train_words(**own))
    assert not Path("b").exists()


@pytest.mark.parametrize("teacher", ["initial", "ema:.5"])
@pytest.mark.parametrize("rank", [4, 0])
def test_a_teacher_votes_and_judges(run: Any, teacher: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its votes are those of a model with its weights."""
    from srlm.policies.transformer.policy import TransformerPolicy

    weights: list[dict[str, torch.Tensor]] = []
    live: list[dict[str, torch.Tensor]] = []
    sample = TransformerPolicy.sample

    def spied(self: Any, prompts: Any, number: int, *more: Any, **options: Any) -> Any:
        now = {name: value.detach().clone() for name, value in self.trainable().items()}
        (weights if number == 5 else live if number == 4 else []).append(now)
        return sample(self, prompts, number, *more, **options)

    monkeypatch.setattr(TransformerPolicy, "sample", spied)
    options = {"teacher": teacher, "votes": 5, "reward": "majority", "rounds": 2, "lora_rank": rank}
    if not rank:
        options["learning_rate"] = 2e-3
    ok(run("a", **options))
    assert len(weights) == len(live) == 3
    expected = {name: value.float() for name, value in live[0].items()}
    for t in range(3):
        if t and teacher != "initial":
            expected = {name: 0.5 * expected[name] + 0.5 * live[t][name].float() for name in expected}
        assert all(torch.equal(weights[t][name], expected[name].to(weights[t][name])) for name in expected)
        if t:
            assert any(not torch.equal(weights[t][name], live[t][name]) for name in expected)
    # Held-out prompts have none of its votes, and the live policy's are another reward.
    assert "reward" not in table(Path("a"), 1, "held_out") and "auroc" not in records(Path("a"))[1]
    # The live policy is untouched by its teacher: what a round kept is what it was.
    rewards = table(Path("a"), 2)["reward"]
    # Going on makes the same teacher anew.
    for file in ("a/round-002/votes.parquet",):
        assert Path(file).exists()
    back = command("train", "--resume", "a", "--from-round", 2)
    ok(back)
    assert table(Path("a"), 2)["reward"] == rewards


def test_a_run_with_all_of_it_goes_on_as_if_never_stopped(run: Any) -> None:
    options = {
        "prompts_per_round": 5,
        "consistency_band": (0.2, 0.9),
        "answers": HALF,
        "votes": 6,
        "teacher": "ema:.5",
        "reward": "certain_majority + 0.1*check:test_rounds:length_of",
        "step": 0.2,
        "rounds": 2,
    }
    ok(run("a", **options))
    ok(run("b", **options))
    for folder in ("round-001", "round-002"):
        for file in sorted(Path("b", folder).rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
    lines = Path("b/records.jsonl").read_text().splitlines()
    Path("b/records.jsonl").write_text(lines[0] + "\n")
    manifest = json.loads(Path("b/manifest.json").read_text()) | {"state": "running"}
    Path("b/manifest.json").write_text(json.dumps(manifest))
    ok(command("train", "--resume", "b", "--reward", str(options["reward"]), "--answers", HALF))
    assert learned(Path("a")) == learned(Path("b"))
    config = json.loads(Path("a/manifest.json").read_text())["config"]
    assert config["teacher"] == "ema:.5" and config["consistency_band"] == [0.2, 0.9] and config["votes"] == 6


def test_a_check_never_sees_the_answer_unless_the_run_is_one_with_labels(run: Any) -> None:
    ok(run("a", reward="check:test_rounds:tells", rounds=1))
    assert set(table(Path("a"), 0)["reward"]) == {0.0}
    assert json.loads(Path("a/manifest.json").read_text())["labels_used"] is False
    ok(run("b", reward="check:test_rounds:tells", rounds=1, labelled=True))
    assert set(table(Path("b"), 0)["reward"]) == {1.0}
    assert json.loads(Path("b/manifest.json").read_text())["labels_used"] is True
    again = run("c", reward="check:test_rounds:broken", rounds=1)
    assert again.code == 2 and "check:test_rounds:broken" in again.err and again.err.count("\n") == 1


def test_who_says_how_good_it_is_stands_in_the_first_lines(run: Any) -> None:
    assert "reference, reward model and sampler of round t: π_t itself" in ok(run("a", rounds=1))
    said = ok(run("b", rounds=1, reward="majority", teacher="initial"))
    assert "voter: π_0" in said and "reward model" not in said
    assert "reward: check:test_rounds:tells" in ok(run("c", rounds=1, reward="check:test_rounds:tells"))


def test_held_out_samples_are_of_the_policy_itself(run: Any, tiny: Path) -> None:
    """Whatever is explored with: as `srlm evaluate` draws them."""
    ok(run("a", rounds=1, temperature=1e-3))
    ok(run("b", rounds=1))
    one, other = (table(Path(name), 0, "held_out")["response"] for name in ("a", "b"))
    assert one == other
    assert table(Path("a"), 0)["response"] != table(Path("b"), 0)["response"]


def test_columns_of_any_kind_are_the_same_again(tmp_path: Path) -> None:
    """The text of an image has its address in memory."""

    class Picture:
        pass

    def facts() -> Any:
        rows = [{"prompt": "a", "meta": {("a", 1): {"x", "y"}, "b": Picture(), "c": b"1", "d": np.ones(2)}}]
        train = load_prompts(rows, keep_columns=True)
        config = SelfRewardConfig(output="r")
        made = new_manifest("m", config, train, None, held_out_given=False, labels_used=False)
        return made["data"]["prompts_columns"]

    assert facts() == facts()
