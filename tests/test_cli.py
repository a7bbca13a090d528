"""The command line: options, YAML, and one sentence for whatever is wrong with them."""

import itertools
import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from support import SETTINGS, command, records, refused, sentence, tree, words, write_rows

from srlm import SelfRewardConfig
from srlm.cli import main

LISTS = {
    "stop": [],
    "report_to": [],
    "chat_template_kwargs": [],
    "engine_options": [],
    "rubric": [],
}  # how files hold tuples


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def printed(*more):
    outcome = command("train", *more, "--print-config")
    assert outcome.code == 0 and not outcome.err, outcome
    return yaml.safe_load(outcome.out)


def python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)


# Options and YAML


def test_defaults_are_those_of_the_config(here):
    shown = printed()
    defaults = vars(SelfRewardConfig()) | LISTS
    assert {name: shown[name] for name in defaults} == defaults
    assert shown.keys() - defaults.keys() == {"model", "prompts", "held_out", "method", "compare", "seeds", "quiet"}


def test_yaml_is_read_and_the_command_line_wins(here):
    (here / "c.yaml").write_text(
        "model: some/model\nrounds: 5\nlearning_rate: 2e-4\nbeta: 2\nlora-alpha: 1e1\nmax_prompts: null\n"
        'stop: ["\\n", "Q:"]\nraw_prompts: true\nquiet: false\nmatch: exact\n'
    )
    shown = printed("--rounds", 7, "--config", "c.yaml", "--match", "number")
    assert (shown["rounds"], shown["match"]) == (7, "number")
    assert (shown["model"], shown["learning_rate"], shown["beta"], shown["lora_alpha"]) == ("some/model", 2e-4, 2, 10)
    assert (shown["stop"], shown["raw_prompts"], shown["quiet"], shown["max_prompts"]) == (
        ["\n", "Q:"],
        True,
        False,
        None,
    )
    assert printed("--config=c.yaml", "--no-raw-prompts")["raw_prompts"] is False


def test_printed_config_is_a_config(here):
    first = command("train", "--print-config", "--stop", "---", "\n", " ü", "--beta", "0.1", "--held-out", "x y.jsonl")
    (here / "c.yaml").write_text(first.out)
    assert yaml.safe_load(first.out)["stop"] == ["---", "\n", " ü"]
    assert command("train", "--config", "c.yaml", "--print-config").out == first.out


def test_print_config_starts_nothing(here):
    printed("--prompts", "nothing.jsonl", "--output", "run")
    assert not list(here.iterdir())


def test_train_from_yaml(here, tiny, prompts_file, held_out_file):
    options = SETTINGS | {"model": str(tiny), "prompts": str(prompts_file), "held_out": str(held_out_file)}
    (here / "c.yaml").write_text(yaml.safe_dump(options | {"rounds": 3, "output": "other"}))
    assert command("train", "--config", "c.yaml", "--rounds", 1, "--output", "run").code == 0
    assert len(records(here / "run")) == 2
    manifest = json.loads((here / "run" / "manifest.json").read_text())
    asked = vars(SelfRewardConfig(**(SETTINGS | {"rounds": 1, "output": "run"}))) | LISTS
    assert manifest["config"] == asked | {"answers": "normalised", "beta": 1.0}  # what they came to
    assert not (here / "other").exists()


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_help_lists_every_option(name):
    outcome = command(name, "--help-all" if name == "train" else "--help")
    assert outcome.code == 0 and not outcome.err
    options = ["--model", "--prompts", "--max-new-tokens", "--match", "--stop", "--config"]
    options += ["--resume", "--print-config", "--beta", "--lora-rank"] if name == "train" else ["--output"]
    assert [option for option in options if option not in outcome.out] == []


