"""Options: settings and what a command asks beside them, each declared once as a field of a dataclass; jsonargparse
reads them.

Precedence: defaults (of a run that is resumed: its own), then the `--config` file, then the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import typing
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import docstring_parser
import jsonargparse

from srlm.commands.config_file import read_config
from srlm.commands.values import DASHES, METAVARS, Option
from srlm.deprecated import old_option, sentence
from srlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Shared:
    """What several commands ask for that is no setting."""

    model: str = "smollm2"
    """Hub id, folder, .gguf file, a run or one of its rounds (run@2), or an alias: smollm2, gemma3-270m,
    qwen2.5-coder-1.5b."""
    prompts: str = ""
    """Prompts: .jsonl, .json, .csv, .tsv, .parquet, .txt, a saved dataset, a Hub id (name:config[split]), a benchmark
    (gsm8k, math, math500) or a task with a verifier of its own, say 'reasoning-gym:basic_arithmetic?size=500'."""
    quiet: bool = False
    """Plain lines instead of a live display."""


class Parser(jsonargparse.ArgumentParser):
    """Of one command: `command` and what it does. Whatever is wrong with the words it reads is one sentence.

    first: the options that help shows unless told to show `every` one; all if empty.
    """

    def __init__(self, command: str, does: str, usage: str, *, first: Sequence[str] = (), every: bool = False) -> None:
        more = f", or of all: srlm {command} --help-all" if first and not every else ""
        super().__init__(
            prog=f"srlm {command}",
            usage=f"srlm {command} {usage}",
            description=f"{does}\n\nOptions, the most used ones{more}." if more else does,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            print_config=None,
            allow_abbrev=False,
            add_help=False,
        )
        self._first, self._every = first, every
        self.options: dict[str, Option] = {}
        self._places: set[str] = set()
        self._headed: dict[str, Any] = {}
        self.add_argument("-h", "--help", action="help", help="Show this text and stop.")
        if first:
            self.add_argument("--help-all", action="help", help="Show all options and stop.")
        self.before("--config", "FILE", "YAML file of option: value lines; the command line wins.")

    def before(self, flag: str, metavar: str, text: str) -> None:
        """For help: an option that `taken` has read already."""
        self.add_argument(flag, metavar=metavar, default=argparse.SUPPRESS, help=text)

    def add(
        self, heading: str, source: type, names: Sequence[str] = (), *, aliases: Mapping[str, str] = {}, **defaults: Any
    ) -> None:
        """Options for the fields of a dataclass that it declares itself, or for `names` of them. defaults: instead of
        those of the dataclass; None stands for what a run was begun with."""
        hints = typing.get_type_hints(source)
        own = [f for f in dataclasses.fields(source) if f.name in source.__annotations__]
        texts: Mapping[str, str] = _Texts(source)
        for field in own:
            if names and field.name not in names:
                continue
            option = Option.of(field, hints[field.name])
            usual = field.default
            default = defaults.get(field.name, usual)
            if field.name in defaults and default is None:
                option = dataclasses.replace(option, optional=True)
            self.options[field.name] = option
            shown = self._every or not self._first or field.name in self._first
            text = _help(texts[field.name], default, usual) if shown else argparse.SUPPRESS
            flags = [option.flag, *([aliases[field.name]] if field.name in aliases else [])]
            group = self._group(heading)
            if option.kind is bool:
                group.add_argument(
                    *flags, action=argparse.BooleanOptionalAction, type=option.read, default=default, help=text
                )
                continue
            group.add_argument(
                *flags,
                type=option.read,
                nargs="*" if option.several else None,
                default=list(default) if isinstance(default, tuple) else default,
                metavar=METAVARS[option.kind],
                help=text,
            )

    def positional(self, name: str, text: str) -> None:
        option = self.options[name] = Option(name, str, (), several=True, number=None, optional=False, positional=True)
        self._places.add(name)
        self.add_argument(name, type=option.read, nargs="*", default=[], help=text)

    def parsed(
        self, words: Sequence[str], config: str | None = None, defaults: Mapping[str, Any] = {}
    ) -> dict[str, Any]:
        """
        Raises:
            UserError: an unknown option, a value of the wrong kind, or a file that cannot be read.
        """
        self.set_defaults({name: list(v) if isinstance(v, tuple) else v for name, v in defaults.items()})
        start = None if config is None else self._of_file(config)
        found = self.parse_args(self._plain(words), namespace=start)
        return {name: option.settled(found[name]) for name, option in self.options.items()}

    def written(self, chosen: Mapping[str, Any]) -> str:
        """What was parsed, as a YAML file that says the same."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}
        found: Any = jsonargparse.dict_to_namespace(values)
        text: str = self.dump(found, skip_unset=False)
        return text

    def _plain(self, words: Sequence[str]) -> list[str]:
        """Words as argparse does not misread them: --num_samples is --num-samples, --stop=a b is --stop a b."""
        read: list[str] = []
        inside: str | None = ""
        for word in words:
            flag, equals, value = word.partition("=")
            if re.match(r"--[A-Za-z]", word):
                inside = self._now(flag[2:].replace("-", "_"), words)
                if inside is None:
                    continue
                flag = inside
            elif inside is None:  # the value of what nothing heeds
                continue
            else:
                flag, equals, value = "", "", word
            if inside == "--stop":  # a shell hands \\n over as two characters
                value = _ESCAPE.sub(lambda found: _ESCAPES[found[1]], value)
            value = DASHES + value if value == "--" and equals else value
            if not flag:
                read.append(value)
            elif equals and flag in self._several() and not value.startswith("--"):
                read += [flag, value]
            else:
                read.append(flag + equals + value)
        return read

    def _now(self, name: str, given: Sequence[str]) -> str | None:
        """The flag of an option, by the name that it has now; None if nothing heeds it any more. Says so.

        Raises:
            UserError: it is given by both names.
        """
        old = old_option(name, self.options)
        if old is None:
            return _flag(name)
        if old.new is not None and {word.partition("=")[0] for word in given} & set(_spellings(old.new)):
            raise UserError(
                f"{_flag(old.new)} is given twice, once by its old name {_flag(name)}, expected once: leave one out"
            )
        said = sentence(name, old, _flag)
        warnings.warn(said, DeprecationWarning, stacklevel=2)
        print(f"srlm: note: {said}", file=sys.stderr)
        return None if old.new is None else _flag(old.new)

    def _several(self) -> set[str]:
        return {option.flag for option in self.options.values() if option.several}

    def _of_file(self, file: str) -> jsonargparse.Namespace:
        given: dict[str, Any] = {}
        read = read_config(Path(file))
        for key, value in read.items():
            name = str(key).replace("-", "_")
            if old_option(name, self.options) is not None:
                flag = self._now(name, [_flag(str(other)) for other in read])
                if flag is None:
                    continue
                name = flag[2:].replace("-", "_")
            if name not in self.options or name in self._places:
                raise UserError(f"config file {file} has an unknown option {key!r}: correct its name or remove it")
            if self.options[name].several and not isinstance(value, list | NoneType):
                value = [value]
            elif not self.options[name].several and isinstance(value, list) and len(value) == 1:
                value = value[0]
            given[name] = value
        start: jsonargparse.Namespace = self.parse_object(given)
        return start

    def error(self, message: str, ex: Exception | None = None) -> typing.NoReturn:
        cause: BaseException | None = ex
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise UserError(str(cause)) from ex
        hint = "--help-all" if self._first else "--help"
        raise UserError(f"{' '.join(message.split())} ({self.prog} {hint} lists the options)") from ex

    def _group(self, heading: str) -> Any:
        if heading not in self._headed:
            self._headed[heading] = self.add_argument_group(heading)
        return self._headed[heading]

    def _parse_optional(self, arg_string: str) -> Any:
        """Options are those that were added, to the letter; a word such as ---, -inf or -0.5 is a value."""
        if arg_string.partition("=")[0] in self._option_string_actions:
            return super()._parse_optional(arg_string)  # type: ignore[no-untyped-call]
        if re.match(r"--[A-Za-z]", arg_string):
            self.error(f"unrecognized arguments: {arg_string}")
        return None


