"""Where in a text its answer stands: behind "####", in a box, or behind "the answer is"."""

from __future__ import annotations

import re
from collections import deque

_MARKER = re.compile(r"\banswer(?:\s{1,3}is\b|\s{0,3}[:=])[\s:=*]{0,9}", re.IGNORECASE)
_BOX = re.compile(r"\\f?box(?:ed)?\s{0,3}\{")
_END = re.compile(r"\n|(?<=[.!?])(?<!\d\.)\s|(?<=\d)\.(?=\s|$)")


def final(text: str) -> str:
    """What a benchmark's solution ends with behind "####", else the content of the last \\boxed{}, else the sentence
    behind the last "answer is" or "answer:"; the whole text where there is none of these."""
    _, hashes, after = text.rpartition("####")
    if hashes and after.strip():
        return after.strip().split("\n")[0]
    if (box := boxed(text)) is not None:
        return box
    last = deque(_MARKER.finditer(text), maxlen=1)
    sentence = _END.split(text[last[0].end() :], maxsplit=1)[0].strip() if last else ""
    return sentence or text


def boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} or \\fbox{...} that is closed, with the braces in it balanced."""
    found = boxes(text)
    return text[slice(*found[-1])].strip() if found else None


def boxes(text: str) -> list[tuple[int, int]]:
    """Where the contents of all boxes that are closed begin and end."""
    opens = [found.end() - 1 for found in _BOX.finditer(text)]
    if not opens:
        return []
    closed: dict[int, int] = {}
    opened: list[int] = []
    for at, sign in enumerate(text):
        if sign == "{":
            opened.append(at)
        elif sign == "}" and opened:
            closed[opened.pop()] = at
    return [(at + 1, closed[at]) for at in opens if at in closed]