@pytest.mark.parametrize("name", ["train", "diagnose", "plan"])
def test_help_texts_fill_their_lines(name):
    """A line ends where the next word has no room, and not where the source's did."""
    continued = [re.match(r"[│ ] {18,}(\S.*?) *│?$", line) for line in command(name, "--help").out.splitlines()]
    width = max(len(line[1]) for line in continued if line)
    pairs = [(line[1], after[1]) for line, after in itertools.pairwise(continued) if line and after]
    assert len(pairs) >= 2
    assert [line for line, after in pairs if len(f"{line} {after.split()[0]}") <= width] == []


def test_help_of_plan_lists_every_option():
    outcome = command("plan", "--help")
    assert outcome.code == 0 and not outcome.err
    names = "diagnosis budget failure kappa0 log-kappa0 margin beta num-samples log-class-size dimension norm-bound"
    names += " level failure-probability max-rounds plot output quiet config paper min-confidence eigenvalues constant"
    assert [name for name in names.split() if f"--{name}" not in outcome.out] == []


def test_usage(here):
    assert command("--help").code == command("-h").code == 0
    nothing = command()
    assert nothing.code == 2 and "train" in nothing.out and "evaluate" in nothing.out
    assert "there is no command 'trian': use train, prompts, estimate, evaluate, diagnose, plan" in refused("trian")


# Bad options: (words after `srlm train`, what the sentence must say)

BAD_OPTIONS = [
    (["--nonsense", "3"], "--nonsense"),
    (["stray"], "stray"),
    (["--rounds", "x"], "--rounds"),
    (["--rounds", "1.5"], "--rounds"),
    (["--beta", "much"], "--beta"),
    (["--seed"], "--seed"),
    (["--config"], "--config needs a value"),
    (["--resume"], "--resume needs a value"),
    (["--num-samples", "1"], "nothing to be compared with"),
    (["--num-samples", "0"], "--num-samples is 0"),
    (["--rounds", "0"], "--rounds is 0, expected at least 1"),
    (["--rounds", "-1"], "--rounds is -1"),
    (["--beta", "0"], "--beta is 0.0, expected a finite number above 0"),
    (["--beta", "-1"], "--beta is -1.0"),
    (["--beta", "nan"], "--beta is nan"),
    (["--beta", "inf"], "--beta is inf"),
    (["--clip", "-1"], "--clip is -1.0"),
    (["--anchor", "nan"], "--anchor is nan"),
    (["--learning-rate", "0"], "--learning-rate is 0.0"),
    (["--temperature", "0"], "--temperature is 0.0"),
    (["--top-p", "1.5"], "--top-p is 1.5"),
    (["--top-p", "0"], "--top-p is 0.0"),
    (["--epochs", "0"], "--epochs is 0"),
    (["--max-new-tokens", "0"], "--max-new-tokens is 0"),
    (["--token-budget", "0"], "--token-budget is 0"),
    (["--checkpoint-steps", "0"], "--checkpoint-steps is 0"),
    (["--prompts-per-step", "0"], "--prompts-per-step is 0"),
    (["--max-prompts", "0"], "--max-prompts is 0"),
    (["--held-out-samples", "1"], "--held-out-samples is 1"),
    (["--held-out-share", "1"], "--held-out-share is 1.0"),
    (["--lora-rank", "-1"], "--lora-rank is -1"),
    (["--lora-alpha", "0"], "--lora-alpha is 0.0"),
    (["--dtype", "fp16"], "--dtype is 'fp16', expected auto, bf16 or fp32"),
    (["--stop", ""], "--stop"),
    (
        ["--objective", "ppo"],
        "--objective is 'ppo', expected regression, dpo, ipo, best_of_k, imitation, grpo, dapo, dr_grpo or gspo",
    ),
    (["--length-normalised"], "--length-normalised is True, expected --objective dpo or ipo beside it"),
    (["--ratio-clip", "0.2", "0.2"], "expected --objective grpo, dapo, dr_grpo or gspo beside it"),
    (["--objective", "grpo", "--ratio-clip", "0.2"], "--ratio-clip is [0.2], expected 2 values"),
    (["--objective", "grpo", "--ratio-clip", "1.2", "0.2"], "expected two numbers above 0, the first at most 1"),
    (["--objective", "grpo", "--ratio-clip", "0.2", "inf"], "expected two numbers above 0, the first at most 1"),
    (["--pairs", "some"], "--pairs is 'some', expected all or best_worst"),
    (["--label-smoothing", "2"], "--label-smoothing is 2.0, expected a number from 0 to 1, or consistency"),
    (["--label-smoothing", "much"], "--label-smoothing"),
    (["--truncated", "cut"], "--truncated is 'cut', expected keep, penalise or drop"),
    (["--length-window", "5", "3", "--length-penalty", "1"], "--length-window is (5, 3), expected 0 <= fewest <= most"),
    (["--length-window", "3", "5"], "expected a --length-penalty above 0 beside it"),
    (["--kl-initial", "-1"], "--kl-initial is -1.0"),
    (["--until", "bored"], "--until"),
    (["--patience", "0"], "--patience is 0, expected at least 1"),
    (["--guard-truncation", "nan"], "--guard-truncation is nan, expected a number"),
    (["--seed", "-1"], "--seed is -1"),
    (["--seed", str(2**64)], "--seed"),
    (["--reward", "praise"], "expected one of log_likelihood, mean_log_likelihood"),
    (["--match", "luck"], "match rule 'luck'"),
    (["--match", "no_such_module:rule"], "no_such_module"),
]


