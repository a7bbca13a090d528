"""What a process has of a parameter: all of it, unless the model is in shards (`shards.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import PartialState
from torch import Tensor


class Parts:
    """Of a model that every process holds whole."""

    def local(self, value: Tensor) -> Tensor:
        """What this process has of a parameter, or of its gradient; the same memory."""
        return value

    def part(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """What this process is to have of a tensor of the shape of a parameter."""
        return whole

    def whole(self, part: Tensor, parameter: Tensor) -> Tensor:
        """The tensor of the shape of a parameter that all have parts of, for the main process; all ask at once."""
        return part

    def divides(self, parameter: Tensor) -> bool:
        """Has this process only a part of it?"""
        return False

    def norm(self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], together: PartialState) -> Tensor:
        """Euclidean norm of gradients of some parameters, and of whatever comes behind those, over all parts."""
        return length(gradients)


def length(values: Sequence[Tensor]) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value) for value in values]))
    return found
