"""Prompts as reasoning work has them: benchmarks by name, columns, splits, configurations, instructions, templates that
think."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from conftest import make_model, make_tokenizer
from support import command, records, refused, table, train_words, words, write_rows

from srlm import SelfRewardConfig, harvest
from srlm.answers import answer_classes, match_rule
from srlm.console import Display
from srlm.errors import UserError
from srlm.evaluation import right_or_wrong
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.responses import Responses
from srlm.policies.transformer.settings import named_values
from srlm.prompts.presets import PRESETS, settled
from srlm.prompts.sources import load_prompts
from srlm.rewards.majority import answers_given
from srlm.training.reading import Reading, kept_readings, readings

SOLUTION = "Half of {n} is {n}/2 = <<{n}/2={half}>>{half}.\n#### {half}"


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    """openai/gsm8k as it lies on the Hub, in small."""
    home = tmp_path / "openai" / "gsm8k"
    for config in ("main", "socratic"):
        (home / config).mkdir(parents=True)
        for split, first in (("train", 2), ("test", 20)):
            rows = [
                {"question": f"{config}: half of {n}?", "answer": SOLUTION.format(n=n, half=n // 2)}
                for n in range(first, first + 10, 2)
            ]
            write_rows(home / config / f"{split}.jsonl", rows)
    said = "".join(
        f"- config_name: {config}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {config}/{split}.jsonl\n" for split in ("train", "test"))
        for config in ("main", "socratic")
    )
    (home / "README.md").write_text(f"---\nconfigs:\n{said}---\n")
    return home


def test_a_benchmark_knows_its_columns_and_what_to_ask(gsm8k: Path) -> None:
    train = load_prompts("gsm8k")
    assert train.prompts.items[0] == f"main: half of 2?\n{PRESETS['gsm8k'].instruction}"
    assert train.answers is not None and train.answers[0] == (SOLUTION.format(n=2, half=1),)
    assert train.prompts.items == load_prompts("openai/gsm8k").prompts.items
    assert "half of 20?" in load_prompts("gsm8k[test]").prompts.items[0]
    assert len(load_prompts("gsm8k[test[:3]]").prompts) == 3
    other = load_prompts("openai/gsm8k:socratic[test]", instruction="")
    assert other.prompts.items[0] == "socratic: half of 20?"
    assert load_prompts("gsm8k", dataset_config="socratic", split="test", instruction="").prompts == other.prompts or (
        load_prompts("gsm8k", dataset_config="socratic", split="test", instruction="").fingerprint == other.fingerprint
    )


@pytest.mark.parametrize("instruction", [None, "Be brief.", ""])
def test_prompts_are_written_from_bare_questions(gsm8k: Path, tmp_path: Path, monkeypatch, instruction) -> None:
    class Seen(Exception):
        pass

    def seen(policy, pool, *_, **__):
        raise Seen(pool.texts)

    monkeypatch.setattr(harvest, "policy_asked", lambda *_: (None, None))
    monkeypatch.setattr(harvest, "write", seen)
    with pytest.raises(Seen) as found:
        harvest.write_prompts(
            "m", "gsm8k", 2, tmp_path / "w.jsonl", written_examples=2, instruction=instruction, display=Display(True)
        )
    assert "main: half of 2?" in found.value.args[0] and all("\n" not in text for text in found.value.args[0])


def test_a_named_split_wins_over_the_option(gsm8k: Path) -> None:
    assert load_prompts("gsm8k[test]", split="train").fingerprint == load_prompts("gsm8k[test]").fingerprint


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("gsm8k[dev]", ["dev", "train", "test"]),
        ("gsm8k:extra", ["extra", "main", "socratic"]),
    ],
)
def test_what_is_not_there_is_listed(gsm8k: Path, source: str, said: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_prompts(source)
    assert all(word in str(caught.value) for word in said) and "\n" not in str(caught.value)


def test_a_dataset_that_has_configurations_needs_one(gsm8k: Path) -> None:
    (gsm8k.parent / "other").mkdir()
    gsm8k.rename(gsm8k.parent / "mine")
    with pytest.raises(UserError, match=r"main.*socratic.*--dataset-config"):
        load_prompts("openai/mine")
    assert len(load_prompts("openai/mine", dataset_config="main", prompt_column="question").prompts) == 5
    with pytest.raises(UserError, match=r"has no 'query' \(columns found: 'question', 'answer'\)"):
        load_prompts("openai/mine", dataset_config="main", prompt_column="query")


def test_a_saved_dataset_has_no_configuration(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"prompt": "a"}]).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="expected no configuration 'x'"):
        load_prompts("saved", dataset_config="x")


def test_a_file_of_a_benchmarks_name_is_a_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "math[1].jsonl", [{"prompt": "a"}])
    assert load_prompts("math[1].jsonl").prompts.items == ("a",)


@pytest.mark.parametrize(
    ("prompts", "held_out", "answers", "match"),
    [
        ("gsm8k", None, "number", "number"),
        ("math", "math500", "math", "math"),
        ("mine.jsonl", "gsm8k[test]", "number", "number"),
        ("gsm8k", "mine.jsonl", "number", "auto"),
        ("mine.jsonl", None, "normalised", "auto"),
        ("reasoning-gym:basic_arithmetic?size=2", None, "number", "auto"),
    ],
)
def test_what_auto_comes_to(prompts: str, held_out: str | None, answers: str, match: str) -> None:
    found = settled(SelfRewardConfig(), prompts, held_out)
    assert (found.answers, found.match) == (answers, match)
    own = settled(SelfRewardConfig(answers="exact", match="contains"), prompts, held_out)
    assert (own.answers, own.match) == ("exact", "contains")


def test_conventions_of_the_benchmarks() -> None:
    """The reference solution is right, whatever numbers stand on the way; the first number is not."""
    solution = SOLUTION.format(n=18, half=9)
    assert match_rule("number")("9 + 0 = 9, so #### 9", [solution])
    assert not match_rule("number")("It is half of 18", [solution])
    assert answer_classes("number")(solution) == answer_classes("number")("The answer is 9.0")


def test_system_prompt_and_instruction(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "b"}]
    file = write_rows(tmp_path / "p.jsonl", [{"prompt": "a"}, {"messages": turns}])
    plain, chat = load_prompts(file, system_prompt="S", instruction="I").prompts.items
    assert plain == ({"role": "system", "content": "S"}, {"role": "user", "content": "a\nI"})
    assert chat == ({"role": "system", "content": "S"}, {"role": "user", "content": "b\nI"})
    write_rows(file, [{"messages": [{"role": "system", "content": "own"}, *turns]}])
    with pytest.raises(UserError, match=r"line 1 of .* has a system turn already.*--system-prompt"):
        load_prompts(file, system_prompt="S")
    with pytest.raises(UserError, match=r"--system-prompt 'S' stands beside --raw-prompts"):
        SelfRewardConfig(system_prompt="S", raw_prompts=True)


def test_an_instruction_takes_the_place_of_a_tasks_own() -> None:
    task = "reasoning-gym:basic_arithmetic?size=2"
    with_it = load_prompts(task, instruction="Be brief: one & only.").prompts.items[0]
    assert with_it.endswith("\nBe brief: one & only.") and "Answer with" not in with_it
    assert "Answer with" in load_prompts(task).prompts.items[0]
    assert load_prompts(task, instruction="").prompts.items[0] == with_it.removesuffix("\nBe brief: one & only.")
    with pytest.raises(UserError, match="has an instruction, and --instruction is 'B'"):
        load_prompts(f"{task}&instruction=A", instruction="B")


def test_training_and_evaluating_a_benchmark_by_name(gsm8k: Path, tiny: Path, tmp_path: Path) -> None:
    options = {"model": tiny, "rounds": 1, "match": "auto", "instruction": "Q"}
    said = command(*train_words(**options, prompts="gsm8k", held_out="gsm8k[test]", output="run"))
    assert said.code == 0, said
    config = json.loads(Path("run/manifest.json").read_text())["config"]
    assert (config["answers"], config["match"]) == ("number", "number")
    assert "accuracy_sampled" in records(tmp_path / "run")[0]
    again = command("train", "--resume", "run", "--rounds", 1)
    assert again.code == 0 and "finished already" in again.out
    one = command("evaluate", *words(model=tiny, task="gsm8k[test]", dtype="fp32", max_new_tokens=6, output="e.json"))
    assert one.code == 0, one
    written = json.loads(Path("e.json").read_text())
    assert (written["match"], written["answers"], written["prompts"]) == ("number", "number", "gsm8k[test]")


# Prompts that are too long


def test_what_is_too_long_is_skipped_and_counted(tiny: Path, tmp_path: Path) -> None:
    rows = [{"prompt": text, "answer": "[a-m]"} for text in ("ab", "x" * 600, "cd", "ef", "y" * 600)]
    write_rows(tmp_path / "p.jsonl", rows)
    write_rows(tmp_path / "h.jsonl", [rows[4], {"prompt": "gh", "answer": "[n-z]"}])
    options = {"model": tiny, "prompts": "p.jsonl", "held_out": "h.jsonl", "rounds": 1}
    assert "prompt 2 has" in refused(*train_words(**options, output="none"))
    said = command(*train_words(**options, output="run", overlong="skip", reward="oracle"))
    assert said.code == 0, said
    assert "2 of 5 prompts of p.jsonl are too long: skipped" in said.out
    assert "1 of 2 prompts of h.jsonl are too long: skipped" in said.out
    assert list(dict.fromkeys(table(tmp_path / "run", 0)["prompt"])) == ["ab", "cd", "ef"]
    # Answers keep to their prompts: those left out took theirs with them.
    right = [bool(match_rule("regex")(text, ["[a-m]"])) for text in table(tmp_path / "run", 0)["response"]]
    assert table(tmp_path / "run", 0)["reward"] == [float(one) for one in right]
    held = table(tmp_path / "run", 0, "held_out")["response"]
    share = sum(match_rule("regex")(text, ["[n-z]"]) for text in held) / len(held)
    assert records(tmp_path / "run")[0]["accuracy_sampled"] == pytest.approx(share)
    assert json.loads(Path("run/manifest.json").read_text())["skipped"] == {"rollouts": [1, 4], "held_out": [0]}
    write_rows(tmp_path / "l.jsonl", [rows[1]])
    every = {"model": tiny, "prompts": "l.jsonl", "overlong": "skip"}
    assert "all 1 prompts of l.jsonl are too long" in refused("evaluate", *words(**every))
    some = command("evaluate", *words(**(every | {"prompts": "p.jsonl"}), match="regex", max_new_tokens=6))
    assert some.code == 0 and "2 of 5 prompts of p.jsonl are too long" in some.out and "on 3 prompts" in some.out


# Templates

THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ALWAYS = THINKS.replace("{% if enable_thinking is defined and enable_thinking is false %}", "<think>\n{% if false %}")


def policy(folder: Path, template: str, **options: Any) -> TransformerPolicy:
    model, tokenizer = make_model(), make_tokenizer()
    tokenizer.chat_template = template
    return TransformerPolicy(model, tokenizer, max_new_tokens=4, name="it", **options)


def test_a_template_is_told_what_was_asked(tmp_path: Path) -> None:
    one, other = policy(tmp_path, THINKS), policy(tmp_path, THINKS, chat_template_kwargs=["enable_thinking=false"])
    tail = [p.tokenizer.decode(p.encode("Hi"))[-40:] for p in (one, other)]
    assert not tail[0].endswith("</think>\n\n") and tail[1].endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["enable_thinking=false"], "there is no variable 'enable_thinking' in the tokenizer of it"),
        (["thinking"], "expected name=value"),
    ],
)
def test_a_template_without_such_a_variable(tmp_path: Path, given: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        if "=" in given[0]:
            policy(tmp_path, THINKS.replace("enable_thinking", "thoughtful"), chat_template_kwargs=given)
        else:
            SelfRewardConfig(chat_template_kwargs=tuple(given))


def test_which_variables_there_are_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\(it has enable_thinking\)"):
        policy(tmp_path, THINKS, chat_template_kwargs=["thinking=false"])
    base = make_tokenizer(chat=False)
    with pytest.raises(UserError, match="there is no chat template"):
        TransformerPolicy(make_model(), base, max_new_tokens=4, name="it", chat_template_kwargs=["a=1"])


@pytest.mark.parametrize("template", [THINKS, ALWAYS])
def test_a_judge_does_not_speak_inside_a_thinking_block(tmp_path: Path, template: str) -> None:
    asked = policy(tmp_path, template)
    text = asked.tokenizer.decode(asked.encode.answering("How good?"))
    assert text.endswith("</think>\n\n")
    assert text.count("<think>") == text.count("</think>") == 1
    seen: list[list[int]] = []
    endings = asked.scorer.endings

    def spied(row: Any, forms: Any) -> Any:
        seen.extend(row)
        return endings(row, forms)

    asked.scorer.endings = spied  # type: ignore[method-assign]
    asked.choice_log_prob([["How good?"]], "Score:", ["1", "2"])
    assert asked.tokenizer.decode(seen[0]) == f"{text}Score:"


# What is ready for a GPU, in small


@pytest.mark.parametrize("name", ["gsm8k-qwen2.5-1.5b", "math-qwen2.5-3b"])
def test_a_config_trains_in_small(gsm8k: Path, tiny: Path, tmp_path: Path, name: str) -> None:
    if name.startswith("math"):
        pytest.importorskip("math_verify")
        home = tmp_path / "DigitalLearningGmbH" / "MATH-lighteval"
        home.mkdir(parents=True)
        rows = [{"problem": f"What is {n}/2?", "solution": rf"$\boxed{{\frac{{{n}}}{{2}}}}$"} for n in range(6)]
        write_rows(home / "train.jsonl", rows)
        test = tmp_path / "HuggingFaceH4" / "MATH-500"
        test.mkdir(parents=True)
        write_rows(test / "test.jsonl", [{"problem": "Half of 3?", "answer": r"\frac{3}{2}"}] * 2)
    small = {"rounds": 1, "prompts_per_round": 4, "num_samples": 3, "max_new_tokens": 6, "held_out_samples": 2}
    small |= {"output": "run", "model": tiny, "dtype": "fp32", "guard": False, "learning_rate": 1e-3}
    file = Path(__file__).parent.parent / "configs" / f"{name}.yaml"
    # What an untrained model says holds no answer, so no band would leave a prompt.
    said = command("train", "--config", file, *words(**small, consistency_band=[0.0, 1.0]))
    assert said.code == 0, said
    config = json.loads(Path("run/manifest.json").read_text())["config"]
    parser = "math" if name.startswith("math") else "number"
    assert (config["answers"], config["match"], config["reward"]) == (parser, parser, "majority")
    assert len(set(table(Path("run"), 0)["prompt"])) == 4 and "accuracy_greedy" in records(tmp_path / "run")[1]


# Thoughts that the template opens


def test_a_thought_that_the_template_opened_and_nobody_closed_is_no_answer(tmp_path: Path) -> None:
    thinking, plain = policy(tmp_path, ALWAYS), policy(tmp_path, THINKS)
    for one, opens in ((thinking, True), (plain, False)):
        one.encode("Hi")
        assert one.opens_thought == opens
    tokens = torch.tensor([[thinking.tokenizer("it is 3")["input_ids"]]], dtype=torch.int32)
    over = torch.tensor([[thinking.tokenizer("no 4</think>3")["input_ids"]]], dtype=torch.int32)
    responses, said = (Responses(t, torch.tensor([[t.shape[-1]]]), torch.tensor([[False]])) for t in (tokens, over))
    rule, classes = match_rule("number"), answer_classes("number")
    assert answers_given(thinking, responses, classes) == [[None]] != answers_given(plain, responses, classes)
    assert not right_or_wrong(thinking, responses, [["3"]], rule).any()
    assert right_or_wrong(plain, responses, [["3"]], rule).all()
    assert right_or_wrong(thinking, said, [["3"]], rule).all() and answers_given(thinking, said, classes) == [[0]]


@pytest.mark.parametrize("value", ["false", "False"])
def test_a_variable_may_be_written_as_python_does(tmp_path: Path, value: str) -> None:
    told = policy(tmp_path, THINKS, chat_template_kwargs=[f"enable_thinking={value}"])
    assert told.tokenizer.decode(told.encode("Hi")).endswith("</think>\n\n")
    assert named_values(["a=None", "b=Falsehood", "c=[1]"]) == {"a": None, "b": "Falsehood", "c": [1]}


# Two sources


def test_each_set_is_read_as_its_source_wants(gsm8k: Path, tiny: Path, tmp_path: Path) -> None:
    write_rows(
        tmp_path / "mine.jsonl", [{"prompt": "half of 8?", "answer": "4"}, {"prompt": "half of 6?", "answer": "3"}]
    )
    options = {"model": tiny, "rounds": 1, "match": "auto", "instruction": "Q", "reward": "oracle"}
    task = "reasoning-gym:basic_arithmetic?size=4"
    wanted = {
        ("gsm8k", "mine.jsonl"): ("number", "number", "number", "auto"),
        ("mine.jsonl", "gsm8k[test]"): ("number", "number", "number", "number"),
        (task, "gsm8k[test]"): ("number", "auto", "number", "number"),
    }
    for number, ((prompts, held_out), names) in enumerate(wanted.items()):
        own = {"instruction": ""} if prompts == task else {}
        said = command(*train_words(**(options | own), prompts=prompts, held_out=held_out, output=f"r{number}"))
        assert said.code == 0, said
        kept = json.loads(Path(f"r{number}/manifest.json").read_text())["readings"]
        assert tuple(kept[table][name] for table in ("rollouts", "held_out") for name in ("answers", "match")) == names
        assert command("train", "--resume", f"r{number}").code == 0
    given = readings(SelfRewardConfig(), settled(SelfRewardConfig(), "gsm8k", "math500"), {"held_out": "math500"})
    assert given["held_out"] == Reading("math", "math")


def test_a_task_is_read_on_resuming_as_it_was() -> None:
    config, said = settled(SelfRewardConfig(), "gsm8k", None), {"answers": "regex:x", "match": "auto"}
    assert kept_readings({"readings": {"held_out": said}}, config, {"held_out": "t"})["held_out"] == Reading(**said)


def test_tags_that_are_special_tokens_are_in_no_text(tmp_path: Path) -> None:
    model, tokenizer = make_model(vocab=270), make_tokenizer()
    tokenizer.chat_template = ALWAYS
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    one = TransformerPolicy(model, tokenizer, max_new_tokens=4, name="it")
    one.encode("Hi")
    assert not one.opens_thought


def test_a_run_keeps_to_how_it_was_measured(tiny: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "p.jsonl", [{"prompt": f"Say {n}", "answer": "[a-m]"} for n in range(6)])
    given = {"model": tiny, "prompts": "p.jsonl", "held_out": "p.jsonl", "rounds": 1, "temperature": 1e-3}
    for name in ("new", "old"):
        assert command(*train_words(**given, output=name)).code == 0
    manifest = json.loads(Path("old/manifest.json").read_text())
    assert manifest.pop("measures") == 2
    Path("old/manifest.json").write_text(json.dumps(manifest))
    for name in ("new", "old"):
        assert command("train", "--resume", name, "--from-round", 0).code == 0
    new, old = (table(Path(name), 0, "held_out")["response"] for name in ("new", "old"))
    assert new != old and len(set(old)) < len(set(new))  # 1e-3 says the same again


def test_a_folder_does_not_say_whose_code_reads_answers() -> None:
    config = settled(SelfRewardConfig(), "gsm8k", None)
    kept = kept_readings(
        {"readings": {"rollouts": {"match": "os:system", "answers": 3}}}, config, {"rollouts": "gsm8k"}
    )
    assert kept == {"rollouts": Reading("number", "number")}


def test_a_run_is_not_called_as_a_benchmark(gsm8k: Path, tiny: Path) -> None:
    said = refused(*train_words(model=tiny, prompts="gsm8k", rounds=1, match="auto", output="gsm8k"))
    assert "--output is gsm8k, which is what a benchmark is called" in said


def test_an_answer_column_that_is_not_there_is_no_run_without_answers(tiny: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    write_rows(tmp_path / "h.jsonl", [{"prompt": "c", "solution": "4"}])
    given = {"model": tiny, "prompts": "p.jsonl", "held_out": "h.jsonl", "output": "run"}
    assert "--answer-column is 'solutoin', which no row of h.jsonl has" in refused(
        *train_words(**given, answer_column="solutoin")
    )
    del given["held_out"]
    assert "--answer-column is 'solutoin'" in refused(*train_words(**given, answer_column="solutoin"))
    assert not Path("run").exists()
