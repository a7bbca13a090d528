"""`srlm diagnose`: what it says, against enumeration of all responses of a tiny model and against its own tables."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import asdict
from fractions import Fraction
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from reference import alone, build
from scipy.special import logsumexp
from scipy.stats import t
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
from test_forecast import long_answers
from transformers import AutoModelForCausalLM, AutoTokenizer

import srlm
import srlm.planning.paper
from srlm import UserError, diagnose
from srlm.answers import answer_classes, match_rule
from srlm.console import Display
from srlm.diagnosis import levels, tables, view
from srlm.diagnosis.history import History
from srlm.diagnosis.levels import Classes, Rights
from srlm.diagnosis.trained import trained_rounds, untold
from srlm.estimators.consistency import self_consistency
from srlm.estimators.exponent import EffectiveExponent, effective_exponent
from srlm.estimators.intervals import clopper_pearson, modal_share_interval
from srlm.forecast import Evidence
from srlm.report.folders import read_folder
from srlm.report.page import page
from srlm.search import Found

K = 6
ALL = 300  # prefixes: more than a model of 259 words has with responses of two
OPTIONS = {"num_samples": K, "max_new_tokens": 2, "search_budget": ALL, "match": "regex", "dtype": "fp32", "seed": 3}
FEW = OPTIONS | {"search_budget": 4}
CLASSES = "regex:[a-z]"
KEYS = {
    *("srlm", "model", "source", "settings", "verdict", "sequence", "answers", "sampling", "labels", "forecast"),
    *("broken", "distinct", "seconds"),
}
KINDS = ("worth it", "saturated", "hopeless", "undecided")
CONFIDENT = 0.9


def silent(model, prompts=None, **options):
    """A diagnosis through Python."""
    return diagnose(None if model is None else str(model), prompts, **options, display=Display(silent=True))


def given_words(model, prompts, **options):
    options = OPTIONS | options
    options["samples"] = options.pop("num_samples")
    return ["diagnose", *words(model=model, prompts=prompts, **options)]


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def kept(folder):
    """diagnose.json, the table of prompts, the table of samples."""
    names = {path.name for path in folder.iterdir()} - {"report.html"}
    assert names == {"diagnose.json", "prompts.parquet", "samples.parquet"}
    read = [parquet.read_table(folder / f"{name}.parquet").to_pydict() for name in ("prompts", "samples")]
    return strict((folder / "diagnose.json").read_text(encoding="utf-8")), *read


def by_prompt(samples, name):
    """A column of the table of samples as [P, K]."""
    return np.array(samples[name]).reshape(-1, K)


def without_seconds(diagnosis):
    return {key: value for key, value in diagnosis.summary().items() if key != "seconds"}


def save(folder, model, tokenizer=None):
    model.save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return folder


def untied(seed=0):
    """A model whose head can be changed without its embedding."""
    model = make_model(seed=seed)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def ids(folder, item, raw=False):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if isinstance(item, str) and (raw or tokenizer.chat_template is None):
        return tokenizer(item)["input_ids"]
    turns = [{"role": "user", "content": item}] if isinstance(item, str) else item
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    rows = [{"prompt": f"Say {word}", "answer": ANSWER} for word in ["abc", "de", "x", "a longer one"]]
    return write_rows(tmp_path_factory.mktemp("labelled") / "prompts.jsonl", rows)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare")
    return write_rows(folder / "prompts.jsonl", [{"prompt": "Say a"}, {"prompt": "Say b"}])


# End to end


@pytest.fixture(scope="module")
def shown(tiny, labelled, tmp_path_factory):
    """What the command line said, and the folder it left."""
    folder = tmp_path_factory.mktemp("shown") / "new" / "folder"
    outcome = command(*given_words(tiny, labelled, output=folder, answers=CLASSES))
    assert outcome.code == 0 and outcome.err == ""
    return outcome.out, folder


@pytest.fixture(scope="module")
def told(shown):
    return kept(shown[1])


def test_the_verdict_comes_first_and_every_prompt_is_shown(shown, told):
    out, _ = shown
    summary, prompts, _ = told
    verdict = summary["verdict"]
    assert verdict["kind"] in KINDS
    assert out.startswith(f"{verdict['kind'].upper()}: {verdict['reason']}")
    assert all(prompt in out for prompt in prompts["prompt"])


def test_the_summary_is_json_and_says_what_was_asked(told, tiny, labelled):
    summary, prompts, _ = told
    assert summary.keys() == KEYS
    assert summary["srlm"] == srlm.__version__
    assert (summary["model"], summary["source"]) == (str(tiny), str(labelled))
    assert summary["settings"].items() >= (OPTIONS | {"answers": CLASSES, "dtype": "float32"}).items()
    assert summary["broken"] == 0
    assert summary["sequence"]["num_prompts"] == len(prompts["prompt"]) == 4


def test_python_measures_the_same(told, tiny, labelled):
    again = silent(tiny, labelled, **OPTIONS, answers=CLASSES)
    expected, prompts, samples = told
    assert strict(json.dumps(again.summary(), allow_nan=False)) | {"seconds": 0} == expected | {"seconds": 0}
    assert (again.prompts, again.samples) == (prompts, samples)


def test_kappa_and_its_companions_come_from_the_prompts(told):
    summary, prompts, _ = told
    sequence = summary["sequence"]
    low, high = np.array(prompts["mode_log_prob"]), np.array(prompts["mode_log_prob_high"])
    assert sequence["log_kappa"] == pytest.approx([math.log(np.exp(-end).mean()) for end in (high, low)])
    assert sequence["min_confidence"] == pytest.approx([np.exp(end).min() for end in (low, high)])
    assert sequence["certified_share"] == np.mean(np.array(prompts["certified"]) == 2) == 1
    assert sequence["margin"] == pytest.approx([min(prompts["margin_low"]), min(prompts["margin_high"])])
    assert sequence["greedy_finds_mode"] == np.mean(prompts["greedy_is_mode"])
    assert sequence["mean_prefixes"] == np.mean(prompts["prefixes"])
    assert sequence["empty_modes"] == sum(prompts["mode_is_empty"])
    best = math.log(np.exp(-np.array(prompts["best_sample_log_prob"])).mean())
    assert sequence["log_kappa_best_of_k"] == pytest.approx(best)
    assert best >= sequence["log_kappa"][1] - 1e-4


def test_without_training_the_forecast_is_the_measurement(told):
    summary, prompts, _ = told
    mass = np.exp(prompts["mode_log_prob"])
    for row in summary["forecast"]["rows"]:
        if row["rounds"] == 0:
            assert [row["kappa"][end] for end in ("low", "point", "high")] == pytest.approx([(1 / mass).mean()] * 3)
            assert row["mode_mass"]["point"] == pytest.approx(mass.mean())
            assert row["failure"]["point"] == np.mean(mass <= 0.5)


def test_accuracies_come_from_the_samples(told):
    summary, prompts, samples = told
    labels = summary["labels"]
    right = by_prompt(samples, "right")
    assert right.tolist() == [[bool(re.search(ANSWER, text)) for text in row] for row in by_prompt(samples, "response")]
    assert 0 < right.mean() < 1
    assert labels["sampled"][0] == pytest.approx(right.mean())
    assert prompts["sampled_accuracy"] == pytest.approx(right.mean(-1).tolist())
    best = by_prompt(samples, "log_prob").argmax(-1)
    assert prompts["best_of_k_right"] == [row[i] for row, i in zip(right, best, strict=True)]
    for name, texts in (("greedy", prompts["greedy"]), ("mode", prompts["mode"])):
        assert prompts[f"{name}_right"] == [bool(re.search(ANSWER, text)) for text in texts]
    for name in ("greedy", "mode", "best_of_k", "majority"):
        value, low, high = labels[name]
        assert value == np.mean(prompts[f"{name}_right"]) and low <= value <= high
    assert labels["mode_wrong"] == [1 - labels["mode"][0]] * 2  # all modes are certain


def test_the_majority_is_right_if_the_first_sample_with_its_answer_is(told):
    _, prompts, samples = told
    for i, row in enumerate(by_prompt(samples, "answer").tolist()):
        given = [answer for answer in row if answer is not None]
        count = max(map(given.count, given), default=0)
        assert prompts["modal_count"][i] == count
        if count:
            winner = next(answer for answer in row if answer is not None and row.count(answer) == count)
            assert prompts["modal_answer"][i] == winner
            assert prompts["majority_right"][i] == by_prompt(samples, "right")[i, row.index(winner)]
        else:
            assert prompts["modal_answer"][i] is None and prompts["majority_right"][i] is False


def test_calibration_counts_pairs(told):
    summary, _, samples = told
    right = by_prompt(samples, "right")
    assert by_prompt(samples, "reward_log_likelihood") == pytest.approx(by_prompt(samples, "log_prob"))

    def pairs(score, flags):
        outcomes = [(a > b) + 0.5 * (a == b) for a in score[flags] for b in score[~flags]]
        return np.mean(outcomes) if outcomes else None

    for name, calibration in summary["labels"]["calibration"].items():
        score = by_prompt(samples, f"reward_{name}")
        assert calibration["auroc"][0] == pytest.approx(pairs(score.ravel(), right.ravel()))
        within = [value for value in map(pairs, score, right) if value is not None]
        assert calibration["prompts_within"] == len(within)
        assert calibration["auroc_within"] == pytest.approx(np.mean(within))
        assert sum(b["count"] for b in calibration["reliability"]) == right.size
        share = sum(b["count"] * b["share_right"] for b in calibration["reliability"]) / right.size
        assert share == pytest.approx(right.mean())
        if name in ("log_likelihood", "mean_log_likelihood", "negative_entropy"):
            assert 0 <= calibration["ece"] <= 1
        else:  # no log-probability, even where all are 0
            assert calibration["ece"] is None


def test_plan_reads_the_diagnosis(shown, told):
    outcome = command("plan", *words(diagnosis=shown[1] / "diagnose.json", budget=10_000, log_class_size=5))
    assert outcome.code == 0 and outcome.err == ""
    made = srlm.plan(shown[1] / "diagnose.json", budget=10_000, log_class_size=5)
    assert made.inputs.log_kappa0 == pytest.approx(told[0]["sequence"]["log_kappa"][1])
    assert made.inputs.margin is None and made.source.num_prompts == told[0]["sequence"]["num_prompts"]
    high = {row["beta"]: row["failure"]["high"] for row in told[0]["forecast"]["rows"]
            if (row["rounds"], row["target"]) == (1, "escort")}  # fmt: skip
    assert made.rows[0].one.target.failing == round(high[1.0] * made.source.num_prompts)
    paper = srlm.planning.paper.plan(
        shown[1] / "diagnose.json", budget=10_000, log_class_size=5, margin=None, min_confidence=None
    )
    assert paper.inputs.margin == told[0]["sequence"]["margin"][0]


# Against enumeration


class Everything:
    """pi(y|x) of all responses of at most two tokens, by the model's own forward, and their texts."""

    def __init__(self, folder, prompts):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        end, count = tokenizer.eos_token_id, model.config.vocab_size
        inner = [word for word in range(count) if word != end]
        self.responses = [(end,)] + [(word, other) for word in inner for other in range(count)]
        self.place = {response: i for i, response in enumerate(self.responses)}
        self.texts = tokenizer.batch_decode([list(y) for y in self.responses], skip_special_tokens=True)
        rows = []
        for item in prompts:
            prompt = ids(folder, item)
            with torch.no_grad():
                first = self.after(model, [prompt])[0]
                second = self.after(model, [[*prompt, word] for word in inner])
            both = first[inner, None] + second
            rows.append(torch.cat([first[end : end + 1], both.flatten()]).numpy())
        self.log_prob = np.stack(rows)  # [P, Y]

    @staticmethod
    def after(model, rows):
        return torch.log_softmax(model(input_ids=torch.tensor(rows), use_cache=False).logits[:, -1].double(), -1)

    @cache  # noqa: B019
    def sharpened(self, beta, rounds, clip):
        """T exact updates, rewards clipped `clip` nats under the mode's."""
        log_prob = self.log_prob
        for _ in range(rounds):
            log_prob = log_prob + np.maximum(log_prob, log_prob.max(-1, keepdims=True) - clip) / beta
            log_prob = log_prob - logsumexp(log_prob, axis=-1, keepdims=True)
        return log_prob


