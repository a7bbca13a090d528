"""Several processes as `torchrun` starts them, but from a server that has imported everything once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from support import _SERVER, die_after, run_and_die

from srlm.cli import main

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",  # what `accelerate config` proposes
}


@dataclass(frozen=True)
class Rank:
    code: int  # negative for a signal
    out: str
    err: str


def together(
    folder: Path,
    world: int,
    words: list[str] | list[list[str]],
    env: dict[str, str] | None = None,
    killed: tuple[int, int] | None = None,
    timeout: float = 90,
    prepare: Callable[[], None] | None = None,
) -> list[Rank]:
    """`srlm WORDS` in `world` processes. words: of all, or of each. killed: (rank, files): kill -9 in the middle of the
    write behind that many files. prepare: is called in each before."""
    folder.mkdir(parents=True, exist_ok=True)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # of torchrun
    shared = {
        **(env or {}),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    started = []
    for rank in range(world):
        own = words[rank] if isinstance(words[0], list) else words
        files = killed[1] if killed is not None and killed[0] == rank else None
        one = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = _SERVER.Process(
            target=_rank, args=([str(w) for w in own], one, str(folder / str(rank)), files, prepare)
        )
        process.start()
        started.append(process)
    for process in started:
        process.join(timeout)
    hanging = [rank for rank, process in enumerate(started) if process.is_alive()]
    for process in started:
        process.kill()
    said = [[(folder / f"{rank}.{end}").read_text() for end in ("out", "err")] for rank in range(world)]
    assert not hanging, f"processes {hanging} hang:\n{said}"
    return [Rank(process.exitcode or 0, *texts) for process, texts in zip(started, said, strict=True)]


def even_steps(eps: float = 1e-4) -> None:
    """AdamW's epsilon far above what rounding makes of a gradient: then a step moves by little more than its gradient
    does. With 1e-8 a gradient of 1e-9, which is rounding alone, makes a step as large as any."""
    torch.optim.AdamW = partial(torch.optim.AdamW, eps=eps)  # type: ignore[assignment,misc]


def small_buckets() -> None:
    """Gradients of this model travel in several of them, most while the last backward pass goes on."""
    from srlm.policies.transformer import sums

    sums.BUCKET = 200


def die_with_even_steps(folder: Path, words: list[str], files: int) -> None:
    """`run_and_die` of one process."""
    even_steps()
    run_and_die(folder, words, files)


def _rank(
    words: list[str], env: dict[str, str], said: str, files: int | None, prepare: Callable[[], None] | None
) -> None:
    for number, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(env)
    if prepare is not None:
        prepare()
    torch.set_num_threads(1)
    if files is not None:
        die_after(files)
    try:
        main(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
