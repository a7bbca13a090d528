"""What a model is packed into, as far as others have to know; imports no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantised(model: PreTrainedModel) -> str:
    """none, 4bit or 8bit."""
    if getattr(model, "is_loaded_in_4bit", False):
        return "4bit"
    return "8bit" if getattr(model, "is_loaded_in_8bit", False) else "none"


def exact(model: PreTrainedModel) -> bool:
    """Does the model compute in fp32? 8-bit layers round their inputs."""
    return model.dtype.itemsize == 4 and quantised(model) != "8bit"


def elements(parameter: Any) -> int:
    """Of one that is packed into 4 bits, those that it stands for."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else math.prod(state.shape))