@pytest.mark.parametrize(("given", "said"), BAD_OPTIONS, ids=[" ".join(given) for given, _ in BAD_OPTIONS])
def test_bad_option(here, prompts_file, given, said):
    assert said in refused("train", "--prompts", prompts_file, "--output", "run", *given)
    assert not list(here.iterdir())


BAD_PLANS = {
    "": "--budget was not given: give a number in [1, 1e+18], or a --failure to reach in (0, 1)",
    "--budget much": "--budget",
    "--budget 10": "--kappa0 was not given",
    "--rounds 3": "--rounds",
    "--diagnosis nothing.json --budget 10": "nothing.json cannot be read",
    "--budget 10 --kappa0 2 --margin 1": "--log-class-size and --dimension, got none",
    "--budget 10 --kappa0 2 --margin 1 --dimension 3": "--norm-bound is needed",
    "--budget 10 --kappa0 2 --log-class-size 3": "--margin was not given: give a number in (0, inf)",
    "--failure 1 --kappa0 2 --margin 1 --log-class-size 3": "--failure is 1.0, expected a number in (0, 1)",
    "--failure .1 --kappa0 2 --margin 1 --log-class-size 3 --num-samples 0": "--num-samples is 0",
    "--budget 10 --kappa0 2 --constant 2 --min-confidence 1": "--min-confidence and --constant do not go without",
    "--paper": "--budget was not given",
    "--paper --budget 10 --failure .1": "--failure does not go with --paper",
    "--paper --budget 10 --kappa0 2 --margin 1 --min-confidence 2 --log-class-size 3": "--min-confidence is 2.0",
    "--paper --budget 10 --kappa0 2 --margin 1 --min-confidence 1": "--dimension and --eigenvalues, got none",
    "--paper --budget 10 --kappa0 2 --margin 1 --min-confidence 1 --eigenvalues 1 0.5": "--norm-bound is needed",
}


@pytest.mark.parametrize("given", BAD_PLANS)
def test_bad_plan(here, given):
    assert BAD_PLANS[given] in refused("plan", *given.split(), "--output", "plan.json", "--plot", "plan.svg")
    assert not list(here.iterdir())


