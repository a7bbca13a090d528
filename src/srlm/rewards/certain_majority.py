"""Self-consistency among votes that weigh as much as the policy was sure of them (CISC, arXiv 2502.06233, with the mean
token probability for a confidence)."""

from typing import Any

from torch import Tensor

from srlm.rewards._needs import attribute
from srlm.rewards.majority import Classes, poll
from srlm.types import Rollouts


def certain_majority(policy: Any, rollouts: Rollouts, *, classes: Classes) -> Tensor:
    """[P, K] in [0, 1]: as `majority`, but a vote weighs as much as the policy was sure of it: the geometric mean of
    its tokens' probabilities, exp(log pi_t(y|x) / |y|).

    Raises:
        UserError: the responses have no length, as those of tables.
    """

    def sure(responses: Any, log_prob: Tensor) -> Tensor:
        length: Tensor = attribute(responses, "length", "certain_majority", "responses made of tokens")
        return (log_prob.double() / length.to(log_prob.device)).exp()

    own = sure(rollouts.responses, rollouts.log_prob)
    votes = rollouts.votes
    other = None if votes is None or votes.log_prob is None else sure(votes.responses, votes.log_prob)
    return poll(policy, rollouts, classes, own, other)[0]
