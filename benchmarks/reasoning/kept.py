"""What runs measured, kept with the code: tables and figures are made of it, on machines where the runs are not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from srlm.answers import match_rule
from srlm.config import SelfRewardConfig
from srlm.guard.signals import alarms
from srlm.prompts.presets import settled
from srlm.prompts.sources import prompts_of
from srlm.run.manifest import read_manifest, run_config
from srlm.run.tables import Table

KEPT = Path(__file__).parent / "records"
OF_THE_MACHINE = ("seconds", "tokens_per_second", "peak_memory")  # nobody compares them
DIGITS = 5
WITH_LABELS = ("accuracy", "auroc")


def records_of(folder: Path) -> list[dict[str, Any]]:
    """Of a run so far."""
    file = folder / "records.jsonl"
    return read(file) if file.exists() else []


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def keep(run: Path, file: Path) -> None:
    """Records of a run, each with `guard`, what the guard says of it, `guard_unlabelled`, what it says without labels,
    and `right`, the share of right samples of each held-out problem."""
    records, lines = records_of(run), []
    right = _right(run, len(records))
    for t, record in enumerate(records):
        own = {name: _short(value) for name, value in record.items() if not name.startswith(OF_THE_MACHINE)}
        own |= {"guard": told(records[: t + 1]), "guard_unlabelled": told(_unlabelled(records[: t + 1]))}
        lines.append(json.dumps(own | {"right": right[t]}, ensure_ascii=False) + "\n")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(lines), encoding="utf-8")


def told(records: Sequence[dict[str, Any]]) -> list[str]:
    """The guard's reasons about the last of them, in short."""
    said = alarms(records, SelfRewardConfig()) if len(records) > 1 else []
    return [reason.split(" is ")[0] for reason in said]


def _unlabelled(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if not name.startswith(WITH_LABELS)} for record in records]


def _right(run: Path, rounds: int) -> list[list[float]]:
    """[round][problem]"""
    config, _, source = run_config(read_manifest(run), run)
    assert source is not None
    held_out = prompts_of(source, config).take(config.max_held_out, config.seed)
    assert held_out.answers is not None
    match = match_rule(settled(config, held_out.source, None).match)
    found = []
    for t in range(rounds):
        table = Table(run / f"round-{t:03d}" / "held_out.parquet").read(["prompt_index", "response"])
        flags: list[list[bool]] = [[] for _ in held_out.answers]
        for problem, response in zip(*(column.to_pylist() for column in table.columns), strict=True):
            flags[problem].append(match(response, held_out.answers[problem]))
        found.append([_short(fmean(one)) for one in flags])
    return found


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
