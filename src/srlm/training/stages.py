"""The stages of a round on a transformer: what each computes, under which names; the ledger keeps it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from srlm.config import SelfRewardConfig
from srlm.errors import UserError
from srlm.loop import round_generator
from srlm.measure import achieved_record, step_record
from srlm.objectives import shaping
from srlm.objectives.step_size import step_size
from srlm.policies.transformer.engines.trust import importance, mismatch
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.processes import Progress
from srlm.policies.transformer.responses import Responses, cut
from srlm.policies.transformer.update import Diverged, Optimisation, fit
from srlm.prompts.select import fresh, one_kind
from srlm.rewards.majority import vote_share
from srlm.rewards.table import asks_model, votes, weighs_votes
from srlm.run.columns import column, grid, numbered, padded, ragged
from srlm.run.folder import StepCheckpoint
from srlm.run.ledger import Ledger
from srlm.run.tables import ROW_GROUP, Columns, Table
from srlm.training.parts import level_of, objective_function
from srlm.training.teacher import Teacher
from srlm.types import Prompts, Record, Reward, Rollouts, UpdateInfo, Votes

OF_ENGINE = "engine_log_prob"  # of single tokens, by who drew them
VOTES = 2_000_003  # added to the seed of votes, which are to meet no draw of others
ROUNDING = 1e-6  # of shares, in fp32

OWN_COLUMNS = (
    "reward",
    "log_prob_next",
    "vote_share",
)  # what a run makes of its responses; what else it knows it may lend


class NothingToLearn(Diverged):
    """A round has no prompt to learn from; the policy is the last one."""


@dataclasses.dataclass(frozen=True)
class Stages:
    """rewards: by table, since the control `oracle` looks at the answers of its prompts. writer: (policy, round) -> new
    prompts and their numbers."""

    config: SelfRewardConfig
    ledger: Ledger
    rewards: Mapping[str, Reward]
    classes: Callable[[Any], Hashable | None]
    teacher: Teacher
    writer: Callable[[TransformerPolicy, int], tuple[Prompts, tuple[int, ...]]] | None = None

    # What the loop is handed

    def rollouts(self, policy: TransformerPolicy, prompts: Prompts, round: int, generator: torch.Generator) -> Rollouts:
        config, rows = self.config, None
        if config.prompts_per_round is not None:
            rows = tuple(fresh(len(prompts), config.prompts_per_round, config.seed, round))
            prompts = some_prompts(prompts, rows)
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
        drawn = self.scored(
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
            drawn = self.responses(policy, rollouts.prompts, round, "votes", draw, rows)
            if not weighs_votes(config.reward):
                return Votes(drawn, None, alone)
            made = self._column(
                dataclasses.replace(rollouts, responses=drawn),
                "votes",
                "log_prob",
                lambda: policy.log_prob(rollouts.prompts, drawn),
            )
        return Votes(drawn, made, alone)

    def reward(self, policy: TransformerPolicy, rollouts: Rollouts) -> Tensor:
        if self.config.consistency_band is not None:
            self._shares(rollouts, lambda: vote_share(policy, rollouts, classes=self.classes))
        return self.rewarded(policy, rollouts, "rollouts")

    def update(
        self, policy: TransformerPolicy, rollouts: Rollouts, reward: Tensor
    ) -> tuple[TransformerPolicy, UpdateInfo]:
        config, round = self.config, rollouts.round
        rollouts = dataclasses.replace(rollouts, weight=self._weight(rollouts, reward))
        inside = self._inside(rollouts).nonzero()[:, 0].tolist()
        if not inside:
            raise NothingToLearn(self._outside(rollouts))
        whole = len(inside) == len(rollouts.prompts)

        def work(checkpoint: StepCheckpoint, progress: Progress) -> tuple[Columns, Tensor]:
            part = rollouts if whole else self._part(policy, rollouts, inside)
            _, info = fit(
                policy,
                part,
                reward if whole else reward[inside],
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
            following = part.log_prob + info.log_ratio
            if not whole:
                other = [p for p in range(len(rollouts.prompts)) if p not in set(inside)]
                left = policy.log_prob(some_prompts(rollouts.prompts, other), rollouts.responses.some(other))
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
            tokens=int(rollouts.responses.length[inside].sum()) * config.epochs,
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
        record = step_record(reward, weight, beta)
        if config.consistency_band is not None:
            record["prompts_outside_band"] = int((~self._inside(rollouts)).sum())
        return record

    def beta(self, round: int) -> float:
        """Of the round's update, as the objective sees it."""
        if self.config.total_beta is not None:
            return self.config.total_beta
        kept = self.ledger.record(round)["beta"]
        return math.inf if kept is None else float(kept)  # JSON has no infinity

    def achieved(self, info: UpdateInfo | None) -> Record:
        """Of the gain that an update was asked for; only the regression's target says how much that is."""
        if info is None or self.config.objective != "regression":
            return {}
        return achieved_record(info.log_ratio, info.reward, info.rollouts.weight, self.beta(info.rollouts.round))

    def update_before(self, round: int) -> tuple[float | None, float]:
        """beta and clip, in the unit of the reward, of the update that made a round's policy; None where none did, or
        one that follows no reward."""
        if not round or self.config.objective == "imitation":
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
            return _said(policy, prompts, responses, rows)

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
    ) -> Rollouts:
        """Sample and score. by_token: hand on the log-probs of single tokens. for_readers: keep what a reader needs to
        see how sure the policy was of each piece of a text."""
        draw = partial(policy.sample, prompts, num_samples, generator)
        responses = self.responses(policy, prompts, round, table, draw, rows)
        drawn_elsewhere = OF_ENGINE in self.ledger.columns(round, table, (), dict).names()

        def work() -> Columns | Iterator[Columns]:
            each = torch.zeros(responses.tokens.shape) if by_token or for_readers or drawn_elsewhere else None
            score = partial(policy.score, prompts, responses, with_entropy=True, token_log_prob=each)
            log_prob, entropy = self.ledger.stage(
                round, f"score {table}", lambda progress: score(progress=progress), int(responses.length.sum())
            )
            columns = {"log_prob": column(log_prob), "entropy": column(entropy)}
            return columns if each is None else _by_token(policy, responses, columns, each, for_readers=for_readers)

        names = ("log_prob", "entropy", *(("token_log_prob",) if by_token or drawn_elsewhere else ()))
        kept = self.ledger.columns(round, table, names, work)
        log_prob, entropy = (
            grid(values, len(prompts)).float() for values in kept.read(("log_prob", "entropy")).columns
        )
        weight, tokens = torch.full_like(log_prob, 1 / num_samples), None
        if by_token:
            tokens = _by_token_of(kept, "token_log_prob", responses)
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

    def mismatch(self, rollouts: Rollouts) -> Record:
        """How far the log-probs of the engine that drew a round's responses are from ours; nothing if there was none,
        or if its were of another distribution."""
        kept = self.ledger.columns(rollouts.round, "rollouts", (), dict)
        if OF_ENGINE not in kept.names():
            return {}
        responses = rollouts.responses
        ours, theirs = (_by_token_of(kept, name, responses) for name in ("token_log_prob", OF_ENGINE))
        record: Record = dict(mismatch(ours, theirs, responses.length))
        return record | dict(self._correction(rollouts)[1])

    def _correction(self, rollouts: Rollouts) -> tuple[Tensor | float, Mapping[str, float]]:
        """Truncated importance weights [P, K] of a round's responses, if they are asked for, and what they do."""
        cap = self.config.engine_correction
        kept = self.ledger.columns(rollouts.round, "rollouts", (), dict)
        if not cap or (self.config.engine == "builtin" and OF_ENGINE not in kept.names()):
            return 1.0, {}
        if OF_ENGINE not in kept.names():
            raise UserError(
                "--engine-correction needs log-probs of what the engine draws from, which it does not give: start "
                "servers that take adapters with --logprobs-mode processed_logprobs and VLLM_SERVER_DEV_MODE=1, or "
                "leave it out"
            )
        theirs = _by_token_of(kept, OF_ENGINE, rollouts.responses).sum(-1)
        return importance(rollouts.log_prob, theirs, cap)

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
        weight = rollouts.weight * self._inside(rollouts)[:, None] * self._correction(rollouts)[0]
        return shaping.truncated(reward, weight.float(), rollouts.responses.finished, self.config.truncated)[1]

    # Prompts that have something to teach

    def _shares(self, rollouts: Rollouts, work: Callable[[], Tensor]) -> Tensor:
        """[P, K] share of the votes of each prompt's commonest answer."""
        return self._column(rollouts, "rollouts", "vote_share", work)

    def _inside(self, rollouts: Rollouts) -> Tensor:
        """[P] bool: prompts whose share of votes is within the band."""
        if self.config.consistency_band is None:
            return torch.ones(len(rollouts.prompts), dtype=torch.bool)
        low, high = self.config.consistency_band
        share = self._shares(rollouts, refuse)[:, 0]
        return (share >= low - ROUNDING) & (share <= high + ROUNDING)

    def _outside(self, rollouts: Rollouts) -> str:
        assert self.config.consistency_band is not None
        share, (low, high) = self._shares(rollouts, refuse)[:, 0], self.config.consistency_band
        return (
            f"round {rollouts.round}: the commonest answers have shares of the votes from {share.min():.3g} to "
            f"{share.max():.3g}, none of them within --consistency-band {low:g} {high:g}, expected a band that leaves "
            "prompts to learn from: widen it, give other prompts or draw more --votes"
        )

    def _part(self, policy: TransformerPolicy, rollouts: Rollouts, inside: Sequence[int]) -> Rollouts:
        """Rollouts of some prompts, scored again: as others share their micro-batches, their log-ratios would begin a
        rounding away from 0."""
        prompts, responses = some_prompts(rollouts.prompts, inside), rollouts.responses.some(inside)
        each = None if rollouts.token_log_prob is None else torch.zeros(responses.tokens.shape)
        log_prob = policy.score(prompts, responses, token_log_prob=each)[0]
        return Rollouts(
            rollouts.round, prompts, responses, log_prob, rollouts.weight[list(inside)], token_log_prob=each
        )

    def _again(self, policy: TransformerPolicy, rollouts: Rollouts, round: int, stage: str) -> Tensor:
        score = partial(policy.score, rollouts.prompts, rollouts.responses)
        return self.ledger.stage(round, stage, lambda progress: score(progress=progress), _count(rollouts))[0]

    def _column(self, rollouts: Rollouts, table: str, name: str, work: Callable[[], Tensor]) -> Tensor:
        kept = self.ledger.columns(rollouts.round, table, (name,), lambda: {name: column(work())})
        return grid(kept.read([name])[name], len(rollouts.prompts)).float()


