"""Self-consistency as a reward: how many of a prompt's responses give the same answer (TTRL, arXiv 2504.16084; ScPO,
arXiv 2411.04109)."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from srlm.errors import UserError
from srlm.types import Rollouts


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
    policy: Any, responses: Any, classes: Callable[[Any], Hashable | None]
) -> list[list[Hashable | None]]:
    """The answer class of each response, prompt by prompt; each text or column number is looked at once.

    Raises:
        UserError: `classes` fails on a response.
    """
    said = policy.texts(responses) if hasattr(policy, "texts") else responses.response.flatten(0, -2).tolist()
    known: dict[Any, Hashable | None] = {}

    def answer(response: Any) -> Hashable | None:
        if response not in known:
            try:
                known[response] = classes(response)
            except Exception as error:
                raise UserError(
                    f"the answer classes (--answers) failed on {response!r} "
                    f"({type(error).__name__}: {error}), expected a hashable value or None: correct them"
                ) from error
        return known[response]

    return [[answer(response) for response in row] for row in said]


def class_shares(answers: Sequence[Sequence[Hashable | None]], weight: Tensor) -> Tensor:
    """Of each response the share [P, K] of its class in its row; 0 for None. weight: [P, K], of any sum."""
    codes = []
    for row in answers:
        first: dict[Hashable | None, int] = {None: 0}
        codes.append([first.setdefault(one, len(first)) for one in row])
    code = torch.tensor(codes).to(weight.device)
    mass = weight.new_zeros(len(code), code.shape[-1] + 1).scatter_add(-1, code, weight)
    return (mass / weight.sum(-1, keepdim=True)).gather(-1, code) * (code > 0)
