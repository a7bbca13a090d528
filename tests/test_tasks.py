"""Procedural tasks: the same questions for the same name, judged by their own verifier, and nothing run as code."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from support import ANSWER, command, records, refused, train_words, words, write_rows

from srlm import UserError, evaluate, load_prompts, tasks
from srlm.answers import answer_classes, auto, contains, match_rule
from srlm.config import SelfRewardConfig
from srlm.console import Display
from srlm.evaluation import check_answers
from srlm.training.parts import prompt_sets

needs_package = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="pip install 'srlm[tasks]'")
SAYINGS = (  # of the answer {}
    *("{}", "{}.", "**{}**", "`{}`", "The answer is {}", "The answer is: {}", "The answer is **{}**."),
    *("Let me see.\nAnswer: {}.", " {}\n", "**Answer:** {}", "Answer: **{}**"),
)
SUMS = "reasoning-gym:chain_sum?size=12&max_terms=2&max_digits=1"


def labelled(source):
    loaded = load_prompts(source)
    return list(zip(loaded.prompts.items, loaded.answers, strict=True))


@needs_package
def test_questions_are_the_packages_own():
    import reasoning_gym

    own = reasoning_gym.create_dataset("chain_sum", size=12, seed=3_000_000, max_terms=2, max_digits=1)
    prompts = load_prompts(SUMS + "&seed=3").prompts.items
    assert prompts == tuple(f"{entry['question']}\nAnswer with one number." for entry in own)
    assert load_prompts(SUMS + "&seed=3&instruction=%0AAnswer:").prompts.items[0] == f"{own[0]['question']}\nAnswer:"


@needs_package
def test_another_process_gives_the_same_questions():
    sources = [f"reasoning-gym:{name}?size=10&seed=1" for name in ("chain_sum", "spell_backward", "knights_knaves")]
    code = "import sys; from srlm import load_prompts; print(*(load_prompts(s).fingerprint for s in sys.argv[1:]))"
    here = [load_prompts(source).fingerprint for source in sources]
    environment = os.environ | {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}  # sets and dicts in another order
    line = [sys.executable, "-c", code, *sources]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == here


@needs_package
def test_seeds_share_nothing():
    """reasoning-gym's own neighbouring seeds share all items but one."""
    sets = [
        set(load_prompts(f"reasoning-gym:chain_sum?size=50&min_digits=4&seed={seed}").prompts.items)
        for seed in range(4)
    ]
    assert len(set.union(*sets)) == sum(map(len, sets)) == 200
    assert load_prompts("reasoning-gym:chain_sum?size=3&min_digits=4").prompts.items[0] in sets[0]


@needs_package
def test_right_and_wrong():
    for prompt, answers in labelled(SUMS):
        left, sign, right = prompt.split("problem: ")[1].split(" =")[0].split()
        value = int(left) + (int(right) if sign == "+" else -int(right))
        for said in (f"{left} {sign} {right} = {value}.", f"It is {value}.0", str(value), f"1, 2, {value:,}"):
            assert auto(said, answers), said
        for said in ("", "I do not know.", f"{value + 1}", f"{value}1", f"{value}, not {value + 1}"):
            assert not auto(said, answers), said


@needs_package
@pytest.mark.parametrize(
    "name", ["gcd", "decimal_arithmetic", "coin_flip", "spell_backward", "letter_jumble", "sentence_reordering", "dice"]
)
def test_the_tasks_own_answer_is_right(name):
    import reasoning_gym

    class_of = answer_classes(tasks.answer_classes(f"reasoning-gym:{name}?size=20"))

    entries = reasoning_gym.create_dataset(name, size=20, seed=0)
    for entry, (_, answers) in zip(entries, labelled(f"reasoning-gym:{name}?size=20"), strict=True):
        classes = set()
        for said in SAYINGS:
            assert auto(said.format(entry["answer"]), answers), (said, entry)
            classes.add(class_of(said.format(entry["answer"])))
        assert len(classes) == 1, classes
        assert not auto("no idea", answers)


@needs_package
def test_how_the_answer_is_taken_can_be_chosen():
    first = labelled(SUMS)[0][0].split("problem: ")[1]
    value = sum(int(word) for word in first.split(" =")[0].replace("- ", "-").replace("+ ", "").split())
    answers = labelled(SUMS + "&answer=regex:<a>(.*?)</a>")[0][1]
    assert auto(f"<a>{value}</a>, or 99", answers) and not auto(f"{value}", answers)
    answers = labelled(SUMS + "&answer=exact")[0][1]
    assert auto(f" {value} ", answers) and not auto(f"It is {value}", answers)
    with pytest.raises(UserError, match="no answer classes 'best'"):
        check_answers(load_prompts(SUMS + "&answer=best"), auto)


@needs_package
def test_a_verifier_that_stumbles_says_no():
    answers = labelled("reasoning-gym:prime_factorization?size=1")[0][1]
    assert not auto("two times three", answers)  # int("two times three")


