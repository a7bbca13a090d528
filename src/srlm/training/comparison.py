"""`srlm train --compare`: several methods from one start, with the same prompts, sizes and seeds, and one table."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from scipy import stats

from srlm.config import SelfRewardConfig
from srlm.console import Display
from srlm.errors import UserError
from srlm.policies.transformer.processes import processes
from srlm.policies.transformer.update import Diverged
from srlm.prompts.select import PromptSet
from srlm.prompts.sources import prompts_of
from srlm.rewards.table import checks
from srlm.run.files import write_atomically
from srlm.run.folder import RunFolder
from srlm.run.manifest import read_manifest
from srlm.training.parts import unasked
from srlm.training.trainer import SelfRewardTrainer
from srlm.types import Record

FILE = "comparison.json"
CONTROL = "random"
LONGEST_NAME = 200  # bytes; file systems end at 255
OWN = (  # what an arm may set for itself: nothing that round 0, which all share, or the number of samples depends on
    *("reward", "answers", "beta", "step", "clip", "anchor", "objective", "pairs", "margin", "label_smoothing", "nll"),
    *("length_normalised", "ratio_clip", "consistency_band"),
    *("rubric", "judge_samples", "judge_tokens", "judge_temperature", "judge_opponents"),
    *("length_penalty", "length_window", "kl_initial", "truncated", "learning_rate", "gain_learning_rate", "epochs"),
)
COLUMNS = {  # record key -> heading
    "accuracy_sampled": "sampled",
    "accuracy_greedy": "greedy",
    "log10_kappa_upper_held_out": "log10 κ",
    "mode_fidelity": "fidelity",
    "mean_length": "length",
    "distinct_2": "distinct-2",
}


@dataclass(frozen=True)
class Spread:
    """Over seeds: mean and its 95 % interval (Student's t); no interval from one seed."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, None, None)
        half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Arm:
    """One method, by record key: start (round 0), end (after all rounds) and gain, end - start seed by seed.
    over_random: accuracy_sampled at the end less that of the control `random`, seed by seed; None without both, and for
        the control itself.
    seconds: of all stages of a run.
    diverged: number of runs that did, and count with their last good round."""

    name: str
    start: dict[str, Spread]
    end: dict[str, Spread]
    gain: dict[str, Spread]
    over_random: Spread | None
    seconds: Spread
    diverged: int


def compare(
    model: str,
    config: SelfRewardConfig,
    prompts: str | Path | PromptSet,
    held_out: str | Path | PromptSet | None,
    arms: Mapping[str, Mapping[str, Any]],
    *,
    seeds: int = 1,
    display: Display | None = None,
) -> list[Arm]:
    """Train each of `arms` for seeds config.seed, config.seed + 1, ...; the arms of a seed share the samples and scores
    of round 0. config.output gets a run folder per arm and seed, and comparison.json, the table of the last call; the
    same call again goes on with what is unfinished.

    arms: name -> settings of OWN in which the arm differs from config, {"majority": {"reward": "majority", "beta":
        0.05}}. The first arm whose reward is `random`, if any, is the control that the others are held against.

    Raises:
        UserError: an arm that cannot be trained, a setting that arms must share, no seeds, or a folder that holds
            something else; all of that before anything is written, but for what only the loaded model tells.
    """
    output, main = Path(config.output), processes().is_main_process
    display = display if main and display else Display(silent=not main)
    _check(config, arms, seeds)
    folders = {name: file_name(name) for name in arms}
    keep = any(checks(arm.get("reward", config.reward)) for arm in arms.values())
    train = prompts_of(prompts, config, keep_columns=keep)
    held = None if held_out is None else prompts_of(held_out, config, keep_columns=keep)
    earlier = _earlier(output)

    trainers: list[tuple[int, str, SelfRewardTrainer]] = []
    for seed in range(config.seed, config.seed + seeds):
        start = {name: output / f"{folder}-seed-{seed}" for name, folder in folders.items()}
        for name, path in start.items():
            begun = (path / "manifest.json").exists()
            try:
                # No guard: arms that end early would not have had equal compute, and controls are to do their damage.
                own = dataclasses.replace(config, **{**arms[name], "seed": seed, "output": str(path), "guard": False})
                seen = _seen(train, own), held and _seen(held, own)
                trainer = SelfRewardTrainer(
                    model, own, *seen, resume=begun, display=display, start=tuple(start.values())
                )
            except UserError as error:
                raise UserError(f"the arm {name!r}: {error}") from error
            trainers.append((seed, name, trainer))
    results: dict[str, list[list[Record]]] = {name: [] for name in arms}
    diverged: list[str] = []
    with _held(output, main):
        settings = {name: dict(own) for name, own in arms.items()}
        _keep(output, main, {"state": "running", "seeds": seeds, "settings": settings, "earlier": earlier})
        for seed, name, trainer in trainers:
            display.anew().say(f"\n{name}, seed {seed}")
            gc.collect()  # a policy hangs together in circles, and two of them may not fit
            try:
                results[name].append(trainer.train().records)
            except Diverged as error:
                if not trainer.run.records():  # round 0, which all arms share, could not be drawn
                    raise
                display.say(str(error))
                diverged.append(name)
                results[name].append(trainer.run.records())
        control = next(
            (results[name] for name, own in arms.items() if own.get("reward", config.reward) == CONTROL), None
        )
        made = [
            _arm(name, runs, None if runs is control else control, diverged.count(name))
            for name, runs in results.items()
        ]
        table = [dataclasses.asdict(arm) for arm in made]
        _keep(output, main, {"state": "finished", "seeds": seeds, "settings": settings, "arms": table})
    display.say("")
    display.console.print(_table(made))
    for arm in made:
        if arm.diverged:
            display.say(
                f"{arm.name} diverged in {arm.diverged} of {seeds} runs, which count with their last good round"
            )
    return made


def _seen(prompts: PromptSet, arm: SelfRewardConfig) -> PromptSet:
    """Columns are a part of what a run began with, where its reward looks at them, or where it did when it began."""
    file = Path(arm.output) / "manifest.json"
    kept = file.exists() and "prompts_columns" in read_manifest(file.parent).get("data", {})
    return prompts if kept or checks(arm.reward) else dataclasses.replace(prompts, columns=None)


def _check(config: SelfRewardConfig, arms: Mapping[str, Mapping[str, Any]], seeds: int) -> None:
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}, expected at least 1: correct it")
    if not arms:
        raise UserError("there is no arm to compare, expected at least one: name rewards")
    if config.until != "rounds" or config.push_to_hub:
        option = "--until saturated" if config.until != "rounds" else "--push-to-hub"
        raise UserError(f"{option} was given, expected arms of equal compute that stay here: leave it out")
    for name, changes in arms.items():
        if shared := [setting for setting in changes if setting not in OWN]:
            raise UserError(
                f"the arm {name!r} sets {shared[0]!r}, expected some of {', '.join(OWN)}: set it for all arms, or "
                "leave it out"
            )
    _refuse_unasked(config, arms)
    folders = [file_name(name) for name in arms]
    if len(set(folders)) < len(arms):
        raise UserError(f"--compare names arms that share a folder ({', '.join(folders)}): tell them apart")


