"""Do all processes have the same before them?"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from srlm.errors import UserError

LOOK = 10.0  # seconds that a shared folder may take to show what another machine wrote


def refuse_unlike(together: PartialState, facts: Mapping[str, Any]) -> None:
    """facts: what must be the same in every process, by name.

    Raises:
        UserError: in one it is not; all processes raise it.
    """
    if together.num_processes == 1:
        return
    every: list[Any] = [None] * together.num_processes
    torch.distributed.all_gather_object(every, dict(facts))
    for rank, others in enumerate(every):
        for name in sorted(every[0].keys() | others.keys()):
            if every[0].get(name) != others.get(name):
                raise UserError(
                    f"process {rank} of {len(every)} has {name} = {others.get(name)}, and process 0 has "
                    f"{every[0].get(name)}, expected the same: start all of them with the same command, files and "
                    "versions"
                )


def refuse_unshared(together: PartialState, folder: Path) -> None:
    """
    Raises:
        UserError: what the main process writes into a folder is not there for another; all processes raise it.
    """
    if together.num_processes == 1:
        return
    place = folder if folder.is_dir() else folder.parent
    token = [str(place.absolute() / f".partial-seen-by-all-{uuid.uuid4().hex}")]
    torch.distributed.broadcast_object_list(token, 0)
    file = Path(token[0])
    try:
        if together.is_main_process:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
            except OSError:
                pass  # said by whoever begins the run
            seen = [True, file.exists()]
        together.wait_for_everyone()
        if not together.is_main_process:
            end = time.monotonic() + LOOK
            while not (there := file.exists()) and time.monotonic() < end and file.parent.is_dir():
                time.sleep(0.1)
            seen = [there, True]
        every: list[Any] = [None] * together.num_processes
        torch.distributed.all_gather_object(every, seen)
    finally:
        if together.is_main_process:
            file.unlink(missing_ok=True)
    blind = [rank for rank, (there, _) in enumerate(every) if not there]
    if every[0][1] and blind:
        raise UserError(
            f"process {blind[0]} of {len(every)} does not see what process 0 writes into {file.parent}, expected a "
            "folder that all machines share: choose another --output"
        )
