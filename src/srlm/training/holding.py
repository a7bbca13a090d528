"""The run folder, begun or taken up, for one run alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from srlm.run.folder import RunFolder
from srlm.run.going_back import go_back
from srlm.run.ledger import Ledger, Processes
from srlm.training.tables import OWN_COLUMNS, is_lendable, looks_back


@contextmanager
def holding(
    run: RunFolder,
    ledger: Ledger,
    processes: Processes,
    *,
    resume: bool,
    from_round: int | None,
    start: Sequence[Path],
    say: Callable[[str], object],
) -> Iterator[None]:
    """One process begins the folder, or takes it up, goes back to `from_round` and looks whether all is whole; round 0
    comes from one of `start` where it can. The others wait.

    Raises:
        UserError: the folder is in use, or damaged.
    """
    try:
        if processes.is_main_process:
            if resume:
                run.take_up()
                if from_round is not None:
                    aside = go_back(run, from_round, looks_back)
                    say(f"back to round {from_round}: what came after is set aside in {aside}")
                run.verify()
                run.manifest.pop("guard", None)  # what was said at its end, if it had one, holds no longer
                run.save_manifest(state="running")
            else:
                run.begin(started=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
            ledger.borrow(start, is_lendable, OWN_COLUMNS)
        processes.wait_for_everyone()
        yield
    finally:
        run.release()
