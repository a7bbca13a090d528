"""Control: the truth. What a reward without labels is to be measured against; never part of a method."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from srlm.rewards._needs import attribute, each_answer
from srlm.types import Rollouts


def oracle(policy: Any, rollouts: Rollouts, *, right: Callable[[int, str], bool]) -> Tensor:
    """[P, K]: 1 if the response is right, else 0. It USES LABELS, and is to be had by its own name alone.

    A right response is asked to gain 1/beta nats on a wrong one: beta is to be well below 1 (0.1, say).

    right: (number of the prompt, text of the response) -> is it right?

    Raises:
        UserError: the policy's responses have no text.
    """
    attribute(policy, "texts", "oracle", "responses with a text")
    texts = each_answer(policy, rollouts.responses)
    flags = [[bool(right(rollouts.row(number), text)) for text in row] for number, row in enumerate(texts)]
    return torch.tensor(flags).to(rollouts.log_prob)
