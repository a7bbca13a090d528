"""LLM-as-a-judge by the policy itself, on pairs of responses, in both orders since judges favour a position (Zheng et
al. 2023, arXiv 2306.05685, Sec. 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srlm.rewards._needs import in_parts
from srlm.rewards.judging import TOGETHER, USUALLY, Judging, Note, ask, filled, fitting, noted, question, silent
from srlm.rewards.rubric import Rubric
from srlm.types import Rollouts

USUAL = ("pairwise",)
NEUTRAL = 0.5


def judge_pairwise(policy: Any, rollouts: Rollouts, *, note: Note = silent, judging: Judging = USUALLY) -> Tensor:
    """[P, K] in [0, 1]: the mean over opponents j (`opponents`) of w_ij = (p(A|i, j) + p(B|j, i)) / 2, with
    p(A|i, j) = pi(A|c) / (pi(A|c) + pi(B|c)) and c the comparison of i, as A, with j, as B; or the share of A among
    judgements of c that are written. Hence w_ij + w_ji = 1: a judge that looks at the position alone gives everyone
    1/2.

    A comparison without a verdict is unparsed, its share noted as `unparsed_pairs`; it takes its pair with it. A
    response without a pair gets the mean of its group's others, or 1/2. From never to always better is 1/beta nats of
    the exact update: beta is to be well below 1.

    Costs K (K - 1) comparisons per prompt, each a pass over two responses (the rest is shared among those with the
    same A): K times what `judge` costs and more; K M with M opponents.

    Raises:
        UserError: as `judge`.
    """
    rubrics = judging.of(USUAL, pairs=True)
    judging.asker(policy, "judge_pairwise")
    k = rollouts.log_prob.shape[1]
    if k < 2:
        return torch.full_like(rollouts.log_prob, NEUTRAL)
    every: list[Tensor] = []
    rates: list[Tensor] = []
    for place, rubric in enumerate(rubrics):
        parts = []
        for number, part in enumerate(in_parts(policy, rollouts, TOGETHER // k)):  # each is compared with others
            stream = (rollouts.round, 1, place, number)
            others = [opponents(k, judging.opponents, judging.seed, *stream, n) for n in range(len(part))]
            sides = [(question(item), texts) for item, texts in part]
            parts.append(compared(policy, "judge_pairwise", rubric, sides, others, judging, *stream))
        every.append(torch.cat([found for found, _ in parts]).flatten())
        rates.append(torch.cat([wins for _, wins in parts]).nanmean(-1))
    noted(note, "unparsed_pairs", torch.cat(every), judging)
    return filled(torch.stack(rates).nanmean(0), NEUTRAL).to(rollouts.log_prob)


def compared(
    policy: Any,
    reward: str,
    rubric: Rubric,
    sides: Sequence[tuple[str, Sequence[str]]],
    others: Sequence[Sequence[Sequence[int]]],
    judging: Judging,
    *stream: int,
) -> tuple[Tensor, Tensor]:
    """Of questions with K texts each: every verdict [G, K, M, S] on text i as first and its opponent as second, nan
    where there is none, and w_ij [G, K, K], nan where they were not compared both ways."""
    k = len(sides[0][1])

    def prompt(asked: str, a: str, b: str) -> str:
        build: Callable[[int], str] = lambda n: rubric.asks(question=asked, first=a[:n], second=b[:n])  # noqa: E731
        return fitting(policy, build, max(len(a), len(b)), judging)

    asked = [
        [prompt(what, texts[i], texts[j]) for j in some[i]]
        for (what, texts), some in zip(sides, others, strict=True)
        for i in range(k)
    ]
    verdicts = ask(policy, reward, rubric, asked, judging, *stream).view(len(sides), k, len(others[0][0]), -1)
    wins = torch.full((len(sides), k, k), torch.nan, dtype=torch.float64)
    wins.scatter_(2, torch.tensor(others), verdicts.nanmean(-1))
    return verdicts, (wins + 1 - wins.mT) / 2


def opponents(k: int, number: int | None, *stream: int) -> list[list[int]]:
    """[K][M] with whom each of K responses is compared: all others, or those next to it on either side of a circle in
    random order, at least `number` of them. Whoever is compared is so both ways."""
    if number is None or number >= k - 1:
        return [[j for j in range(k) if j != i] for i in range(k)]
    circle = np.random.default_rng([6, *stream]).permutation(k)
    found: list[list[int]] = [[] for _ in range(k)]
    for at, i in enumerate(circle):
        steps = [s for step in range(1, (number + 1) // 2 + 1) for s in (step, -step)]
        found[i] = sorted({int(circle[(at + s) % k]) for s in steps})
    return found
