"""Control: a reward that knows nothing. Same compute, same spread of scores, no information."""

from typing import Any

import torch
from torch import Tensor

from srlm.types import Rollouts


def random(policy: Any, rollouts: Rollouts) -> Tensor:
    """[P, K]: each group's own log-likelihoods, dealt to its responses in random order, fixed by the round.

    Permuting keeps the distribution of rewards (<= 0, in nats), hence the size of the update at any beta, equal to that
    of `log_likelihood`.
    """
    generator = torch.Generator().manual_seed(rollouts.round + 1)
    order = torch.rand(rollouts.log_prob.shape, generator=generator).argsort(-1)
    return rollouts.log_prob.gather(-1, order.to(rollouts.log_prob.device))
