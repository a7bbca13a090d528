"""Control: the self-reward upside down. It must harm; a method that gains from it does not learn from the reward."""

from typing import Any

from torch import Tensor

from srlm.types import Rollouts


def inverted(policy: Any, rollouts: Rollouts) -> Tensor:
    """[P, K] >= 0 in nats: -log pi_t(y|x), so the exact update at beta is pi^(1 - 1/beta): uniform at beta = 1."""
    return -rollouts.log_prob
