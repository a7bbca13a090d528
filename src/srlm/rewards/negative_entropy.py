"""r_t(x, y) = -(1/|y|) sum_i H(pi_t(.|x, y_<i)): how sure every next token was, whichever was drawn."""

from typing import Any

from torch import Tensor

from srlm.errors import UserError
from srlm.types import Rollouts


def negative_entropy(policy: Any, rollouts: Rollouts) -> Tensor:
    """[P, K] in [-log V, 0], nats per token, EOS included. Scoring has paid for it.

    Of the size of `mean_log_likelihood`, which it is the expectation of along the response: the same beta suits both.

    Raises:
        UserError: no next-token entropies were measured, as on tables.
    """
    if rollouts.entropy is None:
        raise UserError(
            "the reward negative_entropy needs next-token distributions (entropy), "
            f"which rollouts of {type(policy).__name__} do not hold: choose another reward"
        )
    return -rollouts.entropy