def test_plan_from_yaml_with_a_spectrum(here):
    (here / "c.yaml").write_text(
        "paper: true\nkappa0: 5\nmargin: 1\nmin_confidence: 0.5\neigenvalues: [1, 0.5]\nnorm_bound: 2\n"
    )
    assert command("plan", "--config", "c.yaml", "--budget", "1e4", "--output", "plan.json").code == 0
    inputs = json.loads((here / "plan.json").read_text())["inputs"]
    assert (inputs["eigenvalues"], inputs["budget"], inputs["beta"]) == ([1, 0.5], 1e4, 1)
    said = refused("plan", "--config", "c.yaml", "--budget", "1e4", "--output", "plan.json")
    assert "plan.json exists and is never overwritten: choose another --output" in said


BAD_YAML = {
    "a: b: c": "cannot be read",
    "- rounds": "expected option: value lines",
    "": "expected option: value lines",
    "nonsense: 1": "unknown option 'nonsense'",
    "config: other.yaml": "unknown option 'config'",
    "rounds: x": "--rounds",
    "rounds: 0": "--rounds is 0",
    "rounds: true\nbeta: 1": "--rounds",
    "quiet: 3": "--quiet is 3, expected true or false",
    "beta:\n  a: 1": "--beta",
    "clip: null": "--clip",
}


@pytest.mark.parametrize("content", BAD_YAML)
def test_bad_yaml(here, prompts_file, content):
    (here / "c.yaml").write_text(content)
    said = refused("train", "--prompts", prompts_file, "--output", "run", "--config", "c.yaml")
    assert BAD_YAML[content] in said
    assert [file.name for file in here.iterdir()] == ["c.yaml"]


def test_config_file_that_cannot_be_read(here):
    assert "nothing.yaml cannot be read" in refused("train", "--config", "nothing.yaml")
    (here / "latin.yaml").write_bytes(b"model: \xff")
    assert "latin.yaml cannot be read" in refused("train", "--config", "latin.yaml")
    assert "cannot be read" in refused("train", "--config", here)


# Odd words and files

READ = [  # words, what they say
    (["--guard-truncation", "-inf"], {"guard_truncation": -float("inf")}),
    (["--stop=a", "b", "-x y", "---"], {"stop": ["a", "b", "-x y", "---"]}),
    (["--stop=--"], {"stop": ["--"]}),
    (["--model=--"], {"model": "--"}),
    (["--stop", r"\n", r"\\n", r"\boxed{", r"a\tb"], {"stop": ["\n", r"\n", r"\boxed{", "a\tb"]}),
    (["--length-window=3", "5", "--length-penalty", "1"], {"length_window": [3, 5]}),
    (["--length-window", "None"], {"length_window": None}),
    (["--held-out", "null", "--push-to-hub", "None"], {"held_out": "null", "push_to_hub": None}),
    (["--num_samples=4", "--no_guard"], {"num_samples": 4, "guard": False}),
    (["--label-smoothing", "consistency", "--objective", "dpo"], {"label_smoothing": "consistency"}),
]


@pytest.mark.parametrize(("given", "said"), READ)
def test_odd_words_are_read(here, given, said):
    shown = printed(*given)
    assert {name: shown[name] for name in said} == said


