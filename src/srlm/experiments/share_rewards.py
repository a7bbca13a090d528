"""Rewarding shares takes rounds linear in kappa_0; rewarding their logarithm takes log log, down to -log K (ours).

Classes of answers, a mode and m rivals at one margin gamma, exact updates on the loop: `share` is r = P_t(c), what a
majority vote of infinitely many samples says; `log share` its logarithm, the reward of Eq. 1; `log of K` the logarithm
floored at -log K, what K samples can tell at best. Counted are the rounds until the mode has half of the share, beside
what no schedule of shares can beat, `share_rounds_needed`. A floor above the mode's share rewards all alike: nothing
moves, at any T.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from srlm.experiments.outcome import Report, Row, Verdict, columns
from srlm.loop import self_reward
from srlm.policies.draws import enumerated
from srlm.policies.tabular import TabularPolicy, tilt
from srlm.rewards.table import REWARDS
from srlm.theory import sharpening_exponent
from srlm.theory.share_rewards import log_share_from_samples, share_rounds_needed
from srlm.types import Prompts, Reward, Rollouts

BETA, NEVER = 0.5, 10_000
MARGINS = (0.25, 0.5, 1.0)
SHARE, LOG_SHARE, FLOORED = "share", "log share", "log of K"


def _share(policy: Any, rollouts: Rollouts) -> Tensor:
    return rollouts.log_prob.exp()


def _floored(num_samples: float) -> Reward:
    def reward(policy: Any, rollouts: Rollouts) -> Tensor:
        return torch.from_numpy(log_share_from_samples(rollouts.log_prob.clamp_max(0).numpy(), num_samples))

    return reward


def run(*, quick: bool, seed: int, report: Report) -> list[Row]:
    sizes = (50, 100, 200, 400) if quick else (100, 200, 500, 1000, 2000)
    cases = [(kind, margin, m) for kind in (SHARE, LOG_SHARE) for margin in MARGINS for m in sizes]
    rows = []
    for done, (kind, margin, m) in enumerate(cases):
        report(done, len(cases))
        reward = _share if kind == SHARE else REWARDS["log_likelihood"]
        rows.append(_row(kind, margin, m, 0, _rounds(reward, margin, m)))
    m, margin = sizes[1], MARGINS[1]
    kappa = 1 + m * math.exp(-margin)
    for samples in (math.floor(0.5 * kappa), math.ceil(1.1 * kappa), 4 * math.ceil(kappa)):
        rows.append(_row(FLOORED, margin, m, samples, _rounds(_floored(samples), margin, m)))
    return rows


def _row(kind: str, margin: float, m: int, samples: int, rounds: int) -> Row:
    # The escort has its half where m e^(-alpha gamma) <= 1.
    escort = math.log(math.log(m) / margin) / math.log(float(sharpening_exponent(BETA, 1)))
    return {
        "reward": kind, "margin": margin, "m": m, "K": samples, "kappa_0": 1 + m * math.exp(-margin), "rounds": rounds,
        "needed": float(share_rounds_needed(m, margin, BETA)) if kind == SHARE else float(math.ceil(escort)),
    }  # fmt: skip


def _rounds(reward: Reward, margin: float, m: int) -> int:
    """Rounds until the mode has half of the share, NEVER if a round moves nothing."""
    start = TabularPolicy(-margin * (torch.arange(m + 1) > 0).double()[None])
    before = -math.inf
    for step in self_reward(
        start, Prompts.uniform([0]), sampler=enumerated, reward=reward, update=tilt(BETA), rounds=NEVER, seed=0
    ):
        share = float(step.policy.log_table()[0, 0].exp())
        if share >= 0.5:
            return step.round
        if share <= before * (1 + 1e-12):
            break
        before = share
    return NEVER


def check(rows: list[Row]) -> Verdict:
    share, logs, floored = ([row for row in rows if row["reward"] == kind] for kind in (SHARE, LOG_SHARE, FLOORED))
    excess = [row["rounds"] - row["needed"] for row in share]
    deaf = [row["rounds"] for row in floored if row["K"] < row["kappa_0"]]
    hearing = [row["rounds"] for row in floored if row["K"] > row["kappa_0"]]
    slowest = max(row["rounds"] for row in logs)
    return Verdict.of(
        *(_linear(margin, [row for row in share if row["margin"] == margin]) for margin in MARGINS),
        (
            min(excess) >= 0 and all(row["rounds"] <= 1.1 * row["needed"] + 3 for row in share),
            f"share: never fewer rounds than needed, and at most {max(excess):.1f} more",
        ),
        (
            all(row["rounds"] == row["needed"] for row in logs),
            f"log share: at most {slowest} rounds for kappa_0 up to {max(row['kappa_0'] for row in logs):.3g}, in "
            "every row log(log(m)/gamma)/log(1 + 1/beta), rounded up",
        ),
        (
            min(deaf) == NEVER and max(hearing) < 3 * slowest,
            f"log of K: no round moves anything while K < kappa_0 = {floored[0]['kappa_0']:.3g}; for K beyond it "
            f"rounds are {', '.join(str(rounds) for rounds in hearing)}",
        ),
    )


def _linear(margin: float, rows: list[Row]) -> tuple[bool, str]:
    m, rounds = columns(rows, "m", "rounds")
    each = (rounds[-1] - rounds[0]) / (m[-1] - m[0])
    theory = -BETA * math.log(-math.expm1(-margin))
    return 0.9 < each / theory < 1.1, (
        f"share, gamma = {margin:g}: rounds {', '.join(map(str, rounds))} for m = {', '.join(map(str, m))}, "
        f"{each:.3f} a rival; beta log(1/(1 - e^-gamma)) = {theory:.3f}"
    )


def draw(rows: list[Row], axes: Axes) -> None:
    for kind, marker in ((SHARE, "o"), (LOG_SHARE, "s")):
        for number, margin in enumerate(MARGINS):
            own = [row for row in rows if (row["reward"], row["margin"]) == (kind, margin)]
            x, y, needed = columns(own, "kappa_0", "rounds", "needed")
            axes.plot(x, y, color=f"C{number}", marker=marker, linestyle="", label=f"{kind}, $\\gamma$ = {margin:g}")
            axes.plot(x, needed, color=f"C{number}", linewidth=1, linestyle="--" if kind == SHARE else ":")
    axes.set(xscale="log", yscale="log", xlabel=r"$\kappa_0$", ylabel="rounds until the mode has half (lines: theory)")
    axes.legend(fontsize=8)
