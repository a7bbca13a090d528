"""Docstrings of srlm as Markdown: each `name: what it is` is an item of a list, and brackets are brackets."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ENTRY = re.compile(r"[a-z_][\w.]*(?:,? (?:and )?[a-z_][\w.]*(?=[,:]| and ))*: ")
_SECTIONS = ("Args:", "Raises:", "Returns:", "Yields:")


class Readable(griffe.Extension):
    """As mkdocs.yml names it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None and not getattr(obj.docstring, "readable", False):
            obj.docstring.value = readable(obj.docstring.value)
            obj.docstring.readable = True  # type: ignore[attr-defined]  # an alias leads here once more


def readable(text: str) -> str:
    """Sections that griffe knows, and blocks of code, stay as they are."""
    lines: list[str] = []
    inside = listed = False
    for line in text.splitlines():
        if line.strip() in _SECTIONS:
            inside = True
        elif line and not line.startswith(" "):
            inside = False
        if inside:
            lines.append(line)
            continue
        if entry := _ENTRY.match(line):
            if not listed:
                lines.append("")
            name, said = line[: entry.end() - 2], line[entry.end() :]
            lines.append(f"- **{_plain(name)}**: {_plain(said)}")
            listed = True
        elif listed and line.startswith("    "):
            lines.append(f"  {_plain(line.strip())}")  # its item goes on
        else:
            listed = listed and line.strip() != ""
            lines.append(line if line.startswith("    ") else _plain(line))
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Outside code, a bracket begins no link and a star no emphasis."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\[\]*])", r"\\\1", part) for part in parts)
