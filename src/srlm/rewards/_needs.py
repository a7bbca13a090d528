"""What a reward asks of a policy or of its responses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from srlm.errors import UserError
from srlm.thinking import unclosed
from srlm.types import PromptItem, Rollouts


def each_text(policy: Any, responses: Any) -> Iterator[list[str]]:
    """The K texts of each prompt, one prompt after the other: those of all may be more than memory holds."""
    for p in range(len(responses)):
        yield from policy.texts(responses[p : p + 1])


def each_answer(policy: Any, responses: Any) -> Iterator[list[str]]:
    """The same for those that read answers: a thought that a prompt opened, and that was cut off, is told as one."""
    opened = getattr(policy, "opens_thought", False)
    for row in each_text(policy, responses):
        yield [unclosed(text, opened) for text in row]


def in_parts(policy: Any, rollouts: Rollouts, most: int) -> Iterator[list[tuple[PromptItem, list[str]]]]:
    """Prompts beside their texts, as many at a time as have `most` responses."""
    every = zip(rollouts.prompts.items, each_text(policy, rollouts.responses), strict=True)
    while part := list(itertools.islice(every, max(1, most // rollouts.log_prob.shape[-1]))):
        yield part


def attribute(owner: Any, name: str, reward: str, what: str) -> Any:
    """`owner.name`.

    Raises:
        UserError: there is none, said with what the reward needs it for.
    """
    if not hasattr(owner, name):
        raise UserError(
            f"the reward {reward} needs {what} ({name}), which {type(owner).__name__} does not have: "
            "choose another reward"
        )
    return getattr(owner, name)
