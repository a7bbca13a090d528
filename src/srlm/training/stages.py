"""The stages of a round on a transformer: what the loop asks for, under which names the ledger keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from srlm.config import SelfRewardConfig
from srlm.loop import round_generator
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.processes import Progress
from srlm.policies.transformer.update import Diverged, Optimisation, fit
from srlm.prompts.select import fresh
from srlm.rewards.majority import vote_share
from srlm.rewards.table import votes, weighs_votes
from srlm.run.columns import column, grid
from srlm.run.folder import StepCheckpoint
from srlm.run.ledger import Ledger
from srlm.run.tables import Columns
from srlm.training.parts import added_objective, level_of, objective_function
from srlm.training.tables import Tables
from srlm.training.teacher import Teacher
from srlm.training.weighing import Weighing
from srlm.training.writing import Writer
from srlm.types import Prompts, Rollouts, UpdateInfo, Votes

VOTES = 2_000_003  # added to the seed of votes, which are to meet no draw of others


def optimisation(config: SelfRewardConfig) -> Optimisation:
    return Optimisation(
        config.peak_rate, config.epochs, config.gain_learning_rate, checkpoint_steps=config.checkpoint_steps
    )


class NothingToLearn(Diverged):
    """A round has no prompt to learn from; the policy is the last one."""


@dataclasses.dataclass(frozen=True)
class Stages:
    """What the loop is handed. writer: of new prompts, if there are any."""

    config: SelfRewardConfig
    ledger: Ledger
    tables: Tables
    weighing: Weighing
    classes: Callable[[Any], Hashable | None]
    teacher: Teacher
    writer: Writer | None = None

    def rollouts(self, policy: TransformerPolicy, prompts: Prompts, round: int, generator: torch.Generator) -> Rollouts:
        config, rows = self.config, None
        if config.prompts_per_round is not None:
            rows = tuple(fresh(len(prompts), config.prompts_per_round, config.seed, round))
            prompts = prompts.some(rows)
        if self.writer is not None:
            written, numbers = self.writer(policy, round)
            rows = (*(range(len(prompts)) if rows is None else rows), *numbers)
            prompts = Prompts.uniform([*prompts.items, *written.items])
            if not rows:
                raise NothingToLearn(
                    f"round {round}: no prompt that the policy wrote passed the filters, expected some, since "
                    "--prompts-per-round is 0: raise it, or give prompts that can be gone on with"
                )
        by_token = level_of(config) == "token"
        drawn = self.tables.scored(
            policy, prompts, round, "rollouts", config.num_samples, generator, by_token=by_token, rows=rows
        )
        return dataclasses.replace(drawn, rows=rows, votes=self.votes(policy, drawn, rows))

    def votes(self, policy: TransformerPolicy, rollouts: Rollouts, rows: Sequence[int] | None) -> Votes | None:
        """Those that are drawn beside the responses, or by a teacher instead of them."""
        config, round = self.config, rollouts.round
        alone = config.teacher != "live"
        number = (config.votes or config.num_samples) - (0 if alone else config.num_samples)
        if not number or not (votes(config.reward) or config.consistency_band is not None):
            return None
        generator = round_generator(config.seed + VOTES, round)
        with self.teacher(policy, round):
            draw = partial(policy.sample, rollouts.prompts, number, generator)
            drawn = self.tables.responses(policy, rollouts.prompts, round, "votes", draw, rows)
            if not weighs_votes(config.reward):
                return Votes(drawn, None, alone)
            made = self.tables.column(
                dataclasses.replace(rollouts, responses=drawn),
                "votes",
                "log_prob",
                lambda: policy.log_prob(rollouts.prompts, drawn),
            )
        return Votes(drawn, made, alone)

    def reward(self, policy: TransformerPolicy, rollouts: Rollouts) -> Tensor:
        if self.config.consistency_band is not None:
            self.weighing.shares(rollouts, lambda: vote_share(policy, rollouts, classes=self.classes))
        return self.tables.rewarded(policy, rollouts, "rollouts")

    def update(
        self, policy: TransformerPolicy, rollouts: Rollouts, reward: Tensor
    ) -> tuple[TransformerPolicy, UpdateInfo]:
        config, round = self.config, rollouts.round
        rollouts = dataclasses.replace(rollouts, weight=self.weighing.weight(rollouts, reward))
        inside = self.weighing.inside(rollouts).nonzero()[:, 0].tolist()
        if not inside:
            raise NothingToLearn(self.weighing.outside(rollouts))
        if not rollouts.weight.any():
            raise NothingToLearn(
                f"round {round}: no prompt that counts has two finished responses, expected some, since --truncated "
                "drop learns from these alone: raise --max-new-tokens, or use --truncated penalise"
            )
        whole = len(inside) == len(rollouts.prompts)

        def work(checkpoint: StepCheckpoint, progress: Progress) -> tuple[Columns, Tensor]:
            part = rollouts if whole else self._part(policy, rollouts, inside)
            _, info = fit(
                policy,
                part,
                reward if whole else reward[inside],
                objective=objective_function(config, self.weighing.tau(round), self.weighing.beta(round)),
                level=level_of(config),
                added=added_objective(config),
                optimisation=optimisation(config),
                seed=config.seed,
                checkpoint=checkpoint,
                main=policy.processes.is_main_process,
                progress=progress,
            )
            following = part.log_prob + info.log_ratio
            if not whole:
                other = sorted(set(range(len(rollouts.prompts))) - set(inside))
                left = policy.log_prob(rollouts.prompts.some(other), rollouts.responses.some(other))
                following = torch.empty_like(rollouts.log_prob).index_copy_(0, torch.tensor(inside), following)
                following = following.index_copy_(0, torch.tensor(other), left)
            return {"log_prob_next": column(following)}, info.loss

        columns, losses = self.ledger.update(
            round,
            "rollouts",
            work,
            folder=config.weights_folder,
            prepare=policy.weights.collect,
            save=policy.save_weights,
            load=policy.load_weights,
            names=("log_prob_next",),
            carry=config.carry_optimizer,
            tokens=int(rollouts.responses.length[inside].sum()) * config.epochs,
        )
        following = grid(columns["log_prob_next"], len(rollouts.prompts)).float()
        loss = torch.tensor(losses, dtype=torch.float64)
        return policy, UpdateInfo(rollouts, reward, following - rollouts.log_prob, loss)

    def _part(self, policy: TransformerPolicy, rollouts: Rollouts, inside: Sequence[int]) -> Rollouts:
        """Rollouts of some prompts, scored again: as others share their micro-batches, their log-ratios would begin a
        rounding away from 0."""
        prompts, responses = rollouts.prompts.some(inside), rollouts.responses.some(inside)
        each = None if rollouts.token_log_prob is None else torch.zeros(responses.tokens.shape)
        log_prob = policy.score(prompts, responses, token_log_prob=each)[0]
        return Rollouts(
            rollouts.round, prompts, responses, log_prob, rollouts.weight[list(inside)], token_log_prob=each
        )