EPSILON = 2e-5  # of a log-prob, between two ways to compute it in fp32


@pytest.fixture(scope="module")
def everything(tiny, told):
    whole = Everything(tiny, told[1]["prompt"])
    assert logsumexp(whole.log_prob, axis=-1) == pytest.approx(0, abs=1e-9)
    return whole


def test_mode_runner_up_and_margin_are_those_of_all_responses(told, everything):
    summary, prompts, samples = told
    ranked = np.sort(everything.log_prob)[:, ::-1]
    for i, mode in enumerate(prompts["mode_tokens"]):
        at = everything.place[tuple(mode)]
        assert everything.log_prob[i, at] == pytest.approx(ranked[i, 0], abs=EPSILON)
        assert prompts["mode"][i] == everything.texts[at]
    assert prompts["mode_log_prob"] == pytest.approx(ranked[:, 0].tolist(), abs=EPSILON)
    assert prompts["runner_up_log_prob"] == pytest.approx(ranked[:, 1].tolist(), abs=EPSILON)
    assert summary["sequence"]["log_kappa"] == pytest.approx([math.log(np.exp(-ranked[:, 0]).mean())] * 2, abs=EPSILON)
    assert summary["sequence"]["margin"] == pytest.approx([(ranked[:, 0] - ranked[:, 1]).min()] * 2, abs=4 * EPSILON)
    assert summary["sequence"]["below_half"] == [np.mean(ranked[:, 0] <= math.log(0.5))] * 2
    for i, row in enumerate(by_prompt(samples, "log_prob")):
        responses = samples["tokens"][i * K : (i + 1) * K]
        assert row == pytest.approx([everything.log_prob[i, everything.place[tuple(y)]] for y in responses], abs=1e-4)


@pytest.mark.parametrize("budget", [1, 9, 60, ALL])
def test_every_forecast_bracket_holds_the_sharpened_policy(tiny, labelled, everything, budget):
    found = silent(tiny, labelled, **OPTIONS | {"search_budget": budget, "clip": 2.0})
    right = np.array([bool(re.search(ANSWER, text)) for text in everything.texts])
    modes = everything.log_prob.argmax(-1)[:, None]
    assert len(found.forecast.rows) == 2 * len(levels.BETAS) * len(levels.ROUNDS)
    for row in found.forecast.rows:
        table = everything.sharpened(row.beta, row.rounds, 2.0 if row.target == "clipped" else math.inf)
        mode = np.exp(np.take_along_axis(table, modes, -1)[:, 0])
        slack = math.expm1(min(2 * EPSILON * (1 + 1 / row.beta) ** row.rounds, 1.0))
        for estimate, truth in (
            (row.kappa, (1 / mode).mean()),
            (row.mode_mass, mode.mean()),
            (row.failure, np.mean(mode <= 0.5)),
            (row.accuracy, (np.exp(table) * right).sum(-1).mean()),
        ):
            assert estimate.low - slack * truth <= truth <= estimate.high + slack * truth, (row.beta, row.rounds)
            assert math.isnan(estimate.point) or estimate.low <= estimate.point <= estimate.high
        assert math.isnan(row.kappa.point) == (found.sequence.mode_certified_share < 1)


