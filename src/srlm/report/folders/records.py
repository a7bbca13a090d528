"""records.jsonl of a run, a line a round."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from srlm.report.folders.folder import Record
from srlm.report.folders.salvage import bytes_of
from srlm.report.text import number


def read_records(file: Path) -> list[Record]:
    """The records that are whole, one a round."""
    every: dict[int, Record] = {}
    for line in bytes_of(file).decode(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and (t := number(record.get("round"))) is not None and t >= 0:
            every[int(t)] = record
    return [every[t] for t in sorted(every)]


def measured_at(records: Sequence[Record], kind: str) -> list[int]:
    """The k for which some record has pass@k or maj@k (kind: pass or maj), in order."""
    keys = {key for record in records for key in record}
    return sorted(int(found[1]) for key in keys if (found := re.fullmatch(rf"{kind}_at_(\d{{1,6}})", key)))
