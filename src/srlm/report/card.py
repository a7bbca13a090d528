"""model/README.md: what a trained model is, in the form of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from srlm import __version__
from srlm.plain import visible
from srlm.report.folders import Folder, Record, measured_at
from srlm.report.text import number
from srlm.report.verdict import verdict

# alias -> (Hub id, license)
BASES = {"smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
Column = tuple[str, str, str]  # heading, record key, format
COLUMNS: tuple[Column, ...] = (
    ("log10 κ ≤", "log10_kappa_upper", ".2f"),
    ("sampled accuracy", "accuracy_sampled", ".3f"),
    ("greedy accuracy", "accuracy_greedy", ".3f"),
    ("rank", "token_likelihood_rank", ".2f"),
    ("achieved", "achieved", ".2f"),
    ("leak", "leak", "+.2f"),
    ("distinct-2", "distinct_2", ".2f"),
    ("one answer", "unanimous", ".2f"),
    ("learned", "greedy_learned", ".2f"),
    ("lost", "greedy_lost", ".2f"),
)
SOLVED = ("β", "beta", ".3g")  # where every round has its own
SETTINGS = (
    *("objective", "reward", "votes", "teacher", "rounds", "num_samples", "max_new_tokens", "beta", "step", "clip"),
    *("anchor", "pairs", "nll", "learning_rate", "epochs", "lora_rank", "quantize", "temperature", "top_p", "top_k"),
    *("raw_prompts", "stop", "seed"),
)
OF_OBJECTIVES = {  # others do not heed them
    "beta": ("regression", "dpo", "ipo"),
    "step": ("regression",),
    "clip": ("regression",),
    "anchor": ("regression",),
    "pairs": ("dpo", "ipo"),
}
IF_GIVEN = {"votes": None, "teacher": "live", "nll": 0.0, "quantize": "none"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def card_or_reason(folder: Path, manifest: dict[str, Any], records: Sequence[Record]) -> str | None:
    """Write README.md into the folder of a model; what to say if that failed. Never fails the run."""
    try:
        (folder / "README.md").write_text(model_card(manifest, records), encoding="utf-8", errors="replace")
        return None
    except Exception as error:
        return f"no model card was written ({' '.join(str(error).split())[:200] or type(error).__name__})"


def model_card(manifest: dict[str, Any], records: Sequence[Record]) -> str:
    """Paths of the machine are left out: a card is made to be published."""
    model = str(manifest.get("model", "unknown"))
    hub = _HUB_ID.fullmatch(model) and not Path(model).exists()
    base, license = BASES.get(model, (model if hub else None, None))
    config, data = ((one if isinstance(one := manifest.get(key), dict) else {}) for key in ("config", "data"))
    packed = config.get("quantize", "none") != "none"  # then the folder holds an adapter
    about: dict[str, Any] = {"library_name": "peft" if packed else "transformers", "pipeline_tag": "text-generation"}
    about |= {"base_model": base} if base else {}
    about |= {"license": license} if license else {}
    about["tags"] = ["self-rewarding", "self-improvement", "srlm", "arxiv:2601.22513"]
    found = verdict(Folder(Path(), "", "run", dict(manifest), list(records)))
    solved = config.get("step") is not None
    unused = "beta" if solved else "step"
    control = "Its reward saw the answers: a control, not self-rewarding."
    labels = control if manifest.get("labels_used") else "No labels were used."
    lines = [
        "---",
        yaml.safe_dump(about, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {PurePath(base or model).name}, self-rewarded",
        "",
        f"{found.headline}",
        "",
        "## Method",
        "",
        f"{_code(base or PurePath(model).name)} answered prompts, scored its own answers and was updated on those "
        f"scores ([arXiv 2601.22513](https://arxiv.org/abs/2601.22513), srlm {__version__}). {labels}",
        "",
        *(
            f"- {name.replace('_', ' ')}: {_code(config[name])}"
            for name in SETTINGS
            if name != unused and _heeded(name, config)
        ),
        "",
        "## Data",
        "",
        *_data(data),
        "",
        "## Results",
        "",
        *_results(records, (*COLUMNS, SOLVED) if solved else COLUMNS),
        "",
        "κ is an upper estimate on training prompts; accuracies are of held-out prompts, with 95 % intervals; "
        "rank: how often a response is likelier per token, under the initial model, than one of its own (1/2: as its "
        "own); achieved: of the gain that the update was asked for; leak: log of the kept mass. pass@k: one of k "
        "samples is right; maj@k: the answer most of them give is right; one answer: all samples of a prompt give it; "
        "learned, lost: share of prompts whose greedy response was wrong in round 0 and is right, or was right and is "
        "wrong.",
        "",
        "## Limits",
        "",
        *(f"- {text}" for text in found.worse),
        *_limits(records, data),
        "",
    ]
    return "\n".join(lines)


def _heeded(name: str, config: dict[str, Any]) -> bool:
    if name not in config or config[name] == IF_GIVEN.get(name, config):
        return False
    if name == "lora_rank" and config.get("adapter") == "continue":  # an adapter that was there has its own
        return False
    if name == "reward" and config.get("objective") == "imitation" and not config.get("nll"):
        return False
    return name not in OF_OBJECTIVES or config.get("objective", "regression") in OF_OBJECTIVES[name]


def _data(data: dict[str, Any]) -> list[str]:
    lines = []
    for key, title in (("prompts", "training"), ("held_out", "held out")):
        if isinstance(entry := data.get(key), dict):
            source = PurePath(str(entry.get("source"))).name
            print = str(entry.get("fingerprint"))[:16]
            lines.append(f"- {title}: {entry.get('number')} prompts of {_code(source)} (sha256 {_code(print)})")
    return lines or ["- not recorded"]


def _results(records: Sequence[Record], columns: Sequence[Column]) -> list[str]:
    at_k: list[Column] = [
        (f"{kind}@{k}", f"{kind}_at_{k}", ".3f") for kind in ("pass", "maj") for k in measured_at(records, kind)[-1:]
    ]
    columns = (*columns[:3], *at_k, *columns[3:])
    shown = [column for column in columns if any(number(record.get(column[1])) is not None for record in records)]
    if not shown:
        return ["No round was recorded."]
    head = ["round", *(title for title, _, _ in shown)]
    rows = [[str(record.get("round")), *(_cell(record, key, form) for _, key, form in shown)] for record in records]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _cell(record: Record, key: str, form: str) -> str:
    value, low, high = (number(record.get(key + end)) for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    return format(value, form) + ("" if low is None or high is None else f" [{low:{form}}, {high:{form}}]")


def _limits(records: Sequence[Record], data: dict[str, Any]) -> list[str]:
    held = data.get("held_out")
    measured = (number(record.get("held_out_prompts")) for record in records)
    count = next((f"{one:.0f}" for one in measured if one is not None), None)  # without those that were skipped
    many = held.get("number") if count is None and isinstance(held, dict) else count
    few = f"on {many} held-out prompts" if isinstance(held, dict) else "on training prompts only"
    lines = [
        f"- Measured {few} of one kind; nothing is known of others.",
        "- Sharpening makes a model more certain of what it held likely, right or wrong, and its answers less varied.",
        "- Biases and gaps of the base model remain; its safety was not measured.",
    ]
    if records and number(records[-1].get("accuracy_sampled")) is None:
        lines.append("- Whether its answers are right was not measured: there were no labels.")
    return lines


def _code(value: object) -> str:
    """On one line, as code, so that nothing in it is Markdown."""
    text = " ".join(visible(str(value)).replace("`", "'").split())
    return f"`{text}`" if text else "none"
