"""One anchored round, from below and above with no constant: Bayes <= any minimiser <= sqrt(kappa^(K) log(|Pi|/rho)/n).

The worst hard instance of App. D for each n, kappa, d and K, with a class that knows `c` of the M labels of a prompt as
possible keys, c^d assignments in all. Each prompt also has one policy more: e^{-40} times the exact update on what is
ordinary, the rest on a response of mass 1/(100nK). From the same samples: a plain minimiser of the anchored loss (exact
Z, beta = 1) that chooses among all of them by lot, an adversarial one that chooses a wrong one wherever there is one,
and an adversarial minimiser of the pairs alone (Eq. 3). Failure is P_x[pi_1(y*|x) is not that of the exact update].
The Bayes failure is exact; the bound holds with probability .95 over the sample; the pairs alone are beyond it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy import stats

from srlm.experiments.outcome import Report, Row, Verdict, columns
from srlm.objectives.regression import regression
from srlm.theory import HardInstance, anchored_failure_bound, worst_case_instance

N, KAPPA, PROMPTS, SAMPLES, ALL = 4096, 5.0, 4, 2, 0
MARGIN, DROP, FAILURE_PROBABILITY = 0.05, 40.0, 0.05
TIE = 1e-18
PRINTED = (
    "moving",
    "n",
    "kappa",
    "d",
    "K",
    "c",
    "log|Pi|",
    "floor",
    "plain",
    "adversary",
    "worst",
    "bound",
    "pairwise",
)


class Case(NamedTuple):
    n: int = N
    kappa: float = KAPPA
    d: int = PROMPTS
    K: int = SAMPLES
    c: int = ALL
    """0: every label."""


def run(*, quick: bool, seed: int, report: Report) -> list[Row]:
    replicas = 100 if quick else 250
    over = {
        "n": [Case(n=n) for n in (1024, 4096, 16384)],
        "kappa": [Case(kappa=kappa) for kappa in (2.0, 20.0, 80.0)],
        "d": [Case(d=d) for d in (1, 16)],
        "K": [Case(K=k) for k in (1, 8)],
        "c": [Case(c=c) for c in (2, 8)],
    }
    cases = [(moving, case) for moving, own in over.items() for case in (own[len(own) // 2 :][:1] if quick else own)]
    rows = []
    for done, (moving, case) in enumerate(cases):
        report(done, len(cases))
        measured = _measure(case, replicas, np.random.default_rng((seed, done)))
        rows.append({"moving": moving} | case._asdict() | measured)
    return rows


def _measure(case: Case, replicas: int, rng: np.random.Generator) -> Row:
    n, kappa, d, k, c = case
    limit = worst_case_instance(n, kappa, d, k)
    hard = HardInstance(d, limit.num_labels, limit.informative_mass, MARGIN)
    known = c or hard.num_labels
    start = _start(hard, 1 / (100 * n * k))
    moved, squares = _policies(start, known)
    weight = np.append(np.full(d, hard.informative_mass / d), 1 - hard.informative_mass)
    failures = np.array([_failures(hard, weight, start, moved, squares, n, k, rng) for _ in range(replicas)])
    plain, adversary, pairwise = failures.T
    mode_prob = np.append(np.full(d, math.exp(start[0, 0])), math.exp(start[1, 0]))
    log_size = d * math.log(known + 1) + math.log(2)
    bound = float(
        anchored_failure_bound(
            num_samples=n, samples_per_prompt=k, log_class_size=log_size, failure_probability=FAILURE_PROBABILITY,
            mode_prob=mode_prob, weight=weight,
        )
    )  # fmt: skip
    return {
        "M": hard.num_labels,
        "log|Pi|": log_size,
        "floor": bayes_failure(hard, known, n, k),
        "plain": float(plain.mean()),
        "error": float(plain.std(ddof=1) / replicas**0.5),
        "adversary": float(adversary.mean()),
        "worst": float(adversary.max()),
        "bound": bound,
        "beyond": float((adversary > bound).mean()),
        "pairwise": float(pairwise.mean()),
        "pairwise beyond": float((pairwise > bound).mean()),
        "replicas": replicas,
    }


def bayes_failure(hard: HardInstance, known: int, n: int, k: int) -> float:
    """`HardInstance.bayes_failure` for one of `known` labels, U of them not drawn: Delta E[rho^N (U - 1)_+]/known."""
    if known == hard.num_labels:
        return float(hard.bayes_failure(n, k))
    share, rho = hard.informative_mass / hard.num_prompts, 1 - hard.margin / (hard.num_labels - 1)
    terms = (
        (-1) ** j * math.comb(known, j) * (1 - share * (1 - (rho * (1 - j / hard.num_labels)) ** k)) ** n
        for j in range(2, known + 1)
    )
    return hard.informative_mass / known * math.fsum(terms)


def _start(hard: HardInstance, rare: float) -> NDArray[np.float64]:
    """log pi_t [2, M + 1] of an informative prompt, with key 0, and of the silent one; the last label is rare."""
    log_prob, _ = hard.policy(np.zeros(hard.num_prompts, dtype=int))
    rows = np.full((2, hard.num_labels + 1), math.log(rare))
    rows[:, :-1] = log_prob[[0, -1]] + math.log1p(-rare)
    return rows


def _policies(start: NDArray[np.float64], known: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """log(pi/pi_t) [2, M + 1] of the policy that moved its mass; and (d + log Z)^2 [2, known + 1, M + 1] of the exact
    update for each known key, the true one first, and of that policy last."""
    log_z = np.logaddexp.reduce(2 * start, -1)
    with np.errstate(invalid="ignore"):
        exact = 2 * start - log_z[:, None]
        policies = np.repeat(exact[:, None], known + 1, 1)
        for key in range(1, known):
            policies[0, key, [0, key]] = exact[0, [key, 0]]
        policies[:, -1] = exact - DROP
        policies[:, -1, -1] = math.log1p(-math.exp(-DROP))
        residual = policies - 2 * start[:, None] + log_z[:, None, None]
        moved = policies[:, -1] - start
    never = np.isneginf(start)
    return np.where(never, 0.0, moved), np.where(never[:, None], 0.0, residual**2)


def _failures(
    hard: HardInstance, weight: NDArray[np.float64], start: NDArray[np.float64], moved: NDArray[np.float64],
    squares: NDArray[np.float64], n: int, k: int, rng: np.random.Generator,
) -> tuple[float, float, float]:  # fmt: skip
    """Of one sample: the plain and the adversarial minimiser of the anchored loss, and the adversarial one of pairs."""
    d, labels = hard.num_prompts, start.shape[-1]
    x = rng.choice(d + 1, p=weight, size=n)
    kind = (x == d).astype(int)
    edges = np.cumsum(np.exp(start), -1)
    u = rng.random((n, k)) * edges[:, -1][kind, None]
    y = np.where(kind[:, None] == 0, np.searchsorted(edges[0], u, "right"), np.searchsorted(edges[1], u, "right"))
    counts = np.bincount((x[:, None] * labels + y).ravel(), minlength=(d + 1) * labels).reshape(d + 1, labels)
    # The mean over a group of (d_k + log Z)^2 is its variance, Eq. 3, plus the anchor.
    loss = np.concatenate([counts[:d] @ squares[0].T, counts[d:] @ squares[1].T])
    ties = loss <= TIE
    ties[d, 1:-1] = False  # the silent prompt has no other keys
    wrong = ties.sum(-1) - 1
    adversary = weight[wrong > 0].sum()
    plain = weight[rng.random(d + 1) * (1 + wrong) >= 1].sum()
    log_ratio, reward = (torch.from_numpy(table[kind[:, None], y]) for table in (moved, start))
    pairs = regression(log_ratio, reward, torch.full_like(reward, 1 / k), beta=1.0, anchor=0.0, clip=0)
    satisfied = np.bincount(x, pairs.numpy(), minlength=d + 1) <= TIE
    return float(plain), float(adversary), float(weight[satisfied].sum())


def check(rows: list[Row]) -> Verdict:
    z = [(row["plain"] - row["floor"]) / row["error"] for row in rows]
    loose = [row["bound"] / row["floor"] for row in rows]
    close = [row["adversary"] / row["bound"] for row in rows]
    allowed = [stats.binom.ppf(0.999, row["replicas"], FAILURE_PROBABILITY) / row["replicas"] for row in rows]
    above = [(row["pairwise beyond"], row["replicas"]) for row in rows]
    beaten = min((share - 0.05) / math.sqrt(0.05 * 0.95 / replicas) for share, replicas in above)
    sizes = [row["log|Pi|"] for row in rows]
    return Verdict.of(
        (
            max(map(abs, z)) < 4 and all(row["error"] < 0.15 * row["plain"] for row in rows),
            f"below: the plain minimiser fails as often as the Bayes learner, and no less (z from {min(z):.1f} to "
            f"{max(z):.1f} in {len(rows)} settings)",
        ),
        (
            all(row["plain"] <= row["adversary"] <= row["worst"] for row in rows) and min(close) > 0.05,
            f"between: the adversary reaches {min(close):.2f} to {max(close):.2f} of the bound on average, in its "
            f"worst sample {max(row['worst'] / row['bound'] for row in rows):.2f}",
        ),
        (
            all(row["bound"] < 1 for row in rows)
            and all(row["beyond"] <= most for row, most in zip(rows, allowed, strict=True)),
            f"above: beyond the bound in {max(row['beyond'] for row in rows):.3f} of samples at most, allowed "
            f"{FAILURE_PROBABILITY}; the bound is below 1 everywhere ({min(r['bound'] for r in rows):.2g} to "
            f"{max(r['bound'] for r in rows):.2g})",
        ),
        (
            max(loose) < 20,
            f"the bound is {min(loose):.1f} to {max(loose):.1f} times the Bayes failure (log|Pi| from {min(sizes):.1f} "
            f"to {max(sizes):.0f})",
        ),
        (
            beaten > 4,
            f"pairs alone: beyond it in {min(share for share, _ in above):.2f} or more of samples (z = {beaten:.0f}), "
            f"failing on {min(row['pairwise'] for row in rows):.2f} or more of the prompts",
        ),
    )


def draw(rows: list[Row], axes: Axes) -> None:
    """Every setting in units of its bound, by what moves."""
    names = [f"{row['moving']} = {row[row['moving']]:g}" for row in rows]
    series = {
        "bound, no constant": ("bound", "_", "C3"), "pairs alone, adversary": ("pairwise", "^", "C1"),
        "worst sample": ("worst", "x", "C0"), "adversary": ("adversary", "o", "C0"),
        "plain minimiser": ("plain", "s", "C2"), "Bayes, exact": ("floor", "_", "black"),
    }  # fmt: skip
    for label, (name, marker, color) in series.items():
        size = 16 if marker == "_" else 5
        axes.plot(names, *columns(rows, name), marker, color=color, markersize=size, label=label)
    otherwise = f"otherwise n = {N}, kappa = {KAPPA:g}, d = {PROMPTS}, K = {SAMPLES}, every label a possible key"
    axes.set(yscale="log", ylim=(None, 15), xlabel=otherwise, ylabel="failure $P_x$")
    axes.tick_params(axis="x", rotation=45, labelsize=8)
    axes.legend(fontsize=8, ncols=2)
