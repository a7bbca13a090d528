"""One update cannot escape a bad start: failure >= sqrt(kappa_0 log|Pi| / n) up to a constant (Thm 4.1, Eq. 92, 99).

The hard instance of App. D at its worst informative mass, for a range of n and kappa_0: the exact failure of the Bayes
learner, and of a real one, a round of self-rewarded least squares (Eq. 3) over all tables with beta so small that
whatever it learns decides. It fails where its policy gives the key at most 1/2. Nobody can be below Bayes; the closed
form of THEORY section 3 has explicit constants; the paper's bound has a free one, and the largest constant for which it
still holds is beside what the construction gives: with eps^2 = d (kappa - 1)/(2enK) in Eq. 99,
c = (kappa - 1) u/(2eK kappa log M), u = 1 + log(kappa/eps). That a real learner stays within a factor of Bayes, at both
slopes, is Rem. 5.4: at T = 1 the rate of the upper bound is that of the lower one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy import optimize

from srlm.estimators.slopes import log_log_slope
from srlm.experiments.outcome import Report, Row, Verdict, columns, mean_and_error, power_law
from srlm.loop import self_reward
from srlm.policies.draws import sampled
from srlm.policies.tabular import TabularPolicy, least_squares
from srlm.rewards.table import REWARDS
from srlm.theory import (
    HardInstance,
    single_step_lower_bound,
    worst_case_failure,
    worst_case_failure_closed_form,
    worst_case_instance,
)
from srlm.types import Prompts

INFORMATIVE, SAMPLES, MARGIN, BETA = 4, 2, 0.05, 1e-4
KAPPA, SIZE = 5.0, 128  # what stays while the other moves
FACTOR = 1.5


def run(*, quick: bool, seed: int, report: Report) -> list[Row]:
    replicas = 120 if quick else 400
    over_n = [(n, KAPPA) for n in ((32, 64, 128, 256) if quick else (32, 64, 128, 256, 512))]
    over_kappa = [(SIZE, k) for k in ((2.0, 3.0, 5.0, 9.0) if quick else (2.0, 3.0, 5.0, 9.0, 17.0))]
    cases = [("n", *case) for case in over_n] + [("kappa", *case) for case in over_kappa]
    rows = []
    for done, (moving, n, kappa) in enumerate(cases):
        report(done, len(cases))
        rows.append({"moving": moving, "n": n, "kappa": kappa} | _measure(replicas, n, kappa, seed + done))
    return rows


def _measure(replicas: int, n: int, kappa: float, seed: int) -> Row:
    limit = worst_case_instance(n, kappa, INFORMATIVE, SAMPLES)
    hard = HardInstance(INFORMATIVE, limit.num_labels, limit.informative_mass, MARGIN)
    log_prob, weight = hard.policy(np.zeros(INFORMATIVE, dtype=int))
    start = TabularPolicy(torch.from_numpy(log_prob).expand(replicas, -1, -1))
    *_, last = self_reward(
        start,
        Prompts(range(INFORMATIVE + 1), torch.from_numpy(weight)),
        sampler=sampled(n, SAMPLES),
        reward=REWARDS["log_likelihood"],
        update=least_squares(BETA),
        rounds=1,
        seed=seed,
    )
    missed = last.policy.log_table()[..., 0] <= math.log(0.5)
    learner, error = mean_and_error((torch.from_numpy(weight) * missed).sum(-1))
    bayes = float(hard.bayes_failure(n, SAMPLES))

    def excess(log_constant: float) -> float:
        bound = single_step_lower_bound(n, math.log(hard.kappa), hard.log_class_size, constant=math.exp(log_constant))
        return float(bound) - bayes

    return {
        "M": hard.num_labels,
        "learner": learner,
        "error": error,
        "bayes": bayes,
        "closed form": float(worst_case_failure_closed_form(n, kappa, INFORMATIVE, SAMPLES)),
        "constant": math.exp(optimize.brentq(excess, -40, 10)),
        "its theory": (hard.kappa - 1)
        * (1 + math.log(hard.kappa / bayes))
        / (2 * math.e * SAMPLES * hard.kappa * math.log(hard.num_labels)),
    }


def check(rows: list[Row]) -> Verdict:
    over_n, over_kappa = ([row for row in rows if row["moving"] == name] for name in ("n", "kappa"))
    sizes = [float(10**e) for e in (3, 4, 5, 6)]
    falling = _exact_slope(sizes, [worst_case_failure(n, KAPPA, INFORMATIVE, SAMPLES) for n in sizes])
    kappas = [float(4**e) + 1 for e in (1, 2, 3, 4)]
    rising = _exact_slope([k - 1 for k in kappas], [worst_case_failure(1e6, k, INFORMATIVE, SAMPLES) for k in kappas])
    own_n = log_log_slope(*columns(over_n, "n", "learner", "error"))
    own_kappa = log_log_slope([r["kappa"] - 1 for r in over_kappa], *columns(over_kappa, "learner", "error"))
    z = min((row["learner"] - row["bayes"]) / row["error"] for row in rows)
    worse = max(row["learner"] / row["bayes"] for row in rows)
    constant = min(row["constant"] for row in rows)
    share = [row["constant"] / row["its theory"] for row in rows]
    return Verdict.of(
        (z > -4, f"the learner is never below Bayes: smallest z-score {z:.1f}"),
        (
            # The closed form is for the margin's limit 0; a margin helps Bayes by a factor of the order of gamma.
            all(row["bayes"] >= row["closed form"] * (1 - MARGIN) for row in rows),
            "Bayes is never below the closed form with explicit constants",
        ),
        (abs(falling + 0.5) < 0.01, f"exact Bayes failure over n = 10^3..10^6: slope {falling:.4f}, theory -1/2"),
        (abs(rising - 0.5) < 0.01, f"over kappa_0 - 1 = 4..256 at n = 10^6: slope {rising:.4f}, theory +1/2"),
        power_law("learner in n", own_n, -0.5),
        power_law("learner in kappa_0 - 1", own_kappa, 0.5),
        (worse < FACTOR, f"and never above {worse:.2f} times Bayes: at T = 1 the lower bound is attained (Rem. 5.4)"),
        (
            min(share) > 0.7 and max(share) < 1.1,
            f"Eq. 99 holds in every row for a constant of at most {constant:.3g} (the paper leaves it open), "
            f"{min(share):.2f} to {max(share):.2f} of what App. D gives",
        ),
    )


def _exact_slope(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def draw(rows: list[Row], axes: Axes) -> None:
    own = [row for row in rows if row["moving"] == "n"]
    x, learner, error = columns(own, "n", "learner", "error")
    axes.errorbar(x, learner, yerr=error, marker="o", capsize=2, linestyle="none", label="self-rewarded learner")
    axes.plot(x, columns(own, "bayes")[0], label="Bayes, exact")
    axes.plot(x, columns(own, "closed form")[0], linestyle="--", label="closed form (lower bound)")
    axes.set(xscale="log", yscale="log", xlabel=f"prompts n (kappa = {KAPPA:g})", ylabel="failure $P_x$")
    axes.legend()
