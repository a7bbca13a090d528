"""Exact policies: replicas per second on the loop against a plain numpy loop of the same experiment.

    python -m benchmarks.replicas

The experiment: T rounds of sampled least squares (Eq. 3) on a linear softmax policy, for several n, Y, d and counts of
replicas R. The plain version is what one would write in a notebook: one replica, one prompt, one pair at a time, with
`Generator.choice` and `lstsq`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from srlm.experiments.worlds import linear_world
from srlm.loop import self_reward
from srlm.policies.draws import sampled
from srlm.policies.linear_softmax import LinearSoftmaxPolicy, least_squares
from srlm.rewards.table import REWARDS
from srlm.types import Prompts

ROUNDS, SAMPLES = 4, 4


def batched(start: LinearSoftmaxPolicy, n: int) -> np.ndarray:
    steps = self_reward(
        start,
        Prompts.uniform(range(start.features.shape[-3])),
        sampler=sampled(n, SAMPLES),
        reward=REWARDS["log_likelihood"],
        update=least_squares(1.0),
        rounds=ROUNDS,
        seed=0,
    )
    *_, last = steps
    return last.policy.theta.numpy()


def plain(start: LinearSoftmaxPolicy, n: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    results = []
    for theta, phi in zip(start.theta.numpy(), start.features.numpy(), strict=True):
        for _ in range(ROUNDS):
            rows, targets = [], []
            for _ in range(n):
                features = phi[generator.integers(len(phi))]
                logits = features @ theta
                p = np.exp(logits - logits.max())
                p /= p.sum()
                drawn = generator.choice(len(p), size=SAMPLES, p=p)
                reward = np.log(p[drawn])
                for i in range(SAMPLES):
                    for j in range(i):
                        rows.append(features[drawn[i]] - features[drawn[j]])
                        targets.append(reward[i] - reward[j])
            theta = theta + np.linalg.lstsq(np.array(rows), np.array(targets), rcond=1e-8)[0]
        results.append(theta)
    return np.array(results)


def per_second(replicas: int, work: Callable[[], object]) -> float:
    """Over a quarter of a second at least: a run of the batched version takes a few milliseconds."""
    start, runs = time.perf_counter(), 0
    while (took := time.perf_counter() - start) < 0.25:
        work()
        runs += 1
    return runs * replicas / took


def main() -> None:
    torch.set_num_threads(1)
    print("| R | n | Y | d | batched replicas/s | plain replicas/s | ratio (median of 5, min–max) |")
    print("|---|---|---|---|---|---|---|")
    cases = [(256, 16, 8, 8), (256, 64, 8, 8), (256, 16, 64, 8), (256, 16, 8, 32), (16, 16, 8, 8), (2048, 16, 8, 8)]
    for replicas, n, responses, dimension in cases:
        start = linear_world(replicas, 16, responses, dimension, seed=0)
        few = LinearSoftmaxPolicy(start.theta[:16], start.features[:16])
        batched(start, n)
        pairs = [
            (per_second(replicas, partial(batched, start, n)), per_second(16, partial(plain, few, n))) for _ in range(5)
        ]
        ratios = sorted(a / b for a, b in pairs)
        fast, slow = (statistics.median(x) for x in zip(*pairs, strict=True))
        print(
            f"| {replicas} | {n} | {responses} | {dimension} | {fast:,.0f} | {slow:,.1f} | "
            f"{statistics.median(ratios):.0f} ({ratios[0]:.0f}–{ratios[-1]:.0f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
