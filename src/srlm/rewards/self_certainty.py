"""Self-certainty: how far each next-token distribution is from uniform (Intuitor, arXiv 2505.19590)."""

from typing import Any

from torch import Tensor

from srlm.rewards._needs import attribute
from srlm.types import Rollouts


def self_certainty(policy: Any, rollouts: Rollouts) -> Tensor:
    """[P, K] >= 0 in nats per token: the mean over the response, EOS included, of

        KL(U || pi(.|x, y_<i)) = -(1/V) sum_j log(V pi(j|x, y_<i)),   U uniform over the vocabulary of V words.

    The paper's "self-certainty" to the letter; it asks how unlikely all other words are, not how likely the one drawn.
    Values of ten nats and more with differences of tenths between responses are usual: beta is to be set by their
    spread, not by their size. Costs one scoring pass.

    Raises:
        UserError: the policy has no next-token distribution.
    """
    found: Tensor = attribute(policy, "self_certainty", "self_certainty", "next-token distributions")(
        rollouts.prompts, rollouts.responses
    )
    return found
