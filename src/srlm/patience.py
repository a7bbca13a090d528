"""Somebody else's code, waited for so long and no longer."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class GaveUp(TimeoutError):
    """Raised again until somebody hears it: in a destructor Python drops what is raised."""


AGAIN = 0.05  # seconds


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """
    Raises:
        GaveUp: what is done inside took longer. Only in the main thread can it be interrupted.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> None:
        raise GaveUp(f"it took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
