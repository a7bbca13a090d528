"""DPO's implicit reward of pi_t against pi_0 (Rafailov et al. 2023, arXiv 2305.18290, Eq. 5), up to its beta."""

from typing import Any

from torch import Tensor

from srlm.rewards._needs import attribute
from srlm.types import Rollouts


def implicit(policy: Any, rollouts: Rollouts) -> Tensor:
    """[P, K] in nats, of either sign: log pi_t(y|x) - log pi_0(y|x). Costs one scoring pass of pi_0.

    What training has taught so far, asked for again: the exact update at beta multiplies the log-odds gained since
    pi_0 by 1 + 1/beta. At round 0 it is 0 for every response, so alone it never moves; mix it with another.

    Raises:
        UserError: the policy cannot say what it was at first.
    """
    start = attribute(policy, "initial", "implicit", "a policy that remembers its start")
    with start():
        first: Tensor = policy.log_prob(rollouts.prompts, rollouts.responses)
    return rollouts.log_prob - first