@pytest.mark.parametrize("budget", [1, 9, 60])
def test_a_budget_leaves_intervals_that_hold(tiny, labelled, everything, budget):
    found = silent(tiny, labelled, **OPTIONS | {"search_budget": budget})
    ranked = np.sort(everything.log_prob)[:, ::-1]
    prompts, sequence = found.prompts, found.sequence
    assert max(prompts["prefixes"]) <= budget
    for i, (first, second) in enumerate(ranked[:, :2]):
        assert prompts["mode_log_prob"][i] - EPSILON <= first <= prompts["mode_log_prob_high"][i] + EPSILON
        assert prompts["margin_low"][i] - 2 * EPSILON <= first - second <= prompts["margin_high"][i] + 2 * EPSILON
        assert prompts["mode_log_prob"][i] >= prompts["best_sample_log_prob"][i] - 1e-4
    low, high = sequence.log_kappa
    assert low - EPSILON <= math.log(np.exp(-ranked[:, 0]).mean()) <= high + EPSILON
    wrong = np.mean([not re.search(ANSWER, everything.texts[at]) for at in everything.log_prob.argmax(-1)])
    assert found.labels.mode_wrong[0] <= wrong <= found.labels.mode_wrong[1]


@pytest.mark.parametrize("name", ["normalised", "number", CLASSES])
def test_modal_shares_hold_those_of_all_responses(tiny, labelled, everything, name):
    found = silent(tiny, labelled, **OPTIONS, answers=name)
    answers = list(map(answer_classes(name), everything.texts))
    number = {answer: i for i, answer in enumerate(dict.fromkeys(a for a in answers if a is not None))}
    inside = np.array([answer is not None for answer in answers])
    place = np.array([number[answer] for answer in answers if answer is not None])
    shares = np.array([np.bincount(place, row[inside]).max() for row in np.exp(everything.log_prob)])
    assert np.all(np.array(found.prompts["modal_share_low"]) <= shares + EPSILON)
    assert np.all(shares <= np.array(found.prompts["modal_share_high"]) + EPSILON)
    assert found.answers.kappa[0] <= (1 / shares).mean() * (1 + EPSILON)
    assert (1 / shares).mean() <= found.answers.kappa[1] * (1 + EPSILON)


def test_a_budget_of_one_certifies_nothing_and_says_so(tiny, labelled, tmp_path):
    outcome = command(*given_words(tiny, labelled, output=tmp_path / "out", search_budget=1))
    assert outcome.code == 0 and outcome.err == ""
    summary, prompts, _ = kept(tmp_path / "out")
    assert set(prompts["certified"]) == {0} and set(prompts["prefixes"]) == {1}
    assert prompts["greedy_is_mode"] == [None] * 4 and summary["sequence"]["greedy_finds_mode"] is None
    assert summary["sequence"]["mode_certified_share"] == 0 and summary["sequence"]["margin"] is None
    assert summary["labels"]["mode_wrong"] == [0, 1]
    assert "Only 0% of the modes are certified" in outcome.out
    rows = summary["forecast"]["rows"]
    assert all(row[name]["point"] is None for row in rows for name in ("kappa", "mode_mass", "failure"))
    assert [row["accuracy"]["point"] is None for row in rows] == [row["rounds"] > 0 for row in rows]
    assert set(summary["forecast"]["saturates"].values()) == {None} and "nan" not in outcome.out
    assert re.search(r"\n1 +\[0\.00, \d+\.\d\d\] +\[0\.\d{3}, 1\.000\] +\[0\.000, 1\.000\]", outcome.out)
    assert "[0, 1]" in page([read_folder(tmp_path / "out")])
    given = words(diagnosis=tmp_path / "out" / "diagnose.json", budget=1000, log_class_size=5)
    assert "--margin was not given" in refused("plan", *given, "--level", "0.4")
    said = command("plan", *given, "--failure", "0.1").out
    assert "4 of 4 diagnosed prompts may fail" in said and "1 000 prompts promise nothing" in said


# Rounds of a run


def trained(tiny, data, output, **options):
    given = {"model": tiny, "prompts": data / "prompts.jsonl", "held_out": data / "held-out.jsonl", "output": output}
    assert command(*train_words(**given | options)).code == 0
    return output


@pytest.fixture(scope="module", params=[4, 0], ids=["LoRA", "all weights"])
def run(request, tiny, data, tmp_path_factory):
    rate = 5e-3 if request.param else 2e-3
    output = tmp_path_factory.mktemp("run") / "run"
    return trained(tiny, data, output, lora_rank=request.param, learning_rate=rate)


ASK = {"num_samples": 4, "search_budget": 12}
INHERITED = {name: SETTINGS[name] for name in ("max_new_tokens", "match", "clip", "dtype")}


def same(one, other):
    """Samples token by token, numbers up to arithmetic."""
    for mine, theirs in ((one.samples, other.samples), (one.prompts, other.prompts)):
        assert mine.keys() == theirs.keys()
        for name, values in mine.items():
            numbers = all(isinstance(value, float) for value in values)
            assert values == (pytest.approx(theirs[name], abs=1e-4) if numbers else theirs[name]), name
    assert one.labels.sampled == other.labels.sampled
    assert one.sequence.log_kappa == pytest.approx(other.sequence.log_kappa, abs=1e-4)


def test_round_0_is_the_model_a_run_began_with(run, tiny, data):
    of_run = silent(None, run=run, round=0, **ASK)
    same(of_run, silent(tiny, data / "held-out.jsonl", **ASK, **INHERITED))
    assert of_run.model == f"{tiny}, round 0 of {run}"


def test_the_last_round_is_the_model_a_run_left(run, data):
    first, _, last = (silent(None, run=run, round=t, **ASK) for t in range(SETTINGS["rounds"] + 1))
    same(last, silent(None, run=run, **ASK))
    same(last, silent(run / "model", data / "held-out.jsonl", **ASK, **INHERITED))
    assert abs(last.sequence.log_kappa[1] - first.sequence.log_kappa[1]) > 1e-3


def test_of_a_run_that_was_rolled_back_the_round_that_was_kept_is_asked(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"guard": {"events": [], "chosen": 1}}))
    found = silent(None, run=copy, **ASK)
    same(found, silent(None, run=run, round=1, **ASK))
    assert found.model.endswith(f"round 1 of {copy}")


def test_a_run_hands_on_its_settings_and_held_out_prompts(run, data, bare):
    before = tree(run)
    found = silent(None, run=run, **ASK)
    assert tree(run) == before
    assert found.prompts["prompt"] == [f"Spell {word}" for word in HELD_OUT]
    assert found.settings.items() >= (INHERITED | {"seed": 0, "dtype": "float32"}).items()
    other = silent(None, bare, run=run, **ASK, max_new_tokens=3, clip=1.0)
    assert other.prompts["prompt"] == ["Say a", "Say b"] and other.labels is None
    assert other.settings["max_new_tokens"] == 3 and other.settings["clip"] == 1.0


@pytest.mark.parametrize(("reward", "round"), [("log_likelihood", 0), ("log_likelihood", 1), ("random", 0)])
def test_betas_that_a_run_has_solved_are_forecast(tiny, data, tmp_path, reward, round):
    """From the diagnosed round to its end; of no other reward than the one that the forecast is of."""
    output = trained(tiny, data, tmp_path / "run", step=0.4, reward=reward)
    betas = [one["beta"] for one in records(output)]
    rows = silent(None, run=output, round=round, **ASK).forecast.rows
    found = [(row.target, row.beta) for row in rows if isinstance(row.beta, tuple)]
    paths = [tuple(betas[round:end]) for end in range(round + 1, SETTINGS["rounds"] + 1)]
    wanted = [("escort", path) for path in paths] if reward != "random" else []
    assert found == wanted and len(betas) == SETTINGS["rounds"] + 1


