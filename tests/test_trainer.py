"""Whole runs on a tiny model: what they leave behind, against independent recomputation."""

import hashlib
import json
import math
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHAT
from datasets import Dataset, load_dataset
from peft import PeftModel
from reference import alone
from support import (
    ANSWER,
    HELD_OUT,
    SETTINGS,
    WORDS,
    command,
    learned,
    losses,
    measured,
    records,
    refused,
    table,
    train_words,
    tree,
    weights,
    words,
    write_held_out,
    write_rows,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

import srlm.objectives.regression as module
from srlm import SelfRewardConfig, SelfRewardTrainer, UserError, load_prompts
from srlm.console import Display
from srlm.prompts.select import PromptSet

T, K = SETTINGS["rounds"], SETTINGS["num_samples"]
ALWAYS = {
    *("round", "prompts", "beta", "step", "effective_samples"),
    *("round", "log10_kappa_upper", "mean_log_prob", "mean_reward", "entropy", "mean_length", "eos_rate"),
    *(
        "truncation_rate",
        "distinct_1",
        "distinct_2",
        "repeated_ngrams",
        "same_response",
        "held_out_prompts",
        "gain",
        "log10_kappa_upper_held_out",
        "mean_log_prob_held_out",
        "j0_gap",
    ),
    *("mode_fidelity", "accuracy_sampled", "accuracy_sampled_low", "accuracy_sampled_high", "accuracy_greedy"),
    *("accuracy_greedy_low", "accuracy_greedy_high", "seconds", "peak_memory_gb"),
    *("self_consistency", "mode_surprisal", "mode_surprisal_held_out", "auroc", "auroc_low", "auroc_high", "unanimous"),
    *(f"{name}_at_{k}{end}" for name in ("pass", "maj") for k in (1, 2, 3) for end in ("", "_low", "_high")),
    *(f"greedy_{what}" for what in ("learned", "kept", "lost", "never")),
}
DRIFT = (
    *("likelihood_rank", "token_likelihood_rank", "agreement_change", "length_change", "truncation_change"),
    *("repetition_change", "length_change_held_out"),
)
AFTER_UPDATE = {
    *("fidelity_r2", "displacement", "leak", "log_ratio_mean", "log_ratio_std", "log_ratio_max_abs", "kendall_tau"),
    *("loss", "loss_last", "fidelity_r2_held_out", "displacement_held_out", "leak_held_out"),
    *("mode_surprisal_forecast", "achieved", "achieved_error", "achieved_prompts", "leak_error", "leak_held_out_error"),
    *(f"{name}{end}" for name in DRIFT for end in ("", "_error", "_prompts")),
}
STAGES = {"sample_rollouts", "score_rollouts", "sample_held_out", "score_held_out", "sample_greedy"}
STAGES_AFTER_UPDATE = {"update", "score_held_out_under_pi_0", "score_held_out_again"}


def train(model, data, output, **options):
    """A run through the Python interface."""
    prompts = options.pop("prompts", data / "prompts.jsonl")
    held_out = options.pop("held_out", data / "held-out.jsonl")
    config = SelfRewardConfig(output=str(output), **(SETTINGS | options))
    return SelfRewardTrainer(
        model=str(model), config=config, prompts=prompts, held_out=held_out, display=Display(silent=True)
    ).train()


@pytest.fixture(scope="module")
def result(tiny, data, tmp_path_factory):
    """A LoRA run, made inside a git project."""
    folder = tmp_path_factory.mktemp("project")
    before = Path.cwd()
    os.chdir(folder)
    try:
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "init", "-q"], check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
        return train(tiny, data, folder / "run")
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def full(tiny, data, tmp_path_factory):
    """A run that trains all weights."""
    return train(tiny, data, tmp_path_factory.mktemp("full") / "run", lora_rank=0, learning_rate=2e-3)


def prompt_ids(tokenizer, item):
    turns = [{"role": "user", "content": item}] if isinstance(item, str) else item
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


