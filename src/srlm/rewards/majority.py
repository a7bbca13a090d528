"""Self-consistency as a reward: how many of a prompt's responses give the same answer (TTRL, arXiv 2504.16084; ScPO,
arXiv 2411.04109)."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from srlm.errors import UserError
from srlm.rewards._needs import each_text
from srlm.types import Rollouts

KNOWN = 1024  # responses whose class is remembered


def majority(policy: Any, rollouts: Rollouts, *, classes: Callable[[Any], Hashable | None]) -> Tensor:
    """[P, K] in [0, 1]: the share of the prompt's K responses, itself included, whose answer class is the response's
    own; 0 where it has none (None).

    Shares weigh responses as the rollouts do, so on enumerated ones they are the answers' probabilities, which K
    samples tend to. A unanimous answer is 1/beta nats above none at all: beta is to be well below 1 (0.1, say).

    classes: response -> answer class, of a response's text or, on tables, of its column number.

    Raises:
        UserError: `classes` fails on a response.
    """
    answers = answers_given(policy, rollouts.responses, classes)
    shape = (*rollouts.log_prob.shape[:-1], len(answers[0]))
    weight = rollouts.weight.expand(shape)
    return class_shares(answers, weight.flatten(0, -2)).view(shape).to(rollouts.log_prob)


def answers_given(
    policy: Any,
    responses: Any,
    classes: Callable[[Any], Hashable | None],
    numbers: Sequence[dict[Hashable, int]] | None = None,
) -> list[list[int | None]]:
    """Which of its prompt's answers each response gives, [P][K]: two responses to a prompt have one number if they have
    one answer class; None for no answer. A text or column number that comes again soon is not looked at again.

    numbers: of each prompt what its answer classes were called so far, to be gone on with.

    Raises:
        UserError: `classes` fails on a response.
    """
    said = each_text(policy, responses) if hasattr(policy, "texts") else responses.response.flatten(0, -2).tolist()

    @functools.lru_cache(KNOWN)
    def answer(response: Any) -> Hashable | None:
        try:
            return classes(response)
        except Exception as error:
            raise UserError(
                f"the answer classes (--answers) failed on {response!r} "
                f"({type(error).__name__}: {error}), expected a hashable value or None: correct them"
            ) from error

    def numbered(row: Sequence[Any], first: dict[Hashable, int]) -> list[int | None]:
        return [None if one is None else first.setdefault(one, len(first)) for one in map(answer, row)]

    return [numbered(row, {} if numbers is None else numbers[p]) for p, row in enumerate(said)]


def class_shares(answers: Sequence[Sequence[Hashable | None]], weight: Tensor) -> Tensor:
    """Of each response the share [P, K] of its class in its row; 0 for None. weight: [P, K], of any sum."""
    codes = []
    for row in answers:
        first: dict[Hashable | None, int] = {None: 0}
        codes.append([first.setdefault(one, len(first)) for one in row])
    code = torch.tensor(codes).to(weight.device)
    mass = weight.new_zeros(len(code), code.shape[-1] + 1).scatter_add(-1, code, weight)
    return (mass / weight.sum(-1, keepdim=True)).gather(-1, code) * (code > 0)
