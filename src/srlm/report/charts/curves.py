"""What the records of runs say, round by round."""

from __future__ import annotations

from srlm.report.charts.chart import Chart, Series
from srlm.report.charts.legend import colour_of, named
from srlm.report.folders import Folder, measured_at
from srlm.report.text import number

# record key, what its line is called
Lines = tuple[tuple[str, str], ...]
CURVES: tuple[tuple[str, str, str, str, Lines], ...] = (
    (
        "accuracy",
        "Accuracy",
        "Held-out prompts, 95 % intervals; samples of one prompt count as a cluster.",
        "share right",
        (("accuracy_sampled", "sampled"), ("accuracy_greedy", "greedy")),
    ),
    (
        "likelihood-rank",
        "Likelihood under the start",
        "How often a held-out response is more probable under π₀ than one that π₀ gave to the same prompt itself, per "
        "token and whole. 1/2 is π₀; sharpening raises it, and significantly below 1/2, per token, is damage.",
        "rank",
        (("token_likelihood_rank", "per token"), ("likelihood_rank", "whole responses")),
    ),
    (
        "mode-fidelity",
        "Mode fidelity",
        "Share of held-out prompts where the favourite is, under π₀, within 0.5 nat of π₀'s own best. 1 is healthy.",
        "share of prompts",
        (("mode_fidelity", "mode fidelity"),),
    ),
    (
        "self-consistency",
        "Self-consistency",
        "How often two samples of a held-out prompt give the same answer, and on what share of prompts all do. Both "
        "rise as a rule.",
        "share",
        (("self_consistency", "two agree"), ("unanimous", "all agree")),
    ),
    (
        "mode-surprisal",
        "Surprisal of the mode",
        "−log π of the most probable sample, averaged over held-out prompts (log κ without its heavy tail), and what "
        "the exact update of the round before would have made it.",
        "nats",
        (("mode_surprisal_held_out", "measured"), ("mode_surprisal_forecast", "exact update")),
    ),
    (
        "auroc",
        "Self-reward against the answers",
        "Chance that a right response is rewarded above a wrong one to the same held-out prompt, 95 % intervals. Below "
        "1/2 the self-reward prefers wrong ones.",
        "AUROC",
        (("auroc", "AUROC"),),
    ),
    (
        "displacement",
        "Displacement",
        "Log-ratio of each group's most probable response in the update before. Above 0 as a rule.",
        "nats",
        (("displacement", "training"), ("displacement_held_out", "held out")),
    ),
    (
        "leak",
        "Leak of mass",
        "log E[π_t / π_(t−1)] over the samples of the round before. Near 0 is healthy; far below, mass went to what "
        "nobody sampled.",
        "nats",
        (("leak", "training"), ("leak_held_out", "held out")),
    ),
    (
        "j0-gap",
        "J₀ gap",
        "How far samples lie under the best response known, both under π₀; held-out prompts. Falls near the mode.",
        "nats",
        (("j0_gap", "J₀ gap"),),
    ),
    (
        "fidelity",
        "Fidelity of the update",
        "R² of log-ratios against what the exact update asks for; the share achieved of the gain it asks for; Kendall "
        "τ between the orders of responses before and after. 1 is exact, achieved below 0 is damage.",
        "R², share and τ",
        (
            ("fidelity_r2", "R²"),
            ("achieved", "achieved"),
            ("kendall_tau", "Kendall τ"),
            ("fidelity_r2_held_out", "R², held out"),
        ),
    ),
    (
        "log-ratio",
        "Log-ratio",
        "log π_t / π_(t−1) of the responses of the round before: mean, and spread inside groups.",
        "nats",
        (("log_ratio_mean", "mean"), ("log_ratio_std", "standard deviation")),
    ),
    (
        "length",
        "Length",
        "Mean tokens of a training response, its end included.",
        "tokens",
        (("mean_length", "length"),),
    ),
    (
        "endings",
        "Finished responses",
        "Share of training responses that end by themselves rather than at the maximal length.",
        "share of responses",
        (("eos_rate", "EOS rate"),),
    ),
    (
        "entropy",
        "Entropy",
        "Mean next-token entropy along training responses.",
        "nats a token",
        (("entropy", "entropy"),),
    ),
    (
        "diversity",
        "Diversity",
        "Distinct n-grams over all n-grams of the training responses.",
        "share distinct",
        (("distinct_1", "distinct-1"), ("distinct_2", "distinct-2")),
    ),
    ("gain", "Gain", "Inverse temperature that training gave the logits.", "factor", (("gain", "gain"),)),
    (
        "step",
        "Step",
        "How far the round's exact update is from its policy: KL on its own samples, with rewards as they are.",
        "nats",
        (("step", "step"),),
    ),
    (
        "effective-samples",
        "Effective samples",
        "On how many responses a prompt's normaliser Z rests once they are weighed by exp(r/β). Near 1 it is one.",
        "responses",
        (("effective_samples", "effective samples"),),
    ),
    (
        "mismatch",
        "Engine against trainer",
        "|log-prob by the engine that drew a token − ours|, and how far both were apart right after the weights had "
        "gone to it.",
        "nats a token",
        (
            ("mismatch_absolute", "mean"),
            ("mismatch_q99", "99 % quantile"),
            ("sync_difference_sample_rollouts", "after the sync"),
        ),
    ),
    (
        "mismatch-effective",
        "Effective share of responses",
        "(Σw)²/(N Σw²) of the importance weights w = π_t(y|x) / μ(y|x), with μ what the engine says it drew from, and "
        "the share of tokens further apart than .1 nat.",
        "share",
        (("mismatch_effective", "effective samples"), ("mismatch_beyond", "tokens beyond .1 nat")),
    ),
    ("beta", "β", "Strength of the KL term of the round's update.", "unit of the reward", (("beta", "β"),)),
)


