"""What the loop hands from stage to stage. Axes: P prompts, K responses per prompt, T tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

Conversation: TypeAlias = tuple[Mapping[str, str], ...]
PromptItem: TypeAlias = str | Conversation
Record: TypeAlias = dict[str, float | int | str | None]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts x with their probabilities under D. There is deliberately no field for an answer.

    items: what a policy understands as a prompt (text or a conversation; table rows for exact policies), length P.
    weight: [P], non-negative, sums to 1; E_x is the weighted mean (exact on tables, empirical on text).
    """

    items: Sequence[Any]
    weight: Tensor

    @classmethod
    def uniform(cls, items: Sequence[Any]) -> Prompts:
        return cls(tuple(items), torch.full((len(items),), 1.0 / max(len(items), 1), dtype=torch.float64))

    def some(self, rows: Sequence[int]) -> Prompts:
        weight = self.weight[list(rows)]
        return Prompts(tuple(self.items[i] for i in rows), weight / weight.sum())

    def __len__(self) -> int:
        return len(self.items)


class Policy(Protocol):
    """A conditional distribution pi(y|x) that can be sampled and evaluated."""

    def sample(self, prompts: Prompts, num_samples: int, generator: torch.Generator) -> Any:
        """K i.i.d. responses per prompt; their type is the policy's own affair."""
        ...

    def log_prob(self, prompts: Prompts, responses: Any) -> Tensor:
        """log pi(y|x) [P, K] in nats, of the full distribution at temperature 1."""
        ...


class EnumerablePolicy(Policy, Protocol):
    """A policy over a finite set of responses, all of which can be looked at."""

    def log_table(self) -> Tensor:
        """log pi(y|x) [..., X, Y] in nats; replicas, if any, lead."""
        ...


@dataclass(frozen=True, eq=False)
class Votes:
    """Responses that vote and are not learned from; alone: the others have no vote."""

    responses: Any
    log_prob: Tensor | None  # [P, V], where it was asked for
    alone: bool


@dataclass(frozen=True, eq=False)
class Rollouts:
    """What pi_t said in round t, and how probable it found it."""

    round: int
    prompts: Prompts
    responses: Any
    log_prob: Tensor  # [P, K] log pi_t(y|x): reward, reference and importance weight all come from here
    weight: Tensor  # [P, K] 1/K when sampled, pi_t(y|x) when enumerated
    entropy: Tensor | None = None  # [P, K] mean next-token entropy along the response, nats
    token_log_prob: Tensor | None = None  # [P, K, T] of single tokens, 0 behind each response, where they were kept
    rows: tuple[int, ...] | None = None  # numbers of the prompts in the run's set, where they are a part of it
    votes: Votes | None = None

    def row(self, prompt: int) -> int:
        """Number of a prompt in the run's set."""
        return prompt if self.rows is None else self.rows[prompt]


@dataclass(frozen=True, eq=False)
class UpdateInfo:
    """What update t did, and to what. Feeds the records, never the next update.

    log_ratio: [P, K] log pi_{t+1}(y|x) - log pi_t(y|x) of the round's rollouts, after the last step.
    loss: [S] mean loss of each optimiser step, in order.
    """

    rollouts: Rollouts
    reward: Tensor
    log_ratio: Tensor
    loss: Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """Round t, seen before update t. The last Step of a run describes pi_T and has no update after it."""

    round: int
    policy: Any
    rollouts: Rollouts
    reward: Tensor  # [P, K], as used by the objective
    info: UpdateInfo | None  # of update t-1, the one that made this policy; None at t = 0


Sampler: TypeAlias = Callable[[Any, Prompts, int, torch.Generator], Rollouts]
Reward: TypeAlias = Callable[[Any, Rollouts], Tensor]
Objective: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
Level: TypeAlias = Literal["sum", "mean", "token"]
"""Which log-ratios an objective takes: of responses [P, K], their sum or mean over tokens, or of tokens [P, K, T]."""
Update: TypeAlias = Callable[[Any, Rollouts, Tensor], tuple[Any, UpdateInfo]]
