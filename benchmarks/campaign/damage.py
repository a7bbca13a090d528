"""Each file of a run in turn is damaged; what reads the run says so, or ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import safetensors
from pyarrow import parquet
from support import measured, tree, weights

from benchmarks.campaign.engine import REFUSED, RIGHT, Try, Wrong, expect, tried
from benchmarks.campaign.world import DIAGNOSE, World, json_of
from srlm.report.folders import read_folder


def flipped(file: Path, dice: Random, aside: Path) -> None:
    content = bytearray(file.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    file.write_bytes(content)


def cut(file: Path, dice: Random, aside: Path) -> None:
    os.truncate(file, dice.randrange(file.stat().st_size))


def emptied(file: Path, dice: Random, aside: Path) -> None:
    os.truncate(file, 0)


def deleted(file: Path, dice: Random, aside: Path) -> None:
    file.unlink()


def a_folder(file: Path, dice: Random, aside: Path) -> None:
    file.unlink()
    file.mkdir()


def a_link(file: Path, dice: Random, aside: Path) -> None:
    """To the file, which lies elsewhere now, or to nothing."""
    file.rename(aside)
    if dice.random() < 0.5:
        aside.unlink()
    file.symlink_to(aside)


DAMAGES: tuple[Callable[[Path, Random, Path], None], ...] = (flipped, cut, emptied, deleted, a_folder, a_link)


class Damages:
    """Of a finished and of an unfinished run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._wanted: dict[tuple[str, Path], Any] = {}

    def kinds(self) -> dict[str, Try]:
        runs = {"finished": lambda: self.world.story().run, "unfinished": lambda: self.world.unfinished}
        reads = {"resume": self._resumed, "report": self._reported, "diagnose": self._diagnosed}
        return {
            f"damage {state} {name}": self._attempt(run, name, read)
            for state, run in runs.items()
            for name, read in reads.items()
        }

    def _attempt(self, source: Callable[[], Path], name: str, read: Callable[[Path, Path], tuple[str, Any]]) -> Try:
        def attempt(dice: Random, folder: Path) -> str:
            original = source()
            if (name, original) not in self._wanted:
                home = self.world.folder / f"unharmed-{original.name}-{name}"
                unharmed = Path(shutil.copytree(original, home / "run"))
                end, self._wanted[name, original] = read(unharmed, home)
                assert end == RIGHT
            run = Path(shutil.copytree(original, folder / "run"))
            file = dice.choice(sorted(path for path in run.rglob("*") if path.is_file()))
            how = dice.choice(DAMAGES)
            how(file, dice, folder / "aside")
            inside = str(file.relative_to(run))
            try:
                end, found = read(run, folder)
                if end == REFUSED:
                    expect(file.name in found or str(file.parent) in found, f"not named: {found}")
                else:
                    _same(found, self._wanted[name, original], inside)
            except BaseException as error:
                error.args = (f"{name} with {inside} {how.__name__}: {error}",)
                raise
            return end

        return attempt

    # What reads a run: how it ended, and either what it said or what it found, by file

    def _resumed(self, run: Path, folder: Path) -> tuple[str, Any]:
        end, outcome = tried("train", "--resume", run)
        return (end, outcome.err) if end == REFUSED else (end, _content(run))

    def _reported(self, run: Path, folder: Path) -> tuple[str, Any]:
        end, outcome = tried("report", run, "--output", folder / "report.html")
        if end == REFUSED:
            return end, outcome.err
        read = read_folder(run)
        samples = [(s.part, s.round, s.prompt_index, s.response, s.log_prob, s.reward) for s in read.samples]
        return end, {"samples": samples, "records": [measured(record) for record in read.records]}

    def _diagnosed(self, run: Path, folder: Path) -> tuple[str, Any]:
        end, outcome = tried("diagnose", "--run", run, *DIAGNOSE, "--output", folder / "out")
        if end == REFUSED:
            return end, outcome.err
        found = json_of(folder / "out" / "diagnose.json")
        return end, {name: found[name] for name in found if name not in ("seconds", "model")}


def _content(run: Path) -> dict[str, Any]:
    """By file, what a run says and has learned: no clocks, no names of folders."""
    found: dict[str, Any] = {}
    for name in tree(run):
        file = run / name
        try:
            if file.suffix == ".safetensors":
                found[name] = weights(file)
            elif file.suffix == ".parquet":
                found[name] = parquet.read_table(file, partitioning=None).to_pydict()
            elif file.name == "records.jsonl":
                found[name] = [measured(json.loads(line)) for line in file.read_text().splitlines()]
            elif file.is_file() and file.name not in ("report.html", "stages.json", "README.md"):
                found[name] = file.read_bytes()
        except (ValueError, OSError, pa.ArrowException, safetensors.SafetensorError) as error:
            found[name] = error
    if not isinstance(said := json_of(run / "manifest.json"), dict):
        raise Wrong(f"a manifest that is {said!r}")
    return found | {"manifest.json": said}


def _same(found: dict[str, Any], wanted: dict[str, Any], damaged: str) -> None:
    """But for the damaged file, if it lies there as it was left. A report may leave samples and records out."""
    for part in wanted.keys() | found.keys():
        if part in ("samples", "records"):
            alien = [one for one in found[part] if not any(_covers(other, one) for other in wanted[part])]
            expect(not alien, f"{part} that the run never had, such as {str(alien[:1])[:300]}")
        elif part != damaged:
            expect(found.get(part) == wanted.get(part), f"{part} is other than it would have been")


def _covers(whole: Any, part: Any) -> bool:
    if isinstance(whole, dict):
        return bool(whole == part)
    return all(b is None or a == b for a, b in zip(whole, part, strict=True))
