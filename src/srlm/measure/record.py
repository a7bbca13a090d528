"""What a round's record says of its rollouts, its update and its held-out prompts."""

from __future__ import annotations

import math
import resource
import statistics
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srlm.estimators.calibration import grouped_auroc_interval
from srlm.estimators.consistency import self_consistency
from srlm.estimators.diversity import commonest_share, distinct_n, repeated_ngrams
from srlm.estimators.intervals import clustered_proportion, mean_and_error, wilson
from srlm.estimators.pass_at_k import maj_at_k, pass_at_k
from srlm.estimators.rank import kendall_tau
from srlm.objectives.groups import taking_part
from srlm.objectives.regression import censored, clip_reward, log_partition
from srlm.objectives.step_size import divergence, effective_samples, target
from srlm.theory import log_condition_number
from srlm.types import Record, Rollouts, Step

MODE_TOLERANCE = 0.5  # nats
TINY = torch.finfo(torch.float64).tiny
LEAST_ASKED = 0.02  # of log K, the most nats that K samples can ask for


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What pi_t says to prompts it is not trained on.

    rollouts, reward: as in training, for pi_t; no reward where that would cost more than it tells (a judge), or
        where training has another (of a teacher's votes, or of more). weight of the rollouts: as an update would count
        them.
    ranking: [P, K] the reward, though it may be of fewer votes than in training: for what ranks alone.
    classes: [P][K] the answer class of each response, None for one that gives no answer.
    initial: [P, K] log pi_0 of the same responses.
    best_initial: [P] largest log pi_0 among all held-out responses so far: the best stand-in for the mode of pi_0.
    first_best: [P] the same among the responses that pi_0 drew itself.
    """

    rollouts: Rollouts
    reward: Tensor | None
    ranking: Tensor | None
    classes: Sequence[Sequence[Hashable | None]]
    initial: Tensor
    best_initial: Tensor
    first_best: Tensor


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def update_fidelity(
    log_ratio: Tensor,
    reward: Tensor | None,
    log_prob: Tensor,
    beta: float | None,
    clip: float = 0.0,
    *,
    weight: Tensor | None = None,
) -> Record:
    """How faithfully an update followed pi_{t+1} = pi_t exp(r/beta)/Z on responses [P, K] of pi_t.

    weight: [P, K] as the objective counts them, evenly unless given; it bears on the fit alone.

    fidelity_r2: 1 - sum w (log-ratio - r/beta)^2 / sum w (r/beta)^2, both centred within groups, with w and r as the
        objective counts them (`objectives.censored`); 1 when exact, None without a reward, or where beta is not known
        or inf.
    displacement: mean log-ratio of each group's most probable response; healthy above 0.
    leak: mean over prompts of log mean_k exp(log-ratio_k), with its standard error. 0 where the update conserved the
        mass of these responses, as it is asked to of those it learned from. Of others it is below 0 for exact updates
        too: E[pi_{t+1}/pi_t] = 1, but much of that is in modes that few of K samples hit, the more so the longer
        responses are (8 tokens, beta = 1, K = 8: about -2).
    """
    ratio = log_ratio.double()
    best = log_prob.argmax(-1, keepdim=True)
    kept = torch.logsumexp(ratio, -1) - math.log(ratio.shape[-1])
    return {
        "fidelity_r2": _fit(ratio, reward, torch.ones_like(ratio) if weight is None else weight, beta, clip),
        "displacement": _mean(ratio.gather(-1, best)),
        "leak": _mean(kept),
        "leak_error": mean_and_error(kept.numpy())[1],
        "log_ratio_mean": _mean(ratio),
        "log_ratio_std": float((ratio - ratio.mean(-1, keepdim=True)).std()),
        "log_ratio_max_abs": float(ratio.abs().max()),
    }


def _fit(ratio: Tensor, reward: Tensor | None, weight: Tensor, beta: float | None, clip: float) -> float | None:
    if reward is None or beta is None or not math.isfinite(beta):
        return None
    ratio, reward = taking_part(ratio, reward.double(), weight)
    weight = weight.double()
    weight = weight / weight.amax().clamp_min(TINY)  # even ones are 1, so that no bit of a sum is lost

    def centred(values: Tensor) -> Tensor:
        return values - (weight * values).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp_min(TINY)

    wanted = centred(censored(ratio, reward, weight, beta=beta, clip=clip) / beta)
    scale = float((weight * wanted**2).sum())
    return 1 - float((weight * (centred(ratio) - wanted) ** 2).sum()) / scale if scale > 0 else None


def achieved_record(log_ratio: Tensor, reward: Tensor, weight: Tensor, beta: float | None) -> Record:
    """achieved: E_x,q[log-ratio] / E_x KL(q || w), q_k proportional to w_k exp(r_k / beta): the share achieved of the
    gain in log-likelihood that an update with this target was asked for. 1 when exact, 0 when nothing moved, below 0
    when what was to gain lost; with its standard error, over the prompts that take part. Empty where next to nothing
    was asked for (`LEAST_ASKED`): noise is then many times as much, and harmless.
    """
    if beta is None or not math.isfinite(beta):
        return {}
    counts = weight.sum(-1) > 0
    asked = _mean(divergence(reward, weight, beta)[counts])
    if not asked > LEAST_ASKED * math.log(weight.shape[-1]):
        return {}
    gains = (target(reward, weight, beta) * log_ratio.double()).sum(-1)[counts]
    mean, error = mean_and_error(gains.numpy())
    return {"achieved": mean / asked, "achieved_error": error / asked, "achieved_prompts": len(gains)}


def log10_kappa_upper(log_prob: Tensor) -> float:
    """log10 of an upper estimate of kappa (Eq. 5): the best of K samples stands in for the mode, whose probability it
    can only undershoot. Heavy-tailed over prompts."""
    return log_condition_number(log_prob.double().amax(-1).clamp(max=0).numpy()) / math.log(10)


def mode_surprisal(log_prob: Tensor) -> float:
    """E_x[-log max_k pi(y_k|x)] in nats: log kappa with the average over prompts outside of the logarithm, hence never
    above it (Jensen) and without its heavy tail. Best of K samples, so an upper estimate."""
    return -_mean(log_prob.double().amax(-1).clamp(max=0))


def exact_update(log_prob: Tensor, reward: Tensor, beta: float, clip: float = 0.0) -> Tensor:
    """log pi_{t+1} [P, K] of responses drawn from pi_t, if Eq. 2 were solved exactly: log pi_t + r/beta - log Z, with
    clipped rewards and Z estimated from the same responses (log Z biased low, so pi_{t+1} looks somewhat too sharp)."""
    target = clip_reward(reward.double(), clip)
    even = torch.full_like(target, 1 / target.shape[-1])
    return log_prob.double() + target / beta - log_partition(target, even, beta)[:, None]


def train_record(
    step: Step,
    lengths: Tensor,
    finished: Tensor,
    tokens: Sequence[Sequence[int] | NDArray[np.int32]],
    beta: float | None,
    clip: float = 0.0,
) -> Record:
    """Round t on its own training prompts; the update's part describes update t - 1, as does beta. tokens: of P K
    responses, prompt by prompt.

    repeated_ngrams: share of trigrams that stood in the same response before. same_response: share of prompts whose
        most probable response is word for word the one that is commonest among them.
    """
    log_prob = step.rollouts.log_prob
    k = log_prob.shape[-1]
    favourites = [tokens[p * k + best] for p, best in enumerate(log_prob.argmax(-1).tolist())]
    record: Record = {
        "round": step.round,
        "prompts": len(log_prob),
        "log10_kappa_upper": log10_kappa_upper(log_prob),
        "mode_surprisal": mode_surprisal(log_prob),
        "mean_log_prob": _mean(log_prob),
        "mean_reward": _mean(step.reward),
        "entropy": None if step.rollouts.entropy is None else _mean(step.rollouts.entropy),
        "mean_length": _mean(lengths),
        "eos_rate": _mean(finished),
        "truncation_rate": 1 - _mean(finished),
        "distinct_1": distinct_n(tokens, 1),
        "distinct_2": distinct_n(tokens, 2),
        "repeated_ngrams": repeated_ngrams(tokens, 3),
        "same_response": commonest_share([np.asarray(ids, np.int32).tobytes() for ids in favourites]),
    }
    info = step.info
    if info is not None:
        before = info.rollouts.log_prob
        record |= update_fidelity(info.log_ratio, info.reward, before, beta, clip, weight=info.rollouts.weight)
        record["kendall_tau"] = kendall_tau(before.numpy(), (before + info.log_ratio).numpy())
        record["loss"] = float(info.loss.mean())
        record["loss_last"] = float(info.loss[-max(1, len(info.loss) // 10) :].mean())
    return record


def step_record(reward: Tensor, weight: Tensor, beta: float) -> Record:
    """How far round t's update is asked to go, from its own samples (`objectives.step_size`); of the last round, an
    update that would follow.

    beta: as the objective sees it, inf where no group has two rewards. step: mean KL of the target to pi_t in nats, the
        one asked for where beta was solved for it. effective_samples: mean over prompts, in [1, K]; near 1 a group's Z,
        and with it the anchor, rests on one response. Rewards as they are, before any clipping.
    """
    counts = weight.sum(-1) > 0
    return {
        "beta": beta,
        "step": _mean(divergence(reward, weight, beta)[counts]),
        "effective_samples": _mean(effective_samples(reward, weight, beta)[counts]),
    }


def held_out_record(
    now: HeldOut, before: HeldOut | None, log_prob_next: Tensor | None, beta: float | None, clip: float = 0.0
) -> Record:
    """Label-free signals on held-out prompts; with the round before, also how its update generalised, as far as its
    beta is known.

    mode_surprisal_held_out, mode_surprisal_forecast: `mode_surprisal` of pi_t, and what the exact update of the round
        before would have made it (`exact_update`).

    j0_gap: E_x[max known log pi_0] - E_{x, y ~ pi_t} log pi_0(y|x) (Lemma C.1's J under pi_0), in nats, falling
        towards 0 as pi_t approaches the mode of pi_0; an average, to be read with the next.
    mode_fidelity: share of prompts where pi_t's best sample is under pi_0 at most 0.5 nat worse than pi_0's own best.
    """
    log_prob = now.rollouts.log_prob
    favourite = now.initial.gather(-1, log_prob.argmax(-1, keepdim=True))[:, 0]
    record: Record = {
        "held_out_prompts": len(log_prob),
        "log10_kappa_upper_held_out": log10_kappa_upper(log_prob),
        "mean_log_prob_held_out": _mean(log_prob),
        "j0_gap": _mean(now.best_initial) - _mean(now.initial),
        "mode_fidelity": _mean(favourite >= now.first_best - MODE_TOLERANCE),
        "mode_surprisal_held_out": mode_surprisal(log_prob),
    }
    record |= agreement_record(now.classes)
    if before is not None and log_prob_next is not None:
        old = before.rollouts.log_prob
        fidelity = update_fidelity(log_prob_next - old, before.reward, old, beta, clip, weight=before.rollouts.weight)
        record |= {f"{name}_held_out": fidelity[name] for name in ("fidelity_r2", "displacement", "leak")}
        record["leak_held_out_error"] = fidelity["leak_error"]
        if before.reward is not None and beta is not None:
            record["mode_surprisal_forecast"] = mode_surprisal(exact_update(old, before.reward, beta, clip))
    return record


def agreement_record(classes: Sequence[Sequence[Hashable | None]]) -> Record:
    """How far the samples of a prompt give one answer, from their answer classes [P][K]; needs no labels.

    self_consistency: P(two responses to one prompt give the same answer), unbiased, in [0, 1]; exact sharpening
        never lowers it where every answer has one wording. None for K = 1.
    unanimous: share of prompts whose K samples all give the same answer. It falls with K.
    """
    votes = self_consistency(classes)
    agreement = statistics.fmean(vote.agreement for vote in votes)
    return {
        "self_consistency": None if math.isnan(agreement) else agreement,
        "unanimous": statistics.fmean(vote.unanimous for vote in votes),
    }


def accuracy_record(sampled: Tensor, greedy: Tensor) -> Record:
    """Right or wrong [P, K] for samples and [P] for greedy, with 95 % intervals; a prompt's samples are one cluster."""
    rates = sampled.double().mean(-1).numpy()
    mean, low, high = clustered_proportion(rates, sampled.shape[-1])
    greedy_low, greedy_high = wilson(float(greedy.sum()), len(greedy))
    return {
        "accuracy_sampled": mean,
        "accuracy_sampled_low": low,
        "accuracy_sampled_high": high,
        "accuracy_greedy": _mean(greedy),
        "accuracy_greedy_low": greedy_low,
        "accuracy_greedy_high": greedy_high,
    }


def subset_sizes(samples: int) -> list[int]:
    """The k of pass@k: 1, 2, 4, ... up to K samples, and K."""
    return sorted({2**i for i in range(samples.bit_length())} | {samples})


def at_k_record(right: Tensor, classes: Sequence[Sequence[Hashable | None]]) -> Record:
    """pass@k and maj@k for the k of `subset_sizes`, as pass_at_4 and maj_at_4, from samples that are right or wrong
    [P, K] and their answer classes [P][K].

    The 95 % intervals are those of the mean over prompts like these; a prompt counts as one cluster, of the K // k
    disjoint sets of k that its samples make.
    """
    flags = right.numpy()
    samples = flags.shape[-1]
    record: Record = {}
    for name, estimate in (("pass", pass_at_k), ("maj", partial(maj_at_k, classes))):
        for k in subset_sizes(samples):
            mean, low, high = clustered_proportion(estimate(flags, k), samples // k)
            record |= {f"{name}_at_{k}": mean, f"{name}_at_{k}_low": low, f"{name}_at_{k}_high": high}
    return record


def flips_record(start: Tensor, now: Tensor) -> Record:
    """What became of the greedy answers of round 0: right or wrong [P] then and now. Greedy, since samples would also
    flip by chance.

    greedy_learned: share of prompts that were wrong and are right; greedy_kept: right both times; greedy_lost: right
        then only; greedy_never: wrong both times. They sum to 1.
    """
    return {
        "greedy_learned": _mean(now & ~start),
        "greedy_kept": _mean(now & start),
        "greedy_lost": _mean(start & ~now),
        "greedy_never": _mean(~now & ~start),
    }


def calibration_record(reward: Tensor, right: Tensor) -> Record:
    """Does the self-reward [P, K] prefer right responses [P, K] to wrong ones of the same prompt? AUROC within prompts,
    with its 95 % interval; None where no prompt has both kinds."""
    value, low, high = grouped_auroc_interval(reward.double().numpy(), right.numpy())
    return {
        "auroc": None if math.isnan(value) else value,
        "auroc_low": low,
        "auroc_high": high,
    }


def peak_memory_gb() -> float:
    """Of the accelerator if there is one, else of this process; 10^9 bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9
