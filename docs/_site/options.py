"""Every option of every command as a page, from the parsers that read them: nothing is written twice."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections.abc import Iterator

from srlm.cli import COMMANDS
from srlm.commands.options import Parser

__all__ = ["COMMANDS", "page", "parser_of"]

INTRODUCTION = """# srlm {command}

{does}

```
{usage}
```

The same names, with `-` or `_`, stand in a YAML file for `--config`; the command line wins over the file. This page is
made from the settings themselves.
"""


def parser_of(command: str) -> Parser:
    """With all options, as `--help-all` shows them."""
    module = importlib.import_module(f"srlm.commands.{command}")
    brief = inspect.signature(module.parser).parameters  # is there a help that leaves options out?
    made: Parser = module.parser(["--help-all"]) if brief else module.parser()
    return made


def page(command: str) -> str:
    """Markdown of one command: a table for each group of its help."""
    parser = parser_of(command)
    does = str(parser.description).partition("\n\n")[0]
    text = INTRODUCTION.format(command=command, does=does, usage=" ".join(str(parser.usage).split()))
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        if actions:
            heading = {"options": "Before all others", "positional arguments": "Given by place"}
            name = heading.get(str(group.title), str(group.title))
            text += (
                f"\n## {name}\n\n<div class='options' markdown>\n\n| option | default | what it is |\n|---|---|---|\n"
            )
            text += "".join(map(_row, actions)) + "\n</div>\n"
    return text


def _row(action: argparse.Action) -> str:
    flags = [flag for flag in action.option_strings if not flag.startswith("--no-")] or [action.dest]
    value = str(action.metavar or "") if action.nargs != 0 else ""
    value = "" if isinstance(action, argparse.BooleanOptionalAction) or not action.option_strings else value
    several = " …" if action.nargs == "*" and value else ""
    said, default = _split(" ".join(str(action.help or "").split()).replace("%%", "%"))
    if isinstance(action, argparse.BooleanOptionalAction):
        default = "yes" if action.default else "no"
    names = ", ".join(f"`{flag}{f' {value}' if value else ''}{several}`" for flag in flags)
    return f'| <span id="{action.dest}"></span>{names} | {_cell(default)} | {_cell(said)} |\n'


def _split(text: str) -> tuple[str, str]:
    """What help says, and the default that it ends with."""
    found = re.fullmatch(r"(.*?) \(default: (.*)\)", text)
    return (found[1], f"`{found[2]}`") if found else (text, "")


def _cell(text: str) -> str:
    """Markdown that shows `text` as it stands, in a cell of a table."""
    return "".join(_plain(part) for part in re.split(r"(`[^`]*`)", text))


def _plain(part: str) -> str:
    part = part.replace("|", "&#124;")
    return part if part.startswith("`") else re.sub(r"([<*_\[\]])", r"\\\1", part)


def pages() -> Iterator[tuple[str, str]]:
    """(command, Markdown)"""
    for command in COMMANDS:
        yield command, page(command)