# kind of record key, what it is
AT_K = (
    ("pass", "Chance that one of {k} samples of a held-out prompt is right"),
    ("maj", "Chance that the answer which most of {k} samples of a held-out prompt give is right"),
)
# end of the record key, colour
FLIPS = (("kept", 0), ("learned", 2), ("lost", 1), ("never", 7))


def curves(runs: list[Folder]) -> list[Chart]:
    """One chart an entry of CURVES, in their order."""
    return [
        Chart(id, title, caption, "round", label, lines_of(runs, lines)) for id, title, caption, label, lines in CURVES
    ]


def lines_of(runs: list[Folder], lines: Lines, power: bool = False) -> list[Series]:
    found = []
    for i, run in enumerate(runs):
        for j, (key, name) in enumerate(lines):
            low, y, high = ([number(record.get(key + end)) for record in run.records] for end in ("_low", "", "_high"))
            if power:
                y = [None if value is None or value > 300 else 10**value for value in y]
            if any(value is not None for value in y):
                ends = (low, high) if any(value is not None for value in low) else (None, None)
                label = run.name if len(runs) > 1 == len(lines) else named(runs, run, name)
                found.append(Series(label, rounds_of(run), y, *ends, **colour_of(runs, i, j)))
    return found


def rounds_of(run: Folder) -> list[float | None]:
    return [number(record.get("round")) for record in run.records]


def at_k(runs: list[Folder], kind: str, what: str) -> Chart:
    """All k of one run; of several the largest that they share."""
    shared = sorted(set.intersection(*(set(measured_at(run.records, kind)) for run in runs)))
    k, shown = ("k", shared) if len(runs) == 1 else (max(shared, default="k"), shared[-1:])
    series = lines_of(runs, tuple((f"{kind}_at_{one}", f"{kind}@{one}") for one in shown))
    caption = f"{what.format(k=k)}, estimated without bias; 95 % intervals over prompts."
    return Chart(f"{kind}-at-k", f"{kind}@{k}", caption, "round", "share right", series)


def flips(runs: list[Folder]) -> Chart:
    """Bars for one run, for several a line of what was learned and one of what was lost."""
    caption = "Greedy responses to held-out prompts against round 0: "
    if len(runs) == 1:
        caption += "kept right, learned (wrong, now right), lost (right, now wrong), never right."
        keys = [(name, [number(r.get(f"greedy_{name}")) for r in runs[0].records], colour) for name, colour in FLIPS]
        series = [Series(name, rounds_of(runs[0]), values, colour=colour) for name, values, colour in keys]
    else:
        caption += "learned (wrong, now right) and lost (right, now wrong)."
        series = lines_of(runs, (("greedy_learned", "learned"), ("greedy_lost", "lost")))
    kind = "bar" if len(runs) == 1 else "line"
    return Chart("flips", "Flips", caption, "round", "share of prompts", series, kind)
