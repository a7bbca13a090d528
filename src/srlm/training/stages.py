"""The stages of a round on a transformer: what each computes, under which names; the ledger keeps it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import pyarrow as pa
import torch
from torch import Tensor

from srlm.config import SelfRewardConfig
from srlm.measure import step_record
from srlm.objectives import shaping
from srlm.objectives.step_size import step_size
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.processes import Progress
from srlm.policies.transformer.responses import Responses, cut
from srlm.policies.transformer.update import Optimisation, fit
from srlm.prompts.select import one_kind
from srlm.rewards.table import asks_model
from srlm.run.columns import column, grid, numbered, padded, ragged
from srlm.run.folder import StepCheckpoint
from srlm.run.ledger import Ledger
from srlm.run.tables import ROW_GROUP, Columns
from srlm.training.parts import level_of, objective_function
from srlm.types import Prompts, Record, Reward, Rollouts, UpdateInfo

OWN_COLUMNS = ("reward", "log_prob_next")  # what a run makes of its responses; what else it knows it may lend


@dataclasses.dataclass(frozen=True)
class Stages:
    """rewards: by table, since the control `oracle` looks at the answers of its prompts."""

    config: SelfRewardConfig
    ledger: Ledger
    rewards: Mapping[str, Reward]

    # What the loop is handed

    def rollouts(self, policy: TransformerPolicy, prompts: Prompts, round: int, generator: torch.Generator) -> Rollouts:
        by_token = level_of(self.config) == "token"
        return self.scored(policy, prompts, round, "rollouts", self.config.num_samples, generator, by_token=by_token)

    def reward(self, policy: TransformerPolicy, rollouts: Rollouts) -> Tensor:
        return self.rewarded(policy, rollouts, "rollouts")

    def update(
        self, policy: TransformerPolicy, rollouts: Rollouts, reward: Tensor
    ) -> tuple[TransformerPolicy, UpdateInfo]:
        config, round = self.config, rollouts.round
        rollouts = dataclasses.replace(rollouts, weight=self._weight(rollouts, reward))

        def work(checkpoint: StepCheckpoint, progress: Progress) -> tuple[Columns, Tensor]:
            _, info = fit(
                policy,
                rollouts,
                reward,
                objective=objective_function(config, self.ledger.record(round).get("kendall_tau"), self.beta(round)),
                level=level_of(config),
                optimisation=Optimisation(
                    config.learning_rate,
                    config.epochs,
                    config.gain_learning_rate,
                    checkpoint_steps=config.checkpoint_steps,
                ),
                seed=config.seed,
                checkpoint=checkpoint,
                main=policy.processes.is_main_process,
                progress=progress,
            )
            return {"log_prob_next": column(rollouts.log_prob + info.log_ratio)}, info.loss

        columns, losses = self.ledger.update(
            round,
            "rollouts",
            work,
            folder=config.weights_folder,
            save=policy.save_weights,
            load=policy.load_weights,
            names=("log_prob_next",),
            tokens=_count(rollouts) * config.epochs,
        )
        following = grid(columns["log_prob_next"], len(rollouts.prompts)).float()
        loss = torch.tensor(losses, dtype=torch.float64)
        return policy, UpdateInfo(rollouts, reward, following - rollouts.log_prob, loss)

    # How far an update is to go

    def step(self, rollouts: Rollouts, reward: Tensor) -> Record:
        """beta of the round's update and what it asks for, for the round's record: the update reads it there."""
        config, weight = self.config, self._weight(rollouts, reward)
        beta = config.total_beta
        if config.step is not None:
            beta = max(step_size(reward, weight, config.step, rollouts.prompts.weight), config.kl_initial)
        assert beta is not None
        return step_record(reward, weight, beta)

    def beta(self, round: int) -> float:
        """Of the round's update, as the objective sees it."""
        if self.config.total_beta is not None:
            return self.config.total_beta
        kept = self.ledger.record(round)["beta"]
        return math.inf if kept is None else float(kept)  # JSON has no infinity

    def update_before(self, round: int) -> tuple[float | None, float]:
        """beta and clip, in the unit of the reward, of the update that made a round's policy; None where none did."""
        if not round:
            return None, self.config.clip
        beta = self.beta(round - 1)
        in_nats = self.config.step is not None and self.config.clip > 0
        return beta, self.config.clip * beta if in_nats else self.config.clip

    # What they are made of, on any table of responses

    def responses(
        self,
        policy: TransformerPolicy,
        prompts: Prompts,
        round: int,
        table: str,
        draw: Callable[..., Responses],
    ) -> Responses:
        def work() -> Iterator[Columns]:
            responses = self.ledger.stage(
                round, f"sample {table}", lambda progress: draw(progress=progress), lambda made: int(made.length.sum())
            )
            return _said(policy, prompts, responses)

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
    ) -> Rollouts:
        """Sample and score. by_token: hand on the log-probs of single tokens. for_readers: keep what a reader needs to
        see how sure the policy was of each piece of a text."""
        draw = partial(policy.sample, prompts, num_samples, generator)
        responses = self.responses(policy, prompts, round, table, draw)

        def work() -> Columns | Iterator[Columns]:
            each = torch.zeros(responses.tokens.shape) if by_token or for_readers else None
            score = partial(policy.score, prompts, responses, with_entropy=True, token_log_prob=each)
            log_prob, entropy = self.ledger.stage(
                round, f"score {table}", lambda progress: score(progress=progress), int(responses.length.sum())
            )
            columns = {"log_prob": column(log_prob), "entropy": column(entropy)}
            return columns if each is None else _by_token(policy, responses, columns, each, for_readers=for_readers)

        names = ("log_prob", "entropy", *(("token_log_prob",) if by_token else ()))
        kept = self.ledger.columns(round, table, names, work)
        log_prob, entropy = (
            grid(values, len(prompts)).float() for values in kept.read(("log_prob", "entropy")).columns
        )
        weight, tokens = torch.full_like(log_prob, 1 / num_samples), None
        if by_token:
            pieces = (chunk for piece in kept.pieces(["token_log_prob"]) for chunk in piece["token_log_prob"].chunks)
            width = responses.tokens.shape[-1]
            tokens, _ = padded(pieces, (len(prompts), num_samples), width, torch.float32)
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

        return self._column(rollouts, table, "reward", work)

    def under_initial(self, policy: TransformerPolicy, rollouts: Rollouts, table: str) -> Tensor:
        """[P, K] log pi_0 of a table's responses."""

        def work() -> Tensor:
            if rollouts.round == 0:
                return rollouts.log_prob
            with policy.initial():
                return self._again(policy, rollouts, rollouts.round, f"score {table} under pi_0")

        return self._column(rollouts, table, "log_prob_initial", work)

    def followed(self, policy: TransformerPolicy, rollouts: Rollouts, table: str) -> Tensor:
        """[P, K] the log-probs that the policy of the round after gives a table's responses, at that round's cost."""

        def work() -> Tensor:
            return self._again(policy, rollouts, rollouts.round + 1, f"score {table} again")

        return self._column(rollouts, table, "log_prob_next", work)

    def _shaped(self, reward: Tensor, policy: TransformerPolicy, rollouts: Rollouts, table: str) -> Tensor:
        """What the objective is to see of the bare reward."""
        config, responses = self.config, rollouts.responses
        if config.length_penalty:
            reward = shaping.length_penalty(reward, responses.length, config.length_penalty, config.length_window)
        if config.kl_initial:
            initial = self.under_initial(policy, rollouts, table)
            reward = shaping.kl_initial(reward, rollouts.log_prob, initial, config.kl_initial)
        return shaping.truncated(reward, rollouts.weight, responses.finished, config.truncated)[0]

    def _weight(self, rollouts: Rollouts, reward: Tensor) -> Tensor:
        """[P, K] as the objective counts responses."""
        return shaping.truncated(reward, rollouts.weight, rollouts.responses.finished, self.config.truncated)[1]

    def _again(self, policy: TransformerPolicy, rollouts: Rollouts, round: int, stage: str) -> Tensor:
        score = partial(policy.score, rollouts.prompts, rollouts.responses)
        return self.ledger.stage(round, stage, lambda progress: score(progress=progress), _count(rollouts))[0]

    def _column(self, rollouts: Rollouts, table: str, name: str, work: Callable[[], Tensor]) -> Tensor:
        kept = self.ledger.columns(rollouts.round, table, (name,), lambda: {name: column(work())})
        return grid(kept.read([name])[name], len(rollouts.prompts)).float()


