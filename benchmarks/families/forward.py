"""The model's own plain forward: one row, no padding, no cache, every position from the logits it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def next_words(model: Any, ids: Sequence[int]) -> Tensor:
    """Log-probs [T, V] in nats of the word after each of T token ids, fp64."""
    logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
    return torch.log_softmax(logits[0].double(), -1)


def response_log_prob(model: Any, prompt: Sequence[int], response: Sequence[int]) -> float:
    """log pi(y|x) in nats."""
    along = next_words(model, [*prompt, *response])[len(prompt) - 1 : -1]
    return float(along.gather(-1, torch.tensor(response)[:, None]).sum())
