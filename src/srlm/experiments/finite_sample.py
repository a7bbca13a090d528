"""Failure falls like 1/sqrt(n) when self-rewards are noisy, and vanishes when they are exact (Thm 5.3, 6.2).

Linear softmax with features and parameters drawn anew for each replica; rounds of sampled least squares (Eq. 3) at beta
= 1. The exact trajectory keeps the mode of pi_0, so a prompt on which the mode of pi_T is another response is a failure
of sampling. With exact log-prob rewards the regression has no noise: the only errors are directions that no pair
showed, and after one round they are gone once n (K - 1) passes a small multiple of d. With noise sigma the parameter
error is of order sigma sqrt(d / n), and because margins have a positive density at 0 so is the share of lost modes.
Several rounds add an error of another kind: later rounds draw from sharper policies, whose K responses are often K
times the same one, so directions stop being shown. It falls with n in its own time and hits exact rewards too.
The bound is Thm 6.2 with constant 1.
"""

from __future__ import annotations

import math

import torch
from matplotlib.axes import Axes

from srlm.estimators.slopes import log_log_slope
from srlm.experiments.outcome import Report, Row, Verdict, columns, mean_and_error
from srlm.experiments.worlds import linear_world
from srlm.loop import self_reward
from srlm.policies.draws import sampled
from srlm.policies.linear_softmax import least_squares
from srlm.rewards.noise import noisy
from srlm.rewards.table import REWARDS
from srlm.theory import linear_softmax_guarantee
from srlm.types import Prompts

DIMENSION, PROMPTS, RESPONSES, SAMPLES, BETA = 24, 48, 8, 4, 1.0
ONE, MANY = 1, 4
NOISE_FREE, NOISY = "exact rewards", "noisy rewards"


def run(*, quick: bool, seed: int, report: Report) -> list[Row]:
    replicas = 24 if quick else 64
    sizes = [16, 32, 64, 128, 256, 512] if quick else [8, 16, 32, 64, 128, 256, 512, 1024]
    larger = [1024, 2048] if quick else [2048, 4096]  # where one noisy round has settled
    kinds = [(name, sigma, rounds) for rounds in (ONE, MANY) for name, sigma in ((NOISE_FREE, 0.0), (NOISY, 1.0))]
    cases = [(*kind, n) for kind in kinds for n in (sizes + larger if kind[1:] == (1.0, ONE) else sizes)]
    rows = []
    for done, (name, sigma, rounds, n) in enumerate(cases):
        report(done, len(cases))
        rows.append({"rewards": name, "T": rounds, "n": n} | _measure(replicas, sigma, rounds, n, seed + done))
    return rows


def _measure(replicas: int, sigma: float, rounds: int, n: int, seed: int) -> Row:
    start = linear_world(replicas, PROMPTS, RESPONSES, DIMENSION, seed=seed)
    prompts = Prompts.uniform(range(PROMPTS))
    reward = noisy(REWARDS["log_likelihood"], sigma, seed) if sigma else REWARDS["log_likelihood"]
    steps = self_reward(
        start, prompts, sampler=sampled(n, SAMPLES), reward=reward, update=least_squares(BETA), rounds=rounds, seed=seed
    )
    confidence, margin = torch.tensor(math.inf), torch.tensor(math.inf)
    for step in steps:
        table = step.policy.log_table()
        top = table.topk(2, -1).values
        confidence = torch.minimum(confidence, top[..., 0].exp().min())
        margin = torch.minimum(margin, (top[..., 0] - top[..., 1]).min())
        last = table
    mode = start.log_table().argmax(-1)
    lost, error = mean_and_error((last.argmax(-1) != mode).double().mean(-1))
    kappa = float((-start.log_table().amax(-1)).exp().mean(-1).max())
    bound = linear_softmax_guarantee(
        num_samples=n,
        rounds=rounds,
        kappa0=kappa,
        dimension=DIMENSION,
        norm_bound=float(step.policy.theta.norm(dim=-1).max()),
        min_confidence=float(confidence),
        margin=float(margin.clamp_min(1e-12)),
        beta=BETA,
        level=0.5,
        failure_probability=0.05,
    )
    return {"lost": lost, "error": error, "bound": min(1.0, bound.total), "vacuous": bound.vacuous}


def _curve(rows: list[Row], rewards: str, rounds: int) -> list[Row]:
    return [row for row in rows if row["rewards"] == rewards and row["T"] == rounds]


def check(rows: list[Row]) -> Verdict:
    once, noise = _curve(rows, NOISE_FREE, ONE), _curve(rows, NOISY, ONE)
    exact_many, noise_many = _curve(rows, NOISE_FREE, MANY), _curve(rows, NOISY, MANY)
    slope, low, high = _slope(noise)
    _, least, most = _slope(noise, confidence=0.997)  # three standard errors: a true statement rarely fails by chance
    later, later_noise = _slope(exact_many), _slope(noise_many)
    seen = [row for row in once if row["n"] * (SAMPLES - 1) >= 6 * DIMENSION]
    pairs = list(zip(exact_many, noise_many, strict=True))
    gap = sum(b["lost"] - a["lost"] for a, b in pairs)
    z = gap / math.sqrt(sum(a["error"] ** 2 + b["error"] ** 2 for a, b in pairs))
    crossed = [row for row in rows if row["lost"] - 3 * row["error"] > row["bound"]]
    vacuous = sum(row["vacuous"] for row in rows)
    return Verdict.of(
        (
            least <= -0.5 <= most,
            f"noisy rewards, T = 1: lost modes ~ n^{slope:.2f} [{low:.2f}, {high:.2f}], theory -1/2",
        ),
        (
            len(seen) > 0 and all(row["lost"] == 0 for row in seen),
            f"exact rewards, T = 1: not one mode is lost once n(K-1) >= 6 d ({len(seen)} sizes)",
        ),
        (
            z > 3,
            f"T = {MANY}: exact rewards lose fewer modes than noisy ones (over all n z = {z:.1f}); exact "
            f"n^{later[0]:.2f} [{later[1]:.2f}, {later[2]:.2f}], noisy n^{later_noise[0]:.2f} [{later_noise[1]:.2f}, "
            f"{later_noise[2]:.2f}]: with exact rewards, too, later rounds see too little of what is not the mode",
        ),
        (not crossed, f"the bound is never crossed; it is vacuous in {vacuous} of {len(rows)} rows"),
    )


def _slope(rows: list[Row], confidence: float = 0.95) -> tuple[float, float, float]:
    """Beyond the sizes at which the regression is hardly determined."""
    settled = [row for row in rows if row["n"] * (SAMPLES - 1) >= 16 * DIMENSION and row["error"] > 0]
    x, y, error = columns(settled, "n", "lost", "error")
    return log_log_slope(x, y, error, confidence)


def draw(rows: list[Row], axes: Axes) -> None:
    for which in ((NOISE_FREE, ONE), (NOISY, ONE), (NOISE_FREE, MANY), (NOISY, MANY)):
        own = [row for row in _curve(rows, *which) if row["lost"] > 0]
        x, y, error = columns(own, "n", "lost", "error")
        axes.errorbar(x, y, yerr=error, marker="o", capsize=2, label=f"{which[0]}, T = {which[1]}")
    x, y = columns(_curve(rows, NOISY, ONE)[-4:], "n", "lost")
    axes.plot(
        x, [1.5 * y[0] * math.sqrt(x[0] / n) for n in x], linestyle="--", color="0.5", label=r"$\propto n^{-1/2}$"
    )
    axes.set(xscale="log", yscale="log", xlabel="prompts per round n", ylabel="share of prompts whose mode is lost")
    axes.legend()
