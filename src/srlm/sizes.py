"""How large a run is; what is counted in these sizes derives from them."""

from __future__ import annotations

from dataclasses import dataclass

from srlm.errors import UserError, expect


@dataclass(frozen=True)
class Sizes:
    """Size of a run"""

    rounds: int = 3
    """T: rounds of {sample, score, update}."""
    num_samples: int = 8
    """K: responses per prompt and round (at least 2: the objective compares responses of one prompt)."""
    max_new_tokens: int = 64
    """Longest response; longer ones are cut there and flagged as truncated."""

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise UserError(
                f"--num-samples is {self.num_samples}, expected at least 2: the objective compares responses to one "
                "prompt, and a single response has nothing to be compared with"
            )
        for name in ("rounds", "max_new_tokens"):
            expect(self, name, getattr(self, name) >= 1, "at least 1")
