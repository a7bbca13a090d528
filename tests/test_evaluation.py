"""`srlm evaluate`: the numbers of a run, without the run."""

import json
import re

import pytest
import torch
from support import (
    ANSWER,
    HELD_OUT,
    SETTINGS,
    command,
    records,
    refused,
    train_words,
    tree,
    words,
    write_held_out,
    write_prompts,
    write_rows,
)

import srlm.evaluation
from srlm import evaluate
from srlm.console import Display
from srlm.evaluation import held_out_generator
from srlm.loop import round_generator

KINDS = ["accuracy_sampled", "accuracy_greedy", *(f"{name}_at_{k}" for name in ("pass", "maj") for k in (1, 2, 3))]
MEASURES = [*(f"{kind}{end}" for kind in KINDS for end in ("", "_low", "_high")), "self_consistency", "unanimous"]
SAME = {
    "num_samples": SETTINGS["held_out_samples"],
    "max_new_tokens": SETTINGS["max_new_tokens"],
    "match": "regex",
    "dtype": "fp32",
    "seed": SETTINGS["seed"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_prompts(folder)
    rows = [{"prompt": f"Spell {i} {word}", "answer": ANSWER} for i in range(4) for word in HELD_OUT]
    write_rows(folder / "held-out.jsonl", rows)
    return folder


@pytest.fixture(scope="module", params=[4, 0], ids=["LoRA", "all weights"])
def run(request, tiny, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "run"
    options = {"model": tiny, "prompts": data / "prompts.jsonl", "held_out": data / "held-out.jsonl", "output": output}
    rate = 5e-3 if request.param else 2e-3
    assert command(*train_words(**options, lora_rank=request.param, learning_rate=rate)).code == 0
    return output


def alone(model, data, **more):
    return evaluate(str(model), data / "held-out.jsonl", **(SAME | more), display=Display(silent=True))


def test_evaluating_the_model_given_is_round_0(run, tiny, data):
    first = records(run)[0]
    assert alone(tiny, data) == {key: first[key] for key in MEASURES}
    assert 0 < first["accuracy_sampled"] < 1


def test_evaluating_the_model_saved_is_the_last_round(run, data, monkeypatch):
    last = records(run)[-1]
    # Every round draws anew; with the draws of the last round its accuracy must come out.
    draws = held_out_generator
    monkeypatch.setattr(srlm.evaluation, "held_out_generator", lambda seed, _: draws(seed, SETTINGS["rounds"]))
    assert alone(run / "model", data) == {key: last[key] for key in MEASURES}


def test_held_out_draws_are_their_own():
    """Not those of another round, seed or of training."""
    generators = [held_out_generator(0, 0), held_out_generator(0, 1), held_out_generator(1, 0), round_generator(0, 0)]
    assert len({float(torch.rand((), generator=g)) for g in generators}) == 4
    again = torch.rand((), generator=held_out_generator(0, 1))
    assert torch.equal(again, torch.rand((), generator=held_out_generator(0, 1)))


def test_greedy_accuracy_needs_no_luck(run, data):
    last = records(run)[-1]
    assert alone(run / "model", data, seed=123)["accuracy_greedy"] == last["accuracy_greedy"]


def test_command_line_says_and_writes_the_same(tiny, data, tmp_path):
    file = tmp_path / "result.json"
    given = words(model=tiny, prompts=data / "held-out.jsonl", output=file, **SAME)
    outcome = command("evaluate", *given, "--quiet")
    assert outcome.code == 0 and outcome.err == ""
    expected = alone(tiny, data)
    written = json.loads(file.read_text())
    assert {key: written[key] for key in MEASURES} == expected
    assert written["model"] == str(tiny) and written["seed"] == SETTINGS["seed"]
    assert written["answers"] == "normalised"
    lines = outcome.out.splitlines()
    asked = [["accuracy_sampled"], ["accuracy_greedy"], *([f"pass_at_{k}", f"maj_at_{k}"] for k in (1, 2, 3))]
    for line, start, kinds in zip(lines, ("accuracy sampled", "accuracy greedy", *["pass@"] * 3), asked, strict=False):
        numbers = [float(x) for x in re.findall(r"\d\.\d+", line)]
        assert numbers == [round(expected[f"{kind}{end}"], 3) for kind in kinds for end in ("", "_low", "_high")]
        assert line.startswith(start)
    assert "12 prompts" in lines[0] and "12 prompts" in lines[1]
    assert lines[5:] == [f"all 3 samples give one answer on {expected['unanimous']:.3f} of the prompts"]


def test_copies_of_a_prompt_are_told(tiny, tmp_path):
    rows = write_rows(tmp_path / "three.jsonl", [{"prompt": f"Say {word}", "answer": "a"} for word in "aba"])
    said = command("evaluate", *words(model=tiny, prompts=rows, **SAME)).out
    assert said.endswith("1 of 3 prompts are copies of others, which intervals take for different ones\n")


def test_options_from_yaml(tiny, data, tmp_path):
    (tmp_path / "e.yaml").write_text("match: regex\ndtype: fp32\nmax_new_tokens: 6\nnum_samples: 8\nseed: 3\n")
    file = tmp_path / "result.json"
    given = words(model=tiny, prompts=data / "held-out.jsonl", output=file, config=tmp_path / "e.yaml", num_samples=3)
    assert command("evaluate", *given).code == 0
    assert json.loads(file.read_text()).items() >= alone(tiny, data).items()


def test_a_subset_is_the_same_for_the_same_seed(tiny, data):
    assert alone(tiny, data, max_prompts=5) == alone(tiny, data, max_prompts=5)
    assert alone(tiny, data, max_prompts=1)["accuracy_greedy"] in (0, 1)


def test_one_sample_is_enough_here(tiny, data):
    found = alone(tiny, data, num_samples=1)
    assert 0 <= found["accuracy_sampled"] == found["pass_at_1"] == found["maj_at_1"] <= 1
    assert found["self_consistency"] is None and found["unanimous"] == 1


def test_answer_classes_of_ones_own(tiny, data):
    """All samples give one answer then, so the vote of any k is a sample of the k."""
    found = alone(tiny, data, answers="builtins:type")
    assert found["unanimous"] == found["self_consistency"] == 1
    assert found["maj_at_3"] == pytest.approx(found["accuracy_sampled"]) and found["maj_at_3"] < found["pass_at_3"]


def test_a_rule_of_ones_own(tiny, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rules_of_this_test.py").write_text("def never(response, answers):\n    return False\n")
    assert alone(tiny, data, match="my_rules_of_this_test:never")["accuracy_sampled"] == 0
    assert "my_rules_of_this_test:always" in refused(
        "evaluate",
        *words(model=tiny, prompts=data / "held-out.jsonl", match="my_rules_of_this_test:always"),
    )


def test_stop_strings_end_what_is_judged(tiny_base, data):
    stops = [*"bcghjklpquvwyzBCGHJKLPQUVWYZ"]
    free = alone(tiny_base, data, max_new_tokens=20)["accuracy_sampled"]
    assert alone(tiny_base, data, max_new_tokens=20, stop=stops)["accuracy_sampled"] < free


# What is refused, before a model is loaded: there is none


@pytest.fixture
def labelled(tmp_path):
    return write_held_out(tmp_path)


def refused_at_once(tmp_path, prompts, **options):
    before = tree(tmp_path)
    said = refused("evaluate", *words(model="/no/model", prompts=prompts, **options))
    assert "/no/model" not in said
    assert tree(tmp_path) == before
    return said


def test_prompts_without_answers(tmp_path):
    said = refused_at_once(tmp_path, write_prompts(tmp_path))
    assert "has no answers" in said and "--answer-column" in said
    half = write_rows(tmp_path / "half.jsonl", [{"prompt": "a", "answer": "b"}, {"prompt": "c"}])
    assert "line 2 of" in refused_at_once(tmp_path, half)


def test_answers_that_do_not_suit_the_rule(tmp_path):
    broken = write_rows(tmp_path / "broken.jsonl", [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "("}])
    assert "'('" in refused_at_once(tmp_path, broken, match="regex")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"num_samples": 0}, "--num-samples is 0"),
        ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ({"max_prompts": 0}, "ask for 1 or more"),
        ({"match": "luck"}, "match rule 'luck'"),
        ({"answers": "luck"}, "answer classes 'luck'"),
        ({"dtype": "int4"}, "--dtype is 'int4'"),
        ({"stop": ""}, "--stop"),
        ({"token_budget": 0}, "--token-budget is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"rounds": 3}, "unrecognized arguments: --rounds"),
        ({"num_samples": "many"}, "--num-samples"),
    ],
)
def test_bad_option(tmp_path, labelled, option, said):
    assert said in refused_at_once(tmp_path, labelled, **option)


def test_output_that_cannot_be_written(tmp_path, labelled):
    (tmp_path / "old.json").write_text("mine")
    for output in ("old.json", "no/folder/new.json", "old.json/new.json", "n" * 300):
        said = refused_at_once(tmp_path, labelled, output=tmp_path / output)
        assert str(tmp_path / output) in said and "choose another --output" in said
    assert "cannot be written" in refused_at_once(tmp_path, labelled, output="/proc/new.json")


def test_full_disk(tiny, labelled, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("srlm.run.files.os.fsync", full)
    file = tmp_path / "result.json"
    said = refused("evaluate", *words(model=tiny, prompts=labelled, output=file, **SAME))
    assert str(file) in said and "No space left on device" in said and "--resume" not in said
    assert not file.exists()


def test_prompt_longer_than_the_context(tiny, tmp_path):
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": "x" * 600, "answer": "a"}])
    assert "the context of 512" in refused("evaluate", *words(model=tiny, prompts=long))
