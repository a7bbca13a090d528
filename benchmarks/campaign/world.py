"""A tiny model, data and small runs, made once: what the attempts copy and spoil."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from conftest import make_model, make_tokenizer
from support import SETTINGS, command, damage, save_adapter, train_words, whole, words, write_held_out, write_prompts

from srlm.run.files import SCRATCH

STORIES: dict[str, dict[str, Any]] = {
    "lora": {},
    "all weights": {"lora_rank": 0, "learning_rate": 2e-3},
    "set aside": {"held_out": None, "held_out_share": 0.4, "guard": True},
    "majority": {"reward": "0.5*majority+0.5*random", "checkpoint_steps": 3, "guard": True},
    "dpo": {"objective": "dpo", "reward": "mean_log_likelihood", "length_penalty": 0.1},
    "three rounds": {"rounds": 3, "epochs": 1, "kl_initial": 0.1},
}


@dataclass(frozen=True)
class Moment:
    """A run folder as a kill would leave it. scratch: what was being written, and may lie there by half."""

    folder: Path
    scratch: Path | None


@dataclass
class Story:
    """An uninterrupted run, and what a kill would have left before each change of its folder."""

    run: Path
    command: list[str]
    rounds: int
    moments: list[Moment] = field(default_factory=list)

    @cached_property
    def whole(self) -> dict[str, Any]:
        return whole(self.run, self.rounds)


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "tiny"
        make_model().save_pretrained(self.model)
        make_tokenizer().save_pretrained(self.model)
        self.prompts, self.held_out = write_prompts(folder), write_held_out(folder)
        self._stories: dict[str, Story] = {}

    def story(self, name: str = "lora") -> Story:
        if name not in self._stories:
            given = {"model": self.model, "prompts": self.prompts, "held_out": self.held_out} | STORIES[name]
            asked = train_words(**{key: value for key, value in given.items() if value is not None})
            home = self.folder / name.replace(" ", "-")
            made = Story(home / "run", asked, given.get("rounds", SETTINGS["rounds"]))
            with recorded(made.run, home) as made.moments:
                done(*asked, "--output", made.run)
            self._stories[name] = made
        return self._stories[name]

    @cached_property
    def unfinished(self) -> Path:
        """Of the first story: in the middle of the update of its last round."""
        story = self.story()
        middle = [m for m in story.moments if m.scratch is not None and "update.safetensors" in m.scratch.name][-1]
        run = Path(shutil.copytree(middle.folder, self.folder / "unfinished"))
        for leftover in [*run.rglob(f"{SCRATCH}-*"), *run.glob(".lock")]:
            leftover.unlink()
        return run

    @cached_property
    def diagnosis(self) -> Path:
        """Of the first story's run; with answers, so that every part of it is there."""
        folder = self.folder / "diagnosis"
        done("diagnose", "--run", self.story().run, *DIAGNOSE, "--output", folder)
        return folder

    @cached_property
    def adapter(self) -> Path:
        save_adapter(self.model, self.folder / "adapter")
        return self.folder / "adapter"

    @cached_property
    def config(self) -> str:
        """Every option of training, as `--print-config` writes them."""
        return done("train", *words(prompts=self.prompts), "--print-config")


DIAGNOSE = ("--samples", "3", "--search-budget", "24", "--dtype", "fp32")


def done(*asked: object) -> str:
    outcome = command(*asked)
    assert outcome.code == 0, outcome
    return outcome.out


# What a kill leaves

_recorder: Callable[[str, tuple[Any, ...]], None] | None = None
_CHANGES = ("os.mkdir", "os.remove", "os.rmdir", "os.rename")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if _recorder is None:
        return
    if event in _CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES):
        _recorder(event, arguments)


sys.addaudithook(_heard)  # which cannot be taken out again, so there is one


@contextmanager
def recorded(run: Path, folder: Path) -> Iterator[list[Moment]]:
    """Before this process changes a file or folder, keep the run as it lies there, if it differs from the last time."""
    global _recorder
    moments: list[Moment] = []
    last: Any = None
    listening = True

    def keep(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal last, listening
        if not listening or not run.exists():
            return
        listening = False
        about = {p: (s.st_mtime_ns, s.st_size, s.st_ino) for p in sorted(run.rglob("*")) if (s := p.lstat())}
        source = Path(os.fsdecode(arguments[0])) if event == "os.rename" else None
        scratch = source.relative_to(run) if source is not None and source.is_relative_to(run) else None
        if about != last or scratch is not None:
            moments.append(Moment(folder / f"moment-{len(moments):03d}", scratch))
            shutil.copytree(run, moments[-1].folder)
            last = about
        listening = True

    _recorder = keep
    try:
        yield moments
    finally:
        _recorder = None


def killed(moment: Moment, dice: Random, folder: Path) -> Path:
    """A copy of what the kill left; the file it fell into is whole, half-written or empty."""
    run = Path(shutil.copytree(moment.folder, folder))
    if moment.scratch is not None and (spoilt := dice.choice(["whole", "half", "empty"])) != "whole":
        damage(run / moment.scratch)
        if spoilt == "empty":
            for file in [run / moment.scratch, *(run / moment.scratch).rglob("*")]:
                if file.is_file():
                    os.truncate(file, 0)
    return run


def go_on(story: Story, run: Path) -> list[str]:
    """The words that go on with what lies in `run`: of a run without a manifest, those that began it."""
    if (run / "manifest.json").exists():
        return ["train", "--resume", str(run)]
    return [*story.command, "--output", str(run)]


def json_of(file: Path) -> Any:
    return json.loads(file.read_text())
