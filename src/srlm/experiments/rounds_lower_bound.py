"""Iterating cannot forget the worst start: T rounds of n prompts fail like sqrt(kappa_0/(nT)), whoever learns (ours).

The hard instance of App. D that is worst for a learner of N = nT prompts who chooses, draw by draw, what to draw from
(margin -> 0). Three learners: the optimal adaptive one, which draws labels of a prompt without replacement and names
one that it has not drawn; T rounds of the self-rewarded loop of the lower-bound experiment (least squares over all
tables, beta so small that whatever it learns decides); and the Bayes learner of a single round of all N prompts. With
n fixed the failure falls like T^{-1/2}; with N fixed, not at all.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from srlm.estimators.slopes import log_log_slope
from srlm.experiments.outcome import Report, Row, Verdict, columns, mean_and_error
from srlm.loop import self_reward
from srlm.policies.draws import sampled
from srlm.policies.tabular import TabularPolicy, least_squares
from srlm.rewards.table import REWARDS
from srlm.theory import HardInstance, rounds_lower_bound, worst_case_failure, worst_case_instance
from srlm.types import Prompts

KAPPA, PROMPTS, SAMPLES, MARGIN, BETA = 5.0, 4, 2, 0.05, 1e-4
PER_ROUND, IN_ALL = 32, 512
TRIES = 10_000  # of the adaptive learner, which is cheap
GROWING, FIXED = "n = 32 a round", "nT = 512"


def run(*, quick: bool, seed: int, report: Report) -> list[Row]:
    replicas = 40 if quick else 80
    rounds = (1, 2, 4, 8, 16)
    cases = [(GROWING, t, PER_ROUND) for t in rounds] + [(FIXED, t, IN_ALL // t) for t in rounds]
    rows = []
    for done, (budget, t, n) in enumerate(cases):
        report(done, len(cases))
        rows.append({"budget": budget, "T": t, "n": n} | _measure(replicas, n, t, seed + done))
    return rows


def _measure(replicas: int, n: int, rounds: int, seed: int) -> Row:
    limit = worst_case_instance(n * rounds, KAPPA, PROMPTS, SAMPLES, adaptive=True)
    hard = HardInstance(PROMPTS, limit.num_labels, limit.informative_mass, MARGIN)
    log_prob, weight = (torch.from_numpy(array) for array in hard.policy(np.zeros(PROMPTS, dtype=int)))
    *_, last = self_reward(
        TabularPolicy(log_prob.expand(replicas, -1, -1)),
        Prompts(range(PROMPTS + 1), weight),
        sampler=sampled(n, SAMPLES),
        reward=REWARDS["log_likelihood"],
        update=least_squares(BETA),
        rounds=rounds,
        seed=seed,
    )
    loop, error = mean_and_error((weight * (last.policy.log_table()[..., 0] <= math.log(0.5))).sum(-1))
    own, own_error = mean_and_error(torch.from_numpy(_adaptive(limit, n * rounds, TRIES, seed)))
    return {
        "M": limit.num_labels,
        "bound": float(rounds_lower_bound(n, rounds, KAPPA, PROMPTS, SAMPLES)),
        "floor": float(limit.adaptive_failure(n * rounds, SAMPLES)),
        "adaptive": own,
        "its error": own_error,
        "loop": loop,
        "error": error,
        "one round": float(limit.bayes_failure(n * rounds, SAMPLES)),
    }


def _adaptive(hard: HardInstance, budget: int, replicas: int, seed: int) -> np.ndarray:
    """Failures of learners that try labels one by one: the key is the first, second, ... of them with equal chances."""
    rng = np.random.default_rng(seed)
    share = np.append(np.full(hard.num_prompts, hard.informative_mass / hard.num_prompts), 1 - hard.informative_mass)
    drawn = SAMPLES * rng.multinomial(budget, share, size=replicas)[:, :-1]
    place = rng.integers(hard.num_labels, size=drawn.shape)
    failures: np.ndarray = hard.informative_mass * (place > drawn).mean(-1)  # the one after those drawn is the guess
    return failures


def check(rows: list[Row]) -> Verdict:
    growing, fixed = ([row for row in rows if row["budget"] == budget] for budget in (GROWING, FIXED))
    z = [(row["adaptive"] - row["floor"]) / row["its error"] for row in rows]
    below = min((row["loop"] - row["floor"]) / row["error"] for row in rows)
    many = np.array([100.0, 1000.0, 10_000.0])
    exact = worst_case_failure(PER_ROUND * many, KAPPA, PROMPTS, SAMPLES, adaptive=True)
    falling = float(np.polyfit(np.log(many), np.log(exact), 1)[0])
    rounds, loop, error = columns(growing, "T", "loop", "error")
    slope, low, high = log_log_slope(rounds, loop, error)
    rounds, loop, error = columns(fixed, "T", "loop", "error")
    flat, least, most = log_log_slope(rounds, loop, error, 0.997)
    worth = [row["one round"] / row["floor"] for row in rows]
    return Verdict.of(
        (
            all(row["bound"] <= row["floor"] * (1 + 1e-9) <= 1.1 * row["bound"] for row in rows),
            "the closed form is under the exact floor of an adaptive learner everywhere, by "
            f"{max(1 - row['bound'] / row['floor'] for row in rows):.1%} at most",
        ),
        (
            max(map(abs, z)) < 4 and all(row["its error"] < 0.02 * row["floor"] for row in rows),
            f"the optimal adaptive learner, simulated, is at its floor (z from {min(z):.1f} to {max(z):.1f})",
        ),
        (
            below > -4 and all(row["error"] < 0.1 * row["loop"] for row in rows),
            f"the loop is never below it: smallest z-score {below:.1f}",
        ),
        (
            abs(falling + 0.5) < 0.01 and low <= -0.45 and high >= -0.55 and high - low < 0.3,
            f"{GROWING}: the floor falls like T^{falling:.3f} (T = 100 to 10^4), the loop's failure like T^{slope:.2f} "
            f"[{low:.2f}, {high:.2f}]; theory -1/2",
        ),
        (
            fixed[0]["floor"] == fixed[-1]["floor"] and -0.2 < least <= 0 <= most < 0.2,
            f"{FIXED}: the loop's failure goes like T^{flat:.3f} [{least:.3f}, {most:.3f}]: rounds buy nothing",
        ),
        (
            min(worth) >= 1 and max(worth) < 1.2,
            f"choosing what to draw from is worth {min(worth) - 1:.0%} to {max(worth) - 1:.0%} against one round of "
            "all prompts",
        ),
    )


def draw(rows: list[Row], axes: Axes) -> None:
    for number, budget in enumerate((GROWING, FIXED)):
        own = [row for row in rows if row["budget"] == budget]
        rounds, bound, floor = columns(own, "T", "bound", "floor")
        color = f"C{number}"
        axes.errorbar(
            *columns(own, "T", "loop", "error"), marker="o", capsize=2, linestyle="none", color=color,
            label=f"self-rewarded loop, {budget}",
        )  # fmt: skip
        axes.plot(rounds, floor, color=color, label="any learner at least, exact")
        axes.plot(rounds, bound, linestyle="--", color=color, label="closed form")
    axes.set(xscale="log", yscale="log", xlabel=f"rounds T (kappa_0 = {KAPPA:g})", ylabel="failure $P_x$")
    axes.set_xticks(columns(rows[: len(rows) // 2], "T")[0], minor=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=8)
