"""Folders -> one self-contained HTML page. Text goes through Jinja2 (autoescape) or, as JSON, through textContent."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import shlex
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from srlm import __version__
from srlm.plain import visible
from srlm.report.charts import charts
from srlm.report.drawing import plotly
from srlm.report.folders import DIAGNOSED, HELD_OUT, TRAINING, Folder, Sample, words
from srlm.report.folders.experiments import MOST_ROWS
from srlm.report.folders.salvage import MOST_TOKENS
from srlm.report.forecast import forecast_rows, trained_rows
from srlm.report.text import MOST_CHARACTERS, number, script_json, shortened
from srlm.report.verdict import differences, verdict

MARK = "<!doctype html><!-- srlm report -->"  # what a report may overwrite starts with it
MOST_SAMPLES = 20_000
MOST_TEXT = 12_000_000  # characters of all samples together
PARTS = (HELD_OUT, TRAINING, DIAGNOSED)
SHOWN_ROUNDS = (0, 1, 2, 3, 5, 8)


def parts(folders: Sequence[Folder]) -> dict[str, Any]:
    """What the page shows: HTML above the figures and below the samples, and the data of both."""
    views = [_view(folder) for folder in folders]
    runs = [folder for folder in folders if folder.kind == "run" and folder.records]
    apart = differences(runs) if len(runs) > 1 else None
    environment = _environment()
    return {
        "title": ", ".join(visible(folder.name) for folder in folders),
        "summary": environment.get_template("summary.html").render(views=views, differences=apart),
        "details": environment.get_template("details.html").render(views=views, version=__version__),
        "data": {"charts": [_figure(chart) for chart in charts(folders)], "samples": samples_data(folders)},
    }


def page(folders: Sequence[Folder], version: str | None = None) -> str:
    """The whole page. version: of what is watched; None for a page that stands still."""
    made = parts(folders)
    scripts = [_own("page.js"), _plotly_script()]
    connect = "'none'" if version is None else "'self'"
    policy = (
        f"default-src 'none'; script-src {' '.join(_digest(script) for script in scripts)}; "
        # Plotly places its labels with style attributes, whose hashes cannot be known beforehand.
        f"style-src 'unsafe-inline'; img-src data:; connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    text: str = (
        _environment()
        .get_template("page.html")
        .render(
            mark=Markup(MARK),
            policy=policy,
            title=made["title"],
            style=Markup(_own("page.css")),
            summary=Markup(made["summary"]),
            details=Markup(made["details"]),
            data=Markup(script_json(made["data"] | {"version": version})),
            scripts=[Markup(script) for script in scripts],
        )
    )
    return text


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("srlm.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )


def _own(name: str) -> str:
    return files("srlm.report").joinpath("templates", name).read_text(encoding="utf-8")


@functools.cache
def _plotly_script() -> str:
    """The library as it is shipped; nothing in it may end the script element."""
    text = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    return text.replace("</script", "<\\/script")


def _figure(chart: Any) -> dict[str, Any]:
    return {"id": chart.id, "title": chart.title, "caption": chart.caption, "figure": plotly(chart)}


# Samples


def samples_data(folders: Sequence[Folder]) -> dict[str, Any]:
    """Columns, with every text kept once. Held-out samples come first, prompt by prompt; where there is no room for all
    prompts, those to some, spread evenly over them."""
    texts: dict[str, int] = {}
    columns: dict[str, list[Any]] = {
        name: [] for name in ("folder", "part", "round", "index", "prompt", "response", "reward", "log_prob", "right")
    }
    shades: dict[int, list[list[float]]] = {}  # row -> pieces of its response
    shaded: set[tuple[Any, ...]] = set()
    left = MOST_TOKENS
    every = [(place, sample) for place, folder in enumerate(folders) for sample in folder.samples]
    every.sort(key=lambda one: (PARTS.index(one[1].part), one[1].prompt_index, one[0], one[1].round))
    room = MOST_TEXT
    for place, sample in _spread(every)[:MOST_SAMPLES]:
        kept = [shortened(sample.prompt), shortened(sample.response)]
        room -= sum(len(text) for text in kept if text not in texts)
        if room < 0:
            break
        prompt, response = (texts.setdefault(text, len(texts)) for text in kept)
        right = None if sample.right is None else int(sample.right)
        values = (place, sample.part, sample.round, sample.prompt_index, prompt, response)
        if sample.tokens and values not in shaded and len(sample.response) <= MOST_CHARACTERS and left > 0:
            shaded.add(values)  # equal responses of a round stand on the page once
            shades[len(columns["round"])] = _pieces(sample)
            left -= len(sample.tokens)
        for name, value in zip(columns, (*values, _short(sample.reward), _short(sample.log_prob), right), strict=True):
            columns[name].append(value)
    names = [folder.name for folder in folders]
    return columns | {"shades": shades, "texts": list(texts), "folders": names, "total": len(every)}


def _spread(every: Sequence[tuple[int, Sample]]) -> list[tuple[int, Sample]]:
    """Those to every so manyth prompt of each part, as there is room."""
    shown: list[tuple[int, Sample]] = []
    room = MOST_TEXT
    for part in PARTS:
        mine = [one for one in every if one[1].part == part]
        step = max(1, math.ceil(_size(mine) / max(room, 1)), math.ceil(len(mine) / max(MOST_SAMPLES - len(shown), 1)))
        prompts = list(dict.fromkeys(sample.prompt_index for _, sample in mine))
        chosen = set(prompts[::step])
        some = [one for one in mine if one[1].prompt_index in chosen]
        shown += some
        room -= _size(some)
    return shown


def _size(some: Sequence[tuple[int, Sample]]) -> int:
    """Characters on the page."""
    texts = {text for _, sample in some for text in (sample.prompt, sample.response)}
    return sum(min(len(text), MOST_CHARACTERS) for text in texts)


def _pieces(sample: Sample) -> list[list[float]]:
    """Where each piece of the shown response ends, and its log-prob. Tokens that only begin a character are one piece
    with the token that ends it; a last, empty piece is the end of the response."""
    pieces: list[list[float]] = []
    start, shown, log_prob = 0, 0, 0.0
    for i, (reached, value) in enumerate(sample.tokens):
        last = i == len(sample.tokens) - 1
        end = len(sample.response) if last else reached
        log_prob += value
        if end > start or last:
            shown += len(visible(sample.response[start:end]))
            pieces.append([shown, round(log_prob, 3)])
            start, log_prob = end, 0.0
    return pieces


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


# Tables


def _view(folder: Folder) -> dict[str, Any]:
    manifest, found = folder.manifest, verdict(folder)
    return {
        "name": folder.name,
        "kind": folder.kind,
        "verdict": found,
        "stage": _under_way(folder),
        "about": _about(folder),
        "facts": _facts(folder) if folder.kind == "diagnosis" else [],
        "forecast": _forecast(folder) if folder.kind == "diagnosis" else [],
        "bars": _bars(folder),
        "records": _records(folder),
        "config": _pairs(manifest.get("config") or folder.diagnosis.get("settings")),
        "origin": _origin(folder),
        "command": _command(manifest),
        "experiments": folder.experiments,
        "notes": folder.notes,
    }


def _about(folder: Folder) -> str:
    manifest = folder.manifest or folder.diagnosis
    data = manifest.get("data")
    sources = [
        f"{entry.get('number')} {kind} of {entry.get('source')}"
        for kind, name in (("prompts", "prompts"), ("held out", "held_out"))
        if isinstance(data, dict) and isinstance(entry := data.get(name), dict)
    ]
    words = [manifest.get("model"), *sources, manifest.get("source"), manifest.get("started")]
    return " · ".join(str(word) for word in words if word)


def _under_way(folder: Folder) -> str | None:
    """The last stage that is done, while a run goes on."""
    if folder.manifest.get("state") != "running":
        return None
    done = [(t, name) for t, stages in sorted(folder.stages.items()) for name in stages if name != "loss"]
    return f"Last finished stage: {done[-1][1]}, round {done[-1][0]}." if done else "No stage is finished yet."


def _pairs(values: Any) -> list[tuple[str, str]]:
    return [(str(key), str(value)) for key, value in values.items()] if isinstance(values, dict) else []


def _origin(folder: Folder) -> list[tuple[str, str]]:
    manifest = folder.manifest
    data = manifest.get("data")
    entries = data.items() if isinstance(data, dict) else ()
    prints = [(name, one.get("fingerprint")) for name, one in entries if isinstance(one, dict)]
    found = [("srlm", manifest.get("srlm") or folder.diagnosis.get("srlm")), *_pairs(manifest.get("versions"))]
    found += [(key.replace("_", " "), manifest.get(key)) for key in ("device", "threads", "git_commit", "started")]
    found += [(f"{name.replace('_', ' ')}, sha256", print) for name, print in prints]
    return [(key, str(value)) for key, value in found if value is not None]


def _command(manifest: dict[str, Any]) -> str | None:
    """As it was typed; the program by its name, since where it lay is nobody's concern."""
    typed = manifest.get("command")
    if not isinstance(typed, list) or not typed or not all(isinstance(word, str) for word in typed):
        return None
    program, *rest = typed
    name = program.replace("\\", "/").rpartition("/")[2]
    return shlex.join(["srlm" if name in ("srlm", "cli.py", "srlm.exe") else name, *rest])


