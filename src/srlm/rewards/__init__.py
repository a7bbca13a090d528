"""Self-rewards: (policy, rollouts) -> [P, K]. One file each, one entry here."""

from srlm.rewards.log_likelihood import log_likelihood
from srlm.rewards.random import random
from srlm.types import Reward

REWARDS: dict[str, Reward] = {"log_likelihood": log_likelihood, "random": random}
