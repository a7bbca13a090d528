"""Settings of prompts that the model writes."""

from __future__ import annotations

from dataclasses import dataclass

from srlm.errors import expect

ATTEMPTS = 10  # prompts that are written for each that is asked for, at most
AT_ONCE, AT_LEAST = 64, 8  # that are written before some are dropped


def at_once(wanted: int) -> int:
    """How many are written where so many are wanted yet."""
    return min(AT_ONCE, max(AT_LEAST, wanted))


@dataclass(frozen=True)
class WritingSettings:
    """Prompts that the model writes"""

    written_prompts: int = 0
    """New prompts that each round's policy writes, from examples among those given, to be trained on beside them
    (--prompts-per-round 0 leaves those out)."""
    written_examples: int = 8
    """Examples from which one prompt is written, drawn anew for each."""
    written_near: float = 0.7
    """A written prompt is dropped if its share of five-character pieces in common with an example, a held-out prompt or
    another written one (Jaccard) is this large."""
    written_length: tuple[int, int] | None = None
    """Fewest and most characters of a written prompt; half of the shortest and twice the longest example unless
    given."""
    written_tokens: int = 128
    """Longest prompt that is written; what is not over by then is dropped."""
    written_temperature: float = 0.8
    """Of writing prompts."""
    written_top_p: float = 0.95
    """Of writing prompts: draw from the smallest set of tokens that holds this share."""

    def __post_init__(self) -> None:
        expect(self, "written_prompts", self.written_prompts >= 0, "0 or more")
        expect(self, "written_examples", self.written_examples >= 1, "at least 1")
        expect(self, "written_near", 0 < self.written_near <= 1, "above 0 and at most 1")
        if self.written_length is not None:
            low, high = self.written_length
            expect(self, "written_length", 1 <= low <= high, "two numbers of characters of 1 or more, the lower first")
        expect(self, "written_tokens", self.written_tokens >= 1, "at least 1")
        expect(self, "written_temperature", 0 < self.written_temperature < float("inf"), "a finite number above 0")
        expect(self, "written_top_p", 0 < self.written_top_p <= 1, "above 0 and at most 1")
