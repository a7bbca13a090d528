"""Where in a text its answer stands: behind "####", in a box, or behind "the answer is"."""

from __future__ import annotations

import re
from collections import deque

from srlm.answers.number import only_number

_HOPED = "".join(
    rf"(?<!\b{word} )" for word in ("this", *(f"{a} {b}" for a in ("if", "hope", "whether") for b in ("the", "my")))
)
_MARKER = re.compile(
    rf"{_HOPED}\banswer\*{{0,2}}(?:\s{{1,3}}is\b|\s{{0,3}}[:=])[\s:=*]{{0,9}}"
    r"(?:(?:\\\[|\$\$|```\w{0,9})\s{0,3}\n\s{0,9})?",  # a formula or a block on lines of its own
    re.IGNORECASE,
)
_HEADING = re.compile(r"[*_ ]*[^\W\d_]{2}")
_BOX = re.compile(r"\\f?box(?:ed)?\s{0,3}\{")
_END = re.compile(r"\n|(?<=[.!?])(?<!\d\.)\s|(?<=\d)\.(?=\s|$)")


def final(text: str) -> str:
    """What a benchmark's solution ends with behind "####", else the content of the last \\boxed{}, else the sentence
    behind the last "answer is" or "answer:"; the whole text where there is none of these. A "####"
    that begins with a word and is not the last line is a heading; what else stands behind one counts last."""
    line, _, more = text.rpartition("####")[2].strip().partition("\n") if "####" in text else ("", "", "")
    if line and (not more or only_number(line) is not None):
        return line
    if (box := boxed(text)) is not None:
        return box
    last = deque(_MARKER.finditer(text), maxlen=1)
    sentence = _END.split(text[last[0].end() :], maxsplit=1)[0].strip() if last else ""
    return sentence or (line if line and not _HEADING.match(line) else text)


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
