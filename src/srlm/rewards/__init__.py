"""Self-rewards: (policy, rollouts) -> [P, K]. One file each, one entry in the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from srlm.lazy import exports

if TYPE_CHECKING:
    from srlm.rewards.table import REWARDS, reward_function

__getattr__ = exports(__name__, {"REWARDS": "srlm.rewards.table", "reward_function": "srlm.rewards.table"})
__all__ = ["REWARDS", "reward_function"]
