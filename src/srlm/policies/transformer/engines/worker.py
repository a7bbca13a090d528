"""What is added to vLLM's workers."""

from __future__ import annotations

import torch


class Seeded:
    """On CPUs all requests are drawn from one stream, which begins here."""

    def draw_from(self, seed: int) -> None:
        torch.manual_seed(seed)
