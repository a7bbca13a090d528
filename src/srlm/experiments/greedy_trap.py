"""Greedy decoding finds the mode above probability 1/2, and need not below (Prop. 4.3, App. E).

Two families of tables over V^L. The construction of Prop. 4.3 with random V, L, p* < 1/2 and gap: greedy must miss
every time. Random autoregressive policies, from nearly uniform to nearly certain: greedy and mode are compared, binned
by the probability of the mode; above 1/2 not one miss is allowed, because each prefix of the mode then holds more than
half of the mass. The constructed traps then run on the loop, exactly tilted: greedy finds the mode from the round on in
which its probability passes 1/2.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from srlm.estimators.intervals import wilson
from srlm.experiments.outcome import Report, Row, Verdict
from srlm.loop import self_reward
from srlm.policies.draws import enumerated
from srlm.policies.tabular import TabularPolicy, tilt
from srlm.rewards.table import REWARDS
from srlm.theory import GreedyTrap, greedy_trap
from srlm.types import Prompts

TRAP, RANDOM, ROUNDS = "trap", "random", 6
EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


def greedy_prob(table: Tensor, vocab: int) -> Tensor:
    """log pi [...] of the greedy sequence of tables [..., V^L]: the likeliest word by the mass that continues it."""
    rest = table
    while rest.shape[-1] > 1:
        heads = rest.view(*rest.shape[:-1], vocab, -1)
        best = torch.logsumexp(heads, -1).argmax(-1)
        index = best[..., None, None].expand(*best.shape, 1, heads.shape[-1])
        rest = heads.gather(-2, index)[..., 0, :]
    return rest[..., 0]


def run(*, quick: bool, seed: int, report: Report) -> list[Row]:
    draw = np.random.default_rng(seed)
    rows = []
    traps = [_trap(draw) for _ in range(40 if quick else 200)]
    missed = late = early = 0
    for done, trap in enumerate(traps):
        report(done, 2 * len(traps))
        steps = self_reward(
            TabularPolicy(torch.from_numpy(_table(trap))[None]),
            Prompts.uniform([0]),
            sampler=enumerated,
            reward=REWARDS["log_likelihood"],
            update=tilt(1.0),
            rounds=ROUNDS,
            seed=seed,
        )
        for step in steps:
            table = step.policy.log_table()[0]
            right = bool(greedy_prob(table, trap.vocab_size) >= table.max())
            missed += step.round == 0 and not right
            above = float(table.max().exp()) > 0.5
            late += above and not right
            early += step.round == ROUNDS and right
    rows.append({"family": TRAP, "mode from": 0.0, "mode to": 0.5, "policies": len(traps), "greedy misses": missed})
    rows.append(
        {"family": "trap, tilted past 1/2", "mode from": 0.5, "mode to": 1.0, "policies": early, "greedy misses": late}
    )
    modes, wrong = _random(2_000 if quick else 20_000, seed)
    for low, high in itertools.pairwise(EDGES):
        inside = (modes > low) & (modes <= high)
        rows.append(
            {
                "family": RANDOM,
                "mode from": low,
                "mode to": high,
                "policies": int(inside.sum()),
                "greedy misses": int((inside & wrong).sum()),
            }
        )
    return rows


def _trap(draw: np.random.Generator) -> GreedyTrap:
    vocab, length = int(draw.integers(3, 6)), int(draw.integers(2, 5))
    return greedy_trap(vocab, length, float(draw.uniform(1.05 / (2 * vocab - 1), 0.499)))


def _table(trap: GreedyTrap) -> np.ndarray:
    """[1, V^L], sequences numbered in base V."""
    every = itertools.product(range(trap.vocab_size), repeat=trap.length)
    return np.array([[trap.sequence_log_prob(sequence) for sequence in every]])


def _random(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mode probabilities of random autoregressive policies over 3^4, and whether greedy misses the mode."""
    generator = torch.Generator().manual_seed(seed)
    vocab, length = 3, 4
    sharp = 6 * torch.rand(count, 1, 1, dtype=torch.float64, generator=generator)
    conditionals = [
        torch.log_softmax(sharp * torch.randn(count, vocab**i, vocab, dtype=torch.float64, generator=generator), -1)
        for i in range(length)
    ]
    table = TabularPolicy.autoregressive(conditionals).log_table()
    best = table.amax(-1)
    return best.exp(), greedy_prob(table, vocab) < best - 1e-12


def check(rows: list[Row]) -> Verdict:
    trap, tilted = rows[0], rows[1]
    random = [row for row in rows if row["family"] == RANDOM]
    above = [row for row in random if row["mode from"] >= 0.5]
    below = [row for row in random if row["mode to"] <= 0.5]
    number, misses = sum(r["policies"] for r in above), sum(r["greedy misses"] for r in above)
    _, high = wilson(misses, max(number, 1))
    few, many = sum(r["policies"] for r in below), sum(r["greedy misses"] for r in below)
    return Verdict.of(
        (
            trap["greedy misses"] == trap["policies"],
            f"greedy misses the mode of {trap['greedy misses']} of {trap['policies']} constructed traps (p* < 1/2)",
        ),
        (
            number > 0 and misses == 0,
            f"above 1/2 greedy misses {misses} of {number} random modes (95 % interval up to {high:.2g})",
        ),
        (many > 0, f"below 1/2 it misses {many} of {few}: one half is where the guarantee ends"),
        (
            tilted["greedy misses"] == 0 and tilted["policies"] > 0,
            f"on the loop, greedy finds the mode of every trap once pi_t gives it more than 1/2: "
            f"{tilted['policies']} of {trap['policies']} within {ROUNDS} rounds",
        ),
    )


def draw(rows: list[Row], axes: Axes) -> None:
    random = [row for row in rows if row["family"] == RANDOM and row["policies"]]
    share = [row["greedy misses"] / row["policies"] for row in random]
    ends = [wilson(row["greedy misses"], row["policies"]) for row in random]
    middle = [(row["mode from"] + row["mode to"]) / 2 for row in random]
    spread = [
        [s - low for s, (low, _) in zip(share, ends, strict=True)],
        [h - s for s, (_, h) in zip(share, ends, strict=True)],
    ]
    axes.errorbar(middle, share, yerr=np.abs(spread), marker="o", capsize=2, label="random policies")
    axes.plot([0, 0.5], [1, 1], label="constructed traps")
    axes.axvline(0.5, color="0.5", linestyle="--", label="1/2")
    axes.set(xlabel="probability of the mode", ylabel="share of modes that greedy misses", ylim=(-0.03, 1.05))
    axes.legend()
