"""Failure depends on n and the spectrum through n / d_eff (Thm 6.2, Def. G.1).

One round of sampled ridge regression (ridge 1/n) on linear softmax policies whose feature covariance is isotropic in d
dimensions, or decays exponentially, polynomially, or has a few spikes; logits have the same spread in all worlds. Each
round is made twice on the same draws, with exact rewards and with noise sigma: the difference of the two is the
statistical error that d_eff is about (what a ridge costs in bias it costs both). If d_eff is the right count of
dimensions, that error is one function of n / d_eff, whatever the spectrum; in n / d it is not. Its level is known too:
least squares with noise sigma/beta in n (K - 1) differences and eigenvalues a has an rms error of sigma/beta
sqrt(sum (a/(a + ridge))^2/(n (K - 1))), at most that with d_eff for the sum, and near it where few a are below the
ridge.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import Tensor

from srlm.estimators.slopes import log_log_slope
from srlm.experiments.outcome import Report, Row, Verdict, columns, mean_and_error
from srlm.experiments.worlds import linear_world
from srlm.loop import self_reward
from srlm.policies.draws import sampled
from srlm.policies.linear_softmax import LinearSoftmaxPolicy, least_squares
from srlm.rewards.noise import noisy
from srlm.rewards.table import REWARDS
from srlm.theory import effective_dimension
from srlm.types import Prompts, Reward

PROMPTS, RESPONSES, SAMPLES, BETA, SIGMA, FULL = 32, 8, 4, 1.0, 1.0, 48


def spectra() -> dict[str, Tensor]:
    index = torch.arange(1, FULL + 1, dtype=torch.float64)
    return {
        "isotropic, d = 6": torch.ones(6, dtype=torch.float64),
        "isotropic, d = 16": torch.ones(16, dtype=torch.float64),
        "isotropic, d = 48": torch.ones(FULL, dtype=torch.float64),
        "exponential": torch.exp(-0.35 * index),
        "polynomial": index**-2.0,
        "spiked": torch.where(index <= 5, 1.0, 0.002),
    }


def run(*, quick: bool, seed: int, report: Report) -> list[Row]:
    replicas = 6 if quick else 32
    sizes = [256, 1024, 4096] if quick else [256, 512, 1024, 2048, 4096]
    rows = []
    for i, (name, spectrum) in enumerate(spectra().items()):
        for j, n in enumerate(sizes):
            report(i * len(sizes) + j, len(spectra()) * len(sizes))
            rows.append({"spectrum": name, "d": len(spectrum), "n": n} | _measure(replicas, spectrum, n, seed + i))
    return rows


def _measure(replicas: int, spectrum: Tensor, n: int, seed: int) -> Row:
    start = linear_world(replicas, PROMPTS, RESPONSES, len(spectrum), seed=seed, spectrum=spectrum)
    reward = REWARDS["log_likelihood"]
    clean, noise = (_after(start, n, r, seed) for r in (reward, noisy(reward, SIGMA, seed)))
    weight = start.log_table().exp()
    difference = noise - clean
    difference = difference - (weight * difference).sum(-1, keepdim=True)
    mean, error = mean_and_error((weight * difference**2).sum(-1).mean(-1).sqrt())
    lost, lost_error = mean_and_error((noise.argmax(-1) != clean.argmax(-1)).double().mean(-1))
    return {
        "d_eff": float(np.mean([effective_dimension(e, 1 / n) for e in _eigenvalues(start)])),
        "log-ratio error": mean,
        "its error": error,
        "modes lost": lost,
        "lost error": lost_error,
    }


def _after(start: LinearSoftmaxPolicy, n: int, reward: Reward, seed: int) -> Tensor:
    *_, last = self_reward(
        start,
        Prompts.uniform(range(PROMPTS)),
        sampler=sampled(n, SAMPLES),
        reward=reward,
        update=least_squares(BETA, ridge=1 / n),
        rounds=1,
        seed=seed,
    )
    table: Tensor = last.policy.log_table()
    return table


def _eigenvalues(policy: LinearSoftmaxPolicy) -> np.ndarray:
    """Of the covariance of centred features under pi: what a pair of responses shows of phi."""
    weight = policy.log_table().exp()[..., None]
    centred = policy.features - (weight * policy.features).sum(-2, keepdim=True)
    matrix = (centred.flatten(-3, -2).mT @ (weight * centred).flatten(-3, -2)) / PROMPTS
    values: np.ndarray = torch.linalg.eigvalsh(matrix).clamp_min(0).numpy()
    return values


def check(rows: list[Row]) -> Verdict:
    ratio = [row["n"] / row["d_eff"] for row in rows]
    errors = columns(rows, "log-ratio error", "its error")
    slope, low, high = log_log_slope(ratio, *errors)
    scatter = {
        name: _scatter(x, errors[0])
        for name, x in (("n/d_eff", ratio), ("n/d", [r["n"] / r["d"] for r in rows]), ("n", [r["n"] for r in rows]))
    }
    levels = [
        float(stats.gmean([_of_theory(row) for row in rows if row["spectrum"] == spectrum])) for spectrum in spectra()
    ]
    rest = len(rows) - 2
    chance = max(stats.f.sf((scatter[x] / scatter["n/d_eff"]) ** 2, rest, rest) for x in ("n/d", "n"))
    return Verdict.of(
        (
            chance < 0.01,
            "scatter of the log error about one power law: "
            + ", ".join(f"{value:.3f} in {name}" for name, value in scatter.items())
            + f" (F test that d_eff explains no more: p = {chance:.1g})",
        ),
        (abs(slope + 0.5) < 0.1, f"exponent of n/d_eff {slope:.3f} [{low:.3f}, {high:.3f}], theory -1/2"),
        (
            min(levels) > 0.55 and max(levels) < 1.05,
            f"its level is {min(levels):.2f} to {max(levels):.2f} of sigma/beta sqrt(d_eff/(n (K-1))) (geometric means "
            "of spectra; theory at most 1)",
        ),
        (all(row["d_eff"] <= row["d"] for row in rows), "d_eff never exceeds d"),
    )


def _of_theory(row: Row) -> float:
    """The error as a share of sigma/beta sqrt(d_eff/(n (K - 1)))."""
    return float(row["log-ratio error"] * BETA / SIGMA * math.sqrt(row["n"] * (SAMPLES - 1) / row["d_eff"]))


def _scatter(x: list[float], y: list[float]) -> float:
    """Standard deviation of log y about its best line in log x."""
    lx, ly = np.log(x), np.log(np.maximum(y, 1e-12))
    return float(np.std(ly - np.polyval(np.polyfit(lx, ly, 1), lx)))


def draw(rows: list[Row], axes: Axes) -> None:
    for name in spectra():
        own = [row for row in rows if row["spectrum"] == name]
        x = [row["n"] / row["d_eff"] for row in own]
        axes.errorbar(x, *columns(own, "log-ratio error", "its error"), marker="o", capsize=2, label=name)
    x = sorted(row["n"] / row["d_eff"] for row in rows)
    first = min(rows, key=lambda row: row["n"] / row["d_eff"])["log-ratio error"]
    axes.plot(
        x, [first * math.sqrt(x[0] / v) for v in x], linestyle="--", color="0.5", label=r"$\propto (n/d_{eff})^{-1/2}$"
    )
    axes.set(xscale="log", yscale="log", xlabel=r"$n / d_{eff}(1/n)$", ylabel="error of log-ratios (nats, rms)")
    axes.legend(fontsize=8)
