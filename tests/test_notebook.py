"""What a person in a notebook has at hand."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
from conftest import make_model, make_tokenizer
from support import HELD_OUT, SETTINGS, WORDS, measured, records, refused, table, weights, write_held_out, write_prompts
from transformers import AutoModelForCausalLM

from srlm import SelfRewardConfig, SelfRewardTrainer, UserError, diagnose, evaluate, load_prompts, named
from srlm.console import Display
from srlm.rewards.table import checks, reward_function

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
QUIET = Display(silent=True)
PROMPTS = datasets.Dataset.from_list([{"prompt": f"Say {word}"} for word in WORDS])
LABELLED = [{"prompt": f"Spell {word}", "answer": "[a-mA-M]"} for word in HELD_OUT]


def words(policy: Any, rollouts: Any) -> torch.Tensor:
    return torch.tensor([[float(len(text)) for text in row] for row in policy.texts(rollouts.responses)])


def even(response: str, answers: Any) -> bool:
    return len(response) % 2 == 0


def test_callbacks_and_figures(tiny, tmp_path):
    config = SelfRewardConfig(**SETTINGS | {"output": str(tmp_path / "run"), "rounds": 1})
    seen: list[object] = []
    quiet = Display(silent=True)

    def trained(resume: bool, stop: bool):
        def on_round(record):
            seen.append(record)
            if stop:
                raise KeyboardInterrupt

        given = (str(tiny), config, write_prompts(tmp_path), write_held_out(tmp_path))
        return SelfRewardTrainer(*given, resume=resume, display=quiet, on_round=on_round).train()

    with pytest.raises(KeyboardInterrupt):
        trained(resume=False, stop=True)
    assert seen == records(tmp_path / "run") and len(seen) == 1  # on disk before it is told
    result = trained(resume=True, stop=False)
    assert seen[1:] == result.records and len(seen) == 3
    figure = result.plot("accuracy")
    assert figure.layout.title.text == "Accuracy"
    greedy = next(trace for trace in figure.data if "greedy" in trace.name)
    assert list(greedy.y) == [record["accuracy_greedy"] for record in result.records]
    assert result.plot().data
    with pytest.raises(UserError, match=r"there is no figure 'x' of .*, expected one of kappa, .*: choose one"):
        result.plot("x")


def config_of(folder: Path, **options: Any) -> SelfRewardConfig:
    return SelfRewardConfig(**SETTINGS | {"output": str(folder), "rounds": 1, "match": "auto"} | options)


def test_a_model_a_dataset_and_functions(tiny, tmp_path, monkeypatch, capsys):
    """A run of objects is the run of the files that they came from, and goes on with the same objects alone."""
    monkeypatch.setenv("SRLM_CACHE", str(tmp_path / "cache"))
    model, tokenizer = make_model(), make_tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def trained(
        name: str, start: Any = (model, tokenizer), reward: Any = words, prompts: Any = PROMPTS, **options: Any
    ):
        config = config_of(tmp_path / name)
        given = (start, config, prompts, LABELLED)
        return SelfRewardTrainer(*given, reward=reward, match=even, display=QUIET, **options).train()

    result = trained("run")
    assert {name: torch.equal(value, before[name]) for name, value in model.state_dict().items()} == dict.fromkeys(
        before, True
    )
    rows = table(tmp_path / "run", 0)
    assert rows["reward"] == [float(len(text)) for text in rows["response"]]
    held = table(tmp_path / "run", 1, "held_out")["response"]
    assert result.records[1]["accuracy_sampled"] == pytest.approx(sum(len(text) % 2 == 0 for text in held) / len(held))
    files = (str(tiny), config_of(tmp_path / "files", reward=named(words), match=named(even)))
    SelfRewardTrainer(*files, write_prompts(tmp_path), write_held_out(tmp_path), display=QUIET).train()
    same = [weights(tmp_path / name / "model" / "model.safetensors") for name in ("run", "files")]
    assert same[0] == same[1]
    assert list(map(measured, records(tmp_path / "run"))) == list(map(measured, records(tmp_path / "files")))

    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=4)  # which it remembers, and the next, too
    model.config.use_cache = False
    assert trained("run", resume=True).records == result.records
    with pytest.raises(UserError, match=r"began with reward = python:words_\w+, now it is python:lambda_\w+: go on"):
        trained("run", reward=functools.partial(lambda words, *given: words(*given), words), resume=True)
    with pytest.raises(UserError, match=r"began with model = .*LlamaForCausalLM-.*now it is"):
        trained("run", start=(make_model(seed=1), tokenizer), resume=True)
    with pytest.raises(UserError, match=r"began with prompts = 6 prompts .*, now it is 5 prompts"):
        trained("run", prompts=PROMPTS.select(range(5)), resume=True)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # once for each model
    found = evaluate((model, tokenizer), LABELLED, num_samples=2, max_new_tokens=4, display=QUIET)
    model.save_pretrained(tmp_path / "same")
    tokenizer.save_pretrained(tmp_path / "same")
    same = evaluate(str(tmp_path / "same"), LABELLED, num_samples=2, max_new_tokens=4, display=QUIET)
    assert {**found, "model": ""} == {**same, "model": ""}
    asked = diagnose((model, tokenizer), LABELLED, num_samples=2, max_new_tokens=3, search_budget=8, display=QUIET)
    assert asked.source == "python:list" and len(asked.prompts["prompt"]) == len(LABELLED)

    show = {"num_samples": 2, "max_new_tokens": 3, "search_budget": 8}
    later = diagnose(run=tmp_path / "run", round=1, **show, display=Display())
    assert "without answers; --prompts gives" in capsys.readouterr().out and later.labels is None
    assert list(later.prompts["prompt"]) == [row["prompt"] for row in LABELLED] and later.source == "python:list"
    again = diagnose(run=tmp_path / "files", round=1, match=named(even), **show, display=QUIET)
    assert again.labels is not None and repr(again.sequence) == repr(later.sequence)  # of files

    said = refused("train", "--resume", tmp_path / "run")
    assert "which runs code that the folder names" in said
    given = json.loads((tmp_path / "run" / "manifest.json").read_text())["config"]
    code = ("--reward", given["reward"], "--match", given["match"])
    assert "the prompts python:Dataset are objects that a Python program handed over" in refused(
        "train", "--resume", tmp_path / "run", *code
    )
    with monkeypatch.context() as patch:
        patch.setattr("srlm.handed._functions", {})
        assert "is a function that a Python program handed over, expected one that can be imported" in refused(
            *("train", "--model", tiny, "--prompts", write_prompts(tmp_path), "--output", tmp_path / "x", *code[:2])
        )


def test_what_is_no_model(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLM_CACHE", str(tmp_path / "cache"))
    tokenizer = make_tokenizer()
    joined = peft.get_peft_model(make_model(), peft.LoraConfig(r=2))
    refusals = {
        r"\(LlamaForCausalLM\), expected a name, or a causal LM of transformers and its .*: give both": make_model(),
        r"\(PeftModel, .*: merge its adapter first": (
            peft.get_peft_model(make_model(), peft.LoraConfig()),
            tokenizer,
        ),
        r"the LlamaForCausalLM has adapter layers, expected plain weights": (joined.get_base_model(), tokenizer),
    }
    for said, given in refusals.items():
        with pytest.raises(UserError, match=said):
            SelfRewardTrainer(given, config_of(tmp_path / "run"), ["x", "y"])
    assert not (tmp_path / "cache").exists() and not (tmp_path / "run").exists()


def test_prompts_that_are_objects():
    turns = [[{"role": "user", "content": "a"}], "b", {"prompt": "c"}]
    assert [str(item) for item in load_prompts(turns).prompts.items] == [str(tuple(turns[0])), "b", "c"]
    assert load_prompts(PROMPTS).fingerprint == load_prompts([f"Say {word}" for word in WORDS]).fingerprint
    formatted = PROMPTS.with_format("numpy")
    assert load_prompts(formatted).fingerprint == load_prompts(PROMPTS).fingerprint
    with pytest.raises(
        UserError, match="a DatasetDict with the keys 'train' was handed over as prompts, expected rows"
    ):
        load_prompts(datasets.DatasetDict(train=PROMPTS))
    with pytest.raises(
        UserError, match=r"a generator was handed over as prompts, expected a datasets.Dataset or a list"
    ):
        load_prompts(row for row in LABELLED)
    with pytest.raises(UserError, match="row 2 of python:list has no 'prompt'"):
        load_prompts([{"prompt": "a"}, {"text": "b"}])


def test_names_of_functions():
    limit = 3

    def made(bound):
        return lambda policy, rollouts: bound

    assert named(made(1)) == named(made(1)) != named(made(2))  # what it closes over
    assert named(lambda: limit).startswith("python:lambda_")
    assert named(functools.partial(even, answers=())).startswith("python:even_") and named(even) != named(
        functools.partial(even, answers=())
    )
    spec = f"0.5*random + check:{named(even)}"
    assert checks(spec) and callable(reward_function(spec, columns=lambda number: {}))
    with pytest.raises(UserError, match="expected one written in Python"):
        named(len)


def cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_shows_what_it_gave():
    """A forge runs nothing."""
    code = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    shown = [json.dumps(cell["outputs"]) for cell in code]
    assert not re.search(r"/(root|home|tmp|work|usr)/|stderr|Traceback", "".join(shown))
    for cell, outputs in zip(code, shown, strict=True):
        last = cell["source"][-1]
        assert ("image/png" in outputs) == (".plot(" in last)
        says = any(word in "".join(cell["source"]) for word in (".train()", "print(", "sorted("))
        assert says == ('"text/plain"' in outputs or '"stream"' in outputs)


def test_the_notebook_runs(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SRLM_NOTEBOOK_MODEL", str(tiny))
    monkeypatch.setenv("SRLM_CACHE", str(tmp_path / "cache"))
    space: dict[str, Any] = {}
    for number, cell in enumerate(cells(), 1):
        exec(compile(cell, f"cell {number} of {NOTEBOOK.name}", "exec"), space)
    said = capsys.readouterr().out
    assert "after round 0: sampled accuracy" in said and "after round 1" in said
    assert (
        isinstance(space["trained"], torch.nn.Module) and (tmp_path / "notebook-export" / "rollouts.parquet").exists()
    )
    assert AutoModelForCausalLM.from_pretrained(space["result"].model) is not None


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("nbclient") is None, reason="pip install nbclient ipykernel")
def test_the_notebook_runs_in_a_kernel(tiny, tmp_path, monkeypatch):
    """And shows a bar for each stage, which is gone in the end, and a figure."""
    import nbclient
    import nbformat

    monkeypatch.setenv("SRLM_NOTEBOOK_MODEL", str(tiny))
    monkeypatch.setenv("SRLM_CACHE", str(tmp_path / "cache"))
    shown: list[str] = []

    class Client(nbclient.NotebookClient):
        def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
            shown.append(str(msg["content"].get("data", {}).get("text/html", "")))
            return super().process_message(msg, cell, cell_index)

    notebook = nbformat.read(NOTEBOOK, 4)
    Client(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any("<progress" in text and "/s" in text for text in shown)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not any("<progress" in str(output.get("data", {}).get("text/html", "")) for output in outputs)
    assert any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs)
