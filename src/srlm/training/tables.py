"""Tables of a round, those that are learned from and those that are held out: what the policy said and what is known of
it. The ledger computes each column once, then reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from srlm.config import SelfRewardConfig
from srlm.objectives import shaping
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.processes import Progress
from srlm.policies.transformer.responses import Responses
from srlm.rewards.table import asks_model
from srlm.run.columns import column, grid, padded
from srlm.run.ledger import Ledger
from srlm.run.tables import Columns
from srlm.training.columns import OF_ENGINE, OURS, said, tokens_of, with_tokens
from srlm.types import Prompts, Reward, Rollouts

OWN_COLUMNS = ("reward", "log_prob_next", "vote_share")  # what a run makes of its responses; the others it may lend


@dataclass(frozen=True)
class Tables:
    """rewards: by table, since the control `oracle` looks at the answers of its prompts."""

    config: SelfRewardConfig
    ledger: Ledger
    rewards: Mapping[str, Reward]

    def responses(
        self,
        policy: TransformerPolicy,
        prompts: Prompts,
        round: int,
        table: str,
        draw: Callable[..., Responses],
        rows: Sequence[int] | None = None,
    ) -> Responses:
        """rows: the prompts' numbers in the run's set, where they are a part of it."""

        def drawn(progress: Progress) -> Responses:
            made = draw(progress=progress)
            for name, number in policy.drawn.items():
                self.ledger.note(name, number)
            return made

        def work() -> Iterator[Columns]:
            responses = self.ledger.stage(round, f"sample {table}", drawn, lambda made: int(made.length.sum()))
            return said(policy, prompts, responses, rows)

        kept = self.ledger.columns(round, table, ("tokens", "finished"), work)
        finished = grid(kept.read(["finished"])["finished"], len(prompts))
        pieces = (chunk for piece in kept.pieces(["tokens"]) for chunk in piece["tokens"].chunks)
        tokens, length = padded(pieces, (len(prompts), finished.shape[1]), policy.decoding.max_new_tokens)
        return Responses(tokens, length, finished)

    def scored(
        self,
        policy: TransformerPolicy,
        prompts: Prompts,
        round: int,
        table: str,
        num_samples: int,
        generator: torch.Generator,
        *,
        by_token: bool = False,
        for_readers: bool = False,
        rows: Sequence[int] | None = None,
        explore: bool = True,
    ) -> Rollouts:
        """Sample and score. by_token: hand on the log-probs of single tokens. for_readers: keep what a reader needs to
        see how sure the policy was of each piece of a text. explore: with --temperature, --top-p and --top-k."""
        draw = partial(policy.sample, prompts, num_samples, generator, explore=explore)
        responses = self.responses(policy, prompts, round, table, draw, rows)
        drawn_elsewhere = OF_ENGINE in self.ledger.columns(round, table, (), dict).names()

        def work() -> Columns | Iterator[Columns]:
            each = torch.zeros(responses.tokens.shape) if by_token or for_readers or drawn_elsewhere else None
            score = partial(policy.score, prompts, responses, with_entropy=True, token_log_prob=each)
            log_prob, entropy = self.ledger.stage(
                round, f"score {table}", lambda progress: score(progress=progress), int(responses.length.sum())
            )
            columns = {"log_prob": column(log_prob), "entropy": column(entropy)}
            return columns if each is None else with_tokens(policy, responses, columns, each, for_readers=for_readers)

        names = ("log_prob", "entropy", *((OURS,) if by_token or drawn_elsewhere else ()))
        kept = self.ledger.columns(round, table, names, work)
        log_prob, entropy = (
            grid(values, len(prompts)).float() for values in kept.read(("log_prob", "entropy")).columns
        )
        weight, tokens = torch.full_like(log_prob, 1 / num_samples), None
        if by_token:
            tokens = tokens_of(kept, OURS, responses)
        return Rollouts(round, prompts, responses, log_prob, weight, entropy, tokens)

    def rewarded(self, policy: TransformerPolicy, rollouts: Rollouts, table: str) -> Tensor:
        """[P, K] the reward as the objective is to see it."""

        def bare(*_: object) -> Tensor:
            return self.rewards[table](policy, rollouts).float()

        def work() -> Tensor:
            if asks_model(self.config.reward):
                reward = self.ledger.stage(rollouts.round, f"reward {table}", bare, _count(rollouts))
            else:
                reward = bare()
            return self._shaped(reward, policy, rollouts, table)

        return self.column(rollouts, table, "reward", work)

    def _shaped(self, reward: Tensor, policy: TransformerPolicy, rollouts: Rollouts, table: str) -> Tensor:
        """What the objective is to see of the bare reward."""
        config, responses = self.config, rollouts.responses
        if config.length_penalty:
            reward = shaping.length_penalty(reward, responses.length, config.length_penalty, config.length_window)
        if config.kl_initial:
            initial = self.under_initial(policy, rollouts, table)
            reward = shaping.kl_initial(reward, rollouts.log_prob, initial, config.kl_initial)
        return shaping.truncated(reward, rollouts.weight, responses.finished, config.truncated)[0]

    def under_initial(self, policy: TransformerPolicy, rollouts: Rollouts, table: str) -> Tensor:
        """[P, K] log pi_0 of a table's responses."""

        def work() -> Tensor:
            if rollouts.round == 0:
                return rollouts.log_prob
            with policy.initial():
                return self._again(policy, rollouts, rollouts.round, f"score {table} under pi_0")

        return self.column(rollouts, table, "log_prob_initial", work)

    def followed(self, policy: TransformerPolicy, rollouts: Rollouts, table: str) -> Tensor:
        """[P, K] the log-probs that the policy of the round after gives a table's responses, at that round's cost."""

        def work() -> Tensor:
            return self._again(policy, rollouts, rollouts.round + 1, f"score {table} again")

        return self.column(rollouts, table, "log_prob_next", work)

    def _again(self, policy: TransformerPolicy, rollouts: Rollouts, round: int, stage: str) -> Tensor:
        score = partial(policy.score, rollouts.prompts, rollouts.responses)
        return self.ledger.stage(round, stage, lambda progress: score(progress=progress), _count(rollouts))[0]

    def single_tokens(self, rollouts: Rollouts, name: str) -> Tensor | None:
        """[P, K, T] a column of the rollouts with a number for each token, where they have it."""
        kept = self.ledger.columns(rollouts.round, "rollouts", (), dict)
        return tokens_of(kept, name, rollouts.responses) if name in kept.names() else None

    def column(self, rollouts: Rollouts, table: str, name: str, work: Callable[[], Tensor]) -> Tensor:
        kept = self.ledger.columns(rollouts.round, table, (name,), lambda: {name: column(work())})
        return grid(kept.read([name])[name], len(rollouts.prompts)).float()


def is_lendable(stage: str) -> bool:
    """Does a stage of round 0 depend on model, prompts and seed alone?"""
    return stage.startswith(("sample ", "score ", "write ")) and not looks_back(stage)


def looks_back(stage: str) -> bool:
    """Does a stage score the responses of the round before?"""
    return stage.endswith(" again")


def _count(rollouts: Rollouts) -> int:
    return int(rollouts.responses.length.sum())