def held_out_table(run, round, name):
    table = parquet.read_table(run / f"round-{round:03d}" / "held_out.parquet", columns=[name])
    return np.array(table[name].to_pylist()).reshape(len(HELD_OUT), -1)


def test_rounds_like_the_one_before_are_forecast(run, bare):
    """From what the run kept of its held-out prompts: log-probs of round 0's samples, before and after."""
    before, after = (held_out_table(run, 0, name) for name in ("log_prob", "log_prob_next"))
    best = np.maximum(before.max(-1), held_out_table(run, 1, "log_prob_initial").max(-1))
    found = silent(None, run=run, round=1, **ASK).forecast.trained
    expected = effective_exponent(before, after, 8.0, SETTINGS["clip"], best)
    assert asdict(found.update) == pytest.approx(asdict(expected))
    assert found.asked == 2  # beta = 1
    assert [row.rounds for row in found.rows] == [1, 2, 3]
    assert [row.exponent for row in found.rows] == pytest.approx([found.update.exponent**t for t in (1, 2, 3)])
    record = records(run)[2]
    assert found.measured[0] == tuple(record[f"accuracy_sampled{end}"] for end in ("", "_low", "_high"))
    assert found.measured[1:] == [None, None]
    elsewhere = silent(None, bare, run=run, round=1, **ASK).forecast.trained
    assert elsewhere.update == found.update and elsewhere.measured == [None] * 3
    assert elsewhere.rows[0].accuracy is None
    for otherwise in ({"max_prompts": 2}, {"match": "contains"}, {"max_new_tokens": 5}, {"stop": ["e"]}):
        asked = silent(None, run=run, round=1, **ASK, **otherwise).forecast.trained
        assert asked.update == found.update and asked.measured == [None] * 3
    start = silent(None, run=run, round=0, **ASK).forecast
    assert start.trained is None and "--round 1" in start.untold


def test_the_screen_and_the_file_have_rounds_as_trained(run, tmp_path):
    outcome = command("diagnose", *words(run=run, round=1, output=tmp_path / "d", samples=4, search_budget=12))
    assert outcome.code == 0
    found = kept(tmp_path / "d")[0]["forecast"]["trained"]
    update = found["update"]
    error = t.ppf(0.975, update["prompts"] - 1) * update["standard_error"]
    said = f"rounds like the one before: exponent {update['exponent']:.2f} ± {error:.2f}"
    assert said in " ".join(outcome.out.split()) and "as trained" in outcome.out
    mass = found["rows"][0]["mode_mass"]
    assert f"[{mass['low']:.2f}, {mass['high']:.2f}]" in outcome.out and mass["point"] is None  # 12 certify too few
    assert "nan" not in outcome.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reward": "random"}, "its reward is random"),
        ({"objective": "dpo"}, "its objective is dpo"),
        ({"held_out": None}, "it held no prompts out"),
    ],
)
def test_of_rounds_that_tell_nothing_none_are_forecast(tiny, data, tmp_path, options, said):
    output = trained(tiny, data, tmp_path / "run", rounds=1, **options)
    outcome = command("diagnose", *words(run=output, round=1, samples=4, search_budget=12))
    assert f"rounds like the one before are not forecast: {said}" in " ".join(outcome.out.split())


def test_a_round_that_is_not_measured_yet_is_said_to_be(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    first = (copy / "records.jsonl").read_text().splitlines(keepends=True)[0]
    (copy / "records.jsonl").write_text(first)
    assert silent(None, run=copy, round=1, **ASK).forecast.untold == "round 1 has not been measured yet"


def test_an_update_that_turned_the_order_round_is_not_forecast():
    update = EffectiveExponent(-0.1, 0.1, 0.5, 4, 16)
    assert trained_rounds([], History(update=update)) is None and trained_rounds([], History()) is None
    assert "-0.10" in untold(History(update=update)) and untold(History()) is None


def test_a_table_that_is_damaged_is_said(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = copy / "round-000" / "held_out.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"held_out.parquet is damaged"):
        silent(None, run=copy, round=1, **ASK)


def test_a_run_that_set_prompts_aside_is_asked_about_those(tiny, tmp_path):
    options = {"held_out_share": 0.4, "rounds": 1, "temperature": 0.5, "output": tmp_path / "run"}
    arguments = train_words(**options, model=tiny, prompts=write_prompts(tmp_path))
    assert command(*arguments, "--gradient-checkpointing").code == 0
    found = silent(None, run=tmp_path / "run", **ASK)
    aside = parquet.read_table(tmp_path / "run" / "round-000" / "held_out.parquet").to_pydict()["prompt"]
    assert found.prompts["prompt"] == list(dict.fromkeys(aside))


def test_prompts_of_a_run_that_have_changed_or_are_gone(tiny, tmp_path):
    write_prompts(tmp_path)
    held_out = write_held_out(tmp_path)
    run = trained(tiny, tmp_path, tmp_path / "run", rounds=1)
    (tmp_path / "prompts.jsonl").unlink()  # what it was trained on is of no interest
    before = silent(None, run=run, **ASK)
    held_out.write_text(held_out.read_text().replace("Spell", "Speak"))
    said = refused("diagnose", *words(run=run))
    assert f"{held_out} has changed since" in said and "--prompts" in said
    assert silent(None, held_out, run=run, **ASK).prompts["prompt"] != before.prompts["prompt"]
    held_out.unlink()
    assert "there is no file" in refused("diagnose", *words(run=run))


def test_prompts_that_a_run_skipped_are_skipped(tiny, tmp_path):
    write_prompts(tmp_path)
    rows = [
        {"prompt": word, "answer": answer} for word, answer in (("Spell a", "a"), ("x" * 600, "b"), ("Spell c", "c"))
    ]
    write_rows(tmp_path / "held-out.jsonl", rows)
    run = trained(tiny, tmp_path, tmp_path / "run", rounds=1, overlong="skip")
    rest = write_rows(tmp_path / "rest.jsonl", rows[::2])
    found = silent(None, run=run, **ASK)
    assert found.prompts["prompt"] == ["Spell a", "Spell c"]
    same(found, silent(run / "model", rest, **ASK, **INHERITED))


def test_answers_of_a_run_may_stand_in_another_column(tiny, tmp_path):
    write_prompts(tmp_path)
    rows = [{"prompt": f"Spell {word}", "answer": "a", "all": ".*", "other": "text"} for word in HELD_OUT]
    write_rows(tmp_path / "held-out.jsonl", rows)
    run = trained(tiny, tmp_path, tmp_path / "run", rounds=1)
    assert silent(None, run=run, **ASK).labels.sampled[0] < 1
    assert silent(None, run=run, **ASK, answer_column="all").labels.sampled[0] == 1
    for name in ("prompt_column", "split", "dataset_config", "system_prompt", "instruction"):
        said = refused("diagnose", *words(run=run, **{name: "other"}))
        assert f"--{name.replace('_', '-')} was given beside --run" in said and "--prompts" in said
    given = words(run=run, prompts=tmp_path / "held-out.jsonl", prompt_column="other", samples=2, search_budget=2)
    assert command("diagnose", *given).code == 0


def test_a_run_that_streamed_its_prompts_is_asked_about_a_file(tiny, bare, tmp_path):
    (tmp_path / "folder").mkdir()
    write_rows(tmp_path / "folder" / "train.jsonl", [{"prompt": f"Say {word}"} for word in "abcd"])
    options = {"streaming": 3, "streaming_buffer": 2, "rounds": 1, "output": tmp_path / "run", "held_out_share": 0.4}
    assert command(*train_words(**options, model=tiny, prompts=tmp_path / "folder")).code == 0
    assert silent(None, bare, run=tmp_path / "run", **ASK).prompts["prompt"] == ["Say a", "Say b"]


def test_rounds_and_runs_that_do_not_exist(run, tiny, tmp_path, bare):
    assert "--round is 7, expected one of 0, 1, 2 in" in refused("diagnose", *words(run=run, round=7))
    assert "--round is -1" in refused("diagnose", *words(run=run), "--round=-1")
    assert "choose one" in refused("diagnose", *words(run=run, model=tiny))
    assert "name its folder with --run" in refused("diagnose", *words(prompts=bare, model=tiny, round=1))
    assert "is not a run folder" in refused("diagnose", *words(run=tmp_path))
    assert "give --run the folder of a run" in refused("diagnose", *words(run=tmp_path / "no"))
    (tmp_path / "manifest.json").write_text("{}")
    assert "manifest.json is damaged" in refused("diagnose", *words(run=tmp_path))


# What is refused, before a model is loaded: there is none


def refused_at_once(tmp_path, prompts, **options):
    before = tree(tmp_path)
    said = refused("diagnose", *words(model="/no/model", prompts=prompts, **options))
    assert "/no/model" not in said
    assert tree(tmp_path) == before
    return said


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"search_budget": 0}, "--search-budget is 0"),
        ({"samples": 1}, "--samples is 1, expected at least 2"),
        ({"answers": "luck"}, "no answer classes 'luck'"),
        ({"answers": "regex:("}, "'(' is not a regular expression"),
        ({"answers": "no_such_module_here:f"}, "cannot be imported"),
        ({"match": "luck"}, "match rule 'luck'"),
        ({"match": "no_such_module_here:f"}, "cannot be imported"),
        ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ({"max_prompts": 0}, "ask for 1 or more"),
        ({"clip": -1}, "--clip"),
        ({"clip": "nan"}, "--clip is nan"),
        ({"dtype": "int4"}, "--dtype is 'int4'"),
        ({"stop": ""}, "--stop"),
        ({"token_budget": 0}, "--token-budget is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"samples": "many"}, "--samples"),
        ({"rounds": 3}, "unrecognized arguments: --rounds"),
        ({"round": 3}, "--round 3 is a round of a run"),
    ],
)
def test_bad_option(tmp_path, labelled, option, said):
    assert said in refused_at_once(tmp_path, labelled, **option)


