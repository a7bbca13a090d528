"""What a process has of a parameter: all of it, unless the model is in shards (`shards.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import PartialState
from torch import Tensor

from srlm.policies.transformer.processes import add_up


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

    def sum_gradients(
        self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], together: PartialState
    ) -> Tensor:
        """Sum gradients of some parameters, and of whatever comes behind those, over processes, in place.

        Returns:
            The Euclidean norm of all of them.
        """
        add_up(together, gradients)
        return norm(gradients)


def norm(values: Sequence[Tensor]) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value) for value in values]))
    return found
