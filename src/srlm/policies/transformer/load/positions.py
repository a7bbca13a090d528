"""How Llama 3.1 and those after it scale their positions, which GGUF files say as a tensor."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SCALES = "rope_freqs.weight"  # by which a GGUF file divides the frequencies of a head
LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What all of them have in common."""


def scales_of(config: Any) -> Tensor:
    """[D / 2] of a config that scales like Llama 3.1."""
    scaled: Tensor = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
    steps = torch.arange(len(scaled), dtype=torch.float32) / len(scaled)
    return torch.pow(config.rope_parameters["rope_theta"], -steps) / scaled


def scaling_of(config: Any, scales: Tensor) -> dict[str, Any] | None:
    """What of `rope_parameters` makes these scales; None if that is not known."""
    rope = getattr(config, "rope_parameters", None)
    if config.model_type not in ("llama", "mistral") or not isinstance(rope, dict):
        return None
    said = LLAMA3 | {"factor": round(float(scales.max()), 3)}
    like = copy.deepcopy(config)
    like.rope_parameters = rope | said
    made = scales_of(like)
    return said if made.shape == scales.shape and torch.allclose(made, scales, rtol=1e-4) else None
