"""What a diagnosis says, and how it is kept."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from srlm import __version__
from srlm.errors import UserError
from srlm.estimators.calibration import Bin
from srlm.estimators.exponent import EffectiveExponent
from srlm.forecast import ForecastRow, TrainedRow
from srlm.run.files import check_new_file, write_atomically
from srlm.run.folder import RunFolder

Interval = tuple[float, float]
Proportion = tuple[float, float, float]  # estimate, low, high
TABLES = ("prompts", "samples")


@dataclass(frozen=True)
class SequenceLevel:
    """Exact search over token sequences; log-probs in nats. Intervals are certain up to the model's arithmetic.

    certified_share: of prompts whose mode and runner-up are exact; mode_certified_share: whose mode is.
    log_kappa: log of Eq. 5. log_kappa_best_of_k: what the best of the K samples would have said, an upper bound.
    min_confidence: min_x pi(y*|x). margin: min_x of the log-odds of mode against runner-up (Def. 5.2), None if it may
        be 0. below_half: share of prompts with pi(y*|x) <= 1/2, where greedy decoding is not sure to find the mode
        (Prop. 4.3). greedy_finds_mode: share of the prompts with a certified mode, None without any.
    empty_modes, truncated_modes: prompts whose mode is to end at once, or is cut at the maximal length.
    """

    num_prompts: int
    certified_share: float
    mode_certified_share: float
    log_kappa: Interval
    log_kappa_best_of_k: float
    min_confidence: Interval
    margin: Interval | None
    below_half: Interval
    greedy_finds_mode: float | None
    empty_modes: int
    truncated_modes: int
    mean_prefixes: float


@dataclass(frozen=True)
class AnswerLevel:
    """The distribution over answers, sum of pi over the responses that give one.

    kappa: E_x[1/max_c q(c|x)], 95 % over all prompts together (Bonferroni), from counts and from what the search knows;
    kappa_of_counts puts n/K for the modal share: biased down. agreement: E_x of the share of pairs of samples that
    agree. no_answer: share of samples without one. failed: samples and searched responses on which a user's function
    raised, first_failure: one of them in words.
    """

    classes: str
    kappa: Interval
    kappa_of_counts: float
    agreement: float
    no_answer: float
    failed: int
    first_failure: str | None


@dataclass(frozen=True)
class SampleLevel:
    """K samples a prompt at temperature 1. entropy: mean next-token entropy in nats; lengths in tokens."""

    num_samples: int
    entropy: float
    mean_length: float
    truncation_rate: float
    distinct_1: float
    distinct_2: float


@dataclass(frozen=True)
class Calibration:
    """Does a self-reward tell right from wrong? auroc over all samples with its interval; auroc_within averages over
    the prompts that have both kinds. reliability: bins of rising reward. ece: for exp(reward) as a probability."""

    auroc: Proportion
    auroc_within: float
    prompts_within: int
    ece: float | None
    reliability: list[Bin]


@dataclass(frozen=True)
class LabelLevel:
    """Right or wrong, with 95 % intervals over prompts. mode: prompts whose mode (or, uncertified, best response
    known) is right; sharpening makes the others worse. mode_wrong: their share, certain at both ends; of modes that
    tie, the share that is wrong."""

    sampled: Proportion
    greedy: Proportion
    majority: Proportion
    best_of_k: Proportion
    mode: Proportion
    mode_wrong: Interval
    calibration: dict[str, Calibration]


@dataclass(frozen=True)
class Trained:
    """What more rounds of a run would give if they went like the update before. asked: the exponent of an exact one.
    rows: T = 1, 2, ... more rounds. measured: sampled accuracy after each of them with its 95 % interval, None where
    the run has not come so far, or measured itself on other prompts or otherwise."""

    update: EffectiveExponent
    asked: float | None
    rows: list[TrainedRow]
    measured: list[Proportion | None]


@dataclass(frozen=True)
class Forecast:
    """rows: the grid, and the betas that a run has solved. limit: as T grows, of so many rounds that modes alone are
    left. saturates: for each beta the first T of the grid at which accuracy (without labels, mode mass) is within 0.01
    of its limit, None if none is, or where no point is forecast since a mode is not certified.
    trained: rounds as a run trains them, None where no update is known; untold: why, where a run was asked."""

    clip: float
    rows: list[ForecastRow]
    limit: ForecastRow
    saturates: dict[str, int | None]
    trained: Trained | None = None
    untold: str | None = None


@dataclass(frozen=True)
class Verdict:
    """kind: worth it, saturated, hopeless or undecided. reason: the numbers behind it."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything `diagnose` measured. prompts, samples: columns of the tables it keeps, a row a prompt, a row a sample.

    broken: prompts left out since the model's log-probs for them are not numbers. distinct: different prompts, those
        that were left out among them; intervals take copies for different ones.
    """

    model: str
    source: str
    settings: dict[str, Any]
    verdict: Verdict
    sequence: SequenceLevel
    answers: AnswerLevel
    sampling: SampleLevel
    labels: LabelLevel | None
    forecast: Forecast
    broken: int
    distinct: int
    seconds: dict[str, float]
    prompts: dict[str, list[Any]]
    samples: dict[str, list[Any]]

    def summary(self) -> dict[str, Any]:
        """What diagnose.json holds: all but the tables; numbers that are not finite become null."""
        own = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in TABLES}
        return {"srlm": __version__} | own

    def save(self, folder: Path) -> None:
        """diagnose.json, prompts.parquet and samples.parquet, in a new or empty folder."""
        new_folder(folder)
        for name in TABLES:
            table = pa.table(getattr(self, name))
            write_atomically(folder / f"{name}.parquet", partial(parquet.write_table, table, write_page_checksum=True))
        text = json.dumps(self.summary(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(folder / "diagnose.json", lambda path: path.write_text(text, encoding="utf-8"))


def new_folder(folder: Path) -> None:
    """
    Raises:
        UserError: something is in it already, or it cannot be written.
    """
    RunFolder.refuse_used(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output {folder} cannot be written ({error.strerror}): choose another --output") from error
    check_new_file(folder / "diagnose.json")


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
