"""What a round's policy says to prompts that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from srlm.answers import Match
from srlm.evaluation import held_out_generator, right_or_wrong
from srlm.measure import (
    HeldOut,
    accuracy_record,
    at_k_record,
    calibration_record,
    drift_record,
    flips_record,
    held_out_record,
)
from srlm.objectives import shaping
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.prompts.select import PromptSet
from srlm.rewards.majority import answers_given
from srlm.rewards.table import judges, votes
from srlm.training.tables import Tables
from srlm.training.weighing import Weighing
from srlm.types import Record


class Probe:
    """Called once a round, in order: a round is held against the one before. Answers are for accuracy alone."""

    def __init__(
        self,
        tables: Tables,
        weighing: Weighing,
        held_out: PromptSet,
        match: Match,
        classes: Callable[[Any], Hashable | None],
        *,
        explore: bool = False,
    ) -> None:
        self._explore = explore  # as runs did that began before
        self._tables, self._weighing = tables, weighing
        self._held_out, self._match, self._classes = held_out, match, classes
        self._start: HeldOut | None = None
        self._before: HeldOut | None = None
        self._answers: list[dict[Hashable, int]] = [{} for _ in held_out.prompts.items]  # one number in all rounds
        self._greedy_at_start: Tensor | None = None  # [P] right or wrong

    def __call__(self, policy: TransformerPolicy, round: int) -> Record:
        tables, config, prompts = self._tables, self._tables.config, self._held_out.prompts
        generator = held_out_generator(config.seed, round)
        number = config.held_out_samples
        rollouts = tables.scored(
            policy, prompts, round, "held_out", number, generator, for_readers=True, explore=self._explore
        )
        voted, unheeded = votes(config.reward), config.objective == "imitation" and not config.nll
        untold = judges(config.reward) or (voted and config.teacher != "live") or unheeded
        reward = None if untold else tables.rewarded(policy, rollouts, "held_out")
        if reward is not None:  # how well an update generalises is asked of what it would have heeded
            finished = rollouts.responses.finished
            weight = shaping.truncated(reward, rollouts.weight, finished, config.truncated)[1]
            rollouts = replace(rollouts, weight=weight)
        classes = answers_given(policy, rollouts.responses, self._classes, self._answers)
        under_initial = tables.under_initial(policy, rollouts, "held_out")
        before, following = self._before, None
        best = first_best = under_initial.amax(-1)
        if before is not None:
            best, first_best = torch.maximum(best, before.best_initial), before.first_best
            following = tables.followed(policy, before.rollouts, "held_out")
        # Shares of fewer votes than in training are a noisier reward than the one that an update is asked to follow.
        followed = None if voted and number < (config.votes or config.num_samples) else reward
        self._before = found = HeldOut(rollouts, followed, reward, classes, under_initial, best, first_best)
        record = held_out_record(found, before, following, *self._weighing.update_before(round))
        record |= self._weighing.agreement(before, following)
        if self._start is None:
            self._start = found
        else:
            record |= drift_record(self._start, found)
        greedy = tables.responses(policy, prompts, round, "greedy", partial(policy.greedy, prompts))
        if self._held_out.answers is not None:
            right, greedy_right = (
                right_or_wrong(policy, responses, self._held_out.answers, self._match)
                for responses in (rollouts.responses, greedy)
            )
            now = greedy_right[:, 0]
            if self._greedy_at_start is None:
                self._greedy_at_start = now
            record |= accuracy_record(right, now) | at_k_record(right, classes)
            record |= flips_record(self._greedy_at_start, now)
            if reward is not None:
                record |= calibration_record(reward, right)
        return record
