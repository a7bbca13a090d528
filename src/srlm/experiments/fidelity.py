"""Being sure is not being faithful: sum_{t<T-1} 2 A_t + A_{T-1}/delta bounds losing the answer of pi_0 (ours).

Eq. 43 bounds P_x[pi_T(y*_T|x) <= 1 - delta], and a policy that is sure of another answer than pi_0's passes. `lost` is
P_x[y*_T != y*_0 or pi_T(y*_0|x) <= 1 - delta]. On the loop (tables, noisy least squares) A_t is measured: the least
number for which Eq. 43 holds at every delta, sup delta P_x[pi_{t+1}(y*_t) <= 1 - delta]. With it the bound is a theorem
for every run, with nothing hidden; from 1 on it is vacuous and not tested. Prompts are confident but for a few, so that
A_t is small. The last rows are `fidelity_guarantee`, A_t from Thm 5.3 with constant 1: it has a best number of rounds.
"""

from __future__ import annotations

import itertools

import torch
from matplotlib.axes import Axes
from torch import Tensor

from srlm.experiments.outcome import Report, Row, Verdict, columns, mean_and_error
from srlm.loop import self_reward
from srlm.policies.draws import sampled
from srlm.policies.tabular import TabularPolicy, least_squares
from srlm.rewards.noise import noisy
from srlm.rewards.table import REWARDS
from srlm.theory.fidelity import fidelity_bound, fidelity_guarantee
from srlm.types import Prompts

PROMPTS, RESPONSES, NUM_PROMPTS, SAMPLES, SIGMA, BETA = 40, 6, 400, 16, 1.0, 0.5
ROUNDS, LEVELS = 6, (0.1, 0.3, 0.5)
LOOP, THEORY = "loop, A_t measured", "Thm 5.3"


def run(*, quick: bool, seed: int, report: Report) -> list[Row]:
    replicas = 100 if quick else 400
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(replicas, PROMPTS, RESPONSES, dtype=torch.float64, generator=generator)
    # The mode is well ahead on most prompts, near a tie on one in ten.
    logits[..., 0] = logits.amax(-1) + torch.where(torch.arange(PROMPTS) % 10 == 0, 0.2, 4.0)
    tables = []
    for step in self_reward(
        TabularPolicy(logits), Prompts.uniform(range(PROMPTS)), sampler=sampled(NUM_PROMPTS, SAMPLES),
        reward=noisy(REWARDS["log_likelihood"], SIGMA, seed), update=least_squares(BETA), rounds=ROUNDS, seed=seed,
    ):  # fmt: skip
        report(step.round, ROUNDS)
        tables.append(step.policy.log_table())
    rates = torch.stack([_rate(*pair) for pair in itertools.pairwise(tables)], -1)
    rows = [_row(tables, rates, t, level) for level in LEVELS for t in range(1, ROUNDS + 1)]
    guarantee = fidelity_guarantee(
        num_samples=1e7, rounds=10, kappa0=20.0, log_class_size=3.0, min_confidence=0.2, margin=2.0, beta=0.02,
        level=LEVELS[0], failure_probability=0.05,
    )  # fmt: skip
    for t, bound in enumerate(guarantee, 1):
        rows.append(_blank(THEORY, LEVELS[0], t) | {"bound": float(bound), "said": float(bound < 1)})
    return rows


def _blank(part: str, level: float, rounds: int) -> Row:
    return {"part": part, "delta": level, "T": rounds, "unsure": 0.0, "lost": 0.0, "error": 0.0, "bound": 0.0,
            "said": 0.0, "reached": 0.0}  # fmt: skip


def _rate(before: Tensor, after: Tensor) -> Tensor:
    """sup over delta of delta P_x[pi_{t+1}(y*_t|x) <= 1 - delta] [R]: at the k-th largest deficit, k prompts fail."""
    kept = after.gather(-1, before.argmax(-1, keepdim=True))[..., 0].exp()
    deficit = (1 - kept).sort(-1, descending=True).values
    return (deficit * torch.arange(1, PROMPTS + 1)).amax(-1) / PROMPTS


def _row(tables: list[Tensor], rates: Tensor, rounds: int, level: float) -> Row:
    first, last = tables[0].argmax(-1), tables[rounds]
    kept = last.gather(-1, first[..., None])[..., 0].exp()
    lost = ((last.argmax(-1) != first) | (kept <= 1 - level)).double().mean(-1)
    bound = torch.from_numpy(fidelity_bound(rates[:, :rounds].numpy(), level))
    said = bound < 1
    mean, error = mean_and_error(lost)
    return _blank(LOOP, level, rounds) | {
        "unsure": float((last.amax(-1).exp() <= 1 - level).double().mean()),
        "lost": mean, "error": error, "bound": float(bound.mean()), "said": float(said.double().mean()),
        "reached": float((lost / bound)[said].max()) if said.any() else 0.0,
    }  # fmt: skip


def check(rows: list[Row]) -> Verdict:
    loop, theory = ([row for row in rows if row["part"] == part] for part in (LOOP, THEORY))
    said = [row for row in loop if row["said"] > 0]
    reached = max((row["reached"] for row in said), default=0.0)
    apart = [(row["lost"] - row["unsure"]) / max(row["error"], 1e-12) for row in loop if row["T"] == ROUNDS]
    last = loop[-1]
    return Verdict.of(
        (
            len(said) > 0 and 0.1 < reached <= 1 + 1e-9,
            f"the bound says something in {len(said)} of {len(loop)} rows and is reached to {reached:.2f} there"
            if said
            else "the bound on the loop: vacuous here, not tested",
        ),
        (
            min(apart) > 3,
            f"after {ROUNDS} rounds {last['unsure']:.3f} of prompts are unsure (delta = {last['delta']:g}), but on "
            f"{last['lost']:.3f} +- {last['error']:.3f} the answer of pi_0 is lost: own-mode confidence does not "
            f"see it (z at least {min(apart):.0f})",
        ),
        _best(theory),
    )


def _best(rows: list[Row]) -> tuple[bool, str]:
    rounds, bounds = columns(rows, "T", "bound")
    best = bounds.index(min(bounds))
    return 0 < best < len(rows) - 1 and bounds[best] < 1 and bounds[-1] > 1.1 * bounds[best], (
        f"the guarantee is best after {rounds[best]} rounds: {', '.join(f'{bound:.2f}' for bound in bounds)} for T = 1 "
        f"to {rounds[-1]}"
    )


def draw(rows: list[Row], axes: Axes) -> None:
    for number, level in enumerate(LEVELS):
        own = [row for row in rows if row["part"] == LOOP and row["delta"] == level]
        x, lost, error, unsure, bound = columns(own, "T", "lost", "error", "unsure", "bound")
        axes.errorbar(
            x, lost, yerr=error, color=f"C{number}", marker="o", capsize=2, label=f"lost, $\\delta$ = {level:g}"
        )
        axes.plot(x, unsure, color=f"C{number}", linestyle=":", label="unsure")
        axes.plot(x, bound, color=f"C{number}", linestyle="--", label="bound from measured $A_t$")
    x, y = columns([row for row in rows if row["part"] == THEORY], "T", "bound")
    axes.plot(x, y, color="0.5", label="guarantee (Thm 5.3)")
    axes.set(xlabel="rounds T", ylabel="share of prompts", yscale="log", ylim=(1e-3, 2))
    axes.legend(fontsize=7, ncols=2)