REFUSED = [
    (["--rounds.x", "7"], "unrecognized arguments: --rounds.x"),
    (["--round", "7"], "unrecognized arguments: --round"),
    (["junk"], "unrecognized arguments: junk"),
    (["--length-window", "None", "3"], "--length-window is [None, 3], expected 2 values"),
    (["--label-smoothing", "foo"], "--label-smoothing is 'foo', expected a number, or consistency"),
    (["--rounds", "0", "--print-config"], "--rounds is 0"),
    (["--config", "a", "--config", "b"], "--config is given 2 times"),
    (["--resume"], "--resume needs a value"),
    (["--compare", "total_beta=2"], "sets 'total_beta'"),
    (["--compare", "quiet=True"], "sets 'quiet'"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_odd_words_are_refused(here, given, said):
    assert said in refused("train", "--prompts", write_rows(here / "p.jsonl", [{"prompt": "a"}]), *given)


YAML_READ = {
    "stop: x": {"stop": ["x"]},
    "stop: null\nreport-to: null": {"stop": [], "report_to": []},
    r"stop: '\n'": {"stop": [r"\n"]},
    "output: 2024-05-01\nmodel: 5": {"output": "2024-05-01", "model": "5"},
    "rounds: [5]": {"rounds": 5},
    'held_out: "null"': {"held_out": "null"},
}


@pytest.mark.parametrize("content", YAML_READ)
def test_odd_yaml_is_read(here, content):
    (here / "c.yaml").write_text(content)
    shown = printed("--config", "c.yaml")
    assert {name: shown[name] for name in YAML_READ[content]} == YAML_READ[content]


@pytest.mark.parametrize(
    "content",
    [
        "output: 2024-13-45",
        "rounds: 1\nrounds: 2",
        "stop: &a [x]\nreport_to: *a",
        f"rounds: {'9' * 5000}",
        "[" * 3000,
        "length_window: [1]",
    ],
)
def test_odd_yaml_is_refused(here, content):
    (here / "c.yaml").write_text(content)
    assert refused("train", "--config", "c.yaml", "--prompts", "x")


def test_places_on_the_command_line_are_none_in_a_file(here):
    (here / "c.yaml").write_text("folders: [a]")
    assert "unknown option 'folders'" in refused("report", "--config", "c.yaml")


def test_a_terminal_of_few_letters(here):
    done = python(
        "from srlm.cli import main; main(['train', '--print-config', '--model', 'ü', '--prompts', 'x'])",
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0 and "model: \\xfc" in done.stdout, done


def test_what_is_said_moves_no_terminal(here):
    said = command("train", "--prompts", "a\x1b[31m\nb\u202e").err
    assert said.count("\n") == 1 and "\x1b" not in said and "\u202e" not in said and r"\u001b" in said


# Bad prompts

BAD_PROMPTS = {
    "empty.jsonl": ("", "is empty"),
    "broken.jsonl": ('{"prompt": "a"}\n\n{"prompt": "b"\n', "line 3 of"),
    "array.jsonl": ('{"prompt": "a"}\n[1]\n', "line 2 of"),
    "column.jsonl": ('{"question": "a"}\n', "columns found: 'question'"),
    "column.csv": ("question,answer\na,b\n", "columns found: 'question', 'answer'"),
    "fields.csv": ("prompt,answer\na,b\nc\n", "line 3 of"),
    "void.jsonl": ('{"prompt": "a"}\n{"prompt": "  "}\n', "the prompt on line 2 of"),
    "turns.jsonl": ('{"messages": [{"role": "robot", "content": "a"}]}\n', "turn 1 on line 1 of"),
    "last.jsonl": ('{"messages": [{"role": "assistant", "content": "a"}]}\n', "ends with an assistant turn"),
    "list.json": ('{"prompt": "a"}', "expected a list"),
    "cut.json": ('[{"prompt": "a"},\n', "line 2 of"),
    "bytes.parquet": ("not parquet", "not a readable Parquet file"),
    "prompts.docx": ("a", "'.docx'"),
    "empty.txt": ("\n \n", "is empty"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
@pytest.mark.parametrize("option", ["--prompts", "--held-out"])
def test_bad_prompts(here, tiny, prompts_file, tmp_path, name, option):
    content, said = BAD_PROMPTS[name]
    file = tmp_path / name
    file.write_text(content)
    given = {"--prompts": prompts_file, "--held-out": prompts_file} | {option: file}
    sentence = refused("train", *[word for pair in given.items() for word in pair], "--model", tiny, "--output", "run")
    assert said in sentence and name in sentence
    assert not list(here.iterdir())


def test_missing_prompts(here, tiny, prompts_file):
    assert "name a file or dataset with --prompts" in refused("train", "--model", tiny)
    assert "there is no file nothing.jsonl" in refused("train", "--model", tiny, "--prompts", "nothing.jsonl")
    assert "name a file or dataset with --prompts" in refused("evaluate", "--model", tiny)
    assert not list(here.iterdir())


def test_prompt_longer_than_the_context(here, tiny, prompts_file, tmp_path):
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": "short"}, {"prompt": "x" * 512}])
    fits = ["--max-new-tokens", 8, "--output", "run", "--model", tiny]
    for given in (["--prompts", long], ["--prompts", prompts_file, "--held-out", long]):
        said = refused("train", *given, *fits)
        assert "prompt 2 has" in said and "the context of 512" in said
    # One token too many counts: the template adds 19 tokens to "Say ijklm".
    said = refused("train", "--prompts", prompts_file, "--model", tiny, "--max-new-tokens", 500, "--output", "run")
    assert "--max-new-tokens" in said
    assert not list(here.iterdir())


def test_messages_need_a_chat_template(here, tiny_base, tmp_path):
    talk = write_rows(tmp_path / "talk.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}])
    said = refused("train", "--model", tiny_base, "--prompts", talk, "--output", "run")
    assert "no chat template" in said and "`messages`" in said
    assert not list(here.iterdir())


def test_all_prompts_cannot_be_held_out(here, tiny, tmp_path):
    same = write_rows(tmp_path / "same.jsonl", ["a"] * 20)
    said = refused("train", "--model", tiny, "--prompts", same, "--held-out-share", 0.5, "--output", "run")
    assert "cannot be held out" in said


# Bad output


def test_output_that_cannot_be_used(here, tiny, prompts_file):
    (here / "file").write_text("mine")
    (here / "full").mkdir()
    (here / "full" / "thesis.tex").write_text("mine")
    before = tree(here)
    for output in ("file", "file/run", "full", "/proc/run", "/proc/1/run", "n" * 300):
        said = refused("train", "--model", tiny, "--prompts", prompts_file, "--output", output)
        assert output in said and "choose another --output" in said
    assert tree(here) == before


# The real thing: what a shell sees


def test_a_process_says_one_sentence(here, tiny, tmp_path):
    """Past loading a model and building an adapter: no warning, bar or traceback of a library is in the way."""
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": "x" * 600}])
    words_ = [sys.executable, "-m", "srlm.cli", "train", *words(model=tiny, prompts=long, output="run")]
    done = subprocess.run(words_, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 2 and not done.stdout
    assert "prompt 1 has" in sentence(done.stderr)
    assert not list(here.iterdir())


def test_importing_srlm_is_light():
    """The theory is for people without torch."""
    heavy = ("torch", "transformers", "datasets", "pyarrow", "peft", "accelerate")
    code = (
        "import sys, srlm, srlm.theory, srlm.estimators; assert srlm.SelfRewardConfig().rounds\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_there():
    import srlm

    for name in srlm.__all__:
        assert getattr(srlm, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = srlm.nonsense


def test_main_reads_the_words_of_its_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["srlm", "train", "--rounds", "0", "--prompts", "x"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "--rounds is 0" in sentence(capsys.readouterr().err)


def test_a_fault_of_our_own_is_not_hidden(here, tiny, prompts_file, monkeypatch):
    """A traceback, not a sentence that blames the user."""
    import srlm.training.trainer

    monkeypatch.setattr(srlm.training.trainer, "load_policy", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command("train", "--model", tiny, "--prompts", prompts_file)


def test_a_diagnosis_tells_what_was_not_said_from_no():
    from srlm.commands.diagnose import parser

    for flag in ("raw-prompts", "trust-remote-code"):
        name = flag.replace("-", "_")
        found = [parser().parsed(["--run", "r", *words])[name] for words in ([], [f"--no-{flag}"], [f"--{flag}"])]
        assert found == [None, False, True]
