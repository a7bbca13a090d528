"""Runs are what a user would type."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def srlm(words: Sequence[object], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as sink:
        subprocess.run([sys.executable, "-m", "srlm.cli", *map(str, words)], stdout=sink, stderr=sink, check=True)
