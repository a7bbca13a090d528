"""A run goes back to one of its rounds; what it had made since is set aside, never removed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srlm.errors import UserError
from srlm.run.files import OPTIMIZER, RECORDS, WEIGHTS
from srlm.run.folder import RunFolder

RESULT = ("model", "adapter", "report.html")


def go_back(run: RunFolder, round: int, looks_back: Callable[[str], bool]) -> Path:
    """Make the run one that has just come to `round`: with the policy of that round, but nothing that it did. In round
    0 its prompts are encoded again, too. Killed in between, it can be done again.

    looks_back: does a stage of a round work on the tables of the round before, which stay as they are?

    Returns:
        The folder, inside the run's, of what was set aside.

    Raises:
        UserError: the run has not come to that round.
    """
    rounds = run.rounds()
    last = max(rounds, default=0)
    if not 0 <= round <= last:
        raise UserError(f"--from-round is {round}, but {run.path} has rounds 0 to {last}: choose one of them")
    kept = run.records(round)
    number = 1
    while (aside := run.path / f"set-aside-{number:03d}").exists():
        number += 1
    aside.mkdir()
    if (run.path / RECORDS).exists():
        shutil.copy2(run.path / RECORDS, aside)
    for said in ("guard", "pushed"):  # of the result
        run.manifest.pop(said, None)
    run.save_manifest(state="running")
    run.save_records(kept)
    names = [*RESULT, *([run.prompts.name] if round == 0 else [])]
    for path in (*(run.path / name for name in names), *(rounds[t] for t in sorted(rounds, reverse=True) if t > round)):
        if path.exists():
            path.rename(aside / path.name)
    if round not in rounds:
        return aside
    before = {name: facts for name, facts in _stages(run, round).items() if looks_back(name)}
    folder = aside / rounds[round].name
    folder.mkdir()
    stages = rounds[round] / "stages.json"
    if stages.exists():
        shutil.copy2(stages, folder)
        if before:
            run.save_stages(round, before)
        else:
            stages.unlink()
    for path in rounds[round].iterdir():
        if path != stages and (round == 0 or path.name.partition(".")[0] not in (*WEIGHTS, OPTIMIZER)):
            path.rename(folder / path.name)
    return aside


def _stages(run: RunFolder, round: int) -> dict[str, Any]:
    try:
        return run.stages(round)
    except UserError:  # damaged, which may be why the run goes back
        return {}
