"""LLM-as-a-judge by the policy itself, on rubrics of points such as the additive one of Self-Rewarding Language Models
(Yuan et al. 2024, arXiv 2401.10020, Fig. 2). Unless judgements are asked for, none is written and parsed: the grade's
distribution is read from the logits, and its expectation taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srlm.rewards._needs import in_parts
from srlm.rewards.judging import TOGETHER, USUALLY, Judging, Note, ask, filled, fitting, noted, question, silent
from srlm.rewards.rubric import Rubric
from srlm.types import PromptItem, Rollouts

# What differs between the responses to one question comes last in them, so that the rest is computed once.
USUAL = ("additive", "statements", "rating")


def judge(policy: Any, rollouts: Rollouts, *, note: Note = silent, judging: Judging = USUALLY) -> Tensor:
    """[P, K] on the rubrics' scale, points: the mean over rubrics of the grade of each response (`judging.ask`), or of
    the S grades of it that are written.

    A judgement without a grade is unparsed: left out of the mean, and its share noted as `unparsed`. A response without
    a judgement gets the mean of its group's others, or the middle of the scale, which moves it nowhere. A point is
    1/beta nats of the exact update; judges of one mind differ by tenths, so beta is to be below 1 (0.1, say). Truncated
    responses are judged like others; one too long for the context is judged by its beginning.

    Costs, for each rubric, a pass over it and a question per prompt, and over each response; S judgements per response
    if they are written.

    Raises:
        UserError: the policy cannot be asked, or its context has no room for a question and the rubric.
    """
    rubrics = judging.of(USUAL, pairs=False)
    judging.asker(policy, "judge")
    parts = []
    for number, part in enumerate(in_parts(policy, rollouts, TOGETHER)):
        scores = []
        for place, rubric in enumerate(rubrics):
            asked = [[asking(policy, rubric, item, text, judging) for text in texts] for item, texts in part]
            scores.append(ask(policy, "judge", rubric, asked, judging, rollouts.round, 0, place, number))
        parts.append(torch.stack(scores))
    score = torch.cat(parts, 1)
    noted(note, "unparsed", score, judging)
    return filled(score.nanmean(-1).nanmean(0), rubrics[0].neutral).to(rollouts.log_prob)


def asking(policy: Any, rubric: Rubric, item: PromptItem, text: str, judging: Judging) -> str:
    """The question to the judge of one response."""
    asked = question(item)
    return fitting(policy, lambda n: rubric.asks(question=asked, response=text[:n]), len(text), judging)
