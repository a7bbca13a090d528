"""One epoch of srlm's update, timed in its parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.timing import now
from benchmarks.workload import Data
from srlm.objectives.regression import regression
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.update import Optimisation, fit
from srlm.types import Rollouts

RATE = 2e-4


@dataclass(frozen=True)
class Parts:
    """Seconds. reference: one scoring pass. epoch: forward, backward and optimiser. closing: the scoring pass that ends
    srlm's `fit`, which TRL does not have."""

    reference: float
    epoch: float
    closing: float = 0.0

    @property
    def fit(self) -> float:
        return self.epoch + self.closing

    @property
    def whole(self) -> float:
        return self.reference + self.fit


def ours(policy: TransformerPolicy, data: Data, *, shared: bool = True) -> Parts:
    """Reference pass (in a run: the reward too) and `fit`, from the initial adapter. `shared` False: plain rows."""
    for name, parameter in policy.trainable().items():
        if ".lora_B." in name:
            parameter.data.zero_()
    was, policy.scorer.trees = policy.shared, shared and policy.shared
    k = data.responses.length.shape[1]
    try:
        start = now()
        log_prob = policy.log_prob(data.prompts, data.responses)
        scored = now()
        ended = scored

        def note(done: int, total: int) -> None:
            nonlocal ended
            if done == total:
                ended = now()

        fit(
            policy,
            Rollouts(0, data.prompts, data.responses, log_prob, torch.full_like(log_prob, 1 / k)),
            log_prob,
            objective=regression,
            optimisation=Optimisation(RATE, epochs=1, warmup=0.0),
            seed=0,
            progress=note,
        )
        return Parts(scored - start, ended - scored, now() - ended)
    finally:
        policy.scorer.trees = was
