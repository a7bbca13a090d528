"""What srlm makes of a model, against the model's own forward. Every check returns the largest difference in nats."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.families.forward import next_words, response_log_prob
from benchmarks.families.tiny import SPECIAL, VOCABULARY
from srlm.policies.transformer.continuation import reads_padding, shares_prompts
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.prefix_trees import CachedTrees, PlainPrefixes
from srlm.policies.transformer.processes import silent
from srlm.policies.transformer.respond import respond
from srlm.policies.transformer.responses import Responses
from srlm.policies.transformer.sample import Decoding

NEW_TOKENS = 60
GROWN = 24  # times that a tree of prefixes grows by two


def words(source: random.Random, count: int) -> list[int]:
    return [source.randrange(len(SPECIAL), VOCABULARY) for _ in range(count)]


def groups() -> list[tuple[list[int], list[list[int]]]]:
    """Prompts of 3 to 90 tokens with responses of 1 to 60 that share beginnings, one of them twice."""
    source = random.Random(1)
    found = []
    for prompt, longest in ((3, 14), (11, 14), (90, 60), (20, 60)):
        whole = words(source, longest)
        branch = whole[: longest // 3] + words(source, longest // 2)
        others = [words(source, 1), whole[: longest // 2], words(source, longest * 7 // 10), words(source, longest)]
        found.append((words(source, prompt), [whole, branch, whole, *others]))
    return found


def as_responses(lists: Sequence[Sequence[Sequence[int]]]) -> Responses:
    length = torch.tensor([[len(ids) for ids in row] for row in lists])
    tokens = torch.zeros(*length.shape, int(length.max()), dtype=torch.int32)
    for p, row in enumerate(lists):
        for k, ids in enumerate(row):
            tokens[p, k, : len(ids)] = torch.tensor(ids)
    return Responses(tokens, length, torch.ones_like(length, dtype=torch.bool))


def scoring(policy: TransformerPolicy, own: Any) -> float:
    """Of a response's log-prob, as trees or rows in micro-batches."""
    asked = groups()
    trees = policy.scorer.groups([prompt for prompt, _ in asked], as_responses([responses for _, responses in asked]))
    mine = policy.scorer.score(trees, None, silent)[0].double()
    expected = torch.tensor([[response_log_prob(own, x, y) for y in responses] for x, responses in asked]).double()
    return float((mine - expected).abs().max())


def decoding(policy: TransformerPolicy, own: Any) -> float:
    """Of the best next word's log-prob and that of the word that greedy decoding took: prompts of several lengths in a
    batch, two samples each, rows that leave it early."""
    source = random.Random(3)
    prompts = [words(source, count) for count in (5, 23, 70, 1)]
    ends = frozenset(range(len(SPECIAL), VOCABULARY, 40))
    said = respond(
        policy.model,
        prompts,
        2,
        None,
        Decoding(NEW_TOKENS, ends),
        padding=reads_padding(policy.model),
        shared=shares_prompts(policy.model),
        room=policy.room,
        together=policy.processes,
        progress=silent,
    )
    worst = 0.0
    for number, prompt in enumerate(prompts):
        for response in said.ids(number):
            along = next_words(own, prompt + response)[len(prompt) - 1 : -1]
            taken = along.gather(-1, torch.tensor(response)[:, None])[:, 0]
            worst = max(worst, float((along.max(-1).values - taken).max()))
    return worst


@torch.no_grad()
def search(policy: TransformerPolicy, own: Any) -> float:
    """Of any next word's log-prob after prefixes that branch at random, two prompts at a time."""
    source = random.Random(5)
    prompts = [words(source, 70), words(source, 5)]
    tree: Any = (
        CachedTrees(policy.model, prompts)
        if policy.shared
        else PlainPrefixes(policy.model, prompts, policy.room.tokens)
    )
    paths: list[list[list[int]]] = [[[]] for _ in prompts]
    answers: list[list[torch.Tensor]] = [[] for _ in prompts]
    new: dict[int, list[tuple[int, int]]] = {number: [] for number in range(len(prompts))}
    for _ in range(GROWN):
        for number, distributions in tree.grow(new):
            answers[number] += distributions
        for number, known in enumerate(paths):
            parent = len(known) - 1 if source.random() < 0.8 else source.randrange(len(known))
            new[number] = [(parent, word) for word in words(source, 2)]
            known += [[*known[parent], word] for _, word in new[number]]
    return max(
        float((answer - next_words(own, [*prompt, *path])[-1]).abs().max())
        for prompt, known, given in zip(prompts, paths, answers, strict=True)
        for path, answer in zip(known, given, strict=False)
    )