def test_prompts_that_are_not_there(tmp_path):
    assert "--prompts" in refused("diagnose", *words(model="/no/model"))
    assert "there is no file" in refused_at_once(tmp_path, tmp_path / "no.jsonl")
    (tmp_path / "empty.jsonl").touch()
    assert "is empty" in refused_at_once(tmp_path, tmp_path / "empty.jsonl")
    broken = write_rows(tmp_path / "broken.jsonl", [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "("}])
    assert "'('" in refused_at_once(tmp_path, broken, match="regex")
    with pytest.raises(UserError, match="--prompts"):
        silent("/no/model")


def test_an_output_that_is_used_or_cannot_be_written(tiny, labelled, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for output in ("used", "file", "file/new", "n" * 300):
        said = refused_at_once(tmp_path, labelled, output=tmp_path / output)
        assert str(tmp_path / output) in said and "choose another --output" in said


def test_a_place_that_cannot_be_written_shows_before_the_work(tiny, labelled, monkeypatch):
    monkeypatch.setattr("srlm.diagnosis.probe", lambda *_: pytest.fail("too late"))
    said = refused(*given_words(tiny, labelled, output="/proc/new"))
    assert "/proc/new cannot be written" in said and "choose another --output" in said


def test_a_full_disk(tiny, bare, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("srlm.run.files.os.fsync", full)
    said = refused(*given_words(tiny, bare, output=tmp_path / "out", search_budget=4))
    assert "No space left on device" in said and "--resume" not in said
    assert list((tmp_path / "out").iterdir()) == []


def test_a_prompt_longer_than_the_context(tiny, tmp_path):
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": "a"}, {"prompt": "x" * 600}])
    said = refused(*given_words(tiny, long, output=tmp_path / "out"))
    assert "prompt 2 has" in said and "the context of 512" in said
    assert not (tmp_path / "out").exists()


# Answer functions and match rules


@pytest.fixture
def functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "functions_of_test_diagnosis.py").write_text(
        "def fussy(text):\n"
        "    if any(c.islower() for c in text):\n"
        "        raise LookupError('lower case')\n"
        "    return 'same'\n\n"
        "def loose(text):\n    return [text]\n\n"
        "class Odd:\n"
        "    def __str__(self):\n        raise RuntimeError\n\n"
        "def odd(text):\n    return Odd() if 'a' in text else '\\ud800'\n\n"
        "def rude(text):\n    raise ValueError('\\x1b[31m \\ud800\\n' + 999 * 'y')\n\n"
        "def maybe(response, answers):\n    return 'maybe'\n"
    )
    return "functions_of_test_diagnosis"


def test_an_answer_function_that_raises_is_counted_and_the_rest_goes_on(functions, tiny, labelled, tmp_path):
    outcome = command(*given_words(tiny, labelled, output=tmp_path / "out", answers=f"{functions}:fussy"))
    assert outcome.code == 0 and outcome.err == ""
    summary, prompts, samples = kept(tmp_path / "out")
    lower = [any(c.islower() for c in text) for text in samples["response"]]
    assert samples["answer"] == [None if low else "same" for low in lower]
    assert summary["answers"]["no_answer"] == pytest.approx(np.mean(lower))
    assert summary["answers"]["failed"] >= sum(lower) > 0
    first = summary["answers"]["first_failure"]
    at = lower.index(True)
    assert first.startswith(f"prompt {samples['prompt_index'][at] + 1}: LookupError: lower case on ")
    assert first.endswith(repr(samples["response"][at]))
    assert f"the answer function failed on {summary['answers']['failed']} responses, first: prompt" in outcome.out
    assert prompts["modal_count"] == [K - sum(lower[i * K : (i + 1) * K]) for i in range(4)]


def test_a_failure_is_shown_on_one_line_that_any_terminal_takes(functions, tiny, bare, tmp_path):
    outcome = command(*given_words(tiny, bare, output=tmp_path / "out", answers=f"{functions}:rude", search_budget=4))
    assert outcome.code == 0 and outcome.err == ""
    (line,) = [line for line in outcome.out.splitlines() if "ValueError" in line]
    assert r"prompt 1: ValueError: \x1b[31m \ud800\nyyy" in line and len(line) < 600
    assert kept(tmp_path / "out")[0]["answers"]["first_failure"] in line


def test_answers_that_cannot_be_compared_are_failures(functions, tiny, bare):
    found = silent(tiny, bare, **FEW, answers=f"{functions}:loose")
    assert found.answers.no_answer == 1 and found.answers.failed >= 2 * K
    assert "cannot be hashed" in found.answers.first_failure
    assert found.prompts["modal_answer"] == [None, None]
    assert found.prompts["modal_share_low"] == [0, 0]


def test_answers_that_cannot_be_written_do_not_stop_it(functions, tiny, bare, tmp_path):
    silent(tiny, bare, **FEW, answers=f"{functions}:odd", output=tmp_path / "out")
    assert set(kept(tmp_path / "out")[2]["answer"]) >= {"?"}
    assert tables._words(Fraction(10**6000)).startswith("Fraction ")
    assert tables._words(Fraction(3, 4)) == "3/4"


def test_answers_that_could_not_be_read_are_told(tiny, bare, monkeypatch):
    monkeypatch.setattr("srlm.answers.math.CHILD.given_up", 2)
    assert "2 answers took math-verify more than" in command(*given_words(tiny, bare, search_budget=4)).out


def test_a_match_rule_of_ones_own(functions, tmp_path, labelled):
    assert "returned 'maybe', expected True or False" in refused_at_once(tmp_path, labelled, match=f"{functions}:maybe")


# Unusual prompts


def test_without_labels_the_verdict_asks_for_them(tiny, bare, tmp_path):
    outcome = command(*given_words(tiny, bare, output=tmp_path / "out"))
    summary, prompts, samples = kept(tmp_path / "out")
    assert summary["labels"] is None and summary["forecast"]["limit"]["accuracy"] is None
    assert all(row["accuracy"] is None for row in summary["forecast"]["rows"])
    assert "right" not in samples and "mode_right" not in prompts
    assert summary["verdict"]["kind"] == "undecided"
    assert "only prompts with answers can tell" in summary["verdict"]["reason"]
    assert outcome.out.startswith("UNDECIDED") and "accuracy" not in outcome.out


def test_one_prompt_is_enough_to_measure_but_not_to_decide(tiny, tmp_path):
    one = write_rows(tmp_path / "one.jsonl", [{"prompt": "Say a", "answer": ANSWER}])
    found = silent(tiny, one, **OPTIONS, output=tmp_path / "out")
    assert found.sequence.num_prompts == 1 and found.verdict.kind == "undecided"
    assert kept(tmp_path / "out")[1]["prompt"] == ["Say a"]


def test_copies_of_a_prompt_are_prompts_of_their_own(tiny, tmp_path):
    found = silent(tiny, write_rows(tmp_path / "two.jsonl", [{"prompt": "Say a"}] * 2), **OPTIONS)
    assert found.prompts["mode_tokens"][0] == found.prompts["mode_tokens"][1]
    assert found.prompts["mode_log_prob"][0] == pytest.approx(found.prompts["mode_log_prob"][1], abs=EPSILON)
    assert by_prompt(found.samples, "response")[0].tolist() != by_prompt(found.samples, "response")[1].tolist()


def test_copies_of_a_prompt_are_counted_and_said(tiny, bare, tmp_path):
    rows = write_rows(tmp_path / "three.jsonl", [{"prompt": f"Say {word}"} for word in "aba"])
    outcome = command(*given_words(tiny, rows, output=tmp_path / "out", search_budget=4))
    assert "1 of 3 prompts are copies of others, which intervals take for different ones" in outcome.out
    assert kept(tmp_path / "out")[0]["distinct"] == 2
    source = srlm.plan(tmp_path / "out" / "diagnose.json", budget=1000, log_class_size=5).source
    assert (source.num_prompts, source.counted) == (3, 2)
    assert "copies" not in command(*given_words(tiny, bare, search_budget=4)).out


def test_a_subset_is_that_of_evaluation(tiny, labelled):
    chosen = srlm.load_prompts(labelled).take(2, OPTIONS["seed"])
    found = silent(tiny, labelled, **FEW, max_prompts=2)
    assert found.prompts["prompt"] == list(chosen.prompts.items)
    assert without_seconds(found) == without_seconds(silent(tiny, chosen, **FEW))


HOSTILE = [
    "\x1b[31mred\x1b[0m\x07\x9b2J\r\nnext",
    "[bold]x[/bold]",
    "[/]",
    "[/nothing] \\[x",
    ":dog: {x!r} %s",
    "\u202eback",
    "y" * 300,
]


def test_hostile_prompts_are_shown_as_they_stand_on_one_line_each(tiny, tmp_path):
    rows = write_rows(tmp_path / "hostile.jsonl", [{"prompt": item} for item in HOSTILE])
    outcome = command(*given_words(tiny, rows, output=tmp_path / "out", search_budget=4))
    assert outcome.code == 0 and outcome.err == ""
    for shown in ("[31mred [0m 2J next", "[bold]x[/bold]", " [/] ", "[/nothing] \\[x", ":dog: {x!r} %s", "yyy…"):
        assert sum(shown in line for line in outcome.out.splitlines()) == 1, shown
    assert all(c.isprintable() or c == "\n" for c in outcome.out)
    assert kept(tmp_path / "out")[1]["prompt"] == HOSTILE


def test_conversations_and_strings_together(tiny, tmp_path):
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    mixed = write_rows(tmp_path / "mixed.jsonl", [{"messages": turns}, {"prompt": "Say a"}])
    outcome = command(*given_words(tiny, mixed, output=tmp_path / "out"))
    assert outcome.code == 0 and outcome.err == ""
    _, prompts, _ = kept(tmp_path / "out")
    assert prompts["prompt"] == [turns, [{"role": "user", "content": "Say a"}]]
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    own = [
        alone(model, ids(tiny, item), mode) for item, mode in zip((turns, "Say a"), prompts["mode_tokens"], strict=1)
    ]
    assert prompts["mode_log_prob"] == pytest.approx(own, abs=EPSILON)


@pytest.mark.parametrize("raw", [True, False])
def test_prompts_as_they_stand_or_as_a_turn(tiny, bare, raw):
    found = silent(tiny, bare, **FEW, raw_prompts=raw or None)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    for item, tokens, value in zip(
        *(found.prompts[n] for n in ("prompt", "mode_tokens", "mode_log_prob")), strict=True
    ):
        assert alone(model, ids(tiny, item, raw), tokens) == pytest.approx(value, abs=1e-4)
    assert found.settings["raw_prompts"] == raw


def test_a_base_model_takes_strings_and_refuses_conversations(tiny_base, bare, tmp_path):
    assert silent(tiny_base, bare, **FEW).sequence.num_prompts == 2
    talk = write_rows(tmp_path / "talk.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}])
    assert "has no chat template" in refused(*given_words(tiny_base, talk))


def test_stop_strings_end_responses(tiny, bare):
    stops = [*"abcdefghijklmnopqrstuvwxyz"]
    found = silent(tiny, bare, **OPTIONS, stop=stops)
    assert found.settings["stop"] == tuple(stops)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32),
        AutoTokenizer.from_pretrained(tiny),
    )
    assert any(
        done and tokens[-1] != 2 for done, tokens in zip(*(found.samples[n] for n in ("finished", "tokens")), strict=1)
    )
    for text, tokens, done in zip(*(found.samples[n] for n in ("response", "tokens", "finished")), strict=True):
        assert not set(text) & set(stops)
        assert done == (tokens[-1] == 2 or tokenizer.decode(tokens)[-1] in stops)
    for item, tokens, value in zip(
        *(found.prompts[n] for n in ("prompt", "mode_tokens", "mode_log_prob")), strict=True
    ):
        assert alone(model, ids(tiny, item), tokens) == pytest.approx(value, abs=EPSILON)
    assert set(found.prompts["certified"]) == {2}


