"""r_t(x, y) = log pi_t(y|x) (Eq. 1): the score that sampling already paid for."""

from typing import Any

from torch import Tensor

from srlm.types import Rollouts


def log_likelihood(policy: Any, rollouts: Rollouts) -> Tensor:
    """[P, K] in nats. The probability of the response as one event, so long responses are not favoured."""
    return rollouts.log_prob
