"""r_t(x, y) = log pi_t(y|x) (Eq. 1): the score that sampling already paid for."""

from typing import Any

from torch import Tensor

from srlm.types import Rollouts


def log_likelihood(policy: Any, rollouts: Rollouts) -> Tensor:
    """[P, K] <= 0 in nats. The probability of the response as one event, so long responses are not favoured.

    The exact update at beta multiplies all log-odds by 1 + 1/beta (THEORY section 1).
    """
    return rollouts.log_prob