def _refuse_unasked(config: SelfRewardConfig, arms: Mapping[str, Mapping[str, Any]]) -> None:
    """What one arm has a use for the others may leave alone, but for what they set themselves."""
    found = [unasked(dataclasses.replace(config, **changes)) for changes in arms.values()]
    for own, refused in zip(arms.values(), found, strict=True):
        for name, sentence in refused.items():
            if name in own or all(name in each for each in found):
                raise UserError(sentence)


@contextmanager
def _held(output: Path, main: bool) -> Iterator[None]:
    """One call at a time."""
    if not main:
        yield
        return
    folder = RunFolder(output, {})
    try:
        output.mkdir(parents=True, exist_ok=True)
        folder.hold()
    except OSError as error:
        raise UserError(f"output {output} cannot be written ({error.strerror}): choose another --output") from error
    try:
        yield
    finally:
        folder.release()


def _earlier(output: Path) -> dict[str, Any] | None:
    """The results of an earlier call in the same folder, if there is one."""
    if not (output / FILE).exists():
        if processes().is_main_process:
            RunFolder.refuse_used(output)
        return None
    try:
        kept = json.loads((output / FILE).read_text(encoding="utf-8"))
        results: dict[str, Any] | None = kept if kept["state"] == "finished" else kept.get("earlier")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{output / FILE} is not one that srlm wrote ({type(error).__name__}: {error}): choose another --output"
        ) from error
    return results


def _arm(name: str, runs: Sequence[list[Record]], control: Sequence[list[Record]] | None, diverged: int) -> Arm:
    start, end, gain, over_random = {}, {}, {}, None
    for key in COLUMNS:
        pairs = [(records[0].get(key), records[-1].get(key)) for records in runs]
        numbers = [(float(a), float(b)) for a, b in pairs if isinstance(a, int | float) and isinstance(b, int | float)]
        if len(numbers) == len(runs):
            start[key] = Spread.of([a for a, _ in numbers])
            end[key] = Spread.of([b for _, b in numbers])
            gain[key] = Spread.of([b - a for a, b in numbers])
    if control is not None and "accuracy_sampled" in end:
        ends = [[float(records[-1]["accuracy_sampled"] or 0) for records in some] for some in (runs, control)]
        over_random = Spread.of([own - other for own, other in zip(*ends, strict=True)])
    seconds = [sum(float(record["seconds"] or 0) for record in records) for records in runs]
    return Arm(name, start, end, gain, over_random, Spread.of(seconds), diverged)


def _table(arms: Sequence[Arm]) -> Table:
    """Intervals of differences only: more do not fit on a line."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    keys = [key for key in COLUMNS if any(key in arm.end for arm in arms)]
    labelled = "accuracy_sampled" in keys
    against = any(arm.over_random is not None for arm in arms)
    more = (["gain"] if labelled else []) + (["− random"] if against else [])
    for heading in ("arm", *(COLUMNS[key] for key in keys), *more, "seconds"):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for arm in arms:
        cells = [_cell(arm.end.get(key), with_interval=False) for key in keys]
        cells += [_cell(arm.gain.get("accuracy_sampled"), "+.3f")] if labelled else []
        cells += [_cell(arm.over_random, "+.3f")] if against else []
        table.add_row(arm.name, *cells, f"{arm.seconds.mean:.0f}")
    return table


def _cell(value: Spread | None, form: str = ".3f", with_interval: bool = True) -> str:
    if value is None:
        return "–"
    if not with_interval or value.low is None or value.high is None:
        return f"{value.mean:{form}}"
    return f"{value.mean:{form}} ± {(value.high - value.low) / 2:.3f}"


def file_name(arm: str) -> str:
    """The part of a run's folder that names its arm."""
    name = re.sub(r"[^\w.+*-]+", "_", arm).replace("*", "x")
    if len(name.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(arm.encode()).hexdigest()[:8]
        name = f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}-{digest}"
    return name


def _keep(output: Path, main: bool, content: dict[str, Any]) -> None:
    if main:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(output / FILE, lambda path: path.write_text(text, encoding="utf-8"))
