"""Where Thm 5.3 and Lemma C.4 say something, the loop stays below them (constant 1), and by how much.

A finite class that is closed under exact updates: pi_0^alpha_t, and the same with fewer rounds on the prompts of one of
several sets. Rewards are exact, and every round takes, of the empirical minimisers of Eq. 3, the one that sharpened
least. (For *any* minimiser the theorem is false: what no pair showed may be anything, docs/theory.md.) Prompts have
masses 1/2, 1/4, ..., so that at every n some were never drawn; the rare ones are poor. One thing varies at a time: n,
T, log|Pi|, gamma, delta, the confidence of poor prompts (kappa_0 and p), beta. p is that of the exact pi_1.

`failed` is P_x[pi_T(y*_{T-1}|x) <= 1 - delta], what A_{T-1}/delta bounds; y*_T itself fails less. rho = .05 of samples
may cross. A bound of 1 on it, or of 1/p on kappa, says nothing: such rows are called vacuous and not tested.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from srlm.experiments.outcome import Report, Row, Verdict, columns
from srlm.loop import self_reward
from srlm.policies.draws import sampled
from srlm.policies.tabular import TabularPolicy, finite_class
from srlm.rewards.table import REWARDS
from srlm.theory import finite_class_guarantee, tail_integral_recursion
from srlm.types import Prompts

PROMPTS, GOOD, RHO = 12, 0.9, 0.05


@dataclass(frozen=True)
class Regime:
    """rich: how many prompts have a mode of probability GOOD; the rarer ones are `poor`. sets: those that may lag."""

    n: int = 16_000
    T: int = 2
    sets: int = 6
    gamma: float = 2.0
    delta: float = 0.5
    poor: float = 0.3
    rich: int = 1
    beta: float = 0.4


RARE = Regime(rich=8, poor=0.01)  # p is far from 1 although kappa_0 is not large
VARIED: dict[str, tuple[Any, ...]] = {
    "n": (4_000, 16_000, 32_000),
    "T": (1, 2, 3),
    "sets": (2, 6, 11),
    "gamma": (1.0, 2.0, 4.0),
    "delta": (0.4, 0.5, 0.8),
    "poor": (0.1, 0.3, 0.6),
    "beta": (0.1, 0.4, 0.8),
}
PRINTED = ("varied", "value", "n", "T", "log|Pi|", "kappa_0", "p", "failed", "bound", "crossed", "kappa", "kappa bound")


def run(*, quick: bool, seed: int, report: Report) -> list[Row]:
    replicas = 3 if quick else 12
    cases = [(name, value, Regime(**{name: value})) for name, values in VARIED.items() for value in values]
    cases += [("n, rare", n, replace(RARE, n=n)) for n in VARIED["n"]]
    rows = []
    for done, (name, value, regime) in enumerate(cases):
        report(done, len(cases))
        rows.append({"varied": name, "value": float(value)} | _case(replicas, regime, seed + done))
    return rows


def _start(regime: Regime) -> Tensor:
    """log pi_0 [X, Y]: a mode, as many rivals gamma below it as fit, and one response with the rest."""
    rows, below = [], math.exp(-regime.gamma)
    for prompt in range(PROMPTS):
        p = GOOD if prompt < regime.rich else regime.poor
        rivals = int((1 - p) / (p * below))
        row = torch.tensor([p, *[p * below] * rivals, 1 - p - rivals * p * below], dtype=torch.float64)
        rows.append(row.clamp_min(1e-6))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1e-9).log().log_softmax(-1)


def _class(start: Tensor, regime: Regime) -> Tensor:
    """log pi [M, X, Y]: t rounds on all prompts but the k rarest, s <= t on those; the least sharpened first."""
    rounds, sets = range(regime.T + 1), range(1, regime.sets + 1)
    power = [(1 + 1 / regime.beta) ** t for t in rounds]
    cases = sorted((s, -k, t) for t in rounds for s in range(t + 1) for k in sets if s < t or k == 1)
    exponent = [[power[s if x >= PROMPTS + k else t] for x in range(PROMPTS)] for s, k, t in cases]
    return torch.log_softmax(torch.tensor(exponent, dtype=torch.float64)[..., None] * start, -1)


def _case(replicas: int, regime: Regime, seed: int) -> Row:
    n, beta = regime.n, regime.beta
    start, weight = _start(regime), 0.5 ** torch.arange(PROMPTS).double()
    weight = weight / weight.sum()
    members = _class(start, regime)
    tables = [
        step.policy.log_table()
        for step in self_reward(
            TabularPolicy(start.expand(replicas, -1, -1)), Prompts(range(PROMPTS), weight), sampler=sampled(n, 2),
            reward=REWARDS["log_likelihood"], update=finite_class(members, beta), rounds=regime.T, seed=seed,
        )
    ]  # fmt: skip
    # The margin is that of pi_0, the confidence that of pi_1: both grow from there.
    top, first = start.topk(2, -1).values, torch.log_softmax((1 + 1 / beta) * start, -1)
    margin, p = float((top[:, 0] - top[:, 1]).min()), float(first.amax(-1).exp().min())
    kappa0 = float((weight / start.amax(-1).exp()).sum())
    bound = finite_class_guarantee(
        num_samples=n, rounds=regime.T, kappa0=kappa0, log_class_size=math.log(len(members)), min_confidence=p,
        margin=margin, beta=beta, level=regime.delta, failure_probability=RHO,
    )  # fmt: skip
    rate = bound.statistical_factor * regime.delta
    kappa_bound = tail_integral_recursion(kappa0, regime.T, rate, beta / margin, p)[-1]
    before, after = tables[-2], tables[-1]
    kept = after.gather(-1, before.argmax(-1, keepdim=True))[..., 0].exp()
    failed = (weight * (kept <= 1 - regime.delta)).sum(-1)
    kappa = (weight / after.amax(-1).exp()).sum(-1)
    return {
        "n": n, "T": regime.T, "log|Pi|": math.log(len(members)), "kappa_0": kappa0, "p": p,
        "failed": float(failed.max()), "mean": float(failed.mean()), "bound": bound.total,
        "crossed": float((failed > bound.total).double().mean()),
        "kappa": float(kappa.max()), "kappa bound": float(kappa_bound),
    }  # fmt: skip


def check(rows: list[Row]) -> Verdict:
    return Verdict.of(
        _under("Thm 5.3", [row for row in rows if row["bound"] < 1], "failed", "bound", len(rows)),
        _under(
            "Lemma C.4 (Eq. 56)",
            [row for row in rows if row["kappa bound"] < (1 - 1e-9) / row["p"]],
            "kappa",
            "kappa bound",
            len(rows),
        ),
        (
            max(row["failed"] for row in rows) > 0,
            f"minimisers do fail, on up to {max(row['failed'] for row in rows):.2g} of prompts, on "
            f"{np.mean(columns(rows, 'mean')[0]):.1g} on average",
        ),
        *(_moves(name, [row for row in rows if row["varied"] == name]) for name in VARIED if name != "T"),
    )


def _under(name: str, said: list[Row], value: str, bound: str, total: int) -> tuple[bool, str]:
    if not said:
        return False, f"{name}: vacuous here, not tested"
    share = max((row[value] - (value == "kappa")) / (row[bound] - (value == "kappa")) for row in said)
    crossed = max(row["crossed"] if value == "failed" else float(row[value] > row[bound]) for row in said)
    return crossed <= RHO, (
        f"{name} says something in {len(said)} of {total} rows (the others: vacuous here, not tested); the worst "
        f"sample reaches {share:.2g} of it, and it is crossed by {crossed:.0%} of samples at most, {RHO:.0%} may"
    )


def _moves(name: str, rows: list[Row]) -> tuple[bool, str]:
    """Monotone in what it should be monotone in: a bound that ignores an argument is not the theorem's."""
    values, bounds = columns(rows, "value", "bound")
    rises = name in ("sets", "beta")
    steps = [b - a for a, b in itertools.pairwise(bounds)]
    return all(step > 0 if rises else step < 0 for step in steps), (
        f"over {name} = {', '.join(f'{value:g}' for value in values)} the bound is "
        f"{', '.join(f'{bound:.2g}' for bound in bounds)}"
    )


def draw(rows: list[Row], axes: Axes) -> None:
    for name in VARIED:
        own = [row for row in rows if row["varied"] == name]
        bound, failed = columns(own, "bound", "failed")
        axes.plot(bound, np.maximum(failed, 1e-4), marker="o", linestyle="", label=f"{name} varied")
    axes.plot([1e-2, 1], [1e-2, 1], color="0.5", linestyle="--", label="bound")
    axes.axvspan(1, 10, color="0.9", label="vacuous")
    axes.set(xscale="log", yscale="log", xlim=(1e-2, 10), xlabel="bound of Thm 5.3, constant 1")
    axes.set_ylabel("failure, worst sample (0 drawn at $10^{-4}$)")
    axes.legend(fontsize=8)
