"""Self-consistency as a reward: how many of a prompt's responses give the same answer (TTRL, arXiv 2504.16084; ScPO,
arXiv 2411.04109; EMPO, arXiv 2504.05812)."""

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from srlm.errors import UserError
from srlm.rewards._needs import each_answer
from srlm.types import Rollouts

KNOWN = 1024  # responses whose class is remembered
Classes: TypeAlias = Callable[[Any], Hashable | None]


def majority(policy: Any, rollouts: Rollouts, *, classes: Classes) -> Tensor:
    """[P, K] in [0, 1]: the share of the prompt's votes, its own included, whose answer class is the response's own; 0
    where it has none (None). The votes are the K responses, unless the rollouts bring others (`Rollouts.votes`).

    Shares weigh responses as the rollouts do, so on enumerated ones they are the answers' probabilities, which K
    samples tend to. A unanimous answer is 1/beta nats above none at all: beta is to be well below 1 (0.1, say).

    classes: response -> answer class, of a response's text or, on tables, of its column number.

    Raises:
        UserError: `classes` fails on a response.
    """
    return poll(policy, rollouts, classes)[0]


def vote_share(policy: Any, rollouts: Rollouts, *, classes: Classes) -> Tensor:
    """[P, K] the share of the votes that the commonest answer to the prompt has, the same for all its responses."""
    answers, weight, size = _votes(policy, rollouts, classes, None, None)
    return _mass(answers, weight).amax(-1, keepdim=True).expand(-1, size).to(rollouts.log_prob)


def poll(
    policy: Any, rollouts: Rollouts, classes: Classes, own: Tensor | None = None, other: Tensor | None = None
) -> tuple[Tensor, int, Tensor]:
    """Of each response the share of its class among the votes; the number of votes; whether its class is the commonest.

    own, other: weights of the responses and of votes that are no responses, even unless given.
    """
    answers, weight, size = _votes(policy, rollouts, classes, own, other)
    code, mass = _codes(answers).to(weight.device), _mass(answers, weight)
    shape = (*rollouts.log_prob.shape[:-1], size)
    mine = code[:, :size]
    share = torch.cat([torch.zeros_like(mass[:, :1]), mass], -1).gather(-1, mine)
    # argmax takes the first of equals, and classes are numbered in the order in which they were given.
    best = (mine == mass.argmax(-1, keepdim=True) + 1) & (mass.amax(-1, keepdim=True) > 0)
    votes = int((weight > 0).sum(-1).amax())
    return share.view(shape).to(rollouts.log_prob), votes, best.view(shape).to(rollouts.log_prob)


def _votes(
    policy: Any, rollouts: Rollouts, classes: Classes, own: Tensor | None, other: Tensor | None
) -> tuple[list[list[Hashable | None]], Tensor, int]:
    """Answers to each prompt, those of its responses first; what each weighs as a vote; the number of responses."""
    answers = list(_classes_of(policy, rollouts.responses, classes))
    size = len(answers[0])
    weight = rollouts.weight if own is None else own.to(rollouts.weight)
    weight = weight.expand((*rollouts.log_prob.shape[:-1], size)).flatten(0, -2)
    if (votes := rollouts.votes) is not None:
        more = list(_classes_of(policy, votes.responses, classes))
        answers = [[*row, *others] for row, others in zip(answers, more, strict=True)]
        further = weight.new_full((len(more), len(more[0])), 1 / size) if other is None else other.to(weight)
        weight = torch.cat([torch.zeros_like(weight) if votes.alone else weight, further], -1)
    return answers, weight, size


def answers_given(
    policy: Any, responses: Any, classes: Classes, numbers: Sequence[dict[Hashable, int]] | None = None
) -> list[list[int | None]]:
    """Which of its prompt's answers each response gives, [P][K]: two responses to a prompt have one number if they have
    one answer class; None for no answer. A text or column number that comes again soon is not looked at again.

    numbers: of each prompt what its answer classes were called so far, to be gone on with.

    Raises:
        UserError: `classes` fails on a response.
    """

    def numbered(row: Sequence[Hashable | None], first: dict[Hashable, int]) -> list[int | None]:
        return [None if one is None else first.setdefault(one, len(first)) for one in row]

    rows = enumerate(_classes_of(policy, responses, classes))
    return [numbered(row, {} if numbers is None else numbers[p]) for p, row in rows]


def _classes_of(policy: Any, responses: Any, classes: Classes) -> Iterator[list[Hashable | None]]:
    said = each_answer(policy, responses) if hasattr(policy, "texts") else responses.response.flatten(0, -2).tolist()

    @functools.lru_cache(KNOWN)
    def answer(response: Any) -> Hashable | None:
        try:
            return classes(response)
        except Exception as error:
            raise UserError(
                f"the answer classes (--answers) failed on {response!r} "
                f"({type(error).__name__}: {error}), expected a hashable value or None: correct them"
            ) from error

    return (list(map(answer, row)) for row in said)


def class_shares(answers: Sequence[Sequence[Hashable | None]], weight: Tensor) -> Tensor:
    """Of each response the share [P, K] of its class in its row; 0 for None. weight: [P, K], of any sum."""
    mass = _mass(answers, weight)
    code = _codes(answers).to(weight.device)
    return torch.cat([torch.zeros_like(mass[:, :1]), mass], -1).gather(-1, code)


def _codes(answers: Sequence[Sequence[Hashable | None]]) -> Tensor:
    """Answers [P, K] as numbers from 1 in the order in which they are given; 0 for None."""
    codes = []
    for row in answers:
        first: dict[Hashable | None, int] = {None: 0}
        codes.append([first.setdefault(one, len(first)) for one in row])
    return torch.tensor(codes)


def _mass(answers: Sequence[Sequence[Hashable | None]], weight: Tensor) -> Tensor:
    """The share [P, K] of the answers numbered 1 to K in their row."""
    code = _codes(answers).to(weight.device)
    mass = weight.new_zeros(len(code), code.shape[-1] + 1).scatter_add(-1, code, weight)
    return mass[:, 1:] / weight.sum(-1, keepdim=True)
