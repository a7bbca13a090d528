"""What is known of a folder, whatever it was read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]
HELD_OUT, TRAINING, DIAGNOSED = "held out", "training", "diagnosed"


@dataclass(frozen=True)
class Sample:
    """One response. part: held out, training or diagnosed. right: None where no answers are known. tokens: where each
    ends in the response, and its log-prob."""

    part: str
    round: int
    prompt_index: int
    prompt: str
    response: str
    log_prob: float | None
    reward: float | None
    right: bool | None
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    tokens: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Experiment:
    """A figure as a data URI, and the first rows of its table. holds: None where no verdict was kept."""

    name: str
    holds: bool | None
    findings: list[str]
    figure: str | None
    heading: list[str]
    rows: list[list[str]]
    total: int


@dataclass(frozen=True)
class Folder:
    """kind: run, diagnosis, experiments or waiting (nothing to see yet). notes: what was left out and why."""

    path: Path
    name: str
    kind: str
    manifest: dict[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    stages: dict[int, dict[str, Any]] = field(default_factory=dict)
    diagnosis: dict[str, Any] = field(default_factory=dict)
    prompts: list[dict[str, Any]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    experiments: list[Experiment] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
