"""Records of a run -> go on, stop, or roll back: no run is to destroy a model quietly. No labels needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from srlm.guard.settings import GuardSettings
from srlm.guard.signals import alarms, figure, held_out, settled
from srlm.types import Record

Stage = Literal["stabilising", "learning", "saturated", "collapsing"]


@dataclass(frozen=True)
class Decision:
    """round: the best one so far (`best_round`). reason: in words, with the numbers."""

    action: Literal["continue", "stop", "roll back"]
    round: int
    stage: Stage
    reason: str


def decide(records: Sequence[Record], config: GuardSettings) -> Decision:
    """What to do after the last of `records`, one for each round 0..t; thresholds are the config's guard_*.

    collapsing: a signal of `alarms` is raised. After `patience` such rounds in a row, and in any case if the last round
        is one, the run goes back to its best.
    saturated: see `settled`. After `patience` such rounds in a row the run stops, if asked to by until="saturated".
    stabilising: Stage I of the theory, in which kappa still depends on the start: log10_kappa_upper is above
        guard_stable. learning: what comes after.
    """
    last = len(records) - 1
    best = best_round(records, config)
    found = alarms(records, config)
    recent = range(max(1, last + 1 - config.patience), last + 1)
    enough = len(recent) == config.patience
    if found:
        reason = "; ".join(found)
        again = enough and all(alarms(records[: t + 1], config) for t in recent)
        if config.guard and (again or last >= config.rounds):
            return Decision("roll back", best, "collapsing", reason)
        return Decision("continue", best, "collapsing", reason)
    if settled(records, config):
        stop = config.until == "saturated" and enough and all(settled(records[: t + 1], config) for t in recent)
        share = f"{config.guard_saturated:g} of round 0's mode surprisal and J_0 gap"
        reason = f"the best response gains, and the J_0 gap changes, by less than {share}"
        return Decision("stop" if stop else "continue", best, "saturated", reason)
    kappa = held_out(records[-1], "log10_kappa_upper")
    reason = "" if kappa is None else f"kappa is at most 10^{kappa:.2f}"
    stabilising = kappa is None or kappa > config.guard_stable
    return Decision("continue", best, "stabilising" if stabilising else "learning", reason)


def best_round(records: Sequence[Record], config: GuardSettings) -> int:
    """The last round without an alarm; where accuracy is measured, of those the one with the highest accuracy_sampled
    (the later of equals). Chosen on these held-out labels, that round's accuracy is then somewhat flattering."""
    healthy = [t for t in range(len(records)) if not alarms(records[: t + 1], config)]
    return max(healthy, key=lambda t: (figure(records[t], "accuracy_sampled") or 0.0, t))


def history(records: Sequence[Record], config: GuardSettings) -> list[dict[str, object]]:
    """What the guard had to say, round by round: [{round, action, reason}], an alarm that was let pass as "alarm"."""
    decisions = [decide(records[: t + 1], config) for t in range(len(records))]
    return [
        {"round": t, "action": "alarm" if d.action == "continue" else d.action, "reason": d.reason}
        for t, d in enumerate(decisions)
        if d.action != "continue" or d.stage == "collapsing"
    ]