@needs_package
def test_training_and_held_out_prompts_share_none():
    few = "reasoning-gym:chain_sum?size=60&min_terms=2&max_terms=2&max_digits=1"  # of 200 possible ones
    for held_out in (None, few + "&seed=1"):
        train, held = prompt_sets(few, held_out, SelfRewardConfig())
        assert not set(train.prompts.items) & set(held.prompts.items)
        assert len(train.prompts) < 60 and held.answers is not None
        check_answers(held, auto)
    with pytest.raises(UserError, match=r"all 60 prompts of .* are among those of"):
        prompt_sets(few, few, SelfRewardConfig())


@needs_package
def test_other_rules_cannot_judge_a_task():
    for name in ("contains", "number"):
        with pytest.raises(UserError, match="judges its answers itself; leave --match out"):
            check_answers(load_prompts(SUMS), match_rule(name))


@needs_package
def test_a_file_cannot_name_a_verifier(tmp_path):
    """Its answers may be anyone's, and a task's `answer` may be any function."""
    load_prompts(SUMS)
    said = f"{SUMS}&answer=os:system#0"
    file = write_rows(tmp_path / "a.jsonl", [{"prompt": "p", "answer": said}])
    ((_, answers),) = labelled(file)
    assert not auto(f"touch {tmp_path}/ran", answers) and not (tmp_path / "ran").exists()
    assert auto(said, answers) and contains(said, answers)  # plain words


@needs_package
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("basic_arithmetik", r"no task 'basic_arithmetik', expected one such as basic_arithmetic"),
        ("", "no task ''"),
        ("chain_sum?digits=2", r"parameter 'digits', expected instruction, answer, .*min_terms.*; correct it"),
        ("chain_sum?size", "parameter 'size', expected name=value"),
        ("chain_sum?size=0", "size 0, expected a whole number from 1 to"),
        ("chain_sum?size=true", "size True, expected a whole number"),
        ("chain_sum?size=2.5", r"size 2\.5, expected a whole number"),
        ("chain_sum?seed=-1", "seed -1, expected a whole number from 0 to 4000"),
        ("chain_sum?min_digits=0", "cannot be generated .*; correct its parameters"),
        ("chain_sum?min_digits=many", "cannot be generated .*; correct its parameters"),
        ("spiral_matrix", "'spiral_matrix' cannot be used .*run a response as code"),
        ("countdown", "'countdown' cannot be used .*run a response as code"),
        ("word_ladder", "'word_ladder' cannot be used .*differ from one process"),
        ("composite", "'composite' cannot be used .*tasks again"),
    ],
)
def test_what_cannot_be_used(source, message):
    with pytest.raises(UserError, match=message) as caught:
        load_prompts(tasks.PREFIX + source)
    assert "\n" not in str(caught.value)


@needs_package
def test_every_verifier_that_runs_answers_is_known():
    """As of the version here; found by reading it."""
    for name in (
        *("binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication"),
        *("puzzle24", "simple_integration", "spiral_matrix", "string_insertion"),
    ):
        with pytest.raises(UserError, match="run a response as code"):
            load_prompts(f"reasoning-gym:{name}?size=1")


def test_without_the_package(monkeypatch, tmp_path, tiny):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    source = "reasoning-gym:chain_sum?size=77"
    said = refused(*train_words(model=tiny, prompts=source, output=tmp_path / "run"))
    assert "needs the package reasoning-gym: run `pip install 'srlm[tasks]'`" in said
    assert refused("evaluate", "--model", tiny, "--prompts", source) == said


def test_auto_is_contains_elsewhere():
    for response, answers in (("It is Rome.", ("Rome",)), ("Paris", ("Rome",)), ("x", ()), ("a#0", ("a#0",))):
        assert auto(response, answers) == contains(response, answers)


@needs_package
def test_training_on_a_task(tiny, tmp_path):
    """The run's accuracies are those that `evaluate` finds on the prompts it set aside."""
    run, source = tmp_path / "run", SUMS + f"&answer=regex:{ANSWER}"
    config = {"held_out_samples": 3, "max_new_tokens": 6, "seed": 3}
    given = {"model": tiny, "output": run, "task": source, "held_out_share": 0.5, "match": "auto"}
    assert command(*train_words(**given, **config, rounds=1, num_samples=2)).code == 0
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["data"]["prompts"]["source"] == source
    _, held = prompt_sets(source, None, SelfRewardConfig(held_out_share=0.5, seed=3))
    alone = evaluate(
        str(tiny), held, num_samples=3, max_new_tokens=6, seed=3, dtype="fp32", display=Display(silent=True)
    )
    assert records(run)[0].items() >= alone.items()
    assert command("train", "--resume", run).code == 0
    assert command("evaluate", *words(model=tiny, prompts=source, max_new_tokens=4), "--quiet").code == 0


def test_a_question_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(tasks, "ITEM_SECONDS", 0.3)
    with pytest.raises(UserError, match=r"cannot be generated \(it took more than 0\.3 s\); correct its parameters"):
        load_prompts("reasoning-gym:basic_arithmetic?size=3&max_terms=10000000000000000000")
