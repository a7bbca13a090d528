"""kappa_t forgets kappa_0: starts merge, in rounds that grow slower than log kappa_0 (Lemma C.4, Thm 5.3, Cor. 5.7).

Free: the exact tilt, every response enumerated. `words`: a response is L independent words, so its tilt is the product
of the tilts of its words and its mode probability the L-th power of theirs: the loop runs the table of words, and
kappa_0 = 10^(L/4) reaches 1e8. `flat`: all Y - 1 rivals share one margin, the slowest table of its kappa_0. The bound
has no constant here: A_t = (beta/gamma_t) log kappa_t into Eq. 56, round by round. Ours is beside it:
kappa_t - 1 <= (kappa_0 - 1) exp(-(alpha_t - 1) gamma_0), which is 2 after about log(log kappa_0) rounds. Nothing in
these rows is about iterating: one exact round at beta = 1/(alpha_T - 1) gives the same kappa_T. `free, n` is `flat` at
beta = n^(-1/2) for growing n (its size): larger rounds, fewer of them (Rem. 5.8).

Ball: linear softmax with |theta| <= B, from starts of many lengths, so that kappa stalls above 1; enumerated without
noise, and sampled with noisy rewards. Thm 6.2's kappa recursion with constant 1 allows more than |Y| here in every
round, with the least margin and confidence that the runs show: it is vacuous and not tested (and the ball breaks
realizability, so it would be no theorem). What is tested is that starts merge; `guarantee` has sampled rounds in which
the recursion says something.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from srlm.estimators.slopes import log_log_slope
from srlm.experiments.outcome import Report, Row, Verdict, columns
from srlm.loop import self_reward
from srlm.policies import linear_softmax
from srlm.policies.draws import enumerated, sampled
from srlm.policies.linear_softmax import LinearSoftmaxPolicy
from srlm.policies.tabular import TabularPolicy, tilt
from srlm.rewards.noise import noisy
from srlm.rewards.table import REWARDS
from srlm.theory import contraction_factor, kappa_bound, linear_softmax_guarantee, sharpening_exponent, tail_integral
from srlm.types import Prompts

WORDS, FLAT, FASTER, BALL, SAMPLED = "free, words", "free, flat", "free, n", "ball, exact", "ball, sampled"
FREE_BETA, BALL_BETA = 2.0, 1.0
SHOWN, LAST = (0, 1, 2, 3, 4, 6, 8, 10, 12, 16), 32
PROMPTS, DIMENSION, RADIUS, NUM_PROMPTS, SAMPLES, SIGMA = 8, 8, 48.0, 64, 8, 1.0
PRINTED = (
    "part",
    "size",
    "kappa_0",
    "kappa_1",
    "kappa_2",
    "kappa_4",
    "kappa_8",
    "kappa_16",
    "to_2",
    "slowest",
    "of_bound",
)
RESOLVED = 1e-9  # kappa - 1 below this is rounding


def run(*, quick: bool, seed: int, report: Report) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)
    rows = _words(generator) + [_flat(FLAT, size, size, FREE_BETA) for size in (10, 100, 1000, 20000)]
    rows += [_flat(FASTER, n, 1000, n**-0.5) for n in (1, 4, 16, 64, 256)]
    report(1, 3)
    start = _ball(500 if quick else 1500, generator)
    rows += _on_ball(start, 1, 0.0, seed)
    report(2, 3)
    return rows + _on_ball(start, 8 if quick else 24, SIGMA, seed)


def _words(generator: torch.Generator) -> list[Row]:
    """Four prompts, one mode probability of a word, different rivals; a row per length."""
    mode = 10**-0.25
    rivals = torch.rand(4, 11, generator=generator, dtype=torch.float64)
    rivals = (1 - mode) * rivals / rivals.sum(-1, keepdim=True)
    top = _tilted(torch.cat([torch.full_like(rivals[:, :1], mode), rivals], -1).log(), FREE_BETA)
    # The best rival of a sequence differs in one word, so the margin of a sequence is that of a word.
    return [_free(WORDS, length, FREE_BETA, length * top[..., 0], _margin(top)) for length in range(4, 33, 4)]


def _flat(part: str, named: int, responses: int, beta: float) -> Row:
    margins = torch.tensor([[0.25], [0.5]], dtype=torch.float64)
    top = _tilted(-margins * (torch.arange(responses) > 0), beta)
    return _free(part, named, beta, top[..., 0], _margin(top))


def _tilted(logits: Tensor, beta: float) -> Tensor:
    """The two largest log pi_t(y|x) [T+1, X, 2] of the exact trajectory."""
    steps = self_reward(
        TabularPolicy(logits), Prompts.uniform(range(len(logits))), sampler=enumerated,
        reward=REWARDS["log_likelihood"], update=tilt(beta), rounds=LAST, seed=0,
    )  # fmt: skip
    return torch.stack([step.policy.log_table().topk(2, -1).values for step in steps])


def _margin(top: Tensor) -> float:
    return float((top[0, :, 0] - top[0, :, 1]).min())


def _free(part: str, size: int, beta: float, mode_log_prob: Tensor, margin: float) -> Row:
    """From max_y log pi_t(y|x) [T+1, X]. The confidence that a round starts with is a lower bound on the next."""
    kappa = (-mode_log_prob).exp().mean(-1).numpy()
    p = mode_log_prob.amin(-1).exp().numpy()[:-1]
    margins = margin * np.asarray(sharpening_exponent(beta, np.arange(LAST)))
    bound = np.asarray(tail_integral(beta / margins * np.log(kappa[:-1]).clip(0), p))
    factor = contraction_factor(1.0, beta / (margin * p[0]))
    row: Row = {"part": part, "size": size, "beta": beta, "margin": margin, "replicas": 1}
    return row | _trajectory(kappa[None], 1.0) | _beside(kappa, bound, bound >= (1 - 1e-12) / p, factor)


def _ball(responses: int, generator: torch.Generator) -> LinearSoftmaxPolicy:
    """Six starts in one direction, from almost uniform to the boundary."""
    phi = torch.randn(PROMPTS, responses, DIMENSION, generator=generator, dtype=torch.float64)
    direction = torch.randn(DIMENSION, generator=generator, dtype=torch.float64)
    length = RADIUS * torch.logspace(-2, 0, 6, dtype=torch.float64)
    return LinearSoftmaxPolicy(
        length[:, None] * direction / direction.norm(), phi / phi.norm(dim=-1, keepdim=True), RADIUS
    )


def _on_ball(start: LinearSoftmaxPolicy, replicas: int, sigma: float, seed: int) -> list[Row]:
    size, reward = start.features.shape[1], REWARDS["log_likelihood"]
    steps = self_reward(
        LinearSoftmaxPolicy(start.theta.repeat_interleave(replicas, 0), start.features, RADIUS),
        Prompts.uniform(range(PROMPTS)),
        sampler=sampled(NUM_PROMPTS, SAMPLES) if sigma else enumerated,
        reward=noisy(reward, sigma, seed) if sigma else reward,
        update=linear_softmax.least_squares(BALL_BETA), rounds=LAST, seed=seed,
    )  # fmt: skip
    top = torch.stack([step.policy.log_table().topk(2, -1).values for step in steps], 1)
    top = top.view(len(start.theta), replicas, LAST + 1, PROMPTS, 2)
    kappa = (-top[..., 0]).exp().mean(-1).numpy()
    rows = []
    for own, kappas in zip(top, kappa, strict=True):
        margin, mean = float((own[..., 0] - own[..., 1]).min()), kappas.mean(0)
        guarantee = linear_softmax_guarantee(
            num_samples=NUM_PROMPTS, rounds=LAST, kappa0=mean[0], dimension=DIMENSION, norm_bound=RADIUS,
            min_confidence=float(own[:, 1:, :, 0].min().exp()), margin=margin, beta=BALL_BETA, level=0.5,
            failure_probability=0.05,
        )  # fmt: skip
        bound = np.asarray(kappa_bound(mean[0], np.arange(1, LAST + 1), 1.0, guarantee.coefficient))
        part = SAMPLED if sigma else BALL
        row: Row = {"part": part, "size": size, "beta": BALL_BETA, "margin": margin, "replicas": replicas}
        row |= _trajectory(kappas, float(kappa[..., -1].mean()))
        rows.append(row | _beside(mean, bound, bound >= size, guarantee.contraction))
    return rows


def _trajectory(kappa: NDArray[np.float64], limit: float) -> Row:
    """Of kappa_t [R, T+1]. Factors (kappa_{t+1} - limit)/(kappa_t - limit) only where kappa_t is far from the limit."""
    mean, error = kappa.mean(0), kappa.std(0, ddof=len(kappa) > 1) / len(kappa) ** 0.5
    excess = mean - limit
    clear = excess[:-1] > np.maximum(0.5 * limit, 5 * np.hypot(error[:-1], error[-1]))
    factor = excess[1:][clear] / excess[:-1][clear]
    row: Row = {f"kappa_{t}": float(mean[t]) for t in (*SHOWN, LAST)}
    return row | {
        "error": float(error[-1]), "to_2": _rounds_to_2(mean),
        "fastest": float(factor.min(initial=1.0)), "slowest": float(factor.max(initial=0.0)),
        "factor": float(stats.gmean(factor)) if clear.any() else 0.0,
    }  # fmt: skip


def _rounds_to_2(kappa: NDArray[np.float64]) -> float:
    """Where kappa_t first passes 2, log kappa read off the line between two rounds."""
    after = int(np.argmax(kappa <= 2))
    if kappa[after] > 2:
        return math.inf
    high, low = np.log(kappa[max(after - 1, 0)]), np.log(kappa[after])
    return float(after - 1 + (high - math.log(2)) / (high - low)) if after else 0.0


def _beside(kappa: NDArray[np.float64], bound: NDArray[np.float64], vacuous: NDArray[np.bool_], factor: float) -> Row:
    """kappa_t [T+1] beside bounds [T] on rounds 1..T, as shares of kappa - 1."""
    unsettled = kappa[:-1] > 1 + RESOLVED
    share = (kappa[1:] - 1)[unsettled] / (bound - 1)[unsettled]
    return {"lambda": float(factor), "of_bound": float(share.max()), "vacuous": float(vacuous[unsettled].mean())}


def check(rows: list[Row]) -> Verdict:
    parts = {part: [row for row in rows if row["part"] == part] for part in (WORDS, FLAT, FASTER, BALL, SAMPLED)}
    ours = max(_of_our_bound(row) for row in parts[WORDS] + parts[FLAT] + parts[FASTER])
    return Verdict.of(
        (ours <= 1 + RESOLVED, f"free: kappa_t - 1 reaches {ours:.3f} of (kappa_0 - 1) exp(-(alpha_t - 1) gamma)"),
        *(_growth(part, parts[part]) for part in (WORDS, FLAT)),
        *(_bound(part, parts[part]) for part in (WORDS, FLAT)),
        _faster(parts[FASTER]),
        *(_falls(part, own) for part, own in parts.items()),
        _merged_exactly(parts[BALL]),
        _merged(parts[SAMPLED]),
        (True, f"ball: Thm 6.2's recursion is {_share_vacuous(parts[BALL] + parts[SAMPLED])}"),
    )


def _of_our_bound(row: Row) -> float:
    bound = [
        (row["kappa_0"] - 1) * math.exp(-(float(sharpening_exponent(row["beta"], t)) - 1) * row["margin"])
        for t in SHOWN[1:]
    ]
    shares = [(row[f"kappa_{t}"] - 1) / max(b, RESOLVED) for t, b in zip(SHOWN[1:], bound, strict=True)]
    return float(max(shares))


def _growth(part: str, rows: list[Row]) -> tuple[bool, str]:
    kappa, rounds = columns(rows, "kappa_0", "to_2")
    power, low, high = log_log_slope(np.log(kappa), rounds, np.full(len(rows), 0.05))
    return high < 1, (
        f"{part}: rounds to kappa <= 2 grow like (log kappa_0)^{power:.2f} [{low:.2f}, {high:.2f}], Cor. 5.7 allows "
        f"1: {rounds[0]:.1f} from kappa_0 = {kappa[0]:.3g}, {rounds[-1]:.1f} from {kappa[-1]:.3g}"
    )


def _bound(part: str, rows: list[Row]) -> tuple[bool, str]:
    of_bound, vacuous, factor = columns(rows, "of_bound", "vacuous", "lambda")
    return max(of_bound) <= 1 and max(vacuous) < 1, (
        f"{part}: kappa - 1 reaches {max(of_bound):.2g} of its bound, which is vacuous in {np.mean(vacuous):.0%} of "
        f"rounds and contracts by lambda = {max(factor):.4f}"
    )


def _faster(rows: list[Row]) -> tuple[bool, str]:
    sizes, rounds, bound = columns(rows, "size", "to_2", "of_bound")
    return all(b < a for a, b in itertools.pairwise(rounds)) and rounds[-1] < rounds[0] / 2 and max(bound) <= 1, (
        f"{FASTER}: from kappa_0 = {rows[0]['kappa_0']:.3g} at beta = n^(-1/2), rounds to kappa <= 2 fall: "
        + ", ".join(f"{t:.1f} (n = {n})" for n, t in zip(sizes, rounds, strict=True))
    )


def _share_vacuous(rows: list[Row]) -> str:
    share = np.mean(columns(rows, "vacuous")[0])
    return "vacuous here, not tested" if share == 1 else f"vacuous in {share:.0%} of rounds, and not tested"


def _falls(part: str, rows: list[Row]) -> tuple[bool, str]:
    """On the ball a round may stall, near a saddle of the entropy; on average none does."""
    fastest, slowest, factor, last = columns(rows, "fastest", "slowest", "factor", f"kappa_{LAST}")
    return max(slowest) < 1.05 and max(factor) < 0.95 and max(last) < 2, (
        f"{part}: a round multiplies kappa - kappa_inf by {min(fastest):.2g} to {max(slowest):.2g}, on average by "
        f"{max(factor):.2g} or less; every start ends below 2, at {max(last):.4g} or less"
    )


def _merged_exactly(rows: list[Row]) -> tuple[bool, str]:
    first, last = (np.log(np.array(column) - 1) for column in columns(rows, "kappa_0", f"kappa_{LAST}"))
    left = np.ptp(last) / np.ptp(first)
    return left < 0.1, (
        f"{BALL}: of the spread of log(kappa_0 - 1) over starts, {np.ptp(first):.2f}, {left:.1%} is left after {LAST} "
        f"rounds: kappa is {1 + math.exp(last.min()):.4f} to {1 + math.exp(last.max()):.4f}"
    )


def _merged(rows: list[Row]) -> tuple[bool, str]:
    """One-way analysis of variance of the last kappa over starts. Errors so large that any starts would pass, those
    that leave a mean excess unknown to a fifth of itself, do not."""
    start, final, error = (np.array(column) for column in columns(rows, "kappa_0", f"kappa_{LAST}", "error"))
    variance = np.mean(error**2)
    degrees = len(rows) - 1, len(rows) * (rows[0]["replicas"] - 1)
    p_value = float(stats.f.sf(final.var(ddof=1) / variance, *degrees))
    unknown = (variance / len(rows)) ** 0.5
    return p_value > 1e-3 and unknown < (final.mean() - 1) / 5, (
        f"{SAMPLED}: starts from kappa_0 = {start.max():.4g} to {start.min():.3g} end at one kappa_inf = "
        f"{final.mean():.3f} +- {unknown:.3f} (F test of equality: p = {p_value:.2f})"
    )


def draw(rows: list[Row], axes: Axes) -> None:
    labelled = set()
    for row in rows:
        part = row["part"]
        number = (WORDS, FLAT, FASTER, BALL, SAMPLED).index(part)
        excess = [max(row[f"kappa_{t}"] - 1, 1e-12) for t in SHOWN]
        marker, label = "o" if part == SAMPLED else "", part if part not in labelled else None
        axes.plot(SHOWN, excess, color=f"C{number}", marker=marker, markersize=3, linewidth=1, label=label)
        labelled.add(part)
    axes.set(yscale="log", ylim=(1e-3, None), xlabel="round t", ylabel=r"$\kappa_t - 1$")
    axes.legend()