# Unusual models


@pytest.mark.parametrize("budget", [1, 2, 40])
def test_a_model_without_eos_and_a_search_that_completes_nothing(bare, tmp_path, budget):
    model, tokenizer = make_model(), make_tokenizer(chat=False)
    tokenizer.eos_token, tokenizer.pad_token = None, "<|endoftext|>"
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    folder = save(tmp_path / "model", model, tokenizer)
    found = silent(folder, bare, **OPTIONS | {"search_budget": budget, "max_new_tokens": 4}, stop=["#!#"])
    for i, mode in enumerate(found.prompts["mode_tokens"]):
        assert len(mode) == 4
        value = alone(model, ids(folder, found.prompts["prompt"][i]), mode)
        assert found.prompts["mode_log_prob"][i] == pytest.approx(value, abs=1e-4)
        assert found.prompts["mode_log_prob"][i] >= found.prompts["best_sample_log_prob"][i] - 1e-4
    assert found.sequence.mode_certified_share == 0


def test_log_probs_that_are_no_numbers_on_any_prompt(bare, tmp_path):
    model = untied()
    with torch.no_grad():
        model.model.embed_tokens.weight[1] = math.nan  # <|im_start|>, with which every turn begins
    said = refused(*given_words(save(tmp_path / "model", model), bare, output=tmp_path / "out"))
    assert "are numbers on none of 2 prompts" in said
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    refused(*given_words(save(tmp_path / "worse", model), bare, output=tmp_path / "other"))


