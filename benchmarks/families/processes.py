"""A process for every class: none that crashes, hangs or asks for too much memory ends the sweep."""

from __future__ import annotations

import logging
import multiprocessing
import resource
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.families.trial import trial

MEMORY = 12 << 30  # bytes that a class may have


def child(kind: str, folder: str, results: Connection) -> None:
    """Try a class, and send what was found stage by stage: what comes later may be its end."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    for stage, outcome in trial(kind, Path(folder)):
        if "refused" in outcome:
            outcome["refused"] = outcome["refused"].replace(f" {folder}/model", "").replace(f"{folder}/", "")
        results.send((stage, outcome))


def server() -> Any:
    """Forks children that have everything imported."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload([__name__])
    return made


def tried(kind: str, seconds: float, server: Any) -> dict[str, Any]:
    """What became of a class, whatever became of its process: stages with their outcomes, and how it ended if not by
    itself."""
    start = time.monotonic()
    record: dict[str, Any] = {"model_type": kind}
    receiving, sending = server.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        process = server.Process(target=child, args=(kind, folder, sending))
        process.start()
        sending.close()
        try:
            while receiving.poll(max(0.0, start + seconds - time.monotonic())):
                stage, outcome = receiving.recv()
                record[stage] = outcome
            record["ended"] = f"not done after {seconds:g} s"
        except EOFError:
            process.join()
            if process.exitcode:
                record["ended"] = f"its process ended with code {process.exitcode}"
        finally:
            process.kill()
            process.join()
    return record | {"seconds": round(time.monotonic() - start, 1)}