def _records(folder: Folder) -> dict[str, Any]:
    """One row a quantity, one column a round."""
    keys = dict.fromkeys(key for record in folder.records for key in record if key != "round")
    records = folder.records[-24:]
    rows = [[key.replace("_", " "), *(_cell(record.get(key)) for record in records)] for key in keys]
    return {"heading": ["round", *(str(record.get("round")) for record in records)], "rows": rows}


def _cell(value: Any) -> str:
    found = number(value)
    return ("–" if value is None else str(value)[:80]) if found is None else f"{found:.4g}"


def _facts(folder: Folder) -> list[tuple[str, str]]:
    sequence, answers, sampling, labels = (
        one if isinstance(one := folder.diagnosis.get(key), dict) else {}
        for key in ("sequence", "answers", "sampling", "labels")
    )
    logs = _numbers(sequence.get("log_kappa"))
    found = [
        ("prompts", _cell(sequence.get("num_prompts"))),
        ("log10 κ over responses, certain", _range([value / math.log(10) for value in logs])),
        ("least confidence", _range(_numbers(sequence.get("min_confidence")))),
        ("margin (nats)", _range(_numbers(sequence.get("margin"))) or "may be 0"),
        ("share of modes under half the mass", _range(_numbers(sequence.get("below_half")))),
        ("greedy decoding finds the mode", _cell(sequence.get("greedy_finds_mode"))),
        ("modes certified", _cell(sequence.get("mode_certified_share"))),
        ("κ over answers, 95 %", _range(_numbers(answers.get("kappa")))),
        ("pairs of samples that agree", _cell(answers.get("agreement"))),
        ("samples a prompt", _cell(sampling.get("num_samples"))),
        ("responses cut at the maximal length", _cell(sampling.get("truncation_rate"))),
    ]
    for key in ("sampled", "greedy", "majority", "best_of_k", "mode"):
        if len(values := _numbers(labels.get(key))) == 3:
            found.append((f"accuracy, {key.replace('_', ' ')}", "{:.3f} [{:.3f}, {:.3f}]".format(*values)))
    scores = labels.get("calibration")
    for name, facts in scores.items() if isinstance(scores, dict) else ():
        if isinstance(facts, dict) and len(values := _numbers(facts.get("auroc"))) == 3:
            found.append((f"AUROC of {name}", "{:.3f} [{:.3f}, {:.3f}]".format(*values)))
    return [(name, value) for name, value in found if value]


