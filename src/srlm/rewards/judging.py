"""How a judge is asked: its grade read from the logits, or written, several times, and parsed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from srlm.errors import UserError
from srlm.rewards._needs import attribute
from srlm.rewards.rubric import Rubric, read_rubric
from srlm.types import PromptItem

Note: TypeAlias = Callable[[str, float], None]
"""(name, number): for the records."""

LEAST_MASS = 0.05  # of all grades together; below it the model is not grading
ROOM = 16  # tokens for the opening and a grade
TOGETHER = 1024  # responses that are judged at a time
_STREAM = 5  # so that no draw here is one of others of the same seed


def silent(name: str, number: float) -> None:
    pass


@dataclass(frozen=True)
class Judging:
    """rubrics: names or files; each reward takes those of its kind, or its own where there are none. samples:
    judgements that are written for each question; at temperature 1 their mean estimates the judge's own without bias;
    0 reads the distribution of the grade from the logits. tokens: longest judgement. opponents: with how many others a
    response is compared; all if None.

    Raises:
        UserError: a rubric that cannot be read.
    """

    rubrics: tuple[str, ...] = ()
    samples: int = 0
    tokens: int = 256
    opponents: int | None = None
    seed: int = 0
    temperature: float = 1.0

    def of(self, usual: Sequence[str], *, pairs: bool) -> list[Rubric]:
        """Rubrics of one kind: those given, or the `usual` ones."""
        chosen = [one for one in self._given if one.pairs == pairs] or [read_rubric(name) for name in usual]
        if not pairs and (other := next((one for one in chosen if one.values != chosen[0].values), None)):
            raise UserError(
                f"the rubrics {chosen[0].name} and {other.name} have different scales, expected one scale for all that "
                "are averaged: leave one out"
            )
        return chosen

    @cached_property
    def _given(self) -> list[Rubric]:
        """Read once: a file that changes meanwhile is not to change a run."""
        return [read_rubric(name) for name in self.rubrics]

    def asker(self, policy: Any, reward: str) -> Any:
        """What a policy is asked with.

        Raises:
            UserError: it cannot be.
        """
        return attribute(
            policy, "written" if self.samples else "choice_log_prob", reward, "a policy that reads and continues text"
        )

    def room(self) -> int:
        """Tokens that a judgement may take."""
        return self.tokens if self.samples else ROOM


USUALLY = Judging()


def ask(
    policy: Any, reward: str, rubric: Rubric, questions: Sequence[Sequence[str]], judging: Judging, *stream: int
) -> Tensor:
    """[G, N, S] the grades that a judge gives G groups of N questions, S times each, nan where it gives none.

    From the logits S is 1 and the grade sum_g g pi(g|c) / sum_g pi(g|c), where c ends in the rubric's opening and g is
    a word of its scale; nan where these hold less than LEAST_MASS. stream: whole numbers, of which with the seed the
    judgements that are written are a function.

    Raises:
        UserError: the policy cannot be asked, or the rubric needs judgements that are written.
    """
    if not judging.samples:
        refuse_unwritten(rubric)
        choice = judging.asker(policy, reward)
        values = torch.tensor(rubric.values, dtype=torch.float64)
        return expectation(choice(questions, rubric.opening, rubric.words), values)[..., None]
    texts = written(policy, reward, questions, judging, *stream)
    return torch.tensor([[[rubric.read(one) for one in some] for some in row] for row in texts], dtype=torch.float64)


def written(
    policy: Any, reward: str, questions: Sequence[Sequence[str]], judging: Judging, *stream: int
) -> list[list[list[str]]]:
    """[G][N][S] judgements."""
    write = judging.asker(policy, reward)
    flat = [question for row in questions for question in row]
    state = np.random.SeedSequence([judging.seed, _STREAM, *stream]).generate_state(len(flat), np.uint64)
    seeds = [int(one >> 2) for one in state]
    how = {"max_new_tokens": judging.tokens, "temperature": judging.temperature}
    said = iter(write(flat, [""] * len(flat), judging.samples, seeds, **how).texts)
    return [[next(said) for _ in row] for row in questions]


def refuse_unwritten(rubric: Rubric) -> None:
    """
    Raises:
        UserError: the grade of a rubric cannot be read from the logits.
    """
    asked = "asks for reasons before its grade" if rubric.reasons else "has grades that begin with one another"
    begun = any(a != b and b.startswith(a) for a in rubric.words for b in rubric.words)
    if rubric.reasons or begun:
        raise UserError(
            f"the rubric {rubric.name} {asked}, which cannot be read from the logits, expected judgements that are "
            "written: give --judge-samples 1 or more"
        )


def question(item: PromptItem) -> str:
    """What a prompt asks, as text."""
    if isinstance(item, str):
        return item
    return item[0]["content"] if len(item) == 1 else "\n".join(f"{turn['role']}: {turn['content']}" for turn in item)


def fitting(policy: Any, build: Callable[[int], str], longest: int, judging: Judging = USUALLY) -> str:
    """build(n) with the most characters n of a response, up to `longest`, that the context has room for, and where
    judgements are written that of the engine.

    Raises:
        UserError: it has none even for n = 0.
    """
    fits_whole = partial(policy.fits, drawn=True) if judging.samples else policy.fits
    whole, room = build(longest), judging.room()
    if fits_whole(whole, room):
        return whole
    if not fits_whole(build(0), room):
        raise UserError(
            f"the context of the model has no room for the judge's question ({len(build(0))} characters before any "
            "response): shorten the prompts or choose another reward"
        )
    fits, too_long = 0, longest
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        fits, too_long = (middle, too_long) if fits_whole(build(middle), room) else (fits, middle)
    return build(fits)


def expectation(log_prob: Tensor, values: Tensor) -> Tensor:
    """Of `values` [C] under log-probs [..., C] that need not sum to 1; nan where they hold less than LEAST_MASS."""
    mass = log_prob.double().exp()
    total = mass.sum(-1)
    return torch.where(total >= LEAST_MASS, mass @ values / total, torch.nan)


def filled(score: Tensor, neutral: float) -> Tensor:
    """Scores [P, K] with the mean of the group, or `neutral` without one, in place of nan."""
    centre = score.nanmean(-1, keepdim=True).nan_to_num(nan=neutral)
    return torch.where(score.isnan(), centre, score)


def noted(note: Note, name: str, grades: Tensor, judging: Judging) -> None:
    """The share of grades that are nan, and, of judgements that were written, their number."""
    note(name, float(grades.isnan().double().mean()))
    if judging.samples:
        note(name.replace("unparsed", "judgements"), float(grades.numel()))
