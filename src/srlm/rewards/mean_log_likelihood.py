"""r_t(x, y) = log pi_t(y|x) / |y|: the log-likelihood per token, which does not ask for short responses."""

from typing import Any

from torch import Tensor

from srlm.rewards._needs import attribute
from srlm.types import Rollouts


def mean_log_likelihood(policy: Any, rollouts: Rollouts) -> Tensor:
    """[P, K] <= 0 in nats per token, the EOS counted among the |y| tokens.

    |y| times smaller than `log_likelihood`, so the beta that moves a model as far is |y| times smaller too. Its extreme
    is an endless repetition, where every token is sure.

    Raises:
        UserError: the responses have no length, as those of tables.
    """
    length: Tensor = attribute(rollouts.responses, "length", "mean_log_likelihood", "responses made of tokens")
    return rollouts.log_prob / length.to(rollouts.log_prob)
