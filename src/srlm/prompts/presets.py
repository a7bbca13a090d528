"""Benchmarks by name: which columns they have, how their answers are read, and what is asked for beside a question."""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from srlm import tasks

# name, configuration behind a colon, split in brackets: openai/gsm8k:main[train]
_SOURCE = re.compile(r"(?P<name>[^\[\]:]+)(?::(?P<config>[\w.-]+))?(?:\[(?P<split>.+)\])?")


@dataclass(frozen=True)
class Preset:
    """dataset: on the Hub, or a folder of that name. answers: answer classes, and the match rule unless it says
    otherwise. instruction: stands on a line of its own behind every question."""

    dataset: str
    config: str | None
    split: str
    prompt_column: str
    answer_column: str
    answers: str
    instruction: str


# The instructions are verl's (examples/data_preprocess/gsm8k.py and math_dataset.py).
_BOXED = "Let's think step by step and output the final answer within \\boxed{}."
PRESETS = {
    "gsm8k": Preset(
        *("openai/gsm8k", "main", "train", "question", "answer", "number"),
        'Let\'s think step by step and output the final answer after "####".',
    ),
    "math": Preset(
        *("DigitalLearningGmbH/MATH-lighteval", None, "train", "problem", "solution", "math"),
        _BOXED,
    ),
    "math500": Preset("HuggingFaceH4/MATH-500", None, "test", "problem", "answer", "math", _BOXED),
}


@dataclass(frozen=True)
class Source:
    """A source taken apart."""

    name: str
    config: str | None = None
    split: str | None = None
    preset: Preset | None = None

    @classmethod
    def of(cls, source: str) -> Source:
        """A file or folder that is there is nothing else, whatever it is called."""
        found = _SOURCE.fullmatch(source)
        if tasks.is_task(source) or os.path.exists(os.path.expanduser(source)) or found is None:
            return cls(source, preset=_by_dataset(source))
        preset = PRESETS.get(found["name"]) or _by_dataset(found["name"])
        return cls(preset.dataset if preset else found["name"], found["config"], found["split"], preset)


def _by_dataset(name: str) -> Preset | None:
    return next((preset for preset in PRESETS.values() if preset.dataset == name), None)


Settings = TypeVar("Settings", bound=Any)


def settled(settings: Settings, prompts: str, held_out: str | None, begun: dict[str, Any] | None = None) -> Settings:
    """Settings with `answers` and `match`, where they are auto, as the sources want it: a task's own parser, a
    benchmark's, else `normalised` and `auto`. begun: what a run began with, which stands where that was as given."""
    where: dict[str, Callable[[], str]] = {
        "answers": lambda: _answers(prompts) or (held_out and _answers(held_out)) or "normalised",
        "match": lambda: _match(held_out or prompts),
    }
    found = {name: find() for name, find in where.items() if getattr(settings, name) == "auto"}
    if begun is not None:
        found |= {name: begun[name] for name in found if begun.get(name) == "auto"}
    changed: Settings = replace(settings, **found)
    return changed


def parsers(source: str) -> tuple[str | None, str | None]:
    """Answer classes and match rule that a source wants by itself, if it does."""
    if tasks.is_task(source):
        return tasks.answer_classes(source), "auto"
    preset = Source.of(source).preset
    return (preset.answers, preset.answers) if preset else (None, None)


def _answers(source: str) -> str | None:
    return parsers(source)[0]


def _match(source: str) -> str:
    preset = Source.of(source).preset
    return preset.answers if preset else "auto"
