"""What a round is in numbers: one record."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from srlm.config import SelfRewardConfig
from srlm.measure import length_record, log_lengths, peak_memory_gb, train_record
from srlm.run.ledger import Ledger
from srlm.training.probe import Probe
from srlm.training.weighing import Weighing
from srlm.types import Record, Step


class Recorder:
    """Called once a round, in order: lengths are held against those of round 0."""

    def __init__(self, config: SelfRewardConfig, ledger: Ledger, weighing: Weighing, probe: Probe | None) -> None:
        self._config, self._ledger, self._weighing, self._probe = config, ledger, weighing, probe
        self._lengths: NDArray[np.float64] | None = None  # of round 0

    def __call__(self, step: Step) -> Record:
        policy, responses = step.policy, step.rollouts.responses
        how = self._weighing.update_before(step.round)
        record = train_record(step, responses.length, responses.finished, responses.rows(), *how)
        record |= self._weighing.step(step.rollouts, step.reward) | self._weighing.achieved(step.info)
        record |= self._weighing.mismatch(step.rollouts)
        record["gain"] = policy.sharpness()
        if not self._config.fresh_prompts:  # else no round has the prompts of round 0
            lengths = log_lengths(responses)
            if self._lengths is None:
                self._lengths = lengths
            else:
                record |= length_record(self._lengths, lengths)
        if self._probe is not None:
            record |= self._probe(policy, step.round)
        record |= self._ledger.costs(step.round)
        record["peak_memory_gb"] = peak_memory_gb()
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
