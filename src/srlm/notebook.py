"""A bar per stage in a notebook: one output that is written over, gone when the stage is over."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 0.2  # seconds between what is shown: a browser is slower than a stage


@contextmanager
def bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """Yields the function that reports (done, total)."""
    from IPython.display import HTML, display

    began = shown = time.monotonic()
    handle = display(HTML(_text(name, 0, 0, 0.0)), display_id=True)  # type: ignore[no-untyped-call,unused-ignore]

    def report(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if handle is not None and (now - shown >= EVERY or done == total):
            shown = now
            handle.update(HTML(_text(name, done, total, now - began)))  # type: ignore[no-untyped-call,unused-ignore]

    try:
        yield report
    finally:
        if handle is not None:
            handle.update(HTML(""))  # type: ignore[no-untyped-call,unused-ignore]


def _text(name: str, done: int, total: int, seconds: float) -> str:
    speed = f" · {done / seconds:.1f}/s" if done and seconds else ""
    left = f" · {(total - done) * seconds / done:.0f} s left" if done and total > done else ""
    amount = f"{done}/{total}" if total else "…"
    value = f' value="{done}" max="{total}"' if total else ""
    return f"<progress{value}></progress> {html.escape(name)} {amount}{speed}{left}"
