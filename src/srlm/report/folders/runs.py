"""The folder that `srlm train` wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srlm.errors import UserError
from srlm.report.folders.answers import judged
from srlm.report.folders.folder import HELD_OUT, TRAINING, Folder, Sample
from srlm.report.folders.records import read_records
from srlm.report.folders.responses import left_out, samples_of
from srlm.report.folders.salvage import bytes_of, json_of
from srlm.report.text import number
from srlm.run.tables import Table

_ROUND = re.compile(r"round-(\d{3,6})")


def run_in(path: Path, name: str, forecast: Path | None) -> Folder:
    manifest = json_of(path / "manifest.json")
    records = read_records(path / "records.jsonl")
    rounds = {int(found[1]): file for file in sorted(path.glob("round-*")) if (found := _ROUND.fullmatch(file.name))}
    stages = {t: json_of(file / "stages.json") for t, file in rounds.items()}
    notes = _unread(path, rounds)
    samples: list[Sample] = []
    for table_name, part in (("held_out", HELD_OUT), ("rollouts", TRAINING)):
        for t, file in rounds.items():
            responses = samples_of(table := Table(file / f"{table_name}.parquet"), part, t)
            samples += responses
            notes += left_out(table.file, len(responses), path)
    if samples and not any(sample.tokens for sample in samples):
        notes.append("Log-probabilities of single tokens were not stored, so responses are not shaded by token.")
    if manifest.get("labels_used") is True:
        notes.append("The reward of this run saw the answers: a control, not self-rewarding.")
    labelled = any(number(record.get("accuracy_sampled")) is not None for record in records)
    if labelled and not any(sample.right is not None for sample in samples):
        samples, note = judged(samples, manifest)
        notes += [note] if note else []
    return Folder(
        path, name, "run", manifest, records, stages, _forecast_of(path, forecast), samples=samples, notes=notes
    )


def _unread(path: Path, rounds: Mapping[int, Path]) -> list[str]:
    """What there is of a run but cannot be read, or not whole."""
    notes = [
        f"{file.relative_to(path)} could not be read; what it holds is left out."
        for file in (path / "manifest.json", *(folder / "stages.json" for folder in rounds.values()))
        if file.exists() and not json_of(file)
    ]
    file = path / "records.jsonl"
    if (lines := len(bytes_of(file).splitlines())) > (whole := len(read_records(file))):
        notes.append(f"{lines - whole} of {lines} lines of records.jsonl could not be read and are left out.")
    return notes


def _forecast_of(path: Path, given: Path | None) -> dict[str, Any]:
    if given is not None:
        file = given / "diagnose.json" if given.is_dir() else given
        found = json_of(file)
        if not isinstance(found.get("forecast"), dict):
            raise UserError(f"{given} holds no forecast: give --forecast the diagnose.json that srlm diagnose wrote")
        return found
    return json_of(path / "diagnose.json") or json_of(path / "diagnose" / "diagnose.json")