def test_a_prompt_with_nan_is_left_out_and_counted(tmp_path):
    rows = write_rows(
        tmp_path / "p.jsonl", [{"prompt": f"Say {w}", "answer": "a"} for w in ("abc", "~ here", "d", "~")]
    )
    clean = untied()
    broken = untied()
    with torch.no_grad():
        broken.model.embed_tokens.weight[ids(save(tmp_path / "clean", clean), "~", raw=True)[0]] = math.nan
    save(tmp_path / "broken", broken)
    one_token = OPTIONS | {"max_new_tokens": 1}  # so that no response goes on after the word that is broken
    expected = silent(tmp_path / "clean", rows, **one_token)
    outcome = command(*given_words(tmp_path / "broken", rows, output=tmp_path / "out", max_new_tokens=1))
    assert outcome.code == 0 and outcome.err == ""
    assert "2 prompts were left out" in outcome.out
    summary, prompts, samples = kept(tmp_path / "out")
    assert summary["broken"] == 2 and summary["sequence"]["num_prompts"] == 2
    assert prompts["prompt_index"] == [0, 2] and prompts["prompt"] == ["Say abc", "Say d"]
    for name in ("mode_log_prob", "runner_up_log_prob", "entropy"):
        assert prompts[name] == pytest.approx([expected.prompts[name][i] for i in (0, 2)], abs=EPSILON)
    assert by_prompt(samples, "response").tolist() == by_prompt(expected.samples, "response")[[0, 2]].tolist()
    assert set(samples["prompt_index"]) == {0, 2}


def test_nan_that_only_the_search_meets_is_no_number_either(bare, tmp_path):
    model = untied()
    word = ids(save(tmp_path / "clean", model), "~", raw=True)[0]
    with torch.no_grad():
        model.model.embed_tokens.weight[word] = math.nan
    folder = save(tmp_path / "broken", model)
    found = silent(folder, bare, **FEW)
    assert found.broken == 0 and not any(tokens[0] == word for tokens in found.samples["tokens"])
    assert "are numbers on none of 2 prompts" in refused(*given_words(folder, bare))  # with the same samples


def test_a_mode_that_ends_at_once_is_flagged(bare, tmp_path):
    model = untied()
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids(save(tmp_path / "m", model), "Say a")])).last_hidden_state[0, -1]
        model.lm_head.weight[2] = 40 * hidden / hidden.square().sum()
    outcome = command(*given_words(save(tmp_path / "ends", model), bare, output=tmp_path / "out"))
    assert outcome.code == 0 and outcome.err == ""
    summary, prompts, _ = kept(tmp_path / "out")
    assert summary["sequence"]["empty_modes"] == 2 and prompts["mode_is_empty"] == [True, True]
    assert prompts["mode_tokens"] == [[2], [2]] and prompts["mode"] == ["", ""]
    assert summary["sequence"]["log_kappa"] == pytest.approx([0, 0], abs=1e-6)
    assert "modes that are empty: 2" in outcome.out and "(empty)" in outcome.out
    plan = command("plan", *words(diagnosis=tmp_path / "out" / "diagnose.json", budget=1000, log_class_size=5))
    assert plan.code == 0, plan.err


def test_a_model_that_cannot_read_prefix_trees(bare, tmp_path):
    model = build("mamba", vocab_size=259)
    folder = save(tmp_path / "mamba", model)
    found = silent(folder, bare, **OPTIONS | {"search_budget": 12})
    for i, mode in enumerate(found.prompts["mode_tokens"]):
        assert alone(model, ids(folder, found.prompts["prompt"][i]), mode) == pytest.approx(
            found.prompts["mode_log_prob"][i], abs=1e-3
        )
    assert set(found.prompts["prefixes"]) == {12} or found.sequence.certified_share > 0


# From numbers to words


def judged(mass, mode_right, sample_right, certified=True):
    """The verdict on P prompts whose mode has that mass, the rest being one other response."""
    flags = np.array(sample_right)
    count, k = flags.shape
    log_prob = [math.log(mass), math.log1p(-mass)]
    found = Found([(1,), (2,)], log_prob, -math.inf if certified else -1e-3, 3)
    probe = SimpleNamespace(
        found=[found] * count,
        found_texts=[["a", "b"]] * count,
        log_prob=np.full((count, k), log_prob[0]),
        greedy=[[1]] * count,
        mode_finished=[True] * count,
        rewards={},
    )
    rights = Rights(flags, flags[:, 0], flags[:, 0], [np.array([mode, not mode]) for mode in mode_right])
    alike = Evidence(found, [(1,)] * k, probe.log_prob[0], rights.found[0], flags[0])  # the mass is that of all
    prediction = levels.forecasts([alike], 0.0)
    return levels.verdict(
        levels.sequence_level(probe),
        SimpleNamespace(truncation_rate=0.0),
        levels.label_level(probe, rights, prediction.limit.accuracy),
        rights,
        prediction,
    )


HALF = [True, False]


@pytest.mark.parametrize(
    ("kind", "mass", "mode", "samples"),
    [
        ("worth it", 0.55, [True] * 8, [HALF] * 4 + [[False, False]] * 4),
        ("hopeless", 0.55, [False] * 12, [HALF] * 12),
        ("hopeless", 0.55, [False] * 200, [[False, False]] * 200),
        ("undecided", 0.55, [False] * 60, [[False, False]] * 60),  # a mode in 20 may be right, and 60 show none
        ("undecided", 0.55, [False] * 8, [HALF] * 8),  # eight prompts that all agree are still eight
        ("saturated", 0.99, [True] * 8, [[True, True]] * 8),
        ("saturated", 0.99, [False] * 8, [[False, False]] * 8),
        ("saturated", 0.55, [True] * 8, [[True, True]] * 8),  # nothing is left to mend
        ("undecided", 0.55, [True, False] * 4, [HALF] * 8),
        ("undecided", 0.55, [True], [[False, False]]),
    ],
)
def test_verdicts(kind, mass, mode, samples):
    verdict = judged(mass, mode, samples)
    assert verdict.kind == kind
    assert f"the mode is wrong on {1 - np.mean(mode):.0%} of the prompts" in verdict.reason
    assert f"sampled accuracy is {np.mean(samples):.2f}" in verdict.reason
    assert "certified" not in verdict.reason


@pytest.mark.parametrize(("prompts", "wrong"), [(8, 0.15), (16, 0.1), (32, 0.05)])
def test_a_few_wrong_modes_do_not_make_it_worth_it(prompts, wrong):
    """Modes are right as often as samples, but few prompts show one that is not. Student's interval says "worth it" of
    .17 to .2 of such diagnoses, for .025; 150 of them err by .013, and three of that is the margin."""
    generator = np.random.default_rng(prompts)
    said = []
    for _ in range(150):
        mode, samples = generator.random(prompts) >= wrong, generator.random((prompts, 16)) >= wrong
        said.append(judged(0.55, mode.tolist(), samples.tolist()).kind == "worth it")
    assert np.mean(said) <= 0.025 + 0.039


