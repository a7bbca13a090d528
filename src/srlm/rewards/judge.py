"""LLM-as-a-judge by the policy itself, on the additive 5-point rubric of Self-Rewarding Language Models (Yuan et al.
2024, arXiv 2401.10020, Fig. 2). Unlike there, no judgement is written and parsed: the grade's distribution is read from
the logits, and its expectation taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from srlm.errors import UserError
from srlm.rewards._needs import attribute, in_parts
from srlm.types import PromptItem, Rollouts

Note: TypeAlias = Callable[[str, float], None]
"""(name, number): for the records."""

# What differs between the responses to one question comes last, so that the rest is computed once.
RUBRICS = (
    """Review the question of a user and the response to it with the additive 5-point system below. Points add up:
- 1 point if the response is relevant and gives some information, even if it is incomplete or partly off the point.
- 1 more if it covers a substantial part of the question without settling it.
- 1 more if it answers the basic elements of the question in a useful way.
- 1 more if it is written as an assistant would, answers directly and fully, and is clear and well organised.
- 1 more if it fits the question perfectly: expert, engaging, and without a word too many.

Question: {question}

Response: {response}

How many points does the response earn in total, from 0 to 5? Answer in the form "Score: <points>".
""",
    """You are grading. Start at 0 and award one point for each statement that holds for the response:
1. It has to do with what was asked.
2. It addresses much of what was asked.
3. It answers the core of it correctly and usefully.
4. It is direct, complete and easy to follow.
5. It could not be improved: precise, expert, nothing superfluous.

What was asked: {question}

Response to grade: {response}

Add up the points, 0 to 5, and give the sum in the form "Score: <sum>".
""",
    """Rate an answer from 0 to 5 by adding one point each for relevance, for covering the question, for a correct and
useful core, for clarity and completeness, and for excellence without padding. An irrelevant answer gets 0.

Question:
{question}

Answer:
{response}

Give the rating alone, in the form "Score: <rating>".
""",
)
OPENING, GRADES = "Score:", tuple("012345")
NEUTRAL = 2.5
LEAST_MASS = 0.05  # of all grades together; below it the model is not grading
ROOM = 16  # tokens for the opening and a grade
TOGETHER = 1024  # responses that are judged at a time


def silent(name: str, number: float) -> None:
    pass


def judge(policy: Any, rollouts: Rollouts, *, note: Note = silent) -> Tensor:
    """[P, K] in [0, 5], points: the mean over RUBRICS of sum_g g pi(g|c) / sum_g pi(g|c), where c asks for a grade,
    ends in "Score:", and g is "0" to "5".

    Where the grades hold less than LEAST_MASS the judgement is unparsed: left out of the mean, and its share noted as
    `unparsed`. A response without a judgement gets the mean of its group's others, or NEUTRAL, which moves it nowhere.
    A point is 1/beta nats of the exact update; judges of one mind differ by tenths, so beta is to be below 1 (0.1,
    say). Truncated responses are judged like others; one too long for the context is judged by its beginning.

    Costs len(RUBRICS) passes over a rubric and a question per prompt, and over each response.

    Raises:
        UserError: the policy cannot be asked, or its context has no room for a question and the rubric.
    """
    ask = attribute(policy, "choice_log_prob", "judge", "a policy that reads and continues text")
    points = torch.arange(len(GRADES), dtype=torch.float64)

    def prompt(rubric: str, asked: str, text: str) -> str:
        return fitting(policy, lambda n: rubric.format(question=asked, response=text[:n]), len(text))

    parts = []
    for part in in_parts(policy, rollouts, TOGETHER):
        scores = []
        for rubric in RUBRICS:
            prompts = [[prompt(rubric, question(item), text) for text in texts] for item, texts in part]
            scores.append(expectation(ask(prompts, OPENING, GRADES), points))
        parts.append(torch.stack(scores))
    score = torch.cat(parts, 1)
    note("unparsed", float(score.isnan().double().mean()))
    return filled(score.nanmean(0), NEUTRAL).to(rollouts.log_prob)


def question(item: PromptItem) -> str:
    """What a prompt asks, as text."""
    if isinstance(item, str):
        return item
    return item[0]["content"] if len(item) == 1 else "\n".join(f"{turn['role']}: {turn['content']}" for turn in item)


def fitting(policy: Any, build: Callable[[int], str], longest: int) -> str:
    """build(n) with the most characters n of a response, up to `longest`, that the context has room for.

    Raises:
        UserError: it has none even for n = 0.
    """
    whole = build(longest)
    if policy.fits(whole, ROOM):
        return whole
    if not policy.fits(build(0), ROOM):
        raise UserError(
            f"the context of the model has no room for the judge's question ({len(build(0))} characters before any "
            "response): shorten the prompts or choose another reward"
        )
    fits, too_long = 0, longest
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        fits, too_long = (middle, too_long) if policy.fits(build(middle), ROOM) else (fits, middle)
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
