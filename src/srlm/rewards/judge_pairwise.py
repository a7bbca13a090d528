"""LLM-as-a-judge by the policy itself, on pairs of responses, in both orders since judges favour a position (Zheng et
al. 2023, arXiv 2306.05685, Sec. 3.4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srlm.rewards._needs import attribute, in_parts
from srlm.rewards.judge import TOGETHER, Note, expectation, filled, fitting, question, silent
from srlm.types import Rollouts

COMPARISON = """Compare two responses to the question of a user. The better one is more correct, more relevant, more \
useful and clearer; length and order do not count.

Question: {question}

Response A: {first}

Response B: {second}

Which one is better? Answer "Response A" or "Response B".
"""
OPENING, CHOICES = "Response", ("A", "B")
NEUTRAL = 0.5


def judge_pairwise(policy: Any, rollouts: Rollouts, *, note: Note = silent) -> Tensor:
    """[P, K] in [0, 1]: the mean over the other responses j of w_ij = (p(A|i, j) + p(B|j, i)) / 2, with
    p(A|i, j) = pi(A|c) / (pi(A|c) + pi(B|c)) and c the comparison of i, as A, with j, as B. Hence w_ij + w_ji = 1: a
    judge that looks at the position alone gives everyone 1/2.

    A comparison where A and B hold less than `judge.LEAST_MASS` is unparsed, its share noted as `unparsed_pairs`; it
    takes its pair with it. A response without a pair gets the mean of its group's others, or 1/2. From never to always
    better is 1/beta nats of the exact update: beta is to be well below 1.

    Costs K (K - 1) comparisons per prompt, each a pass over two responses (the rest is shared among those with the
    same A): K times what `judge` costs and more.

    Raises:
        UserError: as `judge`.
    """
    ask = attribute(policy, "choice_log_prob", "judge_pairwise", "a policy that reads and continues text")
    number, k = rollouts.log_prob.shape

    def prompt(asked: str, a: str, b: str) -> str:
        def build(n: int) -> str:
            return COMPARISON.format(question=asked, first=a[:n], second=b[:n])

        return fitting(policy, build, max(len(a), len(b)))

    wanted = torch.tensor([1.0, 0.0], dtype=torch.float64)
    parts = []
    for part in in_parts(policy, rollouts, TOGETHER // k):  # each is compared with all others of its prompt
        prompts = [
            [prompt(question(item), texts[i], texts[j]) for j in range(k) if j != i]
            for item, texts in part
            for i in range(k)
        ]
        parts.append(expectation(ask(prompts, OPENING, CHOICES), wanted))
    first = torch.cat(parts)
    note("unparsed_pairs", float(first.isnan().double().mean()))
    wins = torch.full((number, k, k), torch.nan, dtype=torch.float64)
    wins[:, ~torch.eye(k, dtype=torch.bool)] = first.view(number, -1)
    return filled(((wins + 1 - wins.mT) / 2).nanmean(-1), NEUTRAL).to(rollouts.log_prob)
