"""`srlm report`: what the page says, that hostile text stays text, and the server that watches a run."""

import base64
import contextlib
import dataclasses
import hashlib
import http.client
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from plotly.graph_objects import Figure
from pyarrow import parquet
from support import command, interruptible, refused, words

from srlm.prompts.sources import load_prompts
from srlm.report import folders, read_all, report_or_reason, save_figures
from srlm.report.card import card_or_reason, model_card
from srlm.report.charts import charts
from srlm.report.charts.histograms import two_best
from srlm.report.charts.samples import by_round
from srlm.report.drawing import COLOURS, plotly
from srlm.report.folders import HELD_OUT, read_folder, read_records, salvage
from srlm.report.page import MARK, page, samples_data
from srlm.report.text import MOST_CHARACTERS, number, script_json, shortened, visible
from srlm.report.verdict import change, verdict
from srlm.report.watch import server
from srlm.run.tables import Table, write_columns

PROMPTS = ["Capital of A?", "Capital of B?", "Capital of C?"]
ANSWERS = [("Aa",), ("Bb",), ("Cc",)]
HOSTILE = [
    "<script>window.broken = 1</script>",
    "</script><script>window.broken = 1</script>",
    "<!--<script>",
    "<img src=x onerror='window.broken=1'>",
    "[click](javascript:window.broken=1) javascript:alert(1)",
    "left \u202eright to left\u202c \u2066isolated\u2069 zero\u200bwidth",
    "bell \x07 nul \x00 escape \x1b[31m",
    "{{ 7 * 7 }} {% raw %} ${1}",
    "</title></textarea></style>'\"><svg onload=window.broken=1>",
    "\u2028line\u2029 separators",
]


def record(t, accuracy=None, **more):
    made = {
        "round": t,
        "log10_kappa_upper": 3.0 - t,
        "log10_kappa_upper_held_out": 2.5 - t,
        "mode_fidelity": 1.0,
        "j0_gap": 4.0 / (1 + t),
        "mean_length": 8.0,
        "eos_rate": 0.5,
        "truncation_rate": 0.5,
        "entropy": 1.0,
        "distinct_1": 0.5,
        "distinct_2": 0.6,
        "gain": 1.0 + t,
        "seconds": 3.0,
        "seconds_sample_rollouts": 2.0,
        "tokens_per_second_sample_rollouts": 100.0,
    }
    if t:
        made |= {"token_likelihood_rank": 0.7, "achieved": 0.8}
        made |= {"displacement": 1.0, "leak": -0.1, "fidelity_r2": 0.9, "kendall_tau": 0.8, "loss": 2.0}
        made |= {"log_ratio_mean": -1.0, "log_ratio_std": 2.0, "seconds_update": 1.0}
    if accuracy is not None:
        for kind in ("sampled", "greedy"):
            ends = (accuracy - 0.05, accuracy + 0.05)
            made |= {f"accuracy_{kind}": accuracy, f"accuracy_{kind}_low": ends[0], f"accuracy_{kind}_high": ends[1]}
        for kind, gained in (("pass", 0.06), ("maj", 0.03)):
            for i, k in enumerate((1, 2, 8)):
                value, key = accuracy + i * gained, f"{kind}_at_{k}"
                made |= {key: value, f"{key}_low": value - 0.05, f"{key}_high": value + 0.05}
        made |= {"self_consistency": accuracy, "unanimous": accuracy / 2}
        made |= {
            "greedy_kept": 0.2,
            "greedy_learned": accuracy - 0.2,
            "greedy_lost": 0.1,
            "greedy_never": 0.9 - accuracy,
        }
    return made | more


def write_records(folder, records):
    (folder / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))


def write_samples(file, prompts, responses, k, offset=0.0):
    count = len(prompts) * k
    columns = {
        "prompt_index": [p for p in range(len(prompts)) for _ in range(k)],
        "sample_index": list(range(k)) * len(prompts),
        "prompt": [prompt for prompt in prompts for _ in range(k)],
        "response": [responses[i % len(responses)] for i in range(count)],
        "tokens": pa.array([[1, 2]] * count, pa.list_(pa.int32())),
        "finished": [True] * count,
        "log_prob": [offset - 1.0 - i % k for i in range(count)],
        "reward": [offset - 1.0 - i % k for i in range(count)],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), file)


def write_run(folder, rounds=2, prompts=PROMPTS, responses=("Aa", "wrong", "Bb"), accuracies=(0.2, 0.5, 0.8), **more):
    """A run as srlm train leaves it, answers and all."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder.parent / "held-out.jsonl"
    rows = [{"prompt": p, "answer": list(a)} for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = {
        "srlm": "0.1.0",
        "state": "finished",
        "model": "some/model",
        "config": {"rounds": rounds, "beta": 1.0, "clip": 0.0, "match": "contains", "seed": 7, "stop": []},
        "data": {
            "prompts": {"source": "train.jsonl", "number": 3, "fingerprint": "f" * 64},
            "held_out": {"source": str(source), "number": 3, "fingerprint": "e" * 64},
            "held_out_answers": {"fingerprint": hashlib.sha256(repr(tuple(ANSWERS)).encode()).hexdigest()},
        },
        "held_out_given": True,
        "command": ["/somewhere/srlm/cli.py", "train", "--stop", "a b"],
        "versions": {"torch": "2.0"},
    } | more
    (folder / "manifest.json").write_text(json.dumps(manifest))
    write_records(folder, [record(t, accuracies[t] if accuracies else None) for t in range(rounds + 1)])
    for t in range(rounds + 1):
        inside = folder / f"round-{t:03d}"
        write_samples(inside / "held_out.parquet", prompts, list(responses), 4, t / 10)
        write_samples(inside / "rollouts.parquet", prompts, list(responses), 4, t / 10)
        (inside / "stages.json").write_text(json.dumps({"sample rollouts": {"seconds": 2.0}, "loss": [3.0, 2.0]}))
    return folder


def write_diagnosis(folder):
    folder.mkdir()
    cell = {"low": 2.0, "point": 3.0, "high": 4.0, "standard_error": None}
    rows = [
        {
            "beta": beta,
            "rounds": t,
            "target": target,
            "kappa": cell,
            "mode_mass": cell,
            "failure": cell,
            "accuracy": cell,
        }
        for beta in (0.5, 1.0)
        for t in (0, 1, 2, 8)
        for target in ("escort", "clipped")
    ]
    bins = [{"count": 2, "mean_score": s, "share_right": 0.5, "low": 0.1, "high": 0.9} for s in (-2.0, -1.0)]
    score = {"auroc": [0.9, 0.8, 0.95], "auroc_within": 0.9, "prompts_within": 2, "ece": None, "reliability": bins}
    found = {
        "srlm": "0.1.0",
        "model": "tiny, round 0 of run",
        "source": "held-out.jsonl",
        "settings": {"seed": 0},
        "verdict": {"kind": "worth it", "reason": "because <b>"},
        "sequence": {"num_prompts": 3, "log_kappa": [1.0, 2.0], "min_confidence": [0.1, 0.1], "margin": None},
        "answers": {"kappa": [1.0, 4.0], "agreement": 0.5},
        "sampling": {"num_samples": 4, "truncation_rate": 0.25},
        "labels": {"sampled": [0.2, 0.1, 0.3], "mode": [0.6, 0.5, 0.7], "calibration": {"log_likelihood": score}},
        "forecast": {"clip": 8.0, "rows": rows, "limit": None, "saturates": {}},
    }
    (folder / "diagnose.json").write_text(json.dumps(found))
    prompts = {"prompt_index": [0, 1], "prompt": PROMPTS[:2], "mode": ["Aa", ""], "mode_log_prob": [-0.5, -3.0]}
    parquet.write_table(pa.table(prompts | {"mode_log_prob_high": [-0.5, -1.0]}), folder / "prompts.parquet")
    samples = {"prompt_index": [0, 0, 1], "response": ["Aa", "no", "Bb"], "log_prob": [-0.5, -2.0, -4.0]}
    samples |= {"reward_log_likelihood": [-0.5, -2.0, -4.0], "right": [True, False, True]}
    parquet.write_table(pa.table(samples), folder / "samples.parquet")
    return folder


class Seen(HTMLParser):
    """Elements with their attributes, texts, and what stands in each script."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self.text = [], [], ""
        self.inside = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            attrs, before = self.scripts[-1]
            self.scripts[-1] = (attrs, before + data)
        elif self.inside != "style":
            self.text += data

    @property
    def data(self):
        (found,) = [text for attrs, text in self.scripts if attrs.get("type") == "application/json"]
        return json.loads(found)

    @property
    def policy(self):
        (found,) = [a["content"] for tag, a in self.tags if a.get("http-equiv") == "Content-Security-Policy"]
        return dict(part.strip().split(" ", 1) for part in found.split(";"))


