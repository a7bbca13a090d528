"""Which responses an update heeds, how much each, how far it is to go and how sure of its labels: written to the
round's record, where the update reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from srlm.config import SelfRewardConfig
from srlm.errors import UserError
from srlm.estimators.rank import kendall_tau
from srlm.measure import HeldOut, achieved_record, step_record
from srlm.objectives import shaping
from srlm.objectives.step_size import step_size
from srlm.policies.transformer.engines.trust import importance, mismatch
from srlm.rewards.table import implicit_weight
from srlm.run.ledger import Ledger
from srlm.training.columns import OF_ENGINE, OURS
from srlm.training.tables import Tables
from srlm.types import Record, Rollouts, UpdateInfo

ROUNDING = 1e-6  # of shares, in fp32


@dataclass(frozen=True)
class Weighing:
    config: SelfRewardConfig
    ledger: Ledger
    tables: Tables

    # How far

    @property
    def _has_target(self) -> bool:
        """Does an update go to pi exp(r / beta) / Z, so that beta and rewards tell how far it is asked to?"""
        return self.config.objective == "regression"

    def step(self, rollouts: Rollouts, reward: Tensor) -> Record:
        """beta of the round's update and what it asks for, for the round's record: the update reads it there."""
        config, weight, record = self.config, self.weight(rollouts, reward), Record()
        if self._has_target:
            beta = config.total_beta
            if config.step is not None:
                beta = max(step_size(reward, weight, config.step, rollouts.prompts.weight), config.kl_initial)
            assert beta is not None
            record |= step_record(reward, weight, beta)
        if config.consistency_band is not None:
            record["prompts_outside_band"] = int((~self.inside(rollouts)).sum())
        return record

    def beta(self, round: int) -> float:
        """Of the round's update, as the objective sees it."""
        if self.config.total_beta is not None:
            return self.config.total_beta
        kept = self.ledger.record(round)["beta"]
        return math.inf if kept is None else float(kept)  # JSON has no infinity

    def achieved(self, info: UpdateInfo | None) -> Record:
        """Of the gain that an update was asked for; nothing where there is no target to say how much that is."""
        if info is None or not self._has_target:
            return {}
        return achieved_record(info.log_ratio, info.reward, info.rollouts.weight, self.beta(info.rollouts.round))

    def update_before(self, round: int) -> tuple[float | None, float]:
        """beta and clip, in the unit of the reward, of the update that made a round's policy; None where none did, or
        one without a target."""
        if not round or not self._has_target:
            return None, self.config.clip
        beta = self.beta(round - 1)
        in_nats = self.config.step is not None and self.config.clip > 0
        return beta, self.config.clip * beta if in_nats else self.config.clip

    # How sure of its labels

    def agreement(self, before: HeldOut | None, following: Tensor | None) -> Record:
        """reward_tau: Kendall's tau of the rankings by R_{t-1} and by R_t of the held-out responses of round t - 1,
        where labels are smoothed by it and the reward holds the implicit one, of weight w: R_t is then R_{t-1} + w
        log(pi_t / pi_{t-1}), other terms as they were. log pi_t would rank as log pi_{t-1} does, by the log pi_0 in
        both, and responses that were learned from as they were labelled."""
        weight = implicit_weight(self.config.reward)
        if not weight or self.config.label_smoothing != "consistency":
            return {}
        if before is None or before.ranking is None or following is None:
            return {}
        last, rollouts = before.ranking, before.rollouts
        now = last + weight * (following - rollouts.log_prob)
        now, _ = shaping.truncated(now, rollouts.weight, rollouts.responses.finished, self.config.truncated)
        return {"reward_tau": kendall_tau(last.numpy(), now.numpy())}

    def tau(self, round: int) -> object:
        """Of this round's ranking against the last one's."""
        kept = self.ledger.record(round)
        return kept.get("reward_tau", kept.get("kendall_tau"))

    # Whom

    def weight(self, rollouts: Rollouts, reward: Tensor) -> Tensor:
        """[P, K] as the objective counts responses."""
        weight = rollouts.weight * self.inside(rollouts)[:, None]
        correction = self._correction(rollouts)[0]
        if correction is not None:  # within a prompt, whose weights go on summing to what they did
            corrected = weight * correction
            total = corrected.sum(-1, keepdim=True).clamp_min(torch.finfo(corrected.dtype).tiny)
            weight = corrected * (weight.sum(-1, keepdim=True) / total)
        return shaping.truncated(reward, weight.float(), rollouts.responses.finished, self.config.truncated)[1]

    def shares(self, rollouts: Rollouts, work: Callable[[], Tensor]) -> Tensor:
        """[P, K] share of the votes of each prompt's commonest answer."""
        return self.tables.column(rollouts, "rollouts", "vote_share", work)

    def inside(self, rollouts: Rollouts) -> Tensor:
        """[P] bool: prompts whose share of votes is within the band."""
        if self.config.consistency_band is None:
            return torch.ones(len(rollouts.prompts), dtype=torch.bool)
        low, high = self.config.consistency_band
        share = self.shares(rollouts, _refuse)[:, 0]
        return (share >= low - ROUNDING) & (share <= high + ROUNDING)

    def outside(self, rollouts: Rollouts) -> str:
        assert self.config.consistency_band is not None
        share, (low, high) = self.shares(rollouts, _refuse)[:, 0], self.config.consistency_band
        return (
            f"round {rollouts.round}: the commonest answers have shares of the votes from {share.min():.3g} to "
            f"{share.max():.3g}, none of them within --consistency-band {low:g} {high:g}, expected a band that leaves "
            "prompts to learn from: widen it, give other prompts or draw more --votes"
        )

    # What an engine drew that is not quite the policy

    def mismatch(self, rollouts: Rollouts) -> Record:
        """How far the log-probs of the engine that drew a round's responses are from ours; nothing if there was none,
        or if its were of another distribution."""
        theirs = self.tables.single_tokens(rollouts, OF_ENGINE)
        if theirs is None:
            return {}
        ours = self.tables.single_tokens(rollouts, OURS)
        assert ours is not None
        return {**mismatch(ours, theirs, rollouts.responses.length), **self._correction(rollouts)[1]}

    def _correction(self, rollouts: Rollouts) -> tuple[Tensor | None, Mapping[str, float]]:
        """Truncated importance weights [P, K] of a round's responses, if they are asked for, and what they do."""
        cap = self.config.engine_correction
        theirs = self.tables.single_tokens(rollouts, OF_ENGINE) if cap else None
        if not cap or (theirs is None and self.config.engine == "builtin"):
            return None, {}
        if theirs is None:
            raise UserError(
                "--engine-correction needs log-probs of what the engine draws from, which it does not give: start "
                "servers that take adapters with --logprobs-mode processed_logprobs and VLLM_SERVER_DEV_MODE=1, or "
                "leave it out"
            )
        return importance(rollouts.log_prob, theirs.sum(-1), cap)


def _refuse() -> Tensor:
    raise AssertionError("the rewards of a round come before its weights")