def own_log_prob(folder, rows):
    """What the model in `folder` says of the rows of a table, one by one, through transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [
        alone(model, prompt_ids(tokenizer, prompt), tokens)
        for prompt, tokens in zip(rows["prompt"], rows["tokens"], strict=True)
    ]


def grid(rows, column, k=K):
    return np.array(rows[column], dtype=np.float64).reshape(-1, k)


# The result


def test_held_out_tokens_add_up(result):
    for t in range(T + 1):
        rows = table(result.output, t, "held_out")
        keys = ("token_log_prob", "token_end", "tokens", "log_prob", "response")
        for values, ends, tokens, log_prob, response in zip(*(rows[key] for key in keys), strict=True):
            assert len(values) == len(ends) == len(tokens) and ends == sorted(ends) and ends[-1] <= len(response)
            assert sum(values) == pytest.approx(log_prob, abs=1e-5)
        assert "token_log_prob" not in table(result.output, t)


def test_returns_paths_and_records(result):
    assert (result.output / "manifest.json").is_file()
    assert result.model == result.output / "model"
    assert result.records == records(result.output)
    assert [record["round"] for record in result.records] == list(range(T + 1))


def test_records_have_the_keys_of_the_issue(result):
    for record in records(result.output):
        later = record["round"] > 0
        stages = STAGES | STAGES_AFTER_UPDATE if later else STAGES
        timings = {f"{kind}_{stage}" for kind in ("seconds", "tokens_per_second") for stage in stages}
        assert set(record) == ALWAYS | timings | (AFTER_UPDATE if later else set())
        known = {name: value for name, value in record.items() if not name.startswith("length_change")}
        assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in known.values())
        for name in {"length_change", "length_change_held_out"} & set(record):  # of prompts that end responses
            assert (record[name] is None) == (record[f"{name}_prompts"] == 0)
        assert record["seconds"] == pytest.approx(sum(record[f"seconds_{stage}"] for stage in stages))
        assert 0.01 < record["peak_memory_gb"] < 1000


def test_rewards_are_the_scores_of_the_sampler_itself(result):
    for t in range(T + 1):
        rows = table(result.output, t)
        np.testing.assert_array_equal(grid(rows, "reward"), grid(rows, "log_prob"))


def counted(ratio: np.ndarray, reward: np.ndarray, clip: float) -> np.ndarray:
    """Rewards as the objective counts them, group by group: one that is clipped is a ceiling, not a value."""
    result = reward.copy()
    for ratios, rewards, out in zip(ratio, reward, result, strict=True):
        far = rewards < rewards.max() - clip
        constant = np.mean((rewards - ratios)[~far])
        out[far] = np.clip(ratios[far] + constant, rewards[far], rewards.max() - clip)
    return result


def test_records_agree_with_the_tables(result):
    run = result.output
    for record in records(run):
        t = record["round"]
        rows = table(run, t)
        log_prob = grid(rows, "log_prob")
        lengths = np.array([len(tokens) for tokens in rows["tokens"]])
        assert record["mean_log_prob"] == pytest.approx(log_prob.mean(), abs=1e-6)
        assert record["mean_reward"] == pytest.approx(grid(rows, "reward").mean(), abs=1e-6)
        assert record["entropy"] == pytest.approx(grid(rows, "entropy").mean(), abs=1e-6)
        assert record["log10_kappa_upper"] == pytest.approx(np.log10(np.mean(np.exp(-log_prob.max(-1)))), abs=1e-6)
        assert record["mean_length"] == pytest.approx(lengths.mean())
        assert record["eos_rate"] == pytest.approx(np.mean(rows["finished"]))
        assert record["eos_rate"] + record["truncation_rate"] == pytest.approx(1)
        if t == 0:
            continue
        before = table(run, t - 1)
        old, reward = grid(before, "log_prob"), grid(before, "reward")
        ratio = grid(before, "log_prob_next") - old
        centred = ratio - ratio.mean(-1, keepdims=True)
        target = counted(ratio, reward, SETTINGS["clip"])  # beta is 1
        assert (target != reward).any() and (target == reward).any()
        wanted = target - target.mean(-1, keepdims=True)
        assert record["fidelity_r2"] == pytest.approx(1 - ((centred - wanted) ** 2).sum() / (wanted**2).sum(), abs=1e-5)
        best = np.take_along_axis(ratio, old.argmax(-1)[:, None], -1)
        assert record["displacement"] == pytest.approx(best.mean(), abs=1e-5)
        assert record["leak"] == pytest.approx(np.log(np.exp(ratio).mean(-1)).mean(), abs=1e-5)
        assert record["log_ratio_mean"] == pytest.approx(ratio.mean(), abs=1e-5)
        assert record["log_ratio_max_abs"] == pytest.approx(np.abs(ratio).max(), abs=1e-5)
        assert abs(ratio).max() > 0.1  # the update moved the model
        assert record["loss"] == pytest.approx(np.mean(losses(run, t - 1)))


def test_held_out_signals_agree_with_the_tables(result):
    k = SETTINGS["held_out_samples"]
    best = first = np.full(len(HELD_OUT), -np.inf)
    for record in records(result.output):
        rows = table(result.output, record["round"], "held_out")
        initial, log_prob = grid(rows, "log_prob_initial", k), grid(rows, "log_prob", k)
        best = np.maximum(best, initial.max(-1))
        if record["round"] == 0:
            first = initial.max(-1)
        assert record["j0_gap"] == pytest.approx(best.mean() - initial.mean(), abs=1e-5)
        favourite = np.take_along_axis(initial, log_prob.argmax(-1)[:, None], -1)[:, 0]
        assert record["mode_fidelity"] == pytest.approx(np.mean(favourite >= first - 0.5))


def test_accuracies_agree_with_the_texts(result):
    every = []
    for record in records(result.output):
        for kind, name in (("sampled", "held_out"), ("greedy", "greedy")):
            texts = table(result.output, record["round"], name)["response"]
            right = np.mean([re.search(ANSWER, text) is not None for text in texts])
            assert record[f"accuracy_{kind}"] == pytest.approx(right)
            assert 0 <= record[f"accuracy_{kind}_low"] <= right <= record[f"accuracy_{kind}_high"] <= 1
            every.append(right)
    assert 0 < np.mean(every) < 1


def test_pass_at_k_and_flips_agree_with_the_texts(result):
    def right(round: int, name: str) -> np.ndarray:
        texts = table(result.output, round, name)["response"]
        return np.array([re.search(ANSWER, text) is not None for text in texts])

    k, start, flipped = SETTINGS["held_out_samples"], right(0, "greedy"), 0.0
    for record in records(result.output):
        samples, now = right(record["round"], "held_out").reshape(-1, k), right(record["round"], "greedy")
        assert record[f"pass_at_{k}"] == pytest.approx(samples.any(-1).mean())
        assert record["pass_at_1"] == pytest.approx(record["accuracy_sampled"])
        pairs = {"kept": (True, True), "learned": (False, True), "lost": (True, False), "never": (False, False)}
        flips = {f"greedy_{name}": np.mean((start == a) & (now == b)) for name, (a, b) in pairs.items()}
        assert {key: record[key] for key in flips} == pytest.approx(flips) and sum(flips.values()) == pytest.approx(1)
        flipped += record["greedy_learned"] + record["greedy_lost"]
    assert flipped > 0  # or this test tells nothing


def test_scores_are_those_of_the_model_of_their_round(result, tiny):
    """Round 0 is the model given, round T the model saved; transformers itself is the judge."""
    for folder, t in ((tiny, 0), (result.model, T)):
        for name in ("rollouts", "held_out"):
            rows = table(result.output, t, name)
            np.testing.assert_allclose(own_log_prob(folder, rows), rows["log_prob"], atol=1e-4)
    under_initial = table(result.output, T, "held_out")
    np.testing.assert_allclose(own_log_prob(tiny, under_initial), under_initial["log_prob_initial"], atol=1e-4)
    following = table(result.output, T - 1)
    np.testing.assert_allclose(own_log_prob(result.model, following), following["log_prob_next"], atol=1e-4)
    assert np.abs(np.subtract(following["log_prob_next"], following["log_prob"])).max() > 0.1


def test_manifest_says_what_was_run(result, data):
    manifest = json.loads((result.output / "manifest.json").read_text())
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=result.output.parent
    )
    assert manifest["git_commit"] == head.stdout.strip()
    assert manifest["state"] == "finished"
    said = vars(SelfRewardConfig(output=str(result.output), **SETTINGS))
    lists = {key: [] for key in ("stop", "report_to", "chat_template_kwargs", "engine_options", "rubric")}
    came_to = lists | {"answers": "normalised", "beta": 1.0}
    assert manifest["config"] == said | came_to
    assert manifest["config"]["seed"] == SETTINGS["seed"]
    assert torch.__version__.startswith(manifest["versions"]["torch"])  # the wheel's name has no +cu130
    assert manifest["versions"].keys() >= {"python", "transformers", "peft", "accelerate", "datasets", "numpy"}
    content = "\n".join(json.dumps(f"Say {word}") for word in WORDS)
    assert manifest["data"]["prompts"] == {
        "source": str(data / "prompts.jsonl"),
        "number": len(WORDS),
        "fingerprint": hashlib.sha256(content.encode()).hexdigest(),
    }
    assert manifest["data"]["held_out"]["number"] == len(HELD_OUT)


def test_tables_open_with_datasets(result, tmp_path):
    file = str(result.output / "round-000" / "rollouts.parquet")
    rows = Dataset.from_parquet(file, cache_dir=str(tmp_path / "a"))
    assert rows.num_rows == len(WORDS) * K
    assert rows.column_names == [
        *("prompt_index", "sample_index", "prompt", "response", "tokens", "finished"),
        *("log_prob", "entropy", "reward", "log_prob_next"),
    ]
    assert rows["prompt"][K] == "Say def" and rows["sample_index"][K + 1] == 1
    loaded = load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "b"))
    assert loaded.to_dict() == table(result.output, 0)


def test_model_opens_with_tokenizer_and_chat_template(result, tiny):
    tokenizer = AutoTokenizer.from_pretrained(result.model)
    assert tokenizer.chat_template == CHAT
    assert tokenizer("héllo")["input_ids"] == AutoTokenizer.from_pretrained(tiny)("héllo")["input_ids"]
    config = json.loads((result.model / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    old, new = weights(tiny / "model.safetensors"), weights(result.model / "model.safetensors")
    assert old.keys() == new.keys()
    assert any(old[name] != new[name] for name in old)


def test_adapter_opens_with_peft_and_is_the_same_policy(result, tiny):
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(result.model, dtype=torch.float32)
    row = torch.arange(5, 40)[None]
    with torch.no_grad():
        before = base(row).logits
        adapted = PeftModel.from_pretrained(base, result.output / "adapter")(row).logits
        merged = model(row).logits
    torch.testing.assert_close(adapted, merged, atol=1e-4, rtol=0)
    assert (adapted - before).abs().max() > 0.1


def test_nothing_but_plain_files_is_left(result, full):
    for run in (result.output, full.output):
        suffixes = {path.suffix for path in run.rglob("*") if path.is_file()}
        assert suffixes <= {".html", ".md", ".json", ".jsonl", ".jinja", ".parquet", ".safetensors", ".sha256"}
        assert not [path for path in run.rglob("*") if path.name.startswith(".")]
        assert not list(run.rglob("update.safetensors"))


def test_the_table_of_a_run_shows_its_records(tiny, data, tmp_path):
    outcome = srlm_train(tiny, data, tmp_path / "run")
    rows = [line.split() for line in outcome.out.splitlines() if re.match(r" +\d ", line)]
    assert [int(row[0]) for row in rows] == list(range(T + 1))
    assert [float(row[2]) for row in rows] == [round(r["accuracy_sampled"], 3) for r in records(tmp_path / "run")]
    assert outcome.err == ""


def srlm_train(model, data, output, **options):
    given = {"model": model, "prompts": data / "prompts.jsonl", "held_out": data / "held-out.jsonl", "output": output}
    outcome = command(*train_words(**(given | options)))
    assert outcome.code == 0, outcome
    return outcome


def test_command_line_and_python_interface_do_the_same(result, tiny, data, tmp_path):
    srlm_train(tiny, data, tmp_path / "run")
    assert learned(tmp_path / "run") == learned(result.output)


def test_seeds_differ(result, tiny, data, tmp_path):
    other = train(tiny, data, tmp_path / "run", seed=SETTINGS["seed"] + 1)
    assert table(other.output, 0)["tokens"] != table(result.output, 0)["tokens"]


# Variants


def test_full_fine_tuning(full, tiny):
    assert not (full.output / "adapter").exists()
    model = weights(full.model / "model.safetensors")
    assert model == weights(full.output / f"round-{T:03d}" / "weights" / "model.safetensors")
    old = weights(tiny / "model.safetensors")
    assert all(old[name] != model[name] for name in old if "norm" not in name)
    last = table(full.output, T, "held_out")
    np.testing.assert_allclose(own_log_prob(full.model, last), last["log_prob"], atol=1e-4)
    np.testing.assert_allclose(own_log_prob(tiny, last), last["log_prob_initial"], atol=1e-4)
    assert np.abs(np.subtract(last["log_prob"], last["log_prob_initial"])).max() > 0.1


def test_conversations(tiny, data, tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
        {"role": "user", "content": "Bye"},
    ]
    prompts = write_rows(tmp_path / "p.jsonl", [{"messages": turns}, {"prompt": "Say x"}, {"messages": turns[1:2]}])
    run = train(tiny, data, tmp_path / "run", prompts=prompts, rounds=1).output
    rows = table(run, 0)
    assert rows["prompt"][0] == turns
    assert rows["prompt"][K] == [{"role": "user", "content": "Say x"}]  # as the model read it
    np.testing.assert_allclose(own_log_prob(tiny, rows), rows["log_prob"], atol=1e-4)


def test_base_model_with_stop_strings(tiny_base, data, tmp_path):
    """Raw prompts; a response ends with the first stop string, whose tokens are scored once and not shown."""
    stop = [*"bcghjklpquvwyzBCGHJKLPQUVWYZ0123456789", "\n", "!"]  # none is in the name of a special token
    out = tmp_path / "run"
    srlm_train(tiny_base, data, out, stop=stop, temperature=1.3, top_p=0.95, max_new_tokens=12, match="exact")
    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rows = table(out, 0)
    ended = 0
    for tokens, text, finished in zip(*(rows[c] for c in ("tokens", "response", "finished")), strict=True):
        whole = tokenizer.decode(tokens)
        stopped = whole.endswith(tuple(stop))
        assert finished == (stopped or tokens[-1] == tokenizer.eos_token_id)
        assert not any(s in tokenizer.decode(tokens[:-1]) for s in stop)
        assert not any(s in text for s in stop)
        if stopped:
            ended += 1
            assert text == whole[:-1]
    assert ended > len(rows["tokens"]) / 4
    # Scores are those of the full distribution, whatever the exploration.
    expected = [alone(model, tokenizer(p)["input_ids"], y) for p, y in zip(rows["prompt"], rows["tokens"], strict=True)]
    np.testing.assert_allclose(expected, rows["log_prob"], atol=1e-4)


def test_raw_prompts_skip_the_template(tiny, data, tmp_path):
    run = train(tiny, data, tmp_path / "run", rounds=1, raw_prompts=True).output
    model = AutoModelForCausalLM.from_pretrained(tiny).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    rows = table(run, 0)
    assert alone(model, tokenizer(rows["prompt"][0])["input_ids"], rows["tokens"][0]) == pytest.approx(
        rows["log_prob"][0], abs=1e-4
    )


def test_random_reward_deals_the_same_scores_to_others(tiny, data, tmp_path):
    run = train(tiny, data, tmp_path / "run", rounds=1, reward="random", clip=0.0, anchor=0.0).output
    rows = table(run, 0)
    log_prob, reward = grid(rows, "log_prob"), grid(rows, "reward")
    assert (log_prob != reward).any()
    np.testing.assert_array_equal(np.sort(log_prob), np.sort(reward))


def test_subsets_and_a_held_out_share(tiny, data, tmp_path):
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"Say {i}", "answer": ANSWER} for i in range(20)])
    run = train(
        tiny, data, tmp_path / "run", prompts=prompts, held_out=None, held_out_share=0.3, max_prompts=7, max_held_out=4
    ).output
    trained, held = set(table(run, 0)["prompt"]), set(table(run, 0, "held_out")["prompt"])
    assert (len(trained), len(held)) == (7, 4)
    assert not trained & held
    assert records(run)[0]["mode_fidelity"] == 1  # pi_0 agrees with itself


def test_without_held_out_prompts(tiny, data, tmp_path):
    run = train(tiny, data, tmp_path / "run", held_out=None, held_out_share=0.0).output
    last = records(run)[-1]
    assert last["fidelity_r2"] is not None
    assert not [key for key in last if "held_out" in key or "accuracy" in key or "greedy" in key]
    assert not list(run.rglob("held_out.parquet"))


def test_one_prompt(tiny, data, tmp_path):
    one = write_rows(tmp_path / "one.jsonl", ["Say abc"])
    run = train(tiny, data, tmp_path / "run", prompts=one, epochs=1, rounds=1).output
    assert len(records(run)) == 2


# Answers


@pytest.fixture(scope="module")
def answered(data, tmp_path_factory):
    """The same prompts with answers, right or absurd."""
    folder = tmp_path_factory.mktemp("answered")
    right = [{"prompt": f"Say {word}", "answer": word} for word in WORDS]
    absurd = [{"answer": ["0", i, "("], "prompt": f"Say {word}"} for i, word in enumerate(WORDS)]
    return {
        "present": write_rows(folder / "present.jsonl", right),
        "garbage": write_rows(folder / "garbage.jsonl", absurd),
    }


@pytest.mark.parametrize("kind", ["present", "garbage"])
def test_answers_in_the_training_file_change_nothing(result, answered, tiny, data, tmp_path, kind):
    run = train(tiny, data, tmp_path / "run", prompts=answered[kind]).output
    assert learned(run) == learned(result.output)
    assert [measured(r) for r in records(run)] == [measured(r) for r in records(result.output)]


def test_answers_of_held_out_prompts_change_the_accuracy_alone(result, tiny, data, tmp_path):
    run = train(tiny, data, tmp_path / "run", held_out=write_held_out(tmp_path, "[n-zN-Z0-9]")).output
    assert learned(run) == learned(result.output)
    changed = set()
    for mine, theirs in zip(records(run), records(result.output), strict=True):
        changed |= {key for key in mine if measured(mine)[key] != measured(theirs)[key]}
    assert "accuracy_sampled" in changed
    measures = ("accuracy_", "auroc", "pass_at_", "maj_at_", "greedy_")
    assert all(key.startswith(measures) for key in changed)


class Sealed:
    """An answer sheet that cannot be opened."""

    def __getattribute__(self, name):
        raise AssertionError(f"somebody looked at the answers ({name})")

    def _fail(self, *_):
        raise AssertionError("somebody looked at the answers")

    __iter__ = __len__ = __getitem__ = __bool__ = __eq__ = __repr__ = __str__ = __contains__ = __reduce_ex__ = _fail
    __hash__ = None


def test_training_cannot_look_at_answers(result, tiny, data, tmp_path):
    sealed = replace(load_prompts(data / "prompts.jsonl"), answers=Sealed())
    with pytest.raises(AssertionError, match="looked"):
        sealed.take(2, 0)  # the seal works
    run = train(tiny, data, tmp_path / "run", prompts=sealed).output
    assert learned(run) == learned(result.output)
    train(tiny, data, tmp_path / "some", prompts=sealed, max_prompts=2, rounds=1)


def test_a_prompt_set_is_taken_as_it_is(tiny, data, tmp_path):
    given = load_prompts(data / "prompts.jsonl")
    assert isinstance(given, PromptSet)
    run = train(tiny, data, tmp_path / "run", prompts=given, rounds=1).output
    assert table(run, 0)["prompt"][::K] == [f"Say {word}" for word in WORDS]


# Divergence: the last good round is kept


def nan_from(monkeypatch, call):
    """Let the objective be NaN from its `call`-th call on."""
    regression, calls = module.regression, 0

    def broken(log_ratio, reward, weight, **options):
        nonlocal calls
        calls += 1
        loss = regression(log_ratio, reward, weight, **options)
        return loss * torch.nan if calls >= call else loss

    monkeypatch.setattr(module, "regression", broken)


def given(tiny, data, **options):
    return {"model": tiny, "prompts": data / "prompts.jsonl", "held_out": data / "held-out.jsonl"} | options


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_nan_loss_keeps_the_last_good_round_and_can_be_resumed(tiny, data, tmp_path, lora_rank):
    out, whole_run = tmp_path / "run", tmp_path / "whole"
    options = given(tiny, data, lora_rank=lora_rank)
    assert command(*train_words(**options, output=whole_run)).code == 0
    steps = len(losses(whole_run, 0))
    with pytest.MonkeyPatch.context() as patch:
        nan_from(patch, steps + 3)  # the third step of round 1
        said = refused(*train_words(**options, output=out))
    assert "round 1, step 3" in said and "nan" in said and str(out / "model") in said
    assert len(records(out)) == 2
    assert json.loads((out / "manifest.json").read_text())["state"].startswith("stopped")
    rows = table(out, 1)
    np.testing.assert_allclose(own_log_prob(out / "model", rows), rows["log_prob"], atol=1e-4)
    if lora_rank:
        kept = "adapter_model.safetensors"
        assert weights(out / "adapter" / kept) == weights(out / "round-001" / "adapter" / kept)
    assert command("train", "--resume", out).code == 0
    assert learned(out) == learned(whole_run)


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_absurd_learning_rate(tiny, data, tmp_path, lora_rank):
    out = tmp_path / "run"
    said = refused(*train_words(**given(tiny, data, learning_rate=1e30, lora_rank=lora_rank, output=out)))
    assert "round 0, step" in said and "--learning-rate" in said
    stands_at_the_start(out)


def test_divergence_in_the_last_step_of_a_round(tiny, data, tmp_path):
    """No later loss can tell."""
    out = tmp_path / "run"
    said = refused(
        *train_words(**given(tiny, data, learning_rate=1e30, epochs=1, prompts_per_step=6, rounds=1, output=out))
    )
    assert "round 0" in said and "--learning-rate" in said
    stands_at_the_start(out)


def stands_at_the_start(out):
    assert len(records(out)) == 1
    first = table(out, 0)
    np.testing.assert_allclose(own_log_prob(out / "model", first), first["log_prob"], atol=1e-4)


def test_a_run_that_cannot_start_leaves_nothing(tiny, tiny_base, data, tmp_path):
    talk = write_rows(tmp_path / "talk.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}])
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": "x" * 600}])
    for model, prompts in ((tiny_base, talk), (tiny, long), (tmp_path, data / "prompts.jsonl")):
        settings = SelfRewardConfig(output=str(tmp_path / "run"), dtype="fp32")
        with pytest.raises(UserError):
            SelfRewardTrainer(str(model), settings, prompts, display=Display(silent=True)).train()
        assert not (tmp_path / "run").exists()


def test_trainer_refuses_a_used_folder_at_once(tmp_path, data):
    """Before a model is loaded: this one does not even exist."""
    (tmp_path / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="not an empty folder"):
        SelfRewardTrainer("/no/model", SelfRewardConfig(output=str(tmp_path)), data / "prompts.jsonl")
    assert tree(tmp_path) == before


def test_unknown_reward_and_match_rule(tmp_path, data):
    for option in ({"reward": "praise"}, {"match": "luck"}):
        said = refused("train", *words(prompts=data / "prompts.jsonl", output=tmp_path / "run", **option))
        assert next(iter(option.values())) in said and "expected" in said
    assert not (tmp_path / "run").exists()
