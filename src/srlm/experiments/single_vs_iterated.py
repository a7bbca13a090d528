"""One round or many with the same budget (Thm 4.1 against Thm 5.3): the winner depends on the start, and on the noise.

N prompts with K responses each are spent in T = 1, 2, 4, 8, 16 rounds of N/T, with (1 + 1/beta)^T = alpha the same for
all T: without sampling error every T ends in the same policy, pi_0^alpha. Policies are drawn anew for each replica, the
same for all T, and alpha is what carries a start of any confidence to one target, the same for all starts. Failure is
P_x[pi_T(y*|x) <= 1/2] with y* the mode of pi_0. z compares T rounds with one as if their replicas were independent
(they share policies, so z is on the safe side).

The bounds compare one beta for all T. At one total exponent a single round may use a beta far below 1, and what is left
for iteration to offer is where it samples: later rounds draw the likely responses again and average their noise. It
pays in prompts a round, and in sharper policies that show less of the rest.
"""

from __future__ import annotations

import math

import torch
from matplotlib.axes import Axes
from torch import Tensor

from srlm.experiments.outcome import Report, Row, Verdict, failure, log_kappa, mean_and_error
from srlm.loop import self_reward
from srlm.policies import linear_softmax, tabular
from srlm.policies.draws import sampled
from srlm.policies.linear_softmax import LinearSoftmaxPolicy
from srlm.policies.tabular import TabularPolicy
from srlm.rewards.noise import noisy
from srlm.rewards.table import REWARDS
from srlm.types import Prompts

ROUNDS, MOST, SAMPLES = (1, 2, 4, 8, 16), 16, 8
TABLE, SHARED = "tabular", "linear softmax"
TARGET = {TABLE: 12.0, SHARED: 96.0}  # scale of the logits of pi_0^alpha
SCALES = {TABLE: (0.25, 0.5, 1.0, 2.0, 4.0), SHARED: (2.0, 6.0, 18.0)}
SOME, LOUD = 1.0, 4.0  # sigma in nats
KINDS = [  # policy, sigma, N
    (TABLE, 0.0, 64),
    (TABLE, SOME, 64),
    (TABLE, LOUD, 64),
    (TABLE, LOUD, 256),
    (SHARED, 0.0, 64),
    (SHARED, 2.0, 64),
]
# One-sided, chance gets there in one of a run's fifty comparisons about once in ninety runs.
PRINTED = ("policy", "sigma", "N", "kappa_0", "exact", "fail_1", "fail_2", "fail_4", "fail_8", "fail_16", "error_16")
CLEAR = 3.5


def run(*, quick: bool, seed: int, report: Report) -> list[Row]:
    replicas = 32 if quick else 96
    kinds = [kind for kind in KINDS if kind[2] == KINDS[0][2] or not quick]
    cases = [(*kind, scale) for kind in kinds for scale in SCALES[kind[0]][:: 2 if quick else 1]]
    rows = []
    for done, (kind, sigma, budget, scale) in enumerate(cases):
        report(done, len(cases))
        # The smallest effects take the most replicas.
        rows.append(_case(kind, sigma, scale, budget, replicas * (3 if sigma == SOME else 1), seed))
    return rows


