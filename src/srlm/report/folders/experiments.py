"""The folder that `srlm verify` wrote."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path

from srlm.report.folders.folder import Experiment
from srlm.report.folders.salvage import bytes_of, json_of

MOST_ROWS = 200  # of a table of numbers


def experiments_in(path: Path) -> list[Experiment]:
    found = []
    for name in sorted({file.stem for file in path.glob("*.svg")} & {file.stem for file in path.glob("*.csv")}):
        figure = base64.b64encode(bytes_of(path / f"{name}.svg")).decode()
        text = bytes_of(path / f"{name}.csv").decode(errors="replace")
        try:
            heading, *body = csv.reader(io.StringIO(text, newline=""))
        except (ValueError, csv.Error):  # empty, or not a table
            heading, body = [], []
        said = json_of(path / f"{name}.json")
        holds, given = said.get("holds"), said.get("findings")
        holds = holds if isinstance(holds, bool) else None
        findings = [text for text in given if isinstance(text, str)] if isinstance(given, list) else []
        source = f"data:image/svg+xml;base64,{figure}"
        found.append(Experiment(name, holds, findings, source, heading, body[:MOST_ROWS], len(body)))
    return found
