"""Who judges and votes in the live policy's place: the untouched model, or an average over rounds."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from srlm.config import SelfRewardConfig
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.run.files import verify
from srlm.run.ledger import Ledger


class Teacher:
    """(policy, round) -> for a while, the policy is its teacher of that round.

    ema:A is v_0 = w_0, v_t = A v_{t-1} + (1 - A) w_t in fp32, w_t the weights that train of pi_t. A run that goes on
    makes it anew from the rounds that it kept.
    """

    def __init__(self, config: SelfRewardConfig, ledger: Ledger) -> None:
        self._config, self._ledger = config, ledger
        self._round, self._average = -1, dict[str, Tensor]()

    def __call__(self, policy: TransformerPolicy, round: int) -> AbstractContextManager[None]:
        if self._config.teacher == "live" or round == 0:
            return nullcontext()
        if self._config.average is None:
            return policy.weights.in_place(policy.weights.at_first())
        return policy.weights.in_place(self._averaged(policy, round, self._config.average))

    def _averaged(self, policy: TransformerPolicy, round: int, share: float) -> Mapping[str, Tensor]:
        if self._round < 0 or self._round > round:
            self._round = 0
            self._average = {name: value.float() for name, value in policy.weights.at_first().items()}
        now = {name: value.detach().to("cpu", copy=True) for name, value in policy.weights.held().items()}
        for t in range(self._round + 1, round + 1):
            if t < round:
                kept = self._ledger.run.round(t) / self._config.weights_folder
                verify(kept)
                policy.load_weights(kept)
            for name, value in policy.weights.held().items():
                self._average[name] = share * self._average[name] + (1 - share) * value.detach().float().cpu()
            if t < round:
                policy.weights.put(now)
        self._round = round
        return self._average