def _numbers(values: Any) -> list[float]:
    return [found for one in values if (found := number(one)) is not None] if isinstance(values, list) else []


def _range(values: list[float]) -> str:
    return "–".join(dict.fromkeys(f"{value:.3g}" for value in values))


def _forecast(folder: Folder) -> list[list[str]]:
    rows = []
    for row in [row for row in trained_rows(folder) if row["rounds"]]:
        cells = [row.get(key) for key in ("kappa", "mode_mass", "failure", "accuracy")]
        rows.append(["as trained", _cell(row.get("rounds")), *(_estimate(cell) for cell in cells)])
    for row in forecast_rows(folder):
        if row.get("rounds") in SHOWN_ROUNDS and row.get("target") == "escort":
            cells = [row.get(key) for key in ("kappa", "mode_mass", "failure", "accuracy")]
            beta = row.get("beta")
            betas = ", ".join(map(_cell, beta)) if isinstance(beta, list) else _cell(beta)
            rows.append([betas, _cell(row.get("rounds")), *(_estimate(cell) for cell in cells)])
    return rows


def _estimate(cell: Any) -> str:
    low, point, high = (number(cell.get(end)) if isinstance(cell, dict) else None for end in ("low", "point", "high"))
    if low is None or high is None:
        return "–"
    if point is None:  # a mode was not certified
        return f"[{low:.3g}, {high:.3g}]"
    return f"{point:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{point:.3g} [{low:.3g}, {high:.3g}]"


def _bars(folder: Folder) -> list[dict[str, Any]]:
    """Diagnosed prompts, the least certain first: percentages of the mode's mass, as far as they may still reach."""
    rows = [row for row in folder.prompts if number(row.get("mode_log_prob")) is not None]
    rows.sort(key=lambda row: float(row["mode_log_prob"]))
    return [
        {
            "low": _percent(row["mode_log_prob"]),
            "high": _percent(number(row.get("mode_log_prob_high")) or 0.0),
            "prompt": shortened(words(row.get("prompt")))[:300],
            "mode": shortened(words(row.get("mode")) or "(empty)")[:300],
            "right": "" if (right := row.get("mode_right")) is None else "right" if right else "wrong",
        }
        for row in rows[:MOST_ROWS]
    ]


def _percent(log_prob: float) -> float:
    return round(100 * math.exp(min(log_prob, 0.0)), 2)
