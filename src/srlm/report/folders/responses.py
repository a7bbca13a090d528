"""Tables of responses, those of runs and those of diagnoses."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyarrow import parquet

from srlm.report.folders.folder import Sample
from srlm.report.folders.salvage import columns_of, one_of_row_groups
from srlm.report.text import number
from srlm.run.tables import Table


def samples_of(table: Table, part: str, round: int) -> list[Sample]:
    try:
        return _read_samples(tuple((file, file.stat().st_mtime_ns) for file in table.files()), part, round)
    except OSError:
        return []


@functools.lru_cache(maxsize=512)
def _read_samples(files: tuple[tuple[Path, int], ...], part: str, round: int) -> list[Sample]:
    """Read once while a run is watched; the times of the files keep the cache honest."""
    columns: dict[str, list[Any]] = {}
    every = max((one_of_row_groups(file) for file, _ in files), default=1)
    for file, _ in files:  # of a column in two files the newer counts
        columns |= columns_of(file, every)
    if not {"prompt_index", "response"} <= columns.keys():
        return []
    count = len(columns["response"])
    columns = {name: values[:count] for name, values in columns.items() if len(values) >= count}
    if "prompt_index" not in columns:
        return []
    nothing: list[Any] = [None] * count
    rewards = {key: values for key, values in columns.items() if key.startswith("reward_")}
    rights = columns.get("right", nothing)
    return [
        Sample(
            part,
            round,
            int(number(columns["prompt_index"][i]) or 0),
            words(columns.get("prompt", nothing)[i]),
            words(columns["response"][i]),
            number(columns.get("log_prob", nothing)[i]),
            number(columns.get("reward", nothing)[i]),
            rights[i] if isinstance(rights[i], bool) else None,
            {key.removeprefix("reward_"): number(values[i]) for key, values in rewards.items()},
            _tokens(columns.get("token_end", nothing)[i], columns.get("token_log_prob", nothing)[i]),
        )
        for i in range(count)
    ]


def _tokens(ends: Any, log_probs: Any) -> list[tuple[int, float]]:
    """Nothing, unless both are lists of as many numbers, and the ends never fall."""
    if not isinstance(ends, list) or not isinstance(log_probs, list) or len(ends) != len(log_probs):
        return []
    pairs = [(number(end), number(value)) for end, value in zip(ends, log_probs, strict=True)]
    found = [(int(end), value) for end, value in pairs if end is not None and value is not None and end >= 0]
    return found if len(found) == len(ends) and found == sorted(found, key=lambda pair: pair[0]) else []


def left_out(file: Path, read: int, path: Path) -> list[str]:
    """Of a table that is over, `read` rows of which could be read."""
    if not file.is_file():
        return []
    try:
        about = parquet.read_metadata(file)
    except Exception:  # as in `columns_of`
        return [f"{file.relative_to(path)} could not be read; its responses are left out."]
    count, name = about.num_rows, file.relative_to(path)
    if not read and count:
        return [f"{name} could not be read; its responses are left out."]
    if read >= count:
        return []
    if about.num_row_groups == 1:
        return [f"Of {name} the first {read:,} of {count:,} responses are shown."]
    return [f"Of {name} {read:,} of {count:,} responses are shown, from places spread evenly over it."]


def words(prompt: Any) -> str:
    """A prompt or response as text; a conversation of one user turn is its content."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and all(isinstance(turn, Mapping) for turn in prompt):
        if len(prompt) == 1 and prompt[0].get("role") == "user":
            return str(prompt[0].get("content"))
        return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in prompt)
    return "" if prompt is None else str(prompt)
