"""Settings of what is trained on and measured on."""

from __future__ import annotations

from dataclasses import dataclass

from srlm.errors import UserError, expect


@dataclass(frozen=True)
class PromptSettings:
    """Training and held-out prompts"""

    max_prompts: int | None = None
    """Train on a random subset of this many prompts."""
    prompts_per_round: int | None = None
    """Train each round on this many fresh prompts, drawn without replacement until all have had their turn, and then
    again; all of them every round unless given."""
    consistency_band: tuple[float, float] | None = None
    """Learn from prompts whose commonest answer has a share of the votes within these two alone: others are too hard,
    or have nothing left to teach."""
    max_held_out: int | None = None
    """Measure on a random subset of this many held-out prompts."""
    held_out_share: float = 0.1
    """Without a held-out file: share of the prompts (at most 64) set aside to measure fidelity on."""
    held_out_samples: int = 8
    """Responses per held-out prompt."""
    prompt_column: str = "prompt"
    """Column of the prompts; without one called prompt, messages is read."""
    answer_column: str = "answer"
    """Column of the answers."""
    split: str | None = None
    """Of datasets that are not given as name[split]: the part to read, train unless a benchmark says otherwise."""
    dataset_config: str | None = None
    """Of datasets that are not given as name:config[split]: the configuration to read."""
    streaming: int | None = None
    """Of datasets, stream the first so many rows instead of fetching all: for those larger than a disk."""
    streaming_buffer: int = 0
    """Stream them shuffled: files in random order, and each row drawn from a buffer of so many that are read ahead. The
    same rows for every --seed; 0 takes them in order."""
    system_prompt: str | None = None
    """A system turn before every prompt."""
    instruction: str | None = None
    """What every prompt ends with, on a line of its own; instead of the one that a task or benchmark brings along."""
    overlong: str = "refuse"
    """Prompts that leave a response no room in the context: refuse to begin, or skip them and say how many."""
    match: str = "auto"
    """When is a response right? contains, exact, number, math (LaTeX, by math-verify), regex or module:function
    (evaluation only); auto asks a task's own verifier, takes a benchmark's rule, or is contains."""

    def __post_init__(self) -> None:
        if self.consistency_band is not None:
            low, high = self.consistency_band
            expect(self, "consistency_band", 0 <= low < high <= 1, "two shares from 0 to 1, the lower one first")
        for name in ("max_prompts", "max_held_out", "streaming"):
            expect(self, name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        expect(self, "streaming_buffer", self.streaming_buffer >= 0, "0 or more")
        if self.streaming_buffer and self.streaming is None:
            raise UserError(
                f"--streaming-buffer is {self.streaming_buffer} without --streaming, expected the number of rows to "
                "stream beside it: give --streaming, or leave it out"
            )
        expect(self, "prompts_per_round", (self.prompts_per_round or 0) >= 0, "at least 1")
        expect(self, "held_out_share", 0 <= self.held_out_share < 1, "0 or more and below 1")
        expect(self, "overlong", self.overlong in ("refuse", "skip"), "refuse or skip")
        for name in ("split", "dataset_config", "system_prompt"):
            expect(self, name, getattr(self, name) != "", "some text")
        expect(self, "held_out_samples", self.held_out_samples >= 2, "at least 2")