def seen(*folders, **options):
    return Seen(page(read_all(list(folders), **options)))


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


# What a run's page says


def test_verdict_comes_first_with_its_interval(run):
    found = seen(run)
    half = (2 * 0.05**2) ** 0.5
    expected = f"Improved: sampled accuracy 0.200 → 0.800, +0.600 [{0.6 - half:+.3f}, {0.6 + half:+.3f}]."
    assert expected in found.text
    assert found.text.index("Improved:") < found.text.index("Figures")


def test_difference_of_proportions_is_newcombes(run):
    """Newcombe (1998), method 10, table II: 56/70 - 48/80 is 0.2 with (0.0524, 0.3339)."""
    from srlm.estimators.intervals import wilson

    def one(hits, trials):
        low, high = wilson(hits, trials)
        return {"a": hits / trials, "a_low": low, "a_high": high}

    middle, low, high = change(one(48, 80), one(56, 70), "a")
    assert (round(middle, 4), round(low, 4), round(high, 4)) == (0.2, 0.0524, 0.3339)


DRIFTED = {"token_likelihood_rank": 0.2, "token_likelihood_rank_error": 0.03, "token_likelihood_rank_prompts": 32}


@pytest.mark.parametrize(
    ("records", "tone", "said"),
    [
        ([], "busy", "Waiting for the first record"),
        ([record(0, 0.5)], "open", "nothing to compare"),
        ([record(0, 0.5), record(1, 0.52)], "open", "No clear change"),
        ([record(0, 0.5), record(1, 0.2)], "bad", "Got worse"),
        ([record(0, 0.5), record(1, 0.8, **DRIFTED)], "bad", "Damaged"),
        ([record(0), record(1)], "open", "Sharpened: log10 κ 3.00 → 2.00. Whether the answers got better"),
    ],
)
def test_verdicts(tmp_path, records, tone, said):
    folder = write_run(tmp_path / "run")
    write_records(folder, records)
    found = verdict(read_folder(folder))
    assert found.tone == tone and said in found.headline


def test_signs_of_collapse_are_named_with_their_round(tmp_path):
    folder = write_run(tmp_path / "run")
    bad = record(1, 0.7, leak=-4.0, leak_error=0.1, prompts=32, **DRIFTED)
    write_records(folder, [record(0, 0.5), bad, record(2, 0.6)])
    found = verdict(read_folder(folder))
    assert any("round 1" in text and "token likelihood rank is 0.2" in text for text in found.worse)
    assert any("round 1" in text and "kept mass is 0.0183" in text for text in found.worse)
    assert any("highest in round 1: 0.700" in text for text in found.other)


def test_unfinished_and_stopped_runs_say_so(tmp_path):
    running = verdict(read_folder(write_run(tmp_path / "a", state="running")))
    assert running.tone == "busy" and running.headline.startswith("Not finished: round 2 of 2")
    stopped = verdict(read_folder(write_run(tmp_path / "b", state="stopped: the loss is not a number")))
    assert stopped.tone == "bad" and stopped.headline.startswith("Stopped: the loss")


def test_every_figure_has_data_and_is_plotlys(run):
    made = charts(read_all([run]))
    wanted = "kappa accuracy pass-at-k maj-at-k flips likelihood-rank mode-fidelity self-consistency displacement leak "
    wanted += "j0-gap fidelity log-ratio length endings entropy diversity"
    wanted += " gain loss confidence margin calibration seconds speed"
    assert [chart.id for chart in made] == wanted.split()
    for chart in made:
        figure = Figure(plotly(chart))  # raises where Plotly knows a name not
        assert any(y is not None for trace in figure.data for y in trace.y), chart.id
        assert chart.caption and figure.layout.xaxis.title.text and figure.layout.yaxis.title.text


def chart(id, *folders):
    (found,) = [one for one in charts(read_all(folders)) if one.id == id]
    return found


def test_pass_at_k_of_one_run_and_of_several(run, tmp_path):
    found = chart("pass-at-k", run)
    assert [(series.name, series.y[0]) for series in found.series] == [
        ("pass@1", 0.2),
        ("pass@2", 0.26),
        ("pass@8", 0.32),
    ]
    assert found.series[2].low[0] == pytest.approx(0.27) and "one of k samples" in found.caption
    other = write_run(tmp_path / "other")
    fewer = [{key: value for key, value in record(t, 0.5).items() if "_at_8" not in key} for t in range(3)]
    write_records(other, fewer)
    both = chart("maj-at-k", run, other)  # the largest k of both
    assert both.title == "maj@2" and "most of 2 samples" in both.caption
    assert [(series.name, series.y[0]) for series in both.series] == [("run", 0.23), ("other", 0.53)]