def test_gains_of_a_fifth_show_on_48_prompts():
    """Samples right on .2, modes on .4: seen in .77 of diagnoses (Student's: .89); 100 err by .042, thrice that is the
    margin. A proved interval, by betting, would see .43."""
    generator = np.random.default_rng(0)
    said = []
    for _ in range(100):
        chance = generator.beta(0.4, 1.6, size=48)
        mode = generator.random(48) < np.clip(chance + 0.2, 0, 1)
        samples = generator.random((48, 16)) < chance[:, None]
        said.append(judged(0.55, mode.tolist(), samples.tolist()).kind == "worth it")
    assert np.mean(said) > 0.77 - 0.126


def test_modes_that_tie_are_right_by_their_share():
    """The first is right and the second wrong: neither is what sharpening ends at."""
    found, flags = Found([(1,), (2,)], [math.log(0.5)] * 2, -math.inf, 3), np.array([True, False])
    every = [Evidence(found, [(1,)] * 2, np.full(2, math.log(0.5)), flags, flags)]
    prediction = levels.forecasts(every, 0.0)
    cells = [list(column.cells)[-1] for column in view._forecast(prediction).columns]
    assert cells == ["∞", "0.30", "0.500", "1.000", "0.500"]
    probe, rights = (
        SimpleNamespace(log_prob=np.zeros((1, 2)), rewards={}),
        Rights(flags[None], *[flags[:1]] * 2, [flags]),
    )
    assert levels.label_level(probe, rights, prediction.limit.accuracy).mode_wrong == pytest.approx((0.5, 0.5))


def test_a_verdict_on_modes_that_are_not_certified_says_so():
    assert "Only 0% of the modes are certified" in judged(0.55, [True] * 4, [HALF] * 4, certified=False).reason


@pytest.mark.parametrize(("mass", "kind"), [(0.55, "undecided"), (0.95, "saturated")])
def test_verdicts_without_labels(mass, kind):
    found = Found([(1,), (2,)], [math.log(mass), math.log1p(-mass)], -math.inf, 3)
    prediction = levels.forecasts([Evidence(found, [(1,)], np.array([math.log(mass)]))], 0.0)
    said = levels.verdict(
        SimpleNamespace(mode_certified_share=1.0), SimpleNamespace(truncation_rate=0.9), None, None, prediction
    )
    assert said.kind == kind
    assert "90% of the samples are cut" in said.reason
    assert {row.target for row in prediction.rows} == {"escort"}


@pytest.mark.parametrize("certified", [0, 3, 95])
def test_a_verdict_without_labels_does_not_rest_on_modes_that_are_not_certified(certified):
    """From what a search and 16 samples know of long answers, three exact rounds would leave .94 to the mode; they
    leave less than 1e-9. A prompt in a hundred may not matter."""
    sure = Found([(1,), (2,)], [math.log(0.95), math.log(0.05)], -math.inf, 3)
    every = [Evidence(sure, [(1,)] * 16, np.full(16, math.log(0.95)))] * certified
    every += long_answers(1 if certified else 10, labelled=False)
    prediction = levels.forecasts(every, 0.0)
    share = certified / len(every)
    said = levels.verdict(
        SimpleNamespace(mode_certified_share=share), SimpleNamespace(truncation_rate=0.0), None, None, prediction
    )
    assert said.kind == ("saturated" if certified == 95 else "undecided")
    assert f"Only {share:.0%} of the modes are certified" in said.reason and "nan" not in said.reason
    assert ("would make of that is not known" in said.reason) == (certified < 95)
    assert set(prediction.saturates.values()) == {None}


def classified(seed, prompts, responses, classes, known, samples):
    """Random tables, their responses in random answer classes (some in none), what a search knows, and draws."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.standard_normal((prompts, responses))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    of = [str(c) if c else None for c in generator.integers(0, classes + 1, responses)]
    found, found_classes, drawn = [], [], []
    for row in p:
        order = np.argsort(-row)[:known]
        found.append(Found([(int(y),) for y in order], np.log(row[order]).tolist(), 0.0, 1))
        found_classes.append([of[y] for y in order])
        drawn.append([of[y] for y in generator.choice(responses, samples, p=row)])
    truth = [max((math.fsum(row[[c == a for a in of]]) for c in set(of) - {None}), default=0.0) for row in p]
    return (
        SimpleNamespace(found=found, log_prob=np.zeros((prompts, samples))),
        Classes(drawn, found_classes, 0, None),
        truth,
    )


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 4),
    st.integers(0, 20),
    st.integers(2, 9),
)
def test_modal_shares_are_what_counts_and_search_both_allow(seed, prompts, responses, classes, known, samples):
    probe, answers, truth = classified(seed, prompts, responses, classes, known, samples)
    votes = self_consistency(answers.samples)
    shares = levels.modal_shares(probe, answers, votes)
    for i, vote in enumerate(votes):
        low, high = shares[i]
        from_counts = modal_share_interval(vote.count, samples, 1 - 0.05 / prompts)
        assert 0 <= low <= high <= 1
        if from_counts[0] <= truth[i] <= from_counts[1]:  # otherwise the draws were unlucky
            assert low - 1e-12 <= truth[i] <= high + 1e-12
            assert from_counts[0] <= low + 1e-12 and high <= from_counts[1] + 1e-12
        if len(probe.found[i].responses) >= responses:  # whatever the draws
            assert low == pytest.approx(truth[i]) and high == pytest.approx(truth[i])


def test_draws_that_contradict_the_search_give_way_to_it():
    found = Found([(1,), (2,), (3,)], np.log([0.4, 0.3, 0.2]).tolist(), math.log(0.05), 9)
    probe = SimpleNamespace(found=[found], log_prob=np.zeros((1, 40)))
    answers = Classes([["b"] * 40], [["a", "b", "c"]], 0, None)  # 40 draws, all of 0.3 to 0.4
    assert modal_share_interval(40, 40)[0] > 0.5
    assert levels.modal_shares(probe, answers, self_consistency(answers.samples))[0] == pytest.approx([0.5, 0.5])
    answers = Classes([[None] * 40], [["a", "b", "c"]], 0, None)
    assert clopper_pearson(0, 40)[1] < 0.4
    assert levels.modal_shares(probe, answers, self_consistency(answers.samples))[0] == pytest.approx([0.4, 0.4])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["1", "2", "3", "x", ""]), min_size=3, max_size=3), min_size=1, max_size=4))
def test_the_majority_speaks_through_the_first_sample_that_gives_its_answer(texts):
    """Right or wrong is said of the sample's text, not of the answer; no answer elects nobody."""
    rows = [[f"{text} {i}" if text else "" for i, text in enumerate(row)] for row in texts]
    classes = Classes([[text.split()[0] if text else None for text in row] for row in rows], [[]] * len(rows), 0, None)
    probe = SimpleNamespace(
        answers=[("[12] [02]",)] * len(rows), texts=rows, greedy_texts=[row[0] for row in rows], found_texts=rows
    )
    right = levels.judge(probe, match_rule("regex"), classes, self_consistency(classes.samples))
    for i, row in enumerate(classes.samples):
        given = [answer for answer in row if answer]
        winner = max(dict.fromkeys(given), key=given.count, default=None)
        speaker = rows[i][row.index(winner)] if winner else ""
        assert right.majority[i] == bool(re.search("[12] [02]", speaker))
        assert right.mode[i] == right.greedy[i] == right.samples[i, 0]
    assert levels.judge(SimpleNamespace(answers=None), match_rule("regex"), classes, []) is None
