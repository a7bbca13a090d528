"""What is asked of an estimate."""

from __future__ import annotations

from dataclasses import dataclass

from srlm.errors import UserError, expect


@dataclass(frozen=True)
class Asked:
    """What is asked of `srlm estimate` beside the settings of training."""

    num_prompts: int | None = None
    """Instead of --prompts: how many there are to train on, and, on top of them, the share that is held out."""
    prompt_length: int = 64
    """With --num-prompts: tokens of each."""
    expected_length: float | None = None
    """Tokens of a response on average; without it every one is taken to be as long as --max-new-tokens allows."""
    measure: bool = False
    """Time a few of the model's layers on this device, at this run's sizes, for some seconds."""
    accelerator: str | None = None
    """Instead of this device, by its data sheet: h100, h200, a100, l40s, l4 or mi300x."""
    flops: float | None = None
    """FLOP/s that are reached, whatever a data sheet says; without --accelerator of a device of this one's kind."""
    bandwidth: float | None = None
    """Bytes/s of memory that are reached."""
    link: float | None = None
    """Bytes/s between devices that are reached."""
    memory: float | None = None
    """Bytes of memory of a device."""
    devices: int = 1
    """How many share the work."""
    shard: str = "none"
    """What devices divide among them: none (each has the whole model), zero2 (optimiser and gradients), zero3 or fsdp
    (weights too)."""
    json: bool = False
    """Print everything as JSON."""
    table: bool = False
    """Print a table of models from 0.1B to 70B on 1 to 64 devices instead (Markdown), with these settings."""

    def __post_init__(self) -> None:
        expect(self, "num_prompts", self.num_prompts is None or self.num_prompts >= 1, "at least 1")
        expect(self, "prompt_length", self.prompt_length >= 1, "at least 1")
        expect(self, "devices", self.devices >= 1, "at least 1")
        expect(
            self, "memory", self.memory is None or 0 < self.memory < float("inf"), "a finite number of bytes above 0"
        )
        for name in ("flops", "bandwidth", "link"):
            value = getattr(self, name)
            expect(self, name, value is None or 0 < value < float("inf"), "a finite number above 0")
        for name in ("flops", "bandwidth"):
            if self.measure and getattr(self, name) is not None:
                raise UserError(f"--measure times this device, but --{name} says how fast it is: leave one out")
        if self.measure and self.accelerator is not None:
            raise UserError(
                f"--measure times this device, but --accelerator {self.accelerator} is another: leave one out"
            )
