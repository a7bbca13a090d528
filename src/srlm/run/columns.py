"""Tensors <-> Arrow columns, no token ids in Python lists. Rows go prompt by prompt: P prompts, K responses each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def ragged(values: Sequence[NDArray[Any]]) -> pa.Array:
    """Arrays -> a list a row."""
    offsets = np.cumsum([0, *map(len, values)])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(np.concatenate(values)))


def padded(
    pieces: Iterable[pa.ListArray], shape: tuple[int, int], width: int, dtype: torch.dtype = torch.int32
) -> tuple[Tensor, Tensor]:
    """Of a column of lists that comes in pieces, ids by default: [P, K, width] with zeros behind each row, and lengths
    [P, K]."""
    tokens = torch.zeros(*shape, width, dtype=dtype)
    length = torch.zeros(shape, dtype=torch.int64)
    rows, ends = tokens.view(-1, width).numpy(), length.view(-1).numpy()
    start = 0
    for piece in pieces:
        here = slice(start, start := start + len(piece))
        ends[here] = piece.value_lengths()
        rows[here][np.arange(width) < ends[here, None]] = piece.flatten()
    return tokens, length


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
