"""Folders of runs, diagnoses and experiments, read as they are: half-written, killed or damaged files leave a part out,
never raise. Nothing here imports torch unless answers have to be looked up."""

from __future__ import annotations

from pathlib import Path

from srlm.errors import UserError
from srlm.report.folders.diagnoses import diagnosis_in
from srlm.report.folders.experiments import experiments_in
from srlm.report.folders.folder import DIAGNOSED, HELD_OUT, TRAINING, Experiment, Folder, Record, Sample
from srlm.report.folders.records import measured_at, read_records
from srlm.report.folders.responses import words
from srlm.report.folders.runs import run_in

__all__ = [
    "DIAGNOSED",
    "HELD_OUT",
    "TRAINING",
    "Experiment",
    "Folder",
    "Record",
    "Sample",
    "measured_at",
    "read_folder",
    "read_records",
    "watched",
    "words",
]


def read_folder(path: Path, name: str | None = None, *, patient: bool = False, forecast: Path | None = None) -> Folder:
    """
    Args:
        patient: a folder that is absent or holds nothing yet is waited for.
        forecast: a diagnose.json whose forecast goes with a run.

    Raises:
        UserError: `path` holds nothing to report, or `forecast` is no diagnosis.
    """
    name = name or path.resolve().name or str(path)
    if (path / "manifest.json").exists() or (path / "records.jsonl").exists():
        return run_in(path, name, forecast)
    if (path / "diagnose.json").exists():
        return diagnosis_in(path, name)
    if experiments := experiments_in(path):
        return Folder(path, name, "experiments", experiments=experiments)
    if patient:
        return Folder(path, name, "waiting")
    raise UserError(
        f"{path} holds no run (manifest.json), no diagnosis (diagnose.json) and no experiments (.svg with .csv): "
        "give the folder that srlm train, diagnose or verify wrote"
    )


def watched(path: Path) -> list[tuple[str, int, int]]:
    """What a report of `path` is made of, so that a change shows."""
    names = ["records.jsonl", "round-*/stages.json", "*.parquet", "round-*/*.parquet", "round-*/*/*.parquet"]
    names += ["*.json", "*.svg", "*.csv"]  # manifest, diagnosis; figures, tables and verdicts of experiments
    found = []
    for file in sorted(file for name in names for file in path.glob(name)):
        try:
            about = file.stat()
        except OSError:  # replaced this very moment
            continue
        found.append((str(file), about.st_mtime_ns, about.st_size))
    return found
