"""What a round's policy says to prompts that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch

from srlm.answers import Match
from srlm.evaluation import accuracy, held_out_generator
from srlm.measure import HeldOut, held_out_record
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.prompts.select import PromptSet
from srlm.rewards.majority import answers_given
from srlm.rewards.table import judges
from srlm.training.stages import Stages
from srlm.types import Record


class Probe:
    """Called once a round, in order: a round is held against the one before. Answers are for accuracy alone."""

    def __init__(
        self, stages: Stages, held_out: PromptSet, match: Match, classes: Callable[[Any], Hashable | None]
    ) -> None:
        self._stages, self._held_out, self._match, self._classes = stages, held_out, match, classes
        self._before: HeldOut | None = None

    def __call__(self, policy: TransformerPolicy, round: int) -> Record:
        stages, config, prompts = self._stages, self._stages.config, self._held_out.prompts
        generator = held_out_generator(config.seed, round)
        rollouts = stages.scored(policy, prompts, round, "held_out", config.held_out_samples, generator, by_token=True)
        reward = None if judges(config.reward) else stages.rewarded(policy, rollouts, "held_out")
        classes = answers_given(policy, rollouts, self._classes)
        under_initial = stages.under_initial(policy, rollouts, "held_out")
        before, following = self._before, None
        best = first_best = under_initial.amax(-1)
        if before is not None:
            best, first_best = torch.maximum(best, before.best_initial), before.first_best
            following = stages.followed(policy, before.rollouts, "held_out")
        self._before = HeldOut(rollouts, reward, classes, under_initial, best, first_best)
        record = held_out_record(self._before, before, following, config.total_beta, config.clip)
        greedy = stages.responses(policy, prompts, round, "greedy", partial(policy.greedy, prompts))
        if self._held_out.answers is not None:
            record |= accuracy(policy, self._held_out.answers, self._match, rollouts.responses, greedy, reward)
        return record
