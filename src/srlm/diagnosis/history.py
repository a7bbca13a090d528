"""What a run knows of the rounds around a diagnosed one: how far the update before it went, and what came after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from srlm.config import SelfRewardConfig
from srlm.estimators.exponent import EffectiveExponent, effective_exponent
from srlm.objectives.settings import BETA
from srlm.objectives.sharpening import departure
from srlm.run.files import RECORDS, damaged
from srlm.run.tables import Table
from srlm.types import Record

# Nats under the best response: what lies below has no part in what a round leaves. Tried on answers of 12 tokens; of
# long ones few may lie so near each other.
NEAR = 8.0


@dataclass(frozen=True)
class History:
    """solved: betas of the updates from the diagnosed round on, where a run has solved them. update: the update that
    made it, as far as held-out samples tell; None for round 0. asked: what exponent an exact update of its beta has,
    None if not known. clip: B of the rewards, inf for none. after: records of the rounds that followed. unknown: why a
    run does not tell how far the update went."""

    solved: Sequence[float] = ()
    update: EffectiveExponent | None = None
    asked: float | None = None
    clip: float = math.inf
    after: Sequence[Record] = ()
    unknown: str | None = None


def history(run: Path, round: int, config: SelfRewardConfig, records: Sequence[Record]) -> History:
    """Nothing but what came after where updates do not sharpen as a forecast has it.

    Raises:
        UserError: a table of the run is damaged.
    """
    after = records[round + 1 :]
    if (other := departure(vars(config))) is not None:
        return History(after=after, unknown=other)
    betas = [record.get("beta") for record in records[: config.rounds]]
    every = [float(beta) if isinstance(beta, int | float) else math.inf for beta in betas]
    solved = [] if config.step is None else every[round:]
    before = config.beta or BETA if config.step is None else every[round - 1] if 0 < round <= len(every) else math.inf
    asked = 1 + 1 / before if round and math.isfinite(before) else None
    clip = config.clip if config.clip and config.step is None else math.inf
    if not round:
        return History(solved, clip=clip, after=after, unknown="no update came before round 0 (--round 1 tells more)")
    if not records:
        raise damaged(run / RECORDS, f"it is empty, though round {round} is there")
    update = unknown = None
    if not records[0].get("held_out_prompts"):
        unknown = "it held no prompts out"
    elif round >= len(records):
        unknown = f"round {round} has not been measured yet"
    elif (update := _update(run, round, clip)) is None:
        few = f"too few of its held-out samples of the round before lie within {NEAR:g} nats of a prompt's best to tell"
        unknown = f"{few} how far the update went"
    return History(solved, update, asked, clip, after, unknown)


def _update(run: Path, round: int, clip: float) -> EffectiveExponent | None:
    """From the held-out samples of the round before, scored again by this round's policy. Where that round is 0 the
    best responses of its policy are known better, from this round's samples.

    Raises:
        UserError: a table is damaged, or not there.
    """
    before, now = (Table(run / f"round-{t:03d}" / "held_out.parquet") for t in (round - 1, round))
    needed = ["prompt_index", "log_prob", "log_prob_next", "tokens"]
    rows, *values, tokens = before.read(needed).columns
    count = len(set(rows.to_pylist()))
    old, new = (_grid(value.to_pylist(), count) for value in values)
    seen: dict[tuple[int, ...], int] = {}
    same = np.array([seen.setdefault(tuple(ids), len(seen)) for ids in tokens.to_pylist()]).reshape(count, -1)
    best = old.max(-1)
    if round == 1:
        (initial,) = now.read(["log_prob_initial"]).columns
        best = np.maximum(best, _grid(initial.to_pylist(), count).max(-1))
    whole = np.isfinite(old).all(-1) & np.isfinite(new).all(-1) & ~np.isnan(best)
    return effective_exponent(old[whole], new[whole], NEAR, clip, best[whole], same[whole])


def _grid(values: list[float | None], count: int) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values]).reshape(count, -1)