def is_lendable(stage: str) -> bool:
    """Does a stage of round 0 depend on model, prompts and seed alone?"""
    return stage.startswith(("sample ", "score ")) and not looks_back(stage)


def looks_back(stage: str) -> bool:
    """Does a stage score the responses of the round before?"""
    return stage.endswith(" again")


def prompt_columns(policy: TransformerPolicy, prompts: Prompts) -> Columns:
    """Prompts beside the token ids that the policy reads."""
    ids = pa.array(policy.ids(prompts), pa.list_(pa.int32()))
    return {"prompt": pa.array(one_kind(prompts.items)), "tokens": ids}


def _said(policy: TransformerPolicy, prompts: Prompts, responses: Responses) -> Iterator[Columns]:
    """What was sampled, a row group at a time: texts and tokens of all would be as large again as the responses."""
    items, rows = pa.array(one_kind(prompts.items)), responses.rows()
    columns = numbered(*responses.length.shape) | {"finished": column(responses.finished)}
    for start in range(0, len(rows), ROW_GROUP):
        index, sample, finished = (values[start : start + ROW_GROUP] for values in columns.values())
        some = rows[start : start + ROW_GROUP]
        yield {
            "prompt_index": index,
            "sample_index": sample,
            "prompt": items.take(index),
            "response": pa.array([policy.text(ids.tolist()) for ids in some]),
            "tokens": ragged(some),
            "finished": finished,
        }


def _by_token(
    policy: TransformerPolicy, responses: Responses, columns: Columns, each: Tensor, *, for_readers: bool
) -> Iterator[Columns]:
    """`columns` beside the log-prob of each token [P, K, T] and, for readers, where it ends in the text, a row group at
    a time."""
    rows, log_probs = responses.rows(), cut(each, responses.length)
    for start in range(0, len(rows), ROW_GROUP):
        part = slice(start, start + ROW_GROUP)
        found = {name: values[part] for name, values in columns.items()} | {"token_log_prob": ragged(log_probs[part])}
        if for_readers:
            ends = [policy.token_ends(ids.tolist()) for ids in rows[part]]
            found["token_end"] = pa.array(ends, pa.list_(pa.int32()))
        yield found


def _count(rollouts: Rollouts) -> int:
    return int(rollouts.responses.length.sum())
