"""Tensors <-> Arrow columns, no token ids in Python lists. Rows go prompt by prompt: P prompts, K responses each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor


def column(values: Tensor) -> pa.Array:
    """[P, K] -> one value a row."""
    return pa.array(values.detach().cpu().flatten().numpy())


def grid(values: pa.ChunkedArray, num_prompts: int) -> Tensor:
    """The inverse of `column`."""
    return torch.from_numpy(values.to_numpy().copy()).view(num_prompts, -1)


def ragged(values: Tensor, length: Tensor) -> pa.Array:
    """[P, K, T] and [P, K] -> a list a row, as far as each row goes."""
    rows, ends = values.detach().cpu().flatten(0, 1), length.detach().cpu().flatten()
    inside = torch.arange(rows.shape[-1]) < ends[:, None]
    offsets = torch.cat([ends.new_zeros(1), ends.cumsum(0)]).to(torch.int32)
    return pa.ListArray.from_arrays(pa.array(offsets.numpy()), pa.array(rows[inside].numpy()))


def padded(values: pa.ChunkedArray, num_prompts: int, width: int) -> tuple[Tensor, Tensor]:
    """The inverse of `ragged`: [P, K, width] with zeros behind each row, and [P, K]."""
    whole = values.combine_chunks()
    length = torch.from_numpy(whole.value_lengths().to_numpy().astype("int64"))
    flat = torch.from_numpy(whole.flatten().to_numpy().copy())
    rows = flat.new_zeros(len(length), width)
    rows[torch.arange(width) < length[:, None]] = flat
    return rows.view(num_prompts, -1, width), length.view(num_prompts, -1)


def rows(values: pa.ChunkedArray) -> list[NDArray[Any]]:
    """Lists of a column, as arrays."""
    whole = values.combine_chunks()
    return np.split(whole.flatten().to_numpy(), np.cumsum(whole.value_lengths().to_numpy())[:-1])


def numbered(num_prompts: int, num_samples: int) -> dict[str, pa.Array]:
    """The first columns of every table of responses: which prompt, and which of its responses."""
    prompt, sample = torch.arange(num_prompts, dtype=torch.int32), torch.arange(num_samples)
    return {
        "prompt_index": column(prompt[:, None].expand(-1, num_samples)),
        "sample_index": column(sample.expand(num_prompts, -1)),
    }