def test_flips_are_stacked_for_one_run_and_lines_for_several(run, tmp_path):
    alone = chart("flips", run)
    assert alone.kind == "bar" and [series.name for series in alone.series] == ["kept", "learned", "lost", "never"]
    assert [sum(values) for values in zip(*(series.y for series in alone.series), strict=True)] == pytest.approx(
        [1.0] * 3
    )
    both = chart("flips", run, write_run(tmp_path / "other"))
    assert both.kind == "line" and [series.name for series in both.series] == [
        f"{name}: {what}" for name in ("run", "other") for what in ("learned", "lost")
    ]


def test_runs_of_before_pass_at_k_are_still_reported(run, tmp_path):
    new = ("pass_at_", "maj_at_", "greedy_", "unanimous")
    old = write_run(tmp_path / "old")
    write_records(old, [{k: v for k, v in record(t, 0.5).items() if not k.startswith(new)} for t in range(3)])
    found = seen(old)
    ids = [one["id"] for one in found.data["charts"]]
    assert "accuracy" in ids and not {"pass-at-k", "maj-at-k", "flips"} & set(ids)
    assert (
        "pass@" not in found.text
        and "pass@" not in model_card({}, read_records(old / "records.jsonl")).split("κ is")[0]
    )
    assert chart("flips", run, old).series[0].name == "run: learned"
    assert "pass-at-k" not in [one.id for one in charts(read_all([run, old]))]


def test_the_largest_k_is_told_with_its_interval(run):
    said = verdict(read_folder(run))
    assert any(text.startswith("pass@8 0.320 → 0.920, +0.600 [") for text in said.improved)
    assert any(text.startswith("maj@8 ") for text in said.improved) and not any("@2" in text for text in said.improved)
    assert "prompts whose samples all give one answer 0.10 → 0.40" in said.other


def test_kappa_is_on_a_log_axis_with_the_forecast_given(run, tmp_path):
    diagnosis = write_diagnosis(tmp_path / "diagnosis")
    (kappa,) = [c for c in charts(read_all([run], diagnosis / "diagnose.json")) if c.id == "kappa"]
    assert plotly(kappa)["layout"]["yaxis"]["type"] == "log"
    assert [series.name for series in kappa.series] == ["training prompts", "held-out prompts", "forecast"]
    assert kappa.series[0].y == [1000.0, 100.0, 10.0]
    assert (list(kappa.series[2].x), kappa.series[2].low, kappa.series[2].high) == ([0, 1, 2], [2.0] * 3, [4.0] * 3)
    assert "vacuous" in kappa.caption and "not drawn" in kappa.caption  # this diagnosis knows of no margin
    assert "forecast" in refused("report", run, "--forecast", run / "manifest.json")


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"reward": "majority"}, "its reward is majority, not log_likelihood"),
        ({"objective": "dpo"}, "its objective is dpo, not regression"),
        ({"kl_initial": 0.5}, "its kl initial is 0.5, not 0"),
        ({"truncated": "penalise"}, "its truncated is penalise, not keep"),
        ({"length_penalty": 0.0, "reward": "log_likelihood"}, None),
    ],
)
def test_a_forecast_of_sharpening_is_laid_over_runs_that_sharpen(run, tmp_path, setting, why):
    file = run / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"config": manifest["config"] | setting}))
    diagnosis = with_trained(write_diagnosis(tmp_path / "diagnosis"))
    drawn = {chart.id: chart for chart in charts(read_all([run], diagnosis))}
    for id in ("kappa", "accuracy"):
        foreseen = [one.name for one in drawn[id].series if "forecast" in one.name]
        assert bool(foreseen) == (why is None), id
        assert ("left out" in drawn[id].caption) == (why is not None) and (why or "") in drawn[id].caption


def with_trained(diagnosis, model="tiny, round 1 of run"):
    """A diagnosis of round 1 that knows how the update before it went."""
    file = diagnosis / "diagnose.json"
    found = json.loads(file.read_text())
    cells = [{"low": v - 0.125, "point": v, "high": v + 0.125} for v in (0.25, 0.5, 0.75)]
    names = ("kappa", "mode_mass", "failure", "mode_kept", "accuracy")
    rows = [{"rounds": t + 1, "exponent": 1.5} | dict.fromkeys(names, cell) for t, cell in enumerate(cells)]
    update = {"exponent": 1.5, "standard_error": 0.1, "noise": 0.5, "prompts": 3, "responses": 12}
    found["forecast"]["trained"] = {"update": update, "asked": 2.0, "rows": rows, "measured": [None] * 3}
    file.write_text(json.dumps(found | {"model": model}))
    return diagnosis


def test_rounds_as_trained_are_drawn_from_the_diagnosed_round_on(run, tmp_path):
    diagnosis = with_trained(write_diagnosis(tmp_path / "diagnosis"))
    drawn = {chart.id: chart for chart in charts(read_all([run], diagnosis))}
    for id in ("kappa", "accuracy"):
        (series,) = [one for one in drawn[id].series if one.name == "forecast, rounds as trained"]
        assert (series.x, series.y) == ([1, 2, 3, 4], [3.0, 0.25, 0.5, 0.75])
        assert (series.low, series.high) == ([2.0, 0.125, 0.375, 0.625], [4.0, 0.375, 0.625, 0.875])
        assert "As trained" in drawn[id].caption
    assert [one.name for one in drawn["accuracy"].series[:3]] == ["sampled", "greedy", "forecast, exact"]
    assert list(drawn["accuracy"].series[2].x) == [1, 2]  # as far as the run goes
    own = read_folder(diagnosis)
    for id in ("forecast-kappa", "forecast-accuracy"):
        (series,) = [
            one for chart in charts([own]) if chart.id == id for one in chart.series if one.name == "rounds as trained"
        ]
        assert (series.x, series.y) == ([0, 1, 2, 3], [3.0, 0.25, 0.5, 0.75])
    assert "as trained" in page([own])