def some_prompts(prompts: Prompts, rows: Sequence[int]) -> Prompts:
    weight = prompts.weight[list(rows)]
    return Prompts(tuple(prompts.items[i] for i in rows), weight / weight.sum())


def refuse() -> Tensor:
    raise AssertionError("the rewards of a round come before its weights")


def is_lendable(stage: str) -> bool:
    """Does a stage of round 0 depend on model, prompts and seed alone?"""
    return stage.startswith(("sample ", "score ", "write ")) and not looks_back(stage)


def looks_back(stage: str) -> bool:
    """Does a stage score the responses of the round before?"""
    return stage.endswith(" again")


def prompt_columns(policy: TransformerPolicy, prompts: Prompts) -> Columns:
    """Prompts beside the token ids that the policy reads."""
    ids = pa.array(policy.ids(prompts), pa.list_(pa.int32()))
    return {"prompt": pa.array(one_kind(prompts.items)), "tokens": ids}


def _said(
    policy: TransformerPolicy, prompts: Prompts, responses: Responses, numbers: Sequence[int] | None
) -> Iterator[Columns]:
    """What was sampled, a row group at a time: texts and tokens of all would be as large again as the responses."""
    items, rows = pa.array(one_kind(prompts.items)), responses.rows()
    said = None if responses.log_prob is None else cut(responses.log_prob, responses.length)
    columns = numbered(*responses.length.shape) | {"finished": column(responses.finished)}
    for start in range(0, len(rows), ROW_GROUP):
        index, sample, finished = (values[start : start + ROW_GROUP] for values in columns.values())
        some = rows[start : start + ROW_GROUP]
        yield {
            "prompt_index": index if numbers is None else pa.array(numbers, pa.int32()).take(index),
            "sample_index": sample,
            "prompt": items.take(index),
            "response": pa.array([policy.text(ids.tolist()) for ids in some]),
            "tokens": ragged(some),
            "finished": finished,
        } | ({} if said is None else {OF_ENGINE: ragged(said[start : start + ROW_GROUP])})


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


def _by_token_of(kept: Table, name: str, responses: Responses) -> Tensor:
    """A column of lists [P, K, T], 0 behind each response."""
    shape = responses.tokens.shape
    pieces = (chunk for piece in kept.pieces([name]) for chunk in piece[name].chunks)
    return padded(pieces, (shape[0], shape[1]), shape[2], torch.float32)[0]


def _count(rollouts: Rollouts) -> int:
    return int(rollouts.responses.length.sum())
