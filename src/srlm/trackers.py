"""Trackers that a run reports to, through accelerate: the numbers of each round, and a few samples as a table."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srlm.errors import UserError
from srlm.plain import visible
from srlm.types import Record

PACKAGES = ("tensorboard", "wandb", "trackio", "mlflow")  # a tracker is called what its package is
PROJECT = "srlm"
COLUMNS = ("prompt", "response", "log_prob", "reward")
MOST_PROMPTS, MOST_RESPONSES, MOST_CHARACTERS = 8, 4, 400


def tracker_names(given: Sequence[str]) -> list[str]:
    """Names, also those joined by commas, once each.

    Raises:
        UserError: an unknown one, or one that is not installed.
    """
    names = [name.strip() for name in dict.fromkeys(",".join(given).split(",")) if name.strip()]
    for name in names:
        if name not in PACKAGES:
            raise UserError(f"--report-to names {name!r}, expected trackers out of {', '.join(PACKAGES)}: correct it")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the tracker {name} is not installed: pip install {name}, or leave it out of --report-to")
    return names


class Trackers:
    """Those that run. One that fails is left out from then on, with a note: no tracker ends a run.

    folder: for what they write. run: name of the run. say: takes the notes.
    """

    def __init__(self, names: Sequence[str], folder: Path, run: str, say: Callable[[str], None]) -> None:
        self._say = say
        self._running: dict[str, Any] = dict.fromkeys(names)
        self._set: list[str] = []  # in the environment, for this run alone
        if names:
            self._each(lambda name, _: self._start(name, folder.resolve(), run))

    def log(self, record: Record, samples: Mapping[str, Sequence[Any]]) -> None:
        """Report one round. samples: columns of a table of rollouts."""
        step = int(record["round"] or 0)
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float) and key != "round"}
        rows = _rows(samples)

        def send(name: str, tracker: Any) -> None:
            tracker.log(numbers, step=step)
            if name == "wandb":
                tracker.log_table("samples", list(COLUMNS), rows, step=step)
            elif name == "mlflow":  # it takes texts as files only
                import mlflow

                mlflow.log_text(_markdown(rows), f"samples/round-{step:03d}.md")
            else:
                tracker.log({"samples": _markdown(rows)}, step=step)

        self._each(send)

    def finish(self) -> None:
        self._each(lambda _, tracker: tracker.finish())
        while self._set:
            os.environ.pop(self._set.pop(), None)

    def _start(self, name: str, folder: Path, run: str) -> None:
        from accelerate import tracking

        folder.mkdir(exist_ok=True)
        if name == "tensorboard":
            tracker = tracking.TensorBoardTracker(name, folder)
        elif name == "wandb":
            tracker = tracking.WandBTracker(PROJECT, name=run, dir=str(folder))
        elif name == "trackio":
            os.environ.setdefault("TRACKIO_DIR", str(folder / name))  # read once a process: later runs share it
            tracker = tracking.TrackioTracker(PROJECT, name=run, resume="allow")
        else:
            if "MLFLOW_TRACKING_URI" not in os.environ:
                os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / name}.db"
                self._set.append("MLFLOW_TRACKING_URI")
            tracker = tracking.MLflowTracker(PROJECT, (folder / name).as_uri(), run_name=run)
        tracker.start()
        self._running[name] = tracker

    def _each(self, work: Callable[[str, Any], None]) -> None:
        for name, tracker in list(self._running.items()):
            try:
                work(name, tracker)
            except Exception as error:
                del self._running[name]
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                self._say(f"the tracker {name} failed and is told no more ({reason}); the run goes on")


def _rows(samples: Mapping[str, Sequence[Any]]) -> list[list[Any]]:
    """The first responses to the first prompts; a judge gives held-out ones no reward."""
    prompts = samples.get("prompt_index", ())  # numbers in the run's set, of which a round may have a part
    first = list(dict.fromkeys(prompts))[:MOST_PROMPTS]
    places = zip(prompts, samples.get("sample_index", ()), strict=True)
    chosen = [i for i, (p, k) in enumerate(places) if p in first and k < MOST_RESPONSES]
    return [[_shown(samples[name][i]) if name in samples else "–" for name in COLUMNS] for i in chosen]


def _shown(value: Any) -> float | str:
    if isinstance(value, int | float):
        return value
    if isinstance(value, list):
        value = " ".join(str(turn.get("content")) for turn in value)
    return visible(str(value)[:MOST_CHARACTERS])


def _markdown(rows: Sequence[Sequence[Any]]) -> str:
    """Every text as code on one line, so that nothing in it is Markdown or HTML."""

    def cell(value: float | str) -> str:
        if isinstance(value, str):
            return "`" + (" ".join(value.replace("`", "'").replace("|", "¦").split()) or " ") + "`"
        return f"{value:.4g}"

    lines = [COLUMNS, ["---"] * len(COLUMNS), *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
