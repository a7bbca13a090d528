"""Any objective on any exact policy, by gradient steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srlm.types import Objective, Rollouts, Update, UpdateInfo


def gradient_steps(objective: Objective, *, steps: int, learning_rate: float) -> Update:
    """Full-batch Adam on the parameters of an exact policy, its step size falling linearly to zero. Replicas do not
    mix: each has its own loss, and Adam works entry by entry."""

    def update(policy: Any, rollouts: Rollouts, reward: Tensor) -> tuple[Any, UpdateInfo]:
        parameters = policy.parameters.detach().clone().requires_grad_()
        optimiser = torch.optim.Adam([parameters], lr=learning_rate)
        losses = []
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            log_prob = policy.moved(parameters).log_prob(rollouts.prompts, rollouts.responses)
            loss = objective(log_prob - rollouts.log_prob, reward, rollouts.weight)
            each = (rollouts.prompts.weight * loss).sum(-1)
            optimiser.zero_grad()
            torch.autograd.backward(each.sum())
            optimiser.step()
            losses.append(float(each.detach().mean()))
        after = policy.moved(parameters.detach())
        log_ratio = after.log_prob(rollouts.prompts, rollouts.responses) - rollouts.log_prob
        return after, UpdateInfo(rollouts, reward, log_ratio, torch.tensor(losses, dtype=torch.float64))

    return update
