"""Without margin, realizability or a right mode kappa still contracts, if not to 1 (Def. 5.2, Thm 5.3).

ties: m modes tie on some prompts (m = Y: no confidence either). The exact tilt keeps them even: kappa -> E_x[m(x)].
ball too small: linear softmax stops being realizable once (1 + 1/beta) theta leaves the ball. Eq. 3 then rotates theta,
by A theta with A the covariance of features; A theta is minus the gradient of the mean entropy, so kappa stalls where
entropy is stationary on the sphere (ours). In two dimensions that is an angle, found by root finding, without the loop.
wrong mode: pi_0 prefers a wrong answer on some prompts. kappa -> 1 all the same; accuracy -> the share of right modes.
near tie: two responses, a gap in log-prob, noisy rewards, K draws a round. Noise decides, early: the gap and the first
errors double together. Checked against a chain of one number, the log-odds, which knows neither tables nor regression.

Limits of exact trajectories have certain errors (kappa_T - limit <= (kappa_0 - limit) exp(-(alpha_T - 1) gamma) over
rivals that do not tie); in sampled rows `slack` is a standard error.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy import optimize, stats
from torch import Tensor

from srlm.experiments.outcome import Report, Row, Verdict
from srlm.loop import self_reward
from srlm.policies import linear_softmax, tabular
from srlm.policies.draws import enumerated, sampled
from srlm.policies.linear_softmax import LinearSoftmaxPolicy
from srlm.policies.tabular import TabularPolicy
from srlm.rewards.noise import noisy
from srlm.rewards.table import REWARDS
from srlm.theory import sharpening_exponent
from srlm.types import Prompts, Update

TIES, BALL, WRONG, NEAR = "ties", "ball too small", "wrong mode", "near tie, noise"
BETA, ROUNDS, BALL_ROUNDS, SAMPLES = 1.0, 10, 100, 32
START = 1.0  # angle of theta_0
SHOWN = (0, 1, 2, 3, 4, 6, 8, 10)
CHAINS = 50_000
PRINTED = ("case", "setting", "kappa_0", "kappa_2", "kappa_4", "kappa_T", "limit", "right_0", "right_T", "predicted")
ALLOWED = 4.0  # standard errors


def run(*, quick: bool, seed: int, report: Report) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)
    rows = [_tie(modes, generator) for modes in (2, 3, 12)] + [_wrong(share, generator) for share in (0.9, 0.6, 0.3)]
    report(1, 3)
    rows += _ball((3.0, 6.0, 12.0), generator)
    report(2, 3)
    return rows + _near((0.0, 0.1, 0.2, 0.4), 2000 if quick else 16000, seed)


def _tables(policy: TabularPolicy | LinearSoftmaxPolicy, rounds: int, update: Update) -> Tensor:
    """log pi_t [T+1, ..., X, Y] of the enumerated trajectory."""
    steps = self_reward(
        policy, Prompts.uniform(range(policy.log_table().shape[-2])), sampler=enumerated,
        reward=REWARDS["log_likelihood"], update=update, rounds=rounds, seed=0,
    )  # fmt: skip
    return torch.stack([step.policy.log_table() for step in steps])


def _row(case: str, setting: float, table: Tensor, answer: Tensor, **predicted: float) -> Row:
    """From log pi_t [T+1, X, Y] and the answers [X] that count as right."""
    kappa = (-table.amax(-1)).exp().mean(-1)
    accuracy = table.exp().gather(-1, answer.expand(len(table), -1)[..., None]).mean((-2, -1))
    return {
        "case": case, "setting": setting, **{f"kappa_{t}": float(kappa[t]) for t in SHOWN},
        "kappa_T": float(kappa[-1]), "limit": predicted["limit"], "kappa_slack": predicted["kappa_slack"],
        "right_0": float(accuracy[0]), "right_T": float(accuracy[-1]), "predicted": predicted["right"],
        "right_slack": predicted["right_slack"],
    }  # fmt: skip


def _tie(modes: int, generator: torch.Generator) -> Row:
    """12 responses; on 3 prompts of 8 the best is tied; the right answer is the first of the tied ones."""
    logits = 1.5 * torch.randn(8, 12, generator=generator, dtype=torch.float64)
    best = logits.topk(modes, -1)
    logits[:3] = logits[:3].scatter(-1, best.indices[:3], best.values[:3, :1].expand(3, modes))
    tied = torch.tensor([modes] * 3 + [1] * 5, dtype=torch.float64)
    slack = _slack(logits, tied)
    return _row(
        TIES, modes, _tables(TabularPolicy(logits), ROUNDS, tabular.tilt(BETA)), best.indices[:, 0],
        limit=float(tied.mean()), kappa_slack=slack, right=float((1 / tied).mean()), right_slack=slack,
    )  # fmt: skip


def _wrong(share: float, generator: torch.Generator) -> Row:
    """20 prompts; where the mode is wrong the second best response is right."""
    logits = 1.5 * torch.randn(20, 12, generator=generator, dtype=torch.float64)
    best = logits.topk(2, -1).indices
    right = torch.where(torch.arange(20) < round(20 * share), best[:, 0], best[:, 1])
    slack = _slack(logits, torch.ones(20).double())
    return _row(
        WRONG, share, _tables(TabularPolicy(logits), ROUNDS, tabular.tilt(BETA)), right,
        limit=1.0, kappa_slack=slack, right=share, right_slack=slack,
    )  # fmt: skip


def _slack(logits: Tensor, tied: Tensor) -> float:
    """sum_y (pi_T(y)/pi_T(y*)) over rivals that do not tie, bounded through the least margin; it bounds errors of
    probabilities too. The last digits of kappa are added."""
    ordered = logits.sort(-1, descending=True).values
    margin = ordered[:, 0] - ordered.gather(-1, tied.long().clamp_max(11)[:, None])[:, 0]
    margin = torch.where(tied < 12, margin, math.inf)
    excess = (ordered - ordered[:, :1]).exp().sum(-1) - tied
    power = float(sharpening_exponent(BETA, ROUNDS)) - 1
    return float((excess * (-power * margin).exp()).mean()) + 1e-12


def _ball(radii: tuple[float, ...], generator: torch.Generator) -> list[Row]:
    angle = 2 * math.pi * torch.rand(6, 40, generator=generator, dtype=torch.float64)
    length = torch.rand(6, 40, generator=generator, dtype=torch.float64).sqrt()
    # Longer than wide, so that one direction wins and the loop arrives.
    phi = torch.stack([length * angle.cos(), 0.4 * length * angle.sin()], -1)
    start = torch.tensor([math.cos(START), math.sin(START)], dtype=torch.float64)
    mode = (phi @ start).argmax(-1)
    rows = []
    for radius in radii:
        table = _tables(LinearSoftmaxPolicy(start, phi, radius), BALL_ROUNDS, linear_softmax.least_squares(BETA))
        kappa, right = _stationary(phi.numpy(), mode.numpy(), radius)
        rows.append(_row(BALL, radius, table, mode, limit=kappa, kappa_slack=1e-6, right=right, right_slack=1e-6))
    return rows


def _stationary(phi: np.ndarray, mode: np.ndarray, radius: float) -> tuple[float, float]:
    """kappa and mean pi(mode of pi_0) at the first angle downhill from START where the mean entropy is stationary."""

    def probability(angle: float) -> np.ndarray:
        logits = radius * phi @ [math.cos(angle), math.sin(angle)]
        p = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(p / p.sum(-1, keepdims=True))

    def downhill(angle: float) -> float:
        p = probability(angle)
        along = phi @ [math.cos(angle), math.sin(angle)]
        across = phi @ [-math.sin(angle), math.cos(angle)]
        return float(((p * along * across).sum(-1) - (p * along).sum(-1) * (p * across).sum(-1)).mean())

    step = math.copysign(0.005, downhill(START))
    end = START + step
    while downhill(end) * step > 0:
        end += step
    p = probability(optimize.brentq(downhill, end - step, end, xtol=1e-13))
    return float((1 / p.max(-1)).mean()), float(p[np.arange(len(p)), mode].mean())


def _near(gaps: tuple[float, ...], replicas: int, seed: int) -> list[Row]:
    """Gaps in units of sigma = 1. One prompt of two responses per replica, K draws a round."""
    gap = torch.tensor(gaps, dtype=torch.float64).repeat_interleave(replicas)
    logits = torch.stack([gap, torch.zeros_like(gap)], -1)[:, None]
    steps = self_reward(
        TabularPolicy(logits), Prompts.uniform([0]), sampler=sampled(1, SAMPLES),
        reward=noisy(REWARDS["log_likelihood"], 1.0, seed), update=tabular.least_squares(BETA), rounds=ROUNDS,
        seed=seed,
    )  # fmt: skip
    tables = torch.stack([step.policy.log_table() for step in steps]).view(ROUNDS + 1, len(gaps), replicas, 2)
    chain = _log_odds(np.array(gaps), np.random.default_rng(seed))
    rows = []
    for number, odds in enumerate(chain):
        kappa, kept = 1 + np.exp(-np.abs(odds)), 1 / (1 + np.exp(-odds))
        # The spread of the chain, for both: kappa - 1 is rarely large, and where a sample lacks its few large values
        # its mean and its own standard error are small together.
        scale = math.sqrt(1 / replicas + 1 / CHAINS)
        rows.append(
            _row(
                NEAR, gaps[number], tables[:, number], torch.zeros(replicas, dtype=torch.long),
                limit=float(kappa.mean()), kappa_slack=float(kappa.std()) * scale,
                right=float(kept.mean()), right_slack=float(kept.std()) * scale,
            )
        )  # fmt: skip
    return rows


def _log_odds(gaps: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """D <- D + (D + noise of the difference of two means) / beta, while both responses are drawn."""
    odds = np.repeat(gaps[:, None], CHAINS, 1)
    for _ in range(ROUNDS):
        first = generator.binomial(SAMPLES, 1 / (1 + np.exp(-odds)))
        both = (first > 0) & (first < SAMPLES)
        noise = np.sqrt(1 / np.maximum(first, 1) + 1 / np.maximum(SAMPLES - first, 1)) * generator.normal(
            size=odds.shape
        )
        odds = odds + np.where(both, (odds + noise) / BETA, 0.0)
    return odds


def check(rows: list[Row]) -> Verdict:
    return Verdict.of(*(_as_predicted(row) for row in rows))


def _as_predicted(row: Row) -> tuple[bool, str]:
    off, missed = row["kappa_T"] - row["limit"], row["right_T"] - row["predicted"]
    text = (
        f"{row['case']} {row['setting']:g}: kappa {row['kappa_0']:.3g} -> {row['kappa_T']:.6g}, predicted "
        f"{row['limit']:.6g}; right answer {row['right_0']:.3f} -> {row['right_T']:.4f}, predicted "
        f"{row['predicted']:.4f}"
    )
    if row["case"] != NEAR:
        return abs(off) <= row["kappa_slack"] and abs(missed) <= row["right_slack"], (
            f"{text} (off by {abs(off):.1g}, allowed {row['kappa_slack']:.1g})"
        )
    z = off / row["kappa_slack"], missed / row["right_slack"]
    return max(map(abs, z)) <= ALLOWED, (
        f"{text} (z = {z[0]:+.1f}, {z[1]:+.1f}; from the first rounds alone {_first_order(row['setting']):.3f})"
    )


def _first_order(gap: float) -> float:
    """Share kept if both responses stay equally likely: errors of 2/sqrt(K) a round, shrunk by 1 + 1/beta a round."""
    ratio = BETA / (1 + BETA)
    spread = 2 / math.sqrt(SAMPLES) / BETA * ratio / math.sqrt(1 - ratio**2)
    return float(stats.norm.cdf(gap / spread))


SETTINGS = {TIES: "m = {:g}", BALL: "B = {:g}", WRONG: "right on {:.0%}", NEAR: "gap {:g} sigma"}


def draw(rows: list[Row], axes: Axes) -> None:
    for number, case in enumerate(SETTINGS):
        own = [row for row in rows if row["case"] == case]
        for row, line in zip(own, ("-", "--", ":", "-."), strict=False):
            label = f"{case}, {SETTINGS[case].format(row['setting'])}"
            kappa = [row[f"kappa_{t}"] for t in SHOWN]
            axes.plot(SHOWN, kappa, color=f"C{number}", linestyle=line, linewidth=1.2, label=label)
            axes.plot([SHOWN[-1] + 0.4], [row["limit"]], color=f"C{number}", marker="<", linestyle="")
    axes.set(yscale="log", ylim=(0.95, 100), xlabel="round t (predicted limits at the right)", ylabel=r"$\kappa_t$")
    axes.legend(fontsize=7, ncols=3, loc="upper center")
