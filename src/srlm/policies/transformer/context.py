"""How long a sequence may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedModel


@dataclass(frozen=True)
class Context:
    """tokens: most of a sequence; infinite if the model does not say. why: said where they are too few."""

    tokens: float
    why: str = ""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Context:
        """Where positions change for all tokens once a sequence is long (longrope), what comes before: else one long
        response would change those that share its batch, and sampler and scorer would be two policies."""
        config = cast(Any, model.config).get_text_config()
        whole = float(getattr(config, "max_position_embeddings", None) or math.inf)
        rope = getattr(config, "rope_parameters", None)
        if not isinstance(rope, dict) or rope.get("rope_type") != "longrope":
            return cls(whole)
        own = getattr(config, "original_max_position_embeddings", None)
        switch = rope.get("original_max_position_embeddings", own)
        if not switch or switch >= whole:
            return cls(whole)
        return cls(float(switch), f" (from {switch} tokens on its longrope changes the positions of all)")
