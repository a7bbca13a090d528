"""The log of the share of votes: self-consistency that counts in nats (on majority see there)."""

from typing import Any

from torch import Tensor

from srlm.rewards.majority import Classes, poll
from srlm.types import Rollouts


def log_majority(policy: Any, rollouts: Rollouts, *, classes: Classes) -> Tensor:
    """[P, K] <= 0 in nats: the log of the share. P_{t+1}(c) then goes as P_t(c)^(1 + 1/beta), as with log_likelihood,
    where the share itself lets even classes grow at a rate that falls with their number.

    A response that nobody votes for, or without an answer, counts as half a vote: log(1 / (2V)) of V votes.
    """
    share, votes = poll(policy, rollouts, classes)[:2]
    return share.clamp_min(1 / (2 * votes)).log()
