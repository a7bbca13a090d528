"""Settings of the guard: when a run ends, and what is damage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from srlm.errors import expect
from srlm.sizes import Sizes


@dataclass(frozen=True)
class GuardSettings(Sizes):
    """Guard"""

    guard: bool = True
    """Stop when a round did damage, and leave the best round in model/; off for controls."""
    until: Literal["rounds", "saturated"] = "rounds"
    """When is a healthy run over? After all its rounds, or once it is saturated; rounds is then the most."""
    patience: int = 1
    """Rounds in a row that must be damaged, or saturated, before the run ends."""
    guard_false_alarm: float = 0.02
    """Probability of an alarm in a round that did no damage, shared evenly by nine tests that need no labels; falls of
    self-consistency, and what needs labels, are told by 95 % intervals instead."""
    guard_kept_mass: float = 0.2
    """Alarm if the share of their probability that sampled responses keep in an update is surely below this."""
    guard_length: float = 1.25
    """Alarm if responses that end are this many times longer or shorter than in round 0, and surely so at all; longer
    ones are none while the token likelihood rank is surely above 1/2."""
    guard_truncation: float = 0.1
    """Alarm if the share of truncated responses surely rose by more than this since round 0."""
    guard_repetition: float = 0.05
    """Alarm if the share of repeated trigrams surely rose by more than this since round 0."""
    guard_same_response: float = 0.3
    """Alarm if the share of prompts with one and the same best response surely rose by more than this since round 0."""
    guard_consistency: float = 0.1
    """Alarm if held-out self-consistency fell from its best by more than this and their 95 % intervals part."""
    guard_accuracy_drop: float = 0.1
    """With labels: alarm if sampled accuracy fell from its best by more than this and their 95 % intervals part."""
    guard_auroc: float = 0.5
    """With labels: alarm if the self-reward's AUROC within prompts, by the upper end of its 95 % interval, is below."""
    guard_stable: float = 0.5
    """A run is stabilising (Stage I) while log10 of the estimated kappa is above this."""
    guard_saturated: float = 0.05
    """A run is saturated once the best response gains, and the J_0 gap changes, by less than this share of round 0's
    mode surprisal and J_0 gap."""

    def __post_init__(self) -> None:
        expect(self, "until", self.until in ("rounds", "saturated"), "rounds or saturated")
        expect(self, "patience", self.patience >= 1, "at least 1")
        expect(self, "guard_false_alarm", 0 < self.guard_false_alarm < 1, "above 0 and below 1")
        expect(self, "guard_kept_mass", 0 <= self.guard_kept_mass <= 1, "a share, 0 to 1 (0: no alarm)")
        expect(self, "guard_length", self.guard_length >= 1, "a factor of at least 1")
        for name in (name for name in vars(self) if name.startswith("guard_")):
            expect(self, name, not math.isnan(getattr(self, name)), "a number")