def _case(kind: str, sigma: float, scale: float, budget: int, replicas: int, seed: int) -> Row:
    policy = _start(kind, scale, replicas, seed)
    table, alpha = policy.log_table(), TARGET[kind] / scale
    prompts = Prompts.uniform(range(table.shape[-2]))
    mode = table.argmax(-1)
    row: Row = {
        "policy": kind, "sigma": sigma, "N": budget, "alpha": alpha,
        "kappa_0": float(log_kappa(table, prompts.weight).exp().mean()),
        "exact": float(failure(torch.log_softmax(alpha * table, -1), prompts.weight, mode).mean()),
    }  # fmt: skip
    for rounds in ROUNDS:
        beta = 1 / (alpha ** (1 / rounds) - 1)
        module = tabular if kind == TABLE else linear_softmax
        for step in self_reward(
            policy, prompts, sampler=sampled(budget // rounds, SAMPLES),
            reward=noisy(REWARDS["log_likelihood"], sigma, seed), update=module.least_squares(beta), rounds=rounds,
            seed=seed,
        ):  # fmt: skip
            last = step.policy.log_table()
        row[f"fail_{rounds}"], row[f"error_{rounds}"] = mean_and_error(failure(last, prompts.weight, mode))
    return row


def _start(kind: str, scale: float, replicas: int, seed: int) -> TabularPolicy | LinearSoftmaxPolicy:
    """The same seed gives the same directions at every scale."""
    generator = torch.Generator().manual_seed(seed)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    if kind == TABLE:
        return TabularPolicy(scale * gaussian(replicas, 4, 32))
    phi, theta = gaussian(replicas, 16, 64, 8), gaussian(replicas, 8)
    return LinearSoftmaxPolicy(scale * theta / theta.norm(dim=-1, keepdim=True), phi / phi.norm(dim=-1, keepdim=True))


def check(rows: list[Row]) -> Verdict:
    exact = [row for row in rows if row["sigma"] == 0]
    shared = [row for row in rows if row["sigma"] > 0 and row["policy"] == SHARED]
    settled = [row for row in exact if row["policy"] == SHARED]
    off = max(abs(row["fail_1"] - row["exact"]) for row in settled)
    return Verdict.of(
        (
            off < 1e-9,
            f"{SHARED}, exact rewards: the failure of one round is that of pi_0^alpha (largest gap {off:.0g})",
        ),
        _one_wins("exact rewards", exact),
        _one_wins(f"{SHARED}, noisy rewards", shared),
        _many_win([row for row in rows if row["sigma"] == LOUD]),
        _crossing([row for row in rows if row["sigma"] == SOME]),
    )


def _z(row: Row, rounds: int) -> float:
    """Of what T rounds gain over one; 0 where both are certain and equal."""
    gain = row["fail_1"] - row[f"fail_{rounds}"]
    return float(gain / max(math.hypot(row["error_1"], row[f"error_{rounds}"]), 1e-12))


def _told(row: Row, rounds: int) -> str:
    return (
        f"kappa_0 = {row['kappa_0']:.3g}, N = {row['N']}: one round fails on {row['fail_1']:.3f} +- "
        f"{row['error_1']:.3f}, {rounds} on {row[f'fail_{rounds}']:.3f} +- {row[f'error_{rounds}']:.3f}"
    )


def _one_wins(name: str, rows: list[Row]) -> tuple[bool, str]:
    """Many rounds are clearly better nowhere, and clearly worse somewhere."""
    cases = [(_z(row, rounds), row, rounds) for row in rows for rounds in ROUNDS[1:]]
    best, worst = max(cases, key=lambda case: case[0]), min(cases, key=lambda case: case[0])
    return best[0] < CLEAR and worst[0] < -CLEAR, (
        f"{name}: many rounds never beat one (z at most {best[0]:.1f} of {len(cases)} comparisons) and lose by z = "
        f"{worst[0]:.1f} at {_told(*worst[1:])}"
    )


def _many_win(rows: list[Row]) -> tuple[bool, str]:
    best = max(rows, key=lambda row: _z(row, MOST))
    return _z(best, MOST) > CLEAR, (
        f"{TABLE}, sigma = {LOUD:g}: {MOST} rounds beat one by z = {_z(best, MOST):.1f} at {_told(best, MOST)}; "
        f"{_by_start(rows)}"
    )


def _crossing(rows: list[Row]) -> tuple[bool, str]:
    """The gain of many rounds at the poorest start less that at the best."""
    poor, good = max(rows, key=lambda row: row["kappa_0"]), min(rows, key=lambda row: row["kappa_0"])
    gains = [row["fail_1"] - row[f"fail_{MOST}"] for row in (poor, good)]
    error = math.hypot(*(row[f"error_{t}"] for row in (poor, good) for t in (1, MOST)))
    z = (gains[0] - gains[1]) / error
    return z > 2, (
        f"{TABLE}, sigma = {SOME:g}: what {MOST} rounds gain falls from {gains[0]:+.3f} at kappa_0 = "
        f"{poor['kappa_0']:.3g} to {gains[1]:+.3f} at {good['kappa_0']:.3g} (z = {z:.1f}); {_by_start(rows)}"
    )


def _by_start(rows: list[Row]) -> str:
    each = (f"{_z(row, MOST):+.1f} at {row['kappa_0']:.3g}" for row in rows if row["N"] == rows[0]["N"])
    return f"z by kappa_0 at N = {rows[0]['N']}: {', '.join(each)}"


def draw(rows: list[Row], axes: Axes) -> None:
    for kind in dict.fromkeys((row["policy"], row["sigma"], row["N"]) for row in rows):
        own = [row for row in rows if (row["policy"], row["sigma"], row["N"]) == kind]
        axes.errorbar(
            [row["kappa_0"] for row in own],
            [row["fail_1"] - row[f"fail_{MOST}"] for row in own],
            yerr=[math.hypot(row["error_1"], row[f"error_{MOST}"]) for row in own],
            marker="o" if kind[0] == TABLE else "s",
            capsize=2,
            label=f"{kind[0]}, $\\sigma$ = {kind[1]:g}, N = {kind[2]}",
        )
    axes.axhline(0, color="0.5", linewidth=1)
    axes.set(xscale="log", xlabel=r"$\kappa_0$", ylabel=f"failure of 1 round $-$ failure of {MOST} rounds")
    axes.set_ylim(top=1.0)
    axes.legend(fontsize=8, ncols=2, loc="upper left")
