"""A pseudo-label: the answer that most responses give is taken for the right one (TTRL, arXiv 2504.16084)."""

from typing import Any

from torch import Tensor

from srlm.rewards.majority import Classes, poll
from srlm.types import Rollouts


def hard_majority(policy: Any, rollouts: Rollouts, *, classes: Classes) -> Tensor:
    """[P, K]: 1 if the response gives the answer that most votes give, else 0 (TTRL, Eq. 2); of several such answers
    the one that was given first. Nowhere 1 where no vote has an answer."""
    return poll(policy, rollouts, classes)[2]
