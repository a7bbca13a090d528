"""Failure falls like 1/sqrt(n) when self-rewards are noisy, and vanishes when they are exact (Thm 5.3, 6.2).

Linear softmax with features and parameters drawn anew for each replica; rounds of sampled least squares (Eq. 3) at beta
= 1. The exact trajectory keeps the mode of pi_0, so a prompt on which the mode of pi_T is another response is a failure
of sampling. With exact log-prob rewards the regression has no noise: the only errors are directions that no pair
showed, and after one round they are gone once n (K - 1) passes a small multiple of d. With noise sigma the parameter
error is of order sigma sqrt(d / n), and because margins have a positive density at 0 so is the share of lost modes.
Several rounds add an error of another kind: later rounds draw from sharper policies, whose K responses are often K
times the same one, so directions stop being shown. It falls with n in its own time and hits exact rewards too. Four
gentle rounds, of the total exponent of the one, are spared it: there n^(-1/2) holds for T > 1 as well.
Thm 6.2 with constant 1 is vacuous at these sizes, not tested here; `guarantee` has regimes in which it says something.
"""

from __future__ import annotations

import math

from matplotlib.axes import Axes

from srlm.estimators.slopes import log_log_slope
from srlm.experiments.outcome import Report, Row, Verdict, columns, mean_and_error, power_law
from srlm.experiments.worlds import linear_world
from srlm.loop import self_reward
from srlm.policies.draws import sampled
from srlm.policies.linear_softmax import least_squares
from srlm.rewards.noise import noisy
from srlm.rewards.table import REWARDS
from srlm.types import Prompts

DIMENSION, PROMPTS, RESPONSES, SAMPLES = 24, 48, 8, 4
MANY = 4
ONE_ROUND, ROUNDS, GENTLE = "T = 1", f"T = {MANY}", f"T = {MANY}, gentle"
GENTLE_SIZES = (128, 192, 256, 384, 512, 768, 1024)
BETA = {ONE_ROUND: 1.0, ROUNDS: 1.0, GENTLE: 1 / (2 ** (1 / MANY) - 1)}
NOISE_FREE, NOISY = "exact rewards", "noisy rewards"


def run(*, quick: bool, seed: int, report: Report) -> list[Row]:
    replicas = 24 if quick else 64
    sizes = [16, 32, 64, 128, 256, 512] if quick else [8, 16, 32, 64, 128, 256, 512, 1024]
    larger = [1024, 2048] if quick else [2048, 4096]  # where one noisy round has settled
    cases = [(rewards, way, n) for way in (ONE_ROUND, ROUNDS) for rewards in (NOISE_FREE, NOISY) for n in sizes]
    cases += [(NOISY, ONE_ROUND, n) for n in larger] + [(NOISY, GENTLE, n) for n in GENTLE_SIZES]
    rows = []
    for done, (rewards, way, n) in enumerate(cases):
        report(done, len(cases))
        # Gentle rounds lose little: their slope needs as many replicas when quick, and the same worlds at every n.
        gentle = way == GENTLE
        lost, error = _lost(max(replicas, 48 * gentle), rewards, way, n, seed if gentle else seed + done)
        rows.append({"rewards": rewards, "rounds": way, "n": n, "lost": lost, "error": error})
    return rows


def _lost(replicas: int, rewards: str, way: str, n: int, seed: int) -> tuple[float, float]:
    start = linear_world(replicas, PROMPTS, RESPONSES, DIMENSION, seed=seed)
    prompts = Prompts.uniform(range(PROMPTS))
    reward = REWARDS["log_likelihood"]
    *_, last = self_reward(
        start,
        prompts,
        sampler=sampled(n, SAMPLES),
        reward=noisy(reward, 1.0, seed) if rewards == NOISY else reward,
        update=least_squares(BETA[way]),
        rounds=1 if way == ONE_ROUND else MANY,
        seed=seed,
    )
    other = last.policy.log_table().argmax(-1) != start.log_table().argmax(-1)
    return mean_and_error(other.double().mean(-1))


def _curve(rows: list[Row], rewards: str, way: str) -> list[Row]:
    return [row for row in rows if row["rewards"] == rewards and row["rounds"] == way]


def check(rows: list[Row]) -> Verdict:
    once, noise = _curve(rows, NOISE_FREE, ONE_ROUND), _curve(rows, NOISY, ONE_ROUND)
    exact_many, noise_many = _curve(rows, NOISE_FREE, ROUNDS), _curve(rows, NOISY, ROUNDS)
    seen = [row for row in once if row["n"] * (SAMPLES - 1) >= 6 * DIMENSION]
    pairs = list(zip(exact_many, noise_many, strict=True))
    gap = sum(b["lost"] - a["lost"] for a, b in pairs)
    z = gap / math.sqrt(sum(a["error"] ** 2 + b["error"] ** 2 for a, b in pairs))
    first, last = noise_many[0], noise_many[-1]
    falls = (first["lost"] - last["lost"]) / math.hypot(first["error"], last["error"])
    return Verdict.of(
        power_law("noisy rewards, T = 1: lost modes in n", _slope(noise), -0.5),
        power_law(f"noisy rewards, {GENTLE}: lost modes in n", _slope(_curve(rows, NOISY, GENTLE)), -0.5),
        (
            len(seen) > 0 and all(row["lost"] == 0 for row in seen),
            f"exact rewards, T = 1: not one mode is lost once n(K-1) >= 6 d ({len(seen)} sizes)",
        ),
        (
            z > 3 and falls > 3,
            f"T = {MANY}: exact rewards lose fewer modes than noisy ones (over all n z = {z:.1f}); both fall, noisy "
            f"{first['lost']:.3f} to {last['lost']:.3f} (z = {falls:.1f}), exact {exact_many[0]['lost']:.3f} to "
            f"{exact_many[-1]['lost']:.3f}: with exact rewards, too, later rounds see too little of the rest",
        ),
        (True, "Thm 6.2 with constant 1: vacuous here, not tested"),
    )


def _slope(rows: list[Row]) -> tuple[float, float, float]:
    """Beyond the sizes at which the regression is hardly determined."""
    settled = [row for row in rows if row["n"] * (SAMPLES - 1) >= 16 * DIMENSION and row["error"] > 0]
    x, y, error = columns(settled, "n", "lost", "error")
    return log_log_slope(x, y, error)


def draw(rows: list[Row], axes: Axes) -> None:
    for which in dict.fromkeys((row["rewards"], row["rounds"]) for row in rows):
        own = [row for row in _curve(rows, *which) if row["lost"] > 0]
        x, y, error = columns(own, "n", "lost", "error")
        axes.errorbar(x, y, yerr=error, marker="o", capsize=2, label=", ".join(which))
    x, y = columns(_curve(rows, NOISY, ONE_ROUND)[-4:], "n", "lost")
    axes.plot(
        x, [1.5 * y[0] * math.sqrt(x[0] / n) for n in x], linestyle="--", color="0.5", label=r"$\propto n^{-1/2}$"
    )
    axes.set(xscale="log", yscale="log", xlabel="prompts per round n", ylabel="share of prompts whose mode is lost")
    axes.legend()
