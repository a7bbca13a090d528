"""A satisfied pairwise loss may sit where nobody sampled: Thm 5.3 needs more than realizability; the anchor does not.

One prompt; pi_0 gives two common responses .6 and .4 - e, and e = 1/(4n) to 101 rare ones together. The class holds
the exact update pi_0^{1 + 1/beta}/Z, beta = n^{-1/2}, and one other policy: e^{-40} times that on the common
responses, .49 on one rare response, .51 on the other hundred. It is realizable, log|Pi| = log 2, kappa_0 = 5/3, margins
are .405 and 4.6, p = .49: Thm 5.3 (constant 1, one round) bounds the failure below 1, the less the larger n. Yet with
probability (1 - 1/(4n))^{2n} -> e^{-1/2} no rare response is among n pairs; then Eq. 3 is 0 for both policies, and the
minimiser that an adversary picks puts at most 1/2 on its mode, on every prompt. So Thm 5.3 holds for no constant C.
What is missing is that the *learned* policy has its mass where pi_0 has: E_{y~pi_1}[pi_1/pi_0] is of order n here.

The same samples with the anchor, with the exact Z and with the Z^ of each pair: the other policy is e^{-40} too low on
all that was sampled, and is never a minimiser.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from srlm.experiments.outcome import Report, Row, Verdict, columns
from srlm.objectives.regression import regression
from srlm.theory import anchored_failure_bound, condition_number, finite_class_guarantee

PAIRWISE, EXACT_Z, SAMPLED_Z = "pairwise", "anchored, exact Z", "anchored, Z of the pair"
DROP, RARE, LEVEL, FAILURE_PROBABILITY = 40.0, 101, 0.5, 0.05
TIE = 1e-18  # mean losses closer than that are one: of the exact update it is rounding, some 1e-24


def run(*, quick: bool, seed: int, report: Report) -> list[Row]:
    replicas = 200 if quick else 1000
    sizes = (1e5, 1e7, 1e9) if quick else (1e5, 1e6, 1e7, 1e8, 1e9, 1e10)
    rows = []
    for done, n in enumerate(sizes):
        report(done, len(sizes))
        rows += _at(int(n), replicas, np.random.default_rng((seed, done)))
    return rows


def _at(n: int, replicas: int, rng: np.random.Generator) -> list[Row]:
    beta, rare = n**-0.5, 1 / (4 * n)
    # Responses by kind: two common, one rare, and the hundred others, which are alike.
    size = np.array([1.0, 1.0, 1.0, RARE - 1])
    start = np.log(np.array([0.6, 0.4 - rare, rare / RARE, rare / RARE]))
    exact = (1 + 1 / beta) * start
    log_z = float(np.logaddexp.reduce(exact + np.log(size)))
    other = np.concatenate([exact[:2] - log_z - DROP, np.log([0.49, 0.51 / (RARE - 1)])])
    # The rest is 1e-18 of mass.
    policies = np.stack([exact - log_z, other])
    mass = size * np.exp(start)
    pairs = rng.multinomial(n, np.outer(mass, mass).ravel() / mass.sum() ** 2, size=replicas)
    margin = min(math.log(0.6 / (0.4 - rare)), float(other[2] - other[3]))
    bound = finite_class_guarantee(
        num_samples=n, rounds=1, kappa0=condition_number([0.6]), log_class_size=math.log(2), min_confidence=0.49,
        margin=margin, beta=beta, level=LEVEL, failure_probability=FAILURE_PROBABILITY,
    )  # fmt: skip
    anchored = anchored_failure_bound(
        num_samples=n, samples_per_prompt=2, log_class_size=math.log(2), failure_probability=FAILURE_PROBABILITY,
        mode_prob=[0.6],
    )  # fmt: skip
    bounds = {PAIRWISE: float(bound.total), EXACT_Z: float(anchored), SAMPLED_Z: 1.0}  # of the last none is proved
    picked = float(np.exp(policies.max(-1))[1])
    rows = []
    for objective in (PAIRWISE, EXACT_Z, SAMPLED_Z):
        loss = _losses(objective, policies, start, log_z, beta) @ pairs.T / n
        failing = (loss[1] <= loss[0] + TIE) & (picked <= 1 - LEVEL)
        rows.append(
            {
                "objective": objective,
                "n": n,
                "bound": bounds[objective],
                "failing": float(failing.mean()),
                "no rare response": math.exp(2 * n * math.log1p(-rare)),
                "replicas": replicas,
                "concentrability": float((size * np.exp(2 * other - start)).sum()),
            }
        )
    return rows


def _losses(
    objective: str, policies: NDArray[np.float64], start: NDArray[np.float64], log_z: float, beta: float
) -> NDArray[np.float64]:
    """Of each policy on each kind of pair [2, 16]: Eq. 3 alone, or anchored."""
    first, second = (kind.ravel() for kind in np.indices((4, 4)))
    pairs = np.stack([first, second], -1)
    reward = torch.from_numpy(start[pairs])
    weight = torch.full_like(reward, 0.5)
    anchor = 1.0 if objective == SAMPLED_Z else 0.0
    losses = []
    for policy in policies:
        log_ratio = torch.from_numpy((policy - start)[pairs])
        loss = regression(log_ratio, reward, weight, beta=beta, anchor=anchor, clip=0).numpy()
        if objective == EXACT_Z:
            loss = loss + ((beta * log_ratio - reward).mean(-1).numpy() + beta * log_z) ** 2
        losses.append(loss)
    return np.stack(losses)


def check(rows: list[Row]) -> Verdict:
    pairwise = [row for row in rows if row["objective"] == PAIRWISE]
    anchored = [row for row in rows if row["objective"] != PAIRWISE]
    exact = [row["bound"] for row in rows if row["objective"] == EXACT_Z]
    error = [math.sqrt(r["no rare response"] * (1 - r["no rare response"]) / r["replicas"]) for r in pairwise]
    off = max(abs(row["failing"] - row["no rare response"]) / scale for row, scale in zip(pairwise, error, strict=True))
    z = min((row["failing"] - FAILURE_PROBABILITY) / scale for row, scale in zip(pairwise, error, strict=True))
    least, most = min(pairwise, key=lambda row: row["bound"]), max(pairwise, key=lambda row: row["bound"])
    # A share of 0 in R samples is below this with 95 % confidence.
    at_most = max(1 - FAILURE_PROBABILITY ** (1 / row["replicas"]) for row in anchored)
    return Verdict.of(
        (
            most["bound"] < 1 and z > 4,
            f"pairwise: Thm 5.3 with C = 1 bounds the failure by {most['bound']:.2g} (n = {most['n']:.0e}) to "
            f"{least['bound']:.2g} ({least['n']:.0e}) with probability {1 - FAILURE_PROBABILITY:g}, yet the adversary "
            f"has a minimiser that fails on every prompt in {min(r['failing'] for r in pairwise):.3f} of samples or "
            f"more (z against {FAILURE_PROBABILITY:g} at least {z:.0f}): C would have to be above "
            f"{1 / least['bound']:.0f}, and the more the larger n",
        ),
        (off < 4, f"that is how often no pair has a rare response, {least['no rare response']:.4f} (z = {off:.1f})"),
        (
            all(row["failing"] == 0 for row in anchored) and at_most < FAILURE_PROBABILITY,
            f"anchored, exact Z or that of each pair: the other policy is never a minimiser (in less than "
            f"{at_most:.2g} of samples); with the exact Z the bound without a constant is {max(exact):.2g} or less",
        ),
        (
            all(row["concentrability"] > row["n"] for row in pairwise),
            f"E[pi_1/pi_0] of the other policy is {pairwise[0]['concentrability']:.1e} to "
            f"{pairwise[-1]['concentrability']:.1e}: what App. C.5 replaces by kappa_0 = 5/3",
        ),
    )


def draw(rows: list[Row], axes: Axes) -> None:
    for number, objective in enumerate((PAIRWISE, EXACT_Z)):
        own = [row for row in rows if row["objective"] == objective]
        n, failing, bound = columns(own, "n", "failing", "bound")
        label = "Thm 5.3 with C = 1" if objective == PAIRWISE else "the anchored bound"
        axes.plot(n, bound, linestyle="--", color=f"C{number}", label=f"bound on the failure: {label}")
        axes.plot(n, failing, marker="o", color=f"C{number}", label=f"samples that fail everywhere: {objective}")
    axes.axhline(FAILURE_PROBABILITY, color="0.5", linewidth=1, label="samples that may")
    axes.set(xscale="log", xlabel="pairs n", ylabel="share", ylim=(-0.03, 1.03))
    axes.legend(fontsize=8)
