"""A judge whose judgements are judged (Meta-Rewarding Language Models, Wu et al. 2024, arXiv 2407.19594). There a
meta-judge's verdicts on pairs of judgements train the judge; here they weigh the judgements of a response. To train the
judge, take judging as the prompts and `judge_pairwise` with the rubric meta-judge as the reward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from srlm.rewards._needs import in_parts
from srlm.rewards.judge import asking
from srlm.rewards.judge_pairwise import compared, opponents
from srlm.rewards.judging import TOGETHER, USUALLY, Judging, Note, filled, noted, silent, written
from srlm.types import Rollouts

USUAL, USUAL_META = ("additive-reasons",), ("meta-judge",)
FEWEST = 2  # judgements that can be compared


def meta_judge(policy: Any, rollouts: Rollouts, *, note: Note = silent, judging: Judging = USUALLY) -> Tensor:
    """[P, K] on the rubric's scale, points: sum_s w_s g_s / sum_s w_s over the S judgements of a response that were
    written and have a grade g_s; w_s is the win rate of judgement s over the others of the response, both orders
    asked, its verdicts read from the logits. A meta-judge of positions alone leaves the mean of the grades.

    Unparsed judgements are left out before, their share noted as `unparsed`, unparsed verdicts on pairs as
    `unparsed_meta`; else as `judge`.

    Costs S judgements per response, and S (S - 1) comparisons of them.

    Raises:
        UserError: as `judge`.
    """
    (rubric, *_), (meta, *_) = judging.of(USUAL, pairs=False), judging.of(USUAL_META, pairs=True)
    k, s = rollouts.log_prob.shape[1], judging.samples
    silently = replace(judging, samples=0)
    every, verdicts, scores = [], [], []
    for number, part in enumerate(in_parts(policy, rollouts, max(1, TOGETHER // s))):
        asked = [[asking(policy, rubric, item, text, judging) for text in texts] for item, texts in part]
        said = written(policy, "meta_judge", asked, judging, rollouts.round, 2, 0, number)
        sides = [
            (what, some) for row, texts in zip(asked, said, strict=True) for what, some in zip(row, texts, strict=True)
        ]
        grades = torch.tensor([[rubric.read(one) for one in some] for _, some in sides], dtype=torch.float64)
        all_others = [opponents(s, None)] * len(sides)
        found, wins = compared(policy, "meta_judge", meta, sides, all_others, silently)
        rate = torch.where(grades.isnan()[:, None], torch.nan, wins).nanmean(-1).nan_to_num(nan=0.5)
        weight = torch.where(grades.isnan(), 0.0, rate)
        mean = (weight * grades.nan_to_num()).sum(-1) / weight.sum(-1)  # nan without a judgement
        scores.append(mean.view(-1, k))
        every.append(grades)
        verdicts.append(found.flatten())
    noted(note, "unparsed", torch.cat(every), judging)
    noted(note, "unparsed_meta", torch.cat(verdicts), silently)
    return filled(torch.cat(scores), rubric.neutral).to(rollouts.log_prob)