@pytest.mark.parametrize("damage", [3, [], {}, {"rows": 3}, {"rows": [3, {"rounds": "x", "kappa": 2}]}])
def test_a_damaged_forecast_of_trained_rounds_is_left_out(run, tmp_path, damage):
    diagnosis = write_diagnosis(tmp_path / "diagnosis")
    found = json.loads((diagnosis / "diagnose.json").read_text())
    found["forecast"]["trained"] = damage
    (diagnosis / "diagnose.json").write_text(json.dumps(found))
    assert charts(read_all([run], diagnosis)) and page([read_folder(diagnosis)])


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_bound_on_kappa_is_attained_by_equal_rivals(tmp_path, clip):
    """Where all rivals lie one margin below the mode, the bound is kappa itself; here after each exact update."""
    margin, rivals, beta = 0.7, 3, 1.0
    log_prob = np.log([1.0, *[math.exp(-margin)] * rivals])
    log_prob -= np.logaddexp.reduce(log_prob)
    folder = write_run(tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"] |= {"beta": beta, "clip": clip}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    file = write_diagnosis(tmp_path / "d") / "diagnose.json"
    found = json.loads(file.read_text())
    found["sequence"] |= {"log_kappa": [0.0, -log_prob.max()], "margin": [margin, 2.0]}
    file.write_text(json.dumps(found))
    (kappa,) = [c for c in charts(read_all([folder], file)) if c.id == "kappa"]
    assert kappa.series[3].name == "bound, exact updates" and "margins of 0.7 nats" in kappa.caption
    for value in kappa.series[3].y:
        assert value == pytest.approx(math.exp(-log_prob.max()))
        log_prob = log_prob + np.maximum(log_prob, log_prob.max() - (clip or np.inf)) / beta
        log_prob -= np.logaddexp.reduce(log_prob)


@pytest.mark.parametrize("betas", [[2.0, 0.5, 1.0], [2.0, None, 1.0]])
def test_a_run_that_solved_its_betas_is_held_against_its_own_forecast(tmp_path, betas):
    margin = 0.7
    folder = write_run(tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"] |= {"step": 0.4, "clip": 0.0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    write_records(folder, [record(t, 0.5) | {"beta": beta, "step": 0.4} for t, beta in enumerate(betas)])
    file = write_diagnosis(tmp_path / "d") / "diagnose.json"
    found = json.loads(file.read_text())
    found["sequence"] |= {"log_kappa": [0.0, 1.0], "margin": [margin, 2.0]}
    rows = found["forecast"]["rows"]
    rows += [
        rows[0] | {"beta": path, "rounds": len(path), "target": "escort"} for path in (betas[:1], betas[:2], [9.0])
    ]
    file.write_text(json.dumps(found))
    every = charts(read_all([folder], file))
    (kappa,) = [chart for chart in every if chart.id == "kappa"]
    assert list(kappa.series[2].x) == [0, 1, 2]
    if betas[1] is None:  # null: the round asked for nothing, or nothing is known of it
        assert "The bound on exact updates is not known." in kappa.caption
    else:
        wanted = [1 + (math.e - 1) * math.exp(-(alpha - 1) * margin) for alpha in (1, 1.5, 4.5)]
        assert kappa.series[3].y == pytest.approx(wanted)
    (step,) = [chart for chart in every if chart.id == "step"]
    assert step.series[0].y == [0.4] * 3
    card = model_card(manifest, read_folder(folder).records)
    assert "- step: `0.4`" in card and "- beta" not in card and "| β |" in card and "| 2 |" in card


def test_a_forecast_of_solved_betas_beside_a_damaged_manifest_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "manifest.json").write_text("{")
    file = write_diagnosis(tmp_path / "d") / "diagnose.json"
    found = json.loads(file.read_text())
    found["forecast"]["rows"] = [found["forecast"]["rows"][0] | {"beta": [2.0], "rounds": 1, "target": "escort"}]
    file.write_text(json.dumps(found))
    (kappa,) = [chart for chart in charts(read_all([folder], file)) if chart.id == "kappa"]
    assert not [series.name for series in kappa.series if "exact" in series.name or series.name == "forecast"]


def test_histograms_are_of_prompts(run):
    folder = read_folder(run)
    rounds = by_round([s for s in folder.samples if s.part == HELD_OUT])
    assert {t: len(prompts) for t, prompts in rounds.items()} == {0: 3, 1: 3, 2: 3}
    assert two_best(rounds[0][0]) == [-2.0, -3.0]  # a response said twice counts once, with its last log-prob
    (confidence,) = [c for c in charts([folder]) if c.id == "confidence"]
    assert [sum(series.y) for series in confidence.series] == [3, 3, 3]


def test_right_and_wrong_agree_with_the_answers(run):
    samples = [s for s in read_folder(run).samples if s.part == HELD_OUT]
    assert {(s.prompt_index, s.response, s.right) for s in samples if s.response in ("Aa", "Bb")} == {
        (0, "Aa", True),
        (0, "Bb", False),
        (1, "Bb", True),
        (1, "Aa", False),
        (2, "Aa", False),
        (2, "Bb", False),
    }


@pytest.mark.parametrize("given", [True, False])
def test_right_and_wrong_are_known_of_a_part_of_the_held_out_prompts(tmp_path, given):
    """One is skipped, and of those that are left a page shows some; the set is made again as the run made it."""
    names = "abcdefgh" if given else "abcdefghijklmnopqrst"
    rows = [{"prompt": f"Capital of {name}?", "answer": [name]} for name in names]
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = load_prompts(tmp_path / "c.jsonl")
    held = (source if given else source.split(len(rows) // 4, 7)[1]).take(4, 7)
    left = held.leave_out([1])
    write_run(
        folder, prompts=[left.prompts.items[0]], responses=(left.answers[0][0].upper(), "1"), held_out_given=given
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"] |= {"max_held_out": 4, "held_out_share": 0.25, "consistency_band": [0.1, 0.9], "match": "exact"}
    manifest["data"] |= {
        ("held_out" if given else "prompts"): {"source": str(tmp_path / "c.jsonl"), "number": 4},
        "held_out_answers": {"fingerprint": hashlib.sha256(repr(held.answers).encode()).hexdigest()},
    }
    manifest["skipped"] = {"rollouts": [], "held_out": [1]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = read_folder(folder)
    samples = [s for s in found.samples if s.part == HELD_OUT]
    assert samples and all(s.right == (s.response != "1") for s in samples), found.notes
    card = model_card(manifest, [one | {"held_out_prompts": 3} for one in found.records])
    assert "on 3 held-out prompts" in card


def test_answers_that_changed_or_are_gone_or_are_judged_by_code_are_left_out(run, tmp_path):
    source = tmp_path / "held-out.jsonl"
    source.write_text(source.read_text().replace("Aa", "Zz"))
    changed = read_folder(run)
    assert all(s.right is None for s in changed.samples) and "no longer" in changed.notes[-1]
    source.unlink()
    assert "no longer" in read_folder(run).notes[-1]
    (tmp_path / "evil.py").write_text("raise SystemExit(9)\n")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"]["match"] = "evil:rule"
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert "evil:rule" in read_folder(run).notes[-1]
    assert not any(chart.id == "calibration" for chart in charts(read_all([run])))


def test_command_settings_and_versions_are_there(run):
    text = seen(run).text
    for wanted in ("srlm train --stop 'a b'", "torch", "seed", "7", "some/model", "Written by srlm", "not shaded"):
        assert wanted in text
    assert "/somewhere" not in text


def test_guard_events_are_marked(tmp_path):
    folder = write_run(tmp_path / "run", guard={"events": [{"round": 1, "action": "rolled back <i>"}]})
    (kappa,) = [c for c in charts(read_all([folder])) if c.id == "kappa"]
    layout = plotly(kappa)["layout"]
    assert [shape["x0"] for shape in layout["shapes"]] == [1]
    assert [note["text"] for note in layout["annotations"]] == ["rolled back &lt;i&gt;"]
    Figure(plotly(kappa))


@pytest.mark.parametrize(("chosen", "says"), [(0, "the model it began with"), (1, "0.200 → 0.500")])
def test_a_run_that_was_rolled_back_is_judged_by_the_round_that_was_kept(tmp_path, chosen, says):
    events = [{"round": 2, "action": "roll back", "reason": "mode fidelity is 0.04, below 0.75"}]
    folder = write_run(tmp_path / "run", guard={"events": events, "chosen": chosen})
    found = verdict(read_folder(folder))
    assert found.tone == "bad"
    assert f"model/ is that of round {chosen}; " in found.headline and "mode fidelity is 0.04" in found.headline
    assert says in found.headline and "0.800" not in found.headline + " ".join(found.improved)


@pytest.mark.parametrize(
    ("chosen", "tone", "says"), [(0, "open", "the model it began with"), (1, "good", "0.200 → 0.900")]
)
def test_a_saturated_run_is_judged_by_the_round_that_was_kept(tmp_path, chosen, tone, says):
    events = [{"round": 2, "action": "stop", "reason": "little changes"}]
    folder = write_run(tmp_path / "run", accuracies=(0.2, 0.9, 0.8), guard={"events": events, "chosen": chosen})
    found = verdict(read_folder(folder))
    assert found.tone == tone and f"model/ is that of round {chosen}; " in found.headline and says in found.headline
    assert "0.800" not in found.headline + " ".join(found.improved)
    last = write_run(tmp_path / "last", guard={"events": events, "chosen": 2})
    assert verdict(read_folder(last)).headline.startswith("Improved: sampled accuracy 0.200 → 0.800")


def test_colours_are_those_of_the_figures():
    from srlm.figures import STYLE

    assert list(COLOURS[:7]) == STYLE["axes.prop_cycle"].by_key()["color"]


# Other folders


def test_diagnosis(tmp_path):
    folder = write_diagnosis(tmp_path / "d")
    found = seen(folder)
    for wanted in ("Worth it: because <b>", "0.434–0.869", "AUROC of log_likelihood", "3 [2, 4]", "may be 0", "60.65"):
        assert wanted in found.text, wanted
    assert [chart["id"] for chart in found.data["charts"]] == [
        "forecast-kappa",
        "forecast-accuracy",
        "diagnosed-calibration",
    ]
    assert found.data["samples"]["right"] == [1, 0, 1]
    assert any(tag == "rect" and a["width"] == "60.65" for tag, a in found.tags)


def test_a_forecast_without_a_point_is_its_interval(tmp_path):
    """As where a mode is not certified: in the table, and not in the figure."""
    folder = write_diagnosis(tmp_path / "d")
    found = json.loads((folder / "diagnose.json").read_text())
    for row in found["forecast"]["rows"]:
        if row["rounds"]:
            row["kappa"] = row["kappa"] | {"point": None}
    (folder / "diagnose.json").write_text(json.dumps(found))
    shown = seen(folder)
    assert "[2, 4]" in shown.text.replace("3 [2, 4]", "")
    (kappa,) = [chart for chart in charts([read_folder(folder)]) if chart.id == "forecast-kappa"]
    assert [series.y for series in kappa.series] == [[3.0, None, None, None]] * 2
    assert (
        "no point" in kappa.caption
        and "no point" not in charts([read_folder(write_diagnosis(tmp_path / "e"))])[0].caption
    )


def test_experiments(tmp_path):
    folder = tmp_path / "verify"
    folder.mkdir()
    (folder / "bound.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' onload='window.broken=1'/>")
    (folder / "bound.csv").write_text("n,failure\n" + "".join(f"{n},{1 / n}\n" for n in range(1, 301)))
    found = seen(folder)
    (image,) = [a["src"] for tag, a in found.tags if tag == "img"]
    assert b"onload" in base64.b64decode(image.removeprefix("data:image/svg+xml;base64,"))  # an image runs nothing
    assert "the first 200 of 300 rows" in found.text and "0.005" in found.text
    assert "No verdicts were kept" in found.text


def test_verdicts_of_experiments(tmp_path):
    for name, said in (("a", {"holds": True, "findings": ["0.1 < 0.2 <b>", 3]}), ("b", {"holds": False}), ("c", [1])):
        (tmp_path / f"{name}.svg").write_text("<svg/>")
        (tmp_path / f"{name}.csv").write_text("n\n1\n")
        (tmp_path / f"{name}.json").write_text(json.dumps(said))
    text = seen(tmp_path).text
    assert "Does not hold: b (1 of 2 experiments)." in text and "0.1 < 0.2 <b>" in text
    assert "✓ holds" in text and "✗ does not hold" in text
    before = folders.watched(tmp_path)
    (tmp_path / "b.json").unlink()
    after = folders.watched(tmp_path)
    assert (len(before), len(after)) == (9, 8)  # so that whoever watches sees it
    assert "Holds. 2 more without a verdict." in seen(tmp_path).text


def test_several_runs_are_laid_over_each_other(tmp_path):
    first = write_run(tmp_path / "a" / "run", accuracies=(0.2, 0.3, 0.4))
    second = write_run(tmp_path / "b" / "run", accuracies=(0.2, 0.5, 0.8))
    found = seen(first, second)
    (fidelity,) = [c for c in found.data["charts"] if c["id"] == "mode-fidelity"]
    assert [trace["name"] for trace in fidelity["figure"]["data"]] == [str(first), str(second)]
    assert [trace["line"]["color"] for trace in fidelity["figure"]["data"]] == list(COLOURS[:2])
    assert "0.800 (+0.400)" in found.text
    assert set(found.data["samples"]["folder"]) == {0, 1}
    outcome = command("report", first, second)
    assert outcome.code == 0 and Path(outcome.out.strip()) == first / "comparison.html"


# Tokens


def test_pieces_are_whole_characters_and_their_log_probs(run):
    """Three bytes of a sign, a bidi mark that is shown as its code, and the end."""
    file = run / "round-000" / "held_out.parquet"
    table = parquet.read_table(file).slice(0, 3).drop_columns("response")
    table = table.append_column("response", pa.array(["a漢\u202eb", "x", "y"]))
    ends = [[1, 1, 1, 2, 3, 4, 4], [1, 0], [1]]
    values = [[-0.5, -1.0, -0.25, -2.0, -3.0, -4.0, -0.125], [0.0, 0.0], None]
    table = table.append_column("token_end", pa.array(ends)).append_column("token_log_prob", pa.array(values))
    parquet.write_table(table, file)
    found = seen(run).data["samples"]
    (row,) = [i for i, text in enumerate(found["response"]) if found["texts"][text] == "a漢\\u202eb"]
    pieces = found["shades"].pop(str(row))
    assert pieces == [[1, -0.5], [2, -3.25], [8, -3.0], [9, -4.0], [9, -0.125]]
    assert not found["shades"]  # what cannot be is left out


# Hostile text


@pytest.fixture
def hostile(tmp_path):
    prompts = [f"{text} ?" for text in HOSTILE]
    folder = write_run(tmp_path / "<i>run", prompts=prompts, responses=[*HOSTILE, "x" * 1_000_000])
    records = [record(0), record(1), record(2) | {"<script>alert(1)</script>": "<b>", "huge": 10**400, "deep": [[]]}]
    write_records(folder, records)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"model": HOSTILE[1], "command": ["srlm", *HOSTILE], "state": HOSTILE[0]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_hostile_text_makes_no_element(hostile, run):
    def shape(found):
        return {(tag, tuple(sorted(a))) for tag, a in found.tags}

    found = seen(hostile)
    assert shape(found) <= shape(seen(run)) | {("p", ("class",))}
    assert len(found.scripts) == 3
    assert not any(name.startswith("on") for _, a in found.tags for name in a)
    texts = found.data["samples"]["texts"]
    for text in HOSTILE:
        assert visible(text) in texts
    assert "<b>" in found.text and visible(HOSTILE[1]) in found.text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x07\x1b\u200b]", found.text + "".join(texts))


def test_data_comes_back_as_it_went_in(hostile):
    folder = read_folder(hostile)
    found = seen(hostile).data["samples"]
    sent = samples_data([folder])
    assert found["texts"] == [visible(text) for text in sent["texts"]]
    assert found["total"] == len(folder.samples) == len(found["response"])
    assert {visible(HOSTILE[0]), visible(HOSTILE[5])} <= {found["texts"][i] for i in found["response"]}


def test_json_in_a_script_has_no_way_out():
    text = script_json(["</script>", "<!--", "&", "\u2028", float("nan"), 10**400, {"\u202e": float("inf")}])
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == ["</script>", "<!--", "&", "\\u2028", None, 10**400, {"\\u202e": None}]


def test_policy_lets_only_the_page_s_own_scripts_run(run):
    found = seen(run)
    assert found.policy["default-src"] == found.policy["connect-src"] == "'none'"
    assert found.policy["base-uri"] == found.policy["form-action"] == "'none'"
    assert found.policy["img-src"] == "data:"
    ours = [text for attrs, text in found.scripts if not attrs]
    digests = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in ours]
    assert found.policy["script-src"].split() == digests
    assert not any(tag in ("iframe", "object", "base", "embed") for tag, _ in found.tags)
    assert not any(str(a.get(name, "data:")).startswith("http") for _, a in found.tags for name in ("src", "href"))


def test_long_responses_are_cut_with_a_note():
    text = shortened("y" * 1_000_000)
    assert len(text) < MOST_CHARACTERS + 60 and text.endswith("[cut: 1,000,000 characters in all]")
    assert visible("a\tb\nc é 漢 😀") == "a\tb\nc é 漢 😀"
    assert visible("\u202e\x00\ud800") == "\\u202e\\u0000\\ud800"


def test_invalid_utf_8_is_shown_with_a_mark(run):
    (run / "manifest.json").write_bytes(b'{"state": "finished", "model": "\xff\xfe"}')
    with (run / "records.jsonl").open("ab") as file:
        file.write(b'{"round": 3, "note": "\xff"}\n\xff\xfe\n{"round": 4, "half')
    bad = pa.array([b"\xff\xfe bytes"] * 2, pa.binary()).view(pa.string())
    table = pa.table({"prompt_index": [0, 0], "prompt": bad, "response": bad, "log_prob": [-1.0, None]})
    parquet.write_table(table, run / "round-000" / "held_out.parquet")
    found = seen(run)
    assert "\ufffd\ufffd bytes" in found.data["samples"]["texts"]
    assert "\ufffd\ufffd" in found.text
    assert [one["round"] for one in read_records(run / "records.jsonl")] == [0, 1, 2, 3]


def test_conversations_are_read(tmp_path):
    turns = [[{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}], *[[]] * 2]
    folder = write_run(tmp_path / "run", prompts=turns)
    assert "system: Be brief\nuser: Hi" in seen(folder).data["samples"]["texts"]


def test_numbers_of_any_kind():
    assert [number(x) for x in (1, 2.5, True, None, "3", float("nan"), 10**400, [1])] == [1.0, 2.5, *[None] * 6]


# Half-written folders

DAMAGE = {
    "manifest.json": [
        *(b"", b"{", b"[]", b"null", b'{"config": 3, "data": [], "command": [1], "guard": {"events": 3}}'),
        b'{"data": {"prompts": ["file"], "held_out": null}}',
    ],
    "records.jsonl": [b"", b"{", b"[1]\n3\nnull\n", b'{"round": "x"}\n', b'{"round": 0, "loss": "a", "seconds_a": []}'],
    "round-001/stages.json": [b"", b"[]", b'{"loss": {"a": 1}, "x": 3}', b"[" * 100_000],
    "round-001/held_out.parquet": [b"", b"PAR1", b"PAR1" + b"\0" * 100],
    "round-001/rollouts.parquet": [b""],
    "diagnose.json": [b"", b'{"forecast": 3, "model": 4}', b'{"forecast": {"rows": [3, {"beta": 1, "kappa": 2}]}}'],
}


@pytest.mark.parametrize(("name", "content"), [(name, c) for name, every in DAMAGE.items() for c in every])
def test_damaged_files_leave_a_part_out(run, name, content):
    (run / name).write_bytes(content)
    assert seen(run).data["charts"] is not None
    if name != "diagnose.json" and b": " not in content and content.strip():
        assert name in " ".join(read_folder(run).notes)


def test_a_table_of_many_responses_is_shown_in_part(run, monkeypatch):
    monkeypatch.setattr(salvage, "MOST_RESPONSES", 2)
    monkeypatch.setattr("srlm.bounded.ROWS", 2)
    name = "round-001/rollouts.parquet"
    count = parquet.read_metadata(run / name).num_rows
    assert f"Of {name} the first 2 of {count} responses are shown." in read_folder(run).notes


def test_a_flipped_bit_is_not_shown_as_a_response(run):
    """In a table that a run or a diagnosis wrote: pages of both have checksums."""
    file = run / "round-001" / "held_out.parquet"
    write_columns(parquet.read_table(file), file)
    whole = {(s.part, s.round, s.response) for s in read_folder(run).samples}
    content = file.read_bytes()
    at = content.index(b"wrong")  # a response, in its page
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    os.utime(file, ns=(0, 0))  # the clock of a file is coarse, and what was read before is kept
    assert {(s.part, s.round, s.response) for s in read_folder(run).samples} < whole


@pytest.mark.parametrize("closed", [True, False])
def test_of_a_large_table_places_spread_evenly_are_shown(run, monkeypatch, closed):
    monkeypatch.setattr(salvage, "MOST_RESPONSES", 8)
    table = Table(run / "round-001" / "rollouts.parquet")
    table.file.unlink()
    index, texts = [i // 2 for i in range(40)], [f"{i}" for i in range(40)]
    for name, values in (("prompt_index", index), ("response", texts), ("reward", [float(i) for i in range(40)])):
        table.add(name, ({name: pa.array(values[i : i + 4])} for i in range(0, 40, 4)))
    if closed:
        monkeypatch.setattr("srlm.run.tables.ROW_GROUP", 4)
        table.close()
    found = read_folder(run)
    shown = [(s.prompt_index, s.response, s.reward) for s in found.samples if s.part == "training" and s.round == 1]
    assert shown == [(i // 2, f"{i}", float(i)) for i in (0, 1, 2, 3, 20, 21, 22, 23)]
    said = "Of round-001/rollouts.parquet 8 of 40 responses are shown, from places spread evenly over it."
    assert (said in found.notes) == closed


def test_of_too_many_samples_some_prompts_are_shown_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[samples_data.__module__], "MOST_SAMPLES", 12)
    samples = [folders.Sample("training", 0, p, f"x{p}", f"y{p}{k}", -1.0, None, None) for p in range(10) for k in "ab"]
    held = [folders.Sample("held out", 0, p, f"z{p}", "", -1.0, None, None) for p in range(2)]
    sent = samples_data([folders.Folder(tmp_path, "a", "run", samples=samples + held)])
    assert list(zip(sent["part"], sent["index"], strict=True)) == [("held out", 0), ("held out", 1)] + [
        ("training", p) for p in (0, 2, 4, 6, 8) for _ in "ab"
    ]
    assert sent["total"] == 22


def test_tokens_beyond_what_a_page_shades_are_not_read(run, monkeypatch):
    name = "round-001/held_out.parquet"
    table = parquet.read_table(run / name)
    ends, values = ([[1, 2]] * table.num_rows, [[-1.0, -2.0]] * table.num_rows)
    for column, one in (("token_end", ends), ("token_log_prob", values)):
        if column in table.column_names:
            table = table.drop_columns(column)
        table = table.append_column(column, pa.array(one))
    parquet.write_table(table, run / name)
    monkeypatch.setattr(salvage, "MOST_TOKENS", 4)
    tokens = [s.tokens for s in read_folder(run).samples if s.part == "held out" and s.round == 1]
    assert tokens[:2] == [[(1, -1.0), (2, -2.0)]] * 2 and not any(tokens[2:]) and len(tokens) > 2


def test_missing_files_leave_a_part_out(run):
    for file in sorted(run.rglob("*.*")):
        kept = file.read_bytes()
        file.unlink()
        seen(run)
        file.write_bytes(kept)


@pytest.mark.parametrize("content", [b"{}", b'{"verdict": 3, "sequence": [], "labels": {"calibration": [1]}}'])
def test_damaged_diagnosis(tmp_path, content):
    folder = write_diagnosis(tmp_path / "d")
    (folder / "diagnose.json").write_bytes(content)
    for name in ("prompts", "samples"):
        (folder / f"{name}.parquet").unlink()
    assert "Written by srlm" in seen(folder).text


# The command


def test_command_writes_one_file_and_overwrites_only_reports(run, tmp_path):
    outcome = command("report", run)
    file = run / "report.html"
    assert (outcome.code, outcome.out.strip(), outcome.err) == (0, str(file), "")
    assert file.read_text(encoding="utf-8").startswith(MARK)
    assert command("report", run).code == 0
    file.write_text("mine")
    assert "is no srlm report" in refused("report", run)
    assert file.read_text() == "mine"
    assert command("report", run, "--output", tmp_path / "other.html").code == 0
    assert "cannot be written" in refused("report", run, "--output", tmp_path / "no" / "where.html")
    assert not list(tmp_path.rglob(".partial*"))


def test_command_refuses_what_is_no_folder_of_ours(tmp_path):
    assert "no folder was given" in refused("report")
    assert "holds no run" in refused("report", tmp_path)
    assert "holds no run" in refused("report", tmp_path / "absent")
    said = report_or_reason(tmp_path)
    assert said.startswith("no report was written") and "\n" not in said


def test_figures_for_papers(run, tmp_path):
    outcome = command("report", run, "--figures", tmp_path / "out")
    assert outcome.code == 0
    files = sorted((tmp_path / "out").glob("*.svg"))
    assert len(files) == len(charts(read_all([run])))
    for file in files:
        assert ("<svg" in file.read_text() and ">round<" in file.read_text()) or file.stem in (
            "loss",
            "confidence",
            "margin",
            "calibration",
        )
    assert (tmp_path / "out" / "captions.md").read_text().count("\n- `") == len(files) - 1
    first = (tmp_path / "out" / "kappa.svg").read_bytes()
    save_figures([run], tmp_path / "again")
    assert (tmp_path / "again" / "kappa.svg").read_bytes() == first
    assert "never overwritten" in refused("report", run, "--figures", tmp_path / "out")
    assert "cannot be written" in refused("report", run, "--figures", tmp_path / "held-out.jsonl")


def test_starts_without_torch(run, tmp_path):
    (tmp_path / "held-out.jsonl").unlink()
    code = "import sys; from srlm.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, "report", str(run)], check=True)


def test_ten_thousand_samples_stay_small(tmp_path):
    prompts = [f"Prompt {i}?" for i in range(1250)]
    folder = write_run(tmp_path / "run", rounds=0, prompts=prompts, responses=[f"answer {i}" for i in range(5000)])
    write_samples(folder / "round-000" / "held_out.parquet", prompts, [f"answer {i}" for i in range(9973)], 8)
    start = time.perf_counter()
    text = page(read_all([folder]))
    assert time.perf_counter() - start < 5 and len(text) < 7_000_000
    assert Seen(text).data["samples"]["total"] == 15_000


# End of a run


def test_train_leaves_report_and_card(tmp_path, tiny, prompts_file, held_out_file):
    options = {"model": tiny, "prompts": prompts_file, "held_out": held_out_file, "output": tmp_path / "out"}
    options |= {"rounds": 1, "num_samples": 2, "held_out_samples": 2, "max_new_tokens": 3, "epochs": 1}
    outcome = command("train", *words(**options), "--quiet")
    assert outcome.code == 0 and f"report in {tmp_path / 'out' / 'report.html'}" in outcome.out
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert text.startswith(MARK) and len(Seen(text).data["charts"]) >= 15
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    assert "| 1 |" in card and str(tmp_path) not in card


def test_card(run):
    folder = read_folder(run)
    card = model_card(folder.manifest, folder.records)
    head = yaml.safe_load(card.split("---")[1])
    assert (head["base_model"], head["library_name"]) == ("some/model", "transformers")
    assert "license" not in head
    assert "- beta: `1.0`" in card and "- step" not in card and "β |" not in card
    assert (
        "| 2 | 1.00 | 0.800 [0.750, 0.850] | 0.800 [0.750, 0.850] | 0.920 [0.870, 0.970] | 0.860 [0.810, 0.910] |"
        in card
    )
    assert "| greedy accuracy | pass@8 | maj@8 |" in card and "| one answer | learned | lost |" in card
    assert "`held-out.jsonl`" in card
    known = model_card(folder.manifest | {"model": "smollm2"}, folder.records)
    assert yaml.safe_load(known.split("---")[1])["license"] == "apache-2.0"
    assert "a control" in model_card(folder.manifest | {"labels_used": True}, folder.records)


def test_card_never_breaks_a_run(tmp_path):
    assert "no model card was written" in card_or_reason(tmp_path / "absent", {}, [])
    assert card_or_reason(tmp_path, {"config": 3, "data": "x", "model": HOSTILE[1] + "\n---\n"}, []) is None


# Watching


@contextlib.contextmanager
def served(*folders):
    with server(folders) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running.server_address[1]
        finally:
            running.shutdown()
            thread.join()


def asked(port, path="/", method="GET", host=None, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{port}")
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def test_watcher_serves_the_page_and_its_data(run):
    with served(run) as port:
        status, content = asked(port)
        found = Seen(content.decode())
        assert status == 200 and found.policy["connect-src"] == "'self'"
        assert asked(port, f"/data?version={found.data['version']}") == (204, b"")
        for host in (f"localhost:{port}", "localhost", "127.0.0.1"):
            assert asked(port, host=host)[0] == 200
        assert json.loads(asked(port, "/data")[1])["data"]["charts"] == found.data["charts"]


def test_watcher_refuses_everything_else(run, tmp_path):
    (tmp_path / "secret").write_text("secret")
    paths = ["/manifest.json", "/../secret", "/%2e%2e/secret", "//secret", "/data/../../secret", f"{run}/manifest.json"]
    paths += ["/./", "/report.html", "/.", "\\..\\secret"]
    with served(run) as port:
        for path in paths:
            status, content = asked(port, path)
            assert status in (400, 404) and b"secret" not in content, path
        for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PATCH"):
            assert asked(port, method=method)[0] in (405, 501), method
        for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1:{port + 1}", "localhost.evil.example", ""):
            assert asked(port, host=host)[0] == 403, host
            assert asked(port, "/data", host=host)[0] == 403, host


def test_watcher_is_on_the_loopback_only(run):
    with server([run]) as running:
        assert running.server_address[0] == "127.0.0.1"
        assert "cannot be served" in refused("report", run, "--watch", "--port", running.server_address[1])
    assert "cannot be served" in refused("report", run, "--watch", "--port", 70_000)
    assert "writes nothing" in refused("report", run, "--watch", "--figures", "out")


def test_watcher_shows_a_new_record_within_two_seconds(run):
    with served(run) as port:
        version = Seen(asked(port)[1].decode()).data["version"]
        write_records(run, [record(t, 0.2) for t in range(3)] + [record(3, 0.9)])
        start = time.perf_counter()
        status, content = asked(port, f"/data?version={version}")
        assert status == 200 and time.perf_counter() - start < 1  # the page asks once a second
        assert "0.900" in json.loads(content)["summary"]


def test_watcher_waits_for_a_run_and_survives_its_troubles(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with served(folder) as port:
        assert b"Waiting: nothing has been written" in asked(port)[1]
        folder.mkdir()
        (folder / "manifest.json").write_text('{"state": "runn')
        assert b"Waiting for the first record" in asked(port)[1]
        write_run(folder, state="running")
        assert b"Not finished: round 2 of 2" in asked(port)[1]
        with (folder / "records.jsonl").open("a") as file:
            file.write('{"round": 3, "log10')
        (folder / "round-002" / "held_out.parquet").write_bytes(b"PAR1")
        (folder / "round-003").mkdir()
        assert asked(port)[0] == 200 == asked(port, "/data")[0]
        monkeypatch.setattr("srlm.report.watch.read_all", lambda *_, **__: 1 / 0)
        assert asked(port)[0] == 503
        monkeypatch.undo()
        for file in sorted(folder.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        assert b"Waiting" in asked(port)[1]


def test_watcher_outlives_a_browser_that_leaves(run):
    with served(run) as port:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode())
        assert asked(port)[0] == 200


def test_watch_command_prints_where_and_stops_quietly(run):
    code = "from srlm.cli import main; import sys; main(sys.argv[1:])"
    words = [sys.executable, "-c", code, "report", str(run), "--watch"]
    with interruptible(words) as process:
        line = process.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", line)[1])
        assert asked(port)[0] == 200
        os.kill(process.pid, 2)
        try:
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0 and "stopped watching" in out and not err


def test_card_has_what_the_objective_heeds(run):
    folder = read_folder(run)
    config = folder.manifest["config"] | {"objective": "grpo", "reward": "hard_majority", "votes": 64, "anchor": 1.0}
    config |= {"teacher": "live", "nll": 0.0, "lora_rank": 16, "adapter": "continue", "pairs": "all"}
    card = model_card(folder.manifest | {"config": config}, folder.records)
    assert "- objective: `grpo`" in card and "- votes: `64`" in card
    idle = re.compile("- (clip|anchor|beta|pairs|teacher|nll|lora rank)")
    assert not [line for line in card.splitlines() if idle.match(line)]
    plain = model_card(folder.manifest | {"config": config | {"adapter": "auto", "objective": "dpo"}}, folder.records)
    assert "- lora rank: `16`" in plain and "- beta: `1.0`" in plain and "- pairs: `all`" in plain


def test_a_run_is_judged_by_its_own_thresholds(tmp_path):
    """Better by labels, and cut off more often, which its guard had been told to bear."""
    run = write_run(tmp_path / "run", accuracies=(0.2, 0.5, 0.8))
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    drift = {"truncation_change": 0.2, "truncation_change_error": 0.01, "truncation_change_prompts": 48}
    write_records(run, [*records[:-1], records[-1] | drift])
    folder = read_folder(run)
    assert verdict(folder).headline.startswith("Damaged")
    told = {"guard_truncation": 0.5, "guard_length": "x", "guard_none": 1}
    own = dataclasses.replace(folder, manifest=folder.manifest | {"config": folder.manifest["config"] | told})
    assert verdict(own).headline.startswith("Improved")
    broken = dataclasses.replace(folder, manifest=folder.manifest | {"config": {"guard_length": 0.1}})
    assert verdict(broken).headline.startswith("Damaged")
