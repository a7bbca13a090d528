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
    guard_mode_fidelity: float = 0.75
    """Alarm if mode fidelity, by the upper end of its 95 % interval, is below this."""
    guard_displacement: float = -1.0
    """Alarm if each group's best response gained less than this on average, in nats."""
    guard_leak: float = -2.0
    """Alarm if the log of the mass that the samples keep is below this, in nats."""
    guard_accuracy_drop: float = 0.1
    """With labels: alarm if sampled accuracy fell from its best by more than this and their 95 % intervals part."""
    guard_auroc: float = 0.5
    """With labels: alarm if the self-reward's AUROC within prompts, by the upper end of its 95 % interval, is below."""
    guard_consistency: float = 0.1
    """Alarm if held-out self-consistency fell from its best by more than this and their 95 % intervals part."""
    guard_kappa: float = 1.0
    """Alarm if the held-out mode surprisal (log kappa as an average over prompts) rose and is above the forecast of the
    exact update by more than this, in nats."""
    guard_entropy: float = 1.5
    """Alarm if entropy is above this many times that of round 0."""
    guard_length: float = 4.0
    """Alarm if responses that end are this many times longer or shorter than in round 0."""
    guard_truncation: float = 0.3
    """Alarm if the share of truncated responses rose by more than this since round 0."""
    guard_repetition: float = 0.3
    """Alarm if the share of repeated n-grams rose by more than this since round 0."""
    guard_same_response: float = 0.5
    """Alarm if the share of prompts with one and the same best response rose by more than this since round 0."""
    guard_kendall: float = 0.4
    """Alarm if Kendall's tau of the samples' order before and after an update is below this."""
    guard_log_ratio: float = 16.0
    """Alarm if a log-ratio exceeds this many nats per token of max_new_tokens."""
    guard_distinct_2: float = 0.0
    """Alarm if distinct-2 is below this share of round 0's over K. Off: a task with few answers has few bigrams."""
    guard_stable: float = 0.5
    """A run is stabilising (Stage I) while log10 of the estimated kappa is above this."""
    guard_saturated: float = 0.3
    """A run is saturated once the best response gains, and the J_0 gap changes, by less than this, in nats."""

    def __post_init__(self) -> None:
        expect(self, "until", self.until in ("rounds", "saturated"), "rounds or saturated")
        expect(self, "patience", self.patience >= 1, "at least 1")
        for name in (name for name in vars(self) if name.startswith("guard_")):
            expect(self, name, not math.isnan(getattr(self, name)), "a number")
