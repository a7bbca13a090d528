"""Processes that know of each other: who is gone, and what it was doing.

A collective waits for ever for a process that was killed, and may be deaf to signals meanwhile. So a thread of each
process looks every second whether those of its machine are there; of other machines the main process alone is asked for
a sign of life, and asks the others. What they say to each other goes through the store of `torchrun`,
on the machine of the main process: where that does not answer any more, the main process is taken for gone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from accelerate import PartialState

from srlm.errors import UserError
from srlm.plain import one_line

EVERY = 1.0  # seconds between two looks
GRACE = 5.0  # that the main thread has to say it itself, and that it waits to hear who is gone
SILENCE = 120.0  # without a sign of life from another machine: longer than anything that holds the interpreter
BOOT = "/proc/sys/kernel/random/boot_id"  # another one whenever a machine starts
_begun = 0


class Told(BaseException):
    """To end, by whoever started the processes: mostly because one of them is gone."""


class Watch:
    """Of one process over the others. at: what this one does from now on."""

    def __init__(self, together: PartialState) -> None:
        global _begun
        _begun += 1  # as often in every process
        self._rank, self._world, self._run = together.process_index, together.num_processes, _begun
        self._stage = "beginning"
        self._lost: int | None = None
        self._found, self._over = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._signs: dict[int, tuple[str, float]] = {}
        self._heard: dict[str, str] = {}  # what was last asked for, by its key
        self._looks = 0
        self._deaf = False  # the store does not answer any more
        if self._world > 1 and "MASTER_ADDR" in os.environ:  # else MPI started them, and looks after them
            self._store: Any = cast(Any, torch.distributed).TCPStore(
                os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, False, timedelta(seconds=30)
            )
            self._say("who", json.dumps({"machine": _machine(), "pid": os.getpid(), "host": socket.gethostname()}))
            self._say("stage", self._stage)
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
            threading.Thread(target=self._listen, daemon=True).start()

    def at(self, stage: str) -> None:
        self._stage = stage
        if self._thread is not None and not self._over.is_set():
            self._say("stage", stage)

    def leave(self, why: str) -> None:
        """Say why this one ends before its work is done."""
        if self._thread is not None:
            self._say("end", why)
        self._over.set()  # not before: what is said may wait for a store that is gone

    def close(self) -> None:
        self._over.set()

    def lost(self) -> str | None:
        """Who is gone, in a sentence; waits a little to hear of it."""
        if self._thread is None:
            return None
        self._found.wait(GRACE)
        return self.sentence()

    def sentence(self) -> str | None:
        if self._lost is None:
            return None
        who = json.loads(self._ask("who", self._lost) or "{}")
        stage = self._ask("stage", self._lost) or "beginning"
        why = self._ask("end", self._lost)
        name = f"process {self._lost} of {self._world} (pid {who.get('pid', '?')} on {who.get('host', '?')})"
        gone = "or its launcher is gone" if self._deaf and self._lost == 0 else "is gone"
        ended = f"ended while {stage}: {why}" if why else f"{gone}, killed or crashed while {stage}"
        return f"{name} {ended}; everything finished so far is kept: go on with srlm train --resume DIR"

    def _key(self, name: str, rank: int) -> str:
        return f"srlm/{self._run}/{name}/{rank}"

    def _say(self, name: str, what: str, rank: int | None = None) -> None:
        try:
            if not self._deaf:
                self._store.set(self._key(name, self._rank if rank is None else rank), what)
        except (RuntimeError, OSError):  # whoever kept it is gone
            self._deaf = True

    def _ask(self, name: str, rank: int) -> str | None:
        key = self._key(name, rank)
        try:
            if not self._deaf and self._store.check([key]):
                self._heard[key] = str(self._store.get(key).decode())
        except (RuntimeError, OSError):
            self._deaf = True
        return self._heard.get(key)

    def _look(self) -> None:
        while not self._over.wait(EVERY):
            self._looks += 1
            self._say("sign", str(self._looks))
            said = self._ask("lost", 0)
            for name in ("who", "stage", "end"):  # when the store is gone, so are these
                self._ask(name, 0)
            others = said is not None and int(said) != self._rank  # it may be this one that was given up, by mistake
            gone = int(said or 0) if others else next(filter(self._gone, range(self._world)), None)
            if gone is None and self._deaf:
                gone = 0
            if gone is not None:
                self._end(gone)

    def _listen(self) -> None:
        """A store whose machine has lost its power does not say so: the look at it does not come back."""
        before, quiet = -1, 0
        while not self._over.wait(EVERY):  # counted, since this process may have been stopped meanwhile
            before, quiet = self._looks, quiet + 1 if before == self._looks else 0
            if quiet * EVERY > SILENCE:
                self._deaf = True
                self._end(0)

    def _end(self, gone: int) -> None:
        self._say("lost", str(gone), 0)
        self._lost = gone
        self._found.set()
        if not self._over.wait(GRACE):  # the main thread hears nothing
            print(f"srlm: {one_line(self.sentence() or '')}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(2)

    def _gone(self, other: int) -> bool:
        said = None if other == self._rank else self._ask("who", other)
        if said is None:
            return False
        who = json.loads(said)
        if who["machine"] == _machine():
            return not _runs(who["pid"])
        if 0 not in (other, self._rank):
            return False
        sign, now = self._ask("sign", other) or "", time.monotonic()
        before, since = self._signs.get(other, ("", now))
        if sign != before:
            since = now
        self._signs[other] = (sign, since)
        return now - since > SILENCE


def _machine() -> str:
    """The same for those who see each other's numbers. Hosts may share a name, and all have one first namespace."""
    found = [socket.gethostname()]
    with suppress(OSError):
        found.append(os.readlink("/proc/self/ns/pid"))
    with suppress(OSError):
        found.append(Path(BOOT).read_text().strip())
    return " ".join(found)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")  # dead, and not yet looked after
    except ProcessLookupError:
        return False
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@contextmanager
def watching(together: PartialState, hear: Callable[[Watch], Any] = lambda _: None) -> Iterator[Watch]:
    """Work that processes share.

    Raises:
        UserError: another one is gone; which, and what it was doing.
    """
    watch = Watch(together)
    hear(watch)
    if together.num_processes == 1:
        yield watch
        return

    ending = False

    def told(number: int, frame: FrameType | None) -> None:
        if not ending:  # a launcher tells all to end as soon as one is gone, mostly when that has been noticed already
            raise Told

    mine = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, told) if mine else None
    try:
        yield watch
        together.wait_for_everyone()
    except UserError as error:
        ending = True
        watch.leave(str(error))
        raise
    except (Told, RuntimeError) as error:
        ending = True
        sentence = watch.lost()
        if sentence is None:
            watch.leave("it was told to end" if isinstance(error, Told) else one_line(str(error))[:300])
            if not isinstance(error, Told):
                raise
            sentence = (
                f"process {together.process_index} of {together.num_processes} was told to end (SIGTERM): go on with "
                "srlm train --resume DIR; everything finished so far is kept"
            )
        raise UserError(sentence) from error
    except BaseException as error:
        ending = True
        watch.leave(one_line(f"{type(error).__name__} {error}")[:300])
        raise
    finally:
        watch.close()
        if mine:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