def taken(words: Sequence[str], *names: str, flags: Sequence[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """Options that have to be known before the others are read, and the other words.

    Raises:
        UserError: one of them stands without its value, or twice.
    """
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in names:
        before.add_argument(*_spellings(name), action="append", default=[])
    for flag in flags:
        before.add_argument(*_spellings(flag), action="store_true")
    try:
        found, rest = before.parse_known_args(list(words))
    except argparse.ArgumentError as error:
        flag = str(error.argument_name).partition("/")[0]
        raise UserError(f"{flag} needs a value: give it one") from error
    values = {name: getattr(found, name.replace("-", "_")) for name in (*names, *flags)}
    for name in names:
        if len(values[name]) > 1:
            raise UserError(f"--{name} is given {len(values[name])} times, expected once: leave all but one out")
    return values | {name: values[name][0] if values[name] else None for name in names}, rest


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys((_flag(name), f"--{name.replace('-', '_')}")))


_ESCAPE = re.compile(r"\\([nt\\])")
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


class _Texts(dict[str, str]):
    """What the source says of each field, looked up when help is asked for."""

    def __init__(self, source: type) -> None:
        self._source = source

    def __missing__(self, name: str) -> str:
        for said in docstring_parser.parse_from_object(self._source).params:
            self[said.arg_name] = " ".join((said.description or "").split())
        return self[name]


def _help(text: str, default: Any, usual: Any) -> str:
    if default is None and usual not in (None, ()):
        text = f"{text} (default: the run's, or {usual})"
    elif default not in (None, "", ()) and not isinstance(default, bool):
        values = default if isinstance(default, tuple) else (default,)
        words = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        text = f"{text} (default: {words})"
    return text.replace("%", "%%")
