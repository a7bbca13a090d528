"""Kill -9 before every change of a run's folder, then go on: the end is that of a run that was left alone."""

from __future__ import annotations

from pathlib import Path
from random import Random

from support import command, whole

from benchmarks.campaign.engine import RIGHT, Try, Wrong, expect
from benchmarks.campaign.world import STORIES, Story, World, go_on, killed, recorded

TWICE = 0.25  # of the kills: what goes on is killed too


def kinds(world: World) -> dict[str, Try]:
    return {f"kill {name}": _kill(world, name) for name in STORIES}


def _kill(world: World, name: str) -> Try:
    def attempt(dice: Random, folder: Path) -> str:
        story = world.story(name)
        run = killed(dice.choice(story.moments), dice, folder / "run")
        if dice.random() < TWICE:
            with recorded(run, folder) as moments:
                _gone_on(story, run)
            if moments:
                run = killed(dice.choice(moments), dice, folder / "again")
        _gone_on(story, run)
        _compare(whole(run, story.rounds), story)
        return RIGHT

    return attempt


def _gone_on(story: Story, run: Path) -> None:
    outcome = command(*go_on(story, run))
    expect(outcome.code == 0, f"{outcome}")


def _compare(found: dict[str, object], story: Story) -> None:
    for part, wanted in story.whole.items():
        if found[part] != wanted:
            detail = f": {found[part]} for {wanted}" if part in ("files", "state") else ""
            raise Wrong(f"{part} differs from the run that was not killed{detail}")
