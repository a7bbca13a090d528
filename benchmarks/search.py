"""Exact modes: best-first search on cached trees against the same search on plain rows, and against beam search.

    python -m benchmarks.search [--prompts 64] [--pairs 3] [--plain-prompts 8]

The plain search evaluates the same kind of prefixes, in batches too, but forwards prompt and prefix anew each time.
Beam search certifies nothing: what is counted is how many of the certified modes it finds, and what it pays.
"""

from __future__ import annotations

import argparse
import heapq
import math
import os
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.timing import interleave, machine, now, ratios, spread, table
from srlm.diagnosis.probe import starting_points
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.prefix_trees import CachedTrees
from srlm.prompts.sources import load_prompts
from srlm.search import Found, PrefixTrees, Tokens
from srlm.types import Prompts

LENGTH = 12


def starts_of(policy: TransformerPolicy, prompts: Prompts) -> list[list[list[int]]]:
    """The greedy response and the best samples of eight, as `srlm diagnose` begins."""
    samples = policy.sample(prompts, 8, torch.Generator().manual_seed(0))
    greedy, log_prob = policy.greedy(prompts), policy.log_prob(prompts, samples)
    return [starting_points(greedy.ids(i)[0], samples.ids(i), log_prob[i].tolist()) for i in range(len(prompts))]


def beam(policy: TransformerPolicy, prompt: Sequence[int], width: int) -> tuple[Tokens, int]:
    """The best complete response of a beam of `width` prefixes a level, and how many prefixes were forwarded."""
    trees: PrefixTrees = CachedTrees(policy.model, [prompt])
    node: dict[Tokens, int] = {(): 0}
    level: list[tuple[float, Tokens]] = [(0.0, ())]
    best: tuple[float, Tokens] = (-math.inf, ())
    new: list[tuple[int, int]] = []
    while level:
        ((_, log_prob),) = trees.grow({0: new})
        total: Tensor = log_prob + torch.tensor([value for value, _ in level])[:, None]
        values, places = total.flatten().topk(width + 1)
        children = [
            (value, (*level[place // total.shape[1]][1], place % total.shape[1]))
            for value, place in zip(values.tolist(), places.tolist(), strict=True)
        ]
        done = [c for c in children if policy.ended(c[1]) or len(c[1]) == LENGTH]
        best = max([best, *done])
        level = heapq.nlargest(width, (c for c in children if c not in done))
        new = [(node[prefix[:-1]], prefix[-1]) for _, prefix in level]
        for _, prefix in level:
            node[prefix] = len(node)
    return best[1], len(node)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--plain-prompts", type=int, default=8)
    given = parser.parse_args()
    policy = TransformerPolicy.load("smollm2", lora_rank=0, gain=False, max_new_tokens=LENGTH)
    prompts = load_prompts("data/capitals-train.jsonl").take(given.prompts, 0).prompts
    some = Prompts.uniform(prompts.items[: given.plain_prompts])
    every_start = starts_of(policy, prompts)

    def timed(who: Prompts, starts: list[list[list[int]]], shared: bool) -> tuple[float, list[Found]]:
        start = now()
        policy.shared, before = shared, policy.shared
        try:
            found = policy.most_probable(who, starts)
        finally:
            policy.scorer.trees = before
        return now() - start, found

    whole = [timed(prompts, every_start, True) for _ in range(given.pairs)]
    cold = timed(some, [starts[:1] for starts in every_start[: len(some)]], True)[1]
    runs = interleave(
        {
            "cached trees": lambda: timed(some, every_start[: len(some)], True),
            "plain rows": lambda: timed(some, every_start[: len(some)], False),
        },
        given.pairs,
    )
    per_prefix = {
        name: [seconds / sum(one.prefixes for one in found) for seconds, found in results]
        for name, results in runs.items()
    }
    found = whole[0][1]
    sure = sum(one.num_certified >= 2 for one in found)
    seconds = [s for s, _ in whole]
    print(machine("cpu", policy.model.dtype))
    print(
        f"\n{len(prompts)} prompts, at most {LENGTH} tokens: mode and runner-up certified on {sure}, "
        f"{statistics.mean(one.prefixes for one in found):.0f} prefixes a prompt "
        f"(most {max(one.prefixes for one in found)}); search {spread(seconds, 1)} s, load {os.getloadavg()[0]:.1f}\n"
        f"begun with the greedy response alone: {statistics.mean(one.prefixes for one in cold):.0f} prefixes a prompt, "
        f"with samples {statistics.mean(one.prefixes for one in found[: len(some)]):.0f} (first {len(some)} prompts)\n"
    )
    rows = [
        [name, spread([1e3 * s for s in per_prefix[name]]), spread(ratios(per_prefix["plain rows"], per_prefix[name]))]
        for name in per_prefix
    ]
    print(table(["search", "ms a prefix", "plain rows ÷ this"], rows))
    lines = []
    for width in (1, 8, 64):
        start = now()
        beams = [beam(policy, policy.encode(item), width) for item in prompts.items]
        agree = [b[0] == one.responses[0] for b, one in zip(beams, found, strict=True) if one.num_certified]
        cost = statistics.mean(b[1] for b in beams)
        lines.append([str(width), f"{cost:.0f}", f"{sum(agree)} of {len(agree)}", f"{now() - start:.1f}"])
    print()
    print(table(["beam width", "prefixes a prompt", "certified modes found", "seconds, a prompt at a time"], lines))


if __name__ == "__main__":
    main()
