"""What a run will cost, as numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from srlm.estimate.advice import Remedy
from srlm.estimate.memory import Memory
from srlm.estimate.rates import Rates
from srlm.estimate.stages import Stage, whole
from srlm.estimate.workload import Workload
from srlm.policies.transformer.shape import Shape

USABLE = 0.9  # of a device's memory: the rest is lost to fragments, and to what is not counted


@dataclass(frozen=True)
class Estimate:
    """first: stages of round 0. later: of every other round that is trained; last: of the one that is measured alone.
    room: bytes of a device, if they are known. assumed: what was taken for granted, a sentence each."""

    shape: Shape
    work: Workload
    rates: Rates | None
    device: str
    cpu: bool
    memory: Memory
    room: float | None
    remedies: list[Remedy]
    first: list[Stage]
    later: list[Stage]
    last: list[Stage]
    assumed: list[str]

    @property
    def fits(self) -> bool | None:
        return None if self.room is None else self.memory.peak.total <= USABLE * self.room

    @property
    def round_seconds(self) -> float | None:
        """Of a round that is trained; round 0 if there is no other."""
        return whole(self.first if self.work.rounds == 1 else self.later)

    @property
    def seconds(self) -> float | None:
        """Of the whole run, without loading and writing."""
        first, later, last = whole(self.first), whole(self.later), whole(self.last)
        if first is None or later is None or last is None:
            return None
        return first + (self.work.rounds - 1) * later + last

    def plain(self) -> dict[str, Any]:
        """For JSON."""

        def row(stage: Stage) -> dict[str, Any]:
            return asdict(stage) | {"tokens_per_second": stage.tokens_per_second}

        work = {name: value for name, value in vars(self.work).items() if name in _SAID}
        return {
            "model": asdict(self.shape),
            "work": work | {"prompts": len(self.work.prompts), "held_out": len(self.work.held_out)},
            "device": self.device,
            "rates": None if self.rates is None else {k: _finite(v) for k, v in asdict(self.rates).items()},
            "memory": {
                "peak": self.memory.peak.total,
                "at": self.memory.peak.name,
                "room": self.room,
                "fits": self.fits,
                "moments": {m.name: m.parts for m in self.memory.moments},
                "host": self.memory.host,
            },
            "remedies": [asdict(one) for one in self.remedies],
            "rounds": {
                "first": [row(s) for s in self.first],
                "later": [row(s) for s in self.later],
                "last": [row(s) for s in self.last],
            },
            "seconds": {"round": self.round_seconds, "run": self.seconds},
            "assumed": self.assumed,
        }


_SAID = ("samples", "held_samples", "longest", "expected", "votes", "epochs", "step", "budget", "rounds", "recompute",
         "built_in", "devices", "shard", "uncounted")  # fmt: skip


def _finite(value: Any) -> Any:
    """JSON has no infinity; None is what is counted elsewhere."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
