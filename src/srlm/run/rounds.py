"""RUN@2: a run by its folder, and one of its rounds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from srlm.errors import UserError
from srlm.run.files import MANIFEST, ROUND, WEIGHTS

_AT = re.compile(r"(.+)@(\d{1,6})")


def run_and_round(text: str) -> tuple[Path, int | None]:
    """ "RUN@2" -> (RUN, 2), "RUN" -> (RUN, None). A folder that has the whole text for its name is itself."""
    found = None if Path(text).exists() else _AT.fullmatch(text)
    return (Path(found[1]), int(found[2])) if found else (Path(text), None)


def is_run(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def rounds_of(run: Path) -> list[int]:
    """Rounds whose policy is there: 0, which is the model that the run began with, and those that updates left."""
    there = (path.parent.name for name in WEIGHTS for path in run.glob(f"round-*/{name}"))
    return [0, *sorted({int(name.removeprefix("round-")) for name in there if ROUND.fullmatch(name)})]


def round_of(run: Path, manifest: dict[str, Any], round: int | None = None, option: str = "the round") -> int:
    """The round that was asked for, or the one whose policy is the run's model: the last one so far, unless the guard
    chose another.

    Raises:
        UserError: the run has not come to it.
    """
    there = rounds_of(run)
    chosen = manifest.get("guard", {}).get("chosen", there[-1]) if round is None else round
    if chosen not in there:
        known = ", ".join(map(str, there))
        raise UserError(f"{option} is {chosen}, expected one of {known} in {run}: choose one")
    return int(chosen)
