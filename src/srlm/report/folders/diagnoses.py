"""The folder that `srlm diagnose` wrote."""

from __future__ import annotations

from pathlib import Path

from srlm.report.folders.folder import DIAGNOSED, Folder, Sample
from srlm.report.folders.responses import samples_of, words
from srlm.report.folders.salvage import columns_of, json_of
from srlm.run.tables import Table


def diagnosis_in(path: Path, name: str) -> Folder:
    columns = columns_of(path / "prompts.parquet")
    count = len(next(iter(columns.values()), []))
    prompts = [{key: values[i] for key, values in columns.items()} for i in range(count)]
    texts = {row.get("prompt_index"): words(row.get("prompt")) for row in prompts}
    samples = [
        Sample(**vars(s) | {"prompt": texts.get(s.prompt_index, ""), "reward": next(iter(s.rewards.values()), None)})
        for s in samples_of(Table(path / "samples.parquet"), DIAGNOSED, 0)
    ]
    return Folder(path, name, "diagnosis", diagnosis=json_of(path / "diagnose.json"), prompts=prompts, samples=samples)
