"""From a probe to what a diagnosis says: numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from srlm.answers import AnswerClass, Match
from srlm.diagnosis.probe import LOG_PROBABILITIES, Probe
from srlm.diagnosis.result import (
    AnswerLevel,
    Calibration,
    Forecast,
    LabelLevel,
    SampleLevel,
    SequenceLevel,
    Trained,
    Verdict,
)
from srlm.estimators.calibration import auroc_interval, expected_calibration_error, grouped_auroc, reliability
from srlm.estimators.consistency import Consistency
from srlm.estimators.diversity import distinct_n
from srlm.estimators.intervals import bounded_mean, clustered_proportion, modal_share_interval, wilson
from srlm.forecast import Estimate, Evidence, ForecastRow, forecast, limit
from srlm.rewards.majority import class_shares
from srlm.theory import log_condition_number

Flags = NDArray[np.bool_]
BETAS, ROUNDS = (0.5, 1.0, 2.0), (0, 1, 2, 3, 5, 8)
NEARLY = 0.01  # of a limit: as good as there
LEAST_GAIN = 0.02  # of accuracy: what a training run is worth
MOST_SAID = 200  # characters of a failure
SHARP = 0.9  # mode mass from which on little is left to sharpen


def sequence_level(probe: Probe) -> SequenceLevel:
    found = probe.found
    low, high = (np.array([one.mode_log_prob[end] for one in found]) for end in (0, 1))
    margins = np.array([one.margin for one in found])
    sure = [(one, greedy) for one, greedy in zip(found, probe.greedy, strict=True) if one.num_certified]
    margin = (float(margins[:, 0].min()), float(margins[:, 1].min()))
    return SequenceLevel(
        num_prompts=len(found),
        certified_share=float(np.mean([one.num_certified >= 2 for one in found])),
        mode_certified_share=len(sure) / len(found),
        log_kappa=(float(log_condition_number(high)), float(log_condition_number(low))),
        log_kappa_best_of_k=float(log_condition_number(probe.log_prob.max(-1))),
        min_confidence=(math.exp(low.min()), math.exp(high.min())),
        margin=margin if margin[0] > 0 else None,
        below_half=(float((high <= math.log(0.5)).mean()), float((low <= math.log(0.5)).mean())),
        greedy_finds_mode=float(np.mean([one.responses[0] == tuple(greedy) for one, greedy in sure])) if sure else None,
        empty_modes=sum(not text for text in mode_texts(probe)),
        truncated_modes=probe.mode_finished.count(False),
        mean_prefixes=float(np.mean([one.prefixes for one in found])),
    )


def mode_texts(probe: Probe) -> list[str]:
    """Of the mode, or of the best response known."""
    return [texts[0] for texts in probe.found_texts]


@dataclass(frozen=True)
class Classes:
    """Answer classes of samples [P][K] and of the search's responses [P][S]; None: no answer."""

    samples: list[list[Hashable | None]]
    found: list[list[Hashable | None]]
    failed: int
    first_failure: str | None


def classify(probe: Probe, classes: AnswerClass) -> Classes:
    """A function of the user's may raise: such a response has no answer, and is counted."""
    failures: list[str] = []

    def of(number: int, text: str) -> Hashable | None:
        try:
            return classes(text)
        except Exception as error:
            said = _printable(f"{type(error).__name__}: {error}")
            failures.append(f"prompt {probe.indices[number] + 1}: {said[:MOST_SAID]} on {text[:MOST_SAID]!r}")
            return None

    samples, found = (
        [[of(i, text) for text in row] for i, row in enumerate(texts)] for texts in (probe.texts, probe.found_texts)
    )
    return Classes(samples, found, len(failures), failures[0] if failures else None)


def _printable(text: str) -> str:
    """On one line, and without what a terminal or a file cannot take."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def with_majority(probe: Probe, classes: Classes) -> Probe:
    """The reward `majority` of these classes among the probe's rewards; what has no class, or failed, has no share."""
    shares = class_shares(classes.samples, torch.ones(probe.log_prob.shape, dtype=torch.float64))
    return replace(probe, rewards=probe.rewards | {"majority": shares.numpy()})


def modal_shares(probe: Probe, classes: Classes, votes: Sequence[Consistency]) -> NDArray[np.float64]:
    """[P, 2] interval of max_c q(c|x), 95 % over all prompts together: what counts say (Bonferroni), cut by what the
    search knows for certain."""
    counts = np.array([vote.count for vote in votes])
    level = 1 - 0.05 / len(votes)
    low, high = (np.asarray(end) for end in modal_share_interval(counts, probe.log_prob.shape[1], level))
    for i, (one, answers) in enumerate(zip(probe.found, classes.found, strict=True)):
        mass: dict[Hashable, float] = {}
        for answer, value in zip(answers, one.log_prob, strict=True):
            if answer is not None:
                mass[answer] = mass.get(answer, 0.0) + math.exp(min(value, 0.0))
        unknown = max(0.0, 1.0 - math.fsum(np.exp(np.minimum(one.log_prob, 0.0))))
        best = max(mass.values(), default=0.0)
        low[i], high[i] = np.clip([low[i], high[i]], best, min(best + unknown, 1.0))
    return np.stack([low, high], -1)


def answer_level(name: str, classes: Classes, votes: Sequence[Consistency], shares: NDArray[np.float64]) -> AnswerLevel:
    every = [answer for row in classes.samples for answer in row]
    with np.errstate(divide="ignore"):
        upper, lower = (1 / shares).mean(0)
        counted = np.mean([vote.responses / vote.count if vote.count else math.inf for vote in votes])
    return AnswerLevel(
        classes=name,
        kappa=(float(lower), float(upper)),
        kappa_of_counts=float(counted),
        agreement=float(np.mean([vote.agreement for vote in votes])),
        no_answer=sum(answer is None for answer in every) / len(every),
        failed=classes.failed,
        first_failure=classes.first_failure,
    )


def sample_level(probe: Probe) -> SampleLevel:
    flat = [ids for row in probe.tokens for ids in row]
    return SampleLevel(
        num_samples=probe.log_prob.shape[1],
        entropy=float(probe.entropy.mean()),
        mean_length=float(np.mean([len(ids) for ids in flat])),
        truncation_rate=1 - float(np.mean(probe.finished)),
        distinct_1=distinct_n(flat, 1),
        distinct_2=distinct_n(flat, 2),
    )


@dataclass(frozen=True)
class Rights:
    """Right or wrong: samples [P, K], greedy and majority responses [P], the search's responses [P][S]."""

    samples: Flags
    greedy: Flags
    majority: Flags
    found: list[Flags]

    @property
    def mode(self) -> Flags:
        return np.array([bool(row[0]) for row in self.found])

    def best_by(self, score: NDArray[np.float64]) -> Flags:
        """Of the sample with the highest score [P, K]."""
        return np.take_along_axis(self.samples, score.argmax(-1)[:, None], -1)[:, 0]


def judge(probe: Probe, match: Match, classes: Classes, votes: Sequence[Consistency]) -> Rights | None:
    """None without labels."""
    if probe.answers is None:
        return None
    samples = [[match(text, a) for text in row] for row, a in zip(probe.texts, probe.answers, strict=True)]
    elected = [  # the first sample that gives the winning answer speaks for it
        vote.count > 0 and row[answers.index(vote.answer)]
        for row, answers, vote in zip(samples, classes.samples, votes, strict=True)
    ]
    return Rights(
        np.array(samples),
        np.array([match(text, a) for text, a in zip(probe.greedy_texts, probe.answers, strict=True)]),
        np.array(elected),
        [np.array([match(text, a) for text in row]) for row, a in zip(probe.found_texts, probe.answers, strict=True)],
    )


def label_level(probe: Probe, right: Rights, limit: Estimate) -> LabelLevel:
    """limit: accuracy as T grows."""
    k = probe.log_prob.shape[1]

    def share(flags: Flags) -> tuple[float, float, float]:
        return float(flags.mean()), *wilson(float(flags.sum()), len(flags))

    return LabelLevel(
        sampled=clustered_proportion(right.samples.mean(-1), k),
        greedy=share(right.greedy),
        majority=share(right.majority),
        best_of_k=share(right.best_by(probe.log_prob)),
        mode=share(right.mode),
        mode_wrong=(1 - limit.high, 1 - limit.low),
        calibration={name: _calibration(name, reward, right.samples) for name, reward in probe.rewards.items()},
    )


def _calibration(name: str, reward: NDArray[np.float64], right: Flags) -> Calibration:
    within, prompts = grouped_auroc(reward, right)
    ece = expected_calibration_error(np.exp(reward), right) if name in LOG_PROBABILITIES else None
    return Calibration(auroc_interval(reward, right), within, prompts, ece, reliability(reward, right))


def evidence(probe: Probe, right: Rights | None) -> list[Evidence]:
    return [
        Evidence(
            found,
            [tuple(ids) for ids in probe.tokens[i]],
            probe.log_prob[i],
            None if right is None else right.found[i],
            None if right is None else right.samples[i],
        )
        for i, found in enumerate(probe.found)
    ]


def forecasts(
    every: Sequence[Evidence],
    clip: float,
    solved: Sequence[float] = (),
    trained: Trained | None = None,
    untold: str | None = None,
) -> Forecast:
    """The grid of BETAS and ROUNDS, for the escort and, with clip B > 0, for rewards clipped there; and, round by
    round, for the betas that a run has solved, the escort. trained, untold: what is said of rounds that are not exact,
    or why nothing is."""
    levels = [math.inf, clip] if clip > 0 else [math.inf]
    rows = [forecast(every, beta, rounds, b) for b in levels for beta in BETAS for rounds in ROUNDS]
    rows += [forecast(every, solved[:rounds]) for rounds in range(1, len(solved) + 1)]
    end = limit(every)

    def reached(row: ForecastRow) -> bool:  # never without a point
        if row.accuracy is None or end.accuracy is None:
            return row.mode_mass.point >= end.mode_mass.point - NEARLY
        return abs(row.accuracy.point - end.accuracy.point) <= NEARLY

    saturates = {
        f"{beta:g}": next((r.rounds for r in rows if r.beta == beta and r.target == "escort" and reached(r)), None)
        for beta in BETAS
    }
    return Forecast(clip, rows, end, saturates, trained, untold)


def verdict(
    sequence: SequenceLevel,
    sampling: SampleLevel,
    labels: LabelLevel | None,
    right: Rights | None,
    prediction: Forecast,
) -> Verdict:
    """Worth it if sharpening to the mode gains accuracy beyond chance (95 %, over prompts, `bounded_mean`: a few wrong
    modes among many right ones make gains skew); saturated if there is nothing left to sharpen, or to mend; hopeless
    if what is left does not gain; undecided where the numbers do not tell."""
    now = next(row for row in prediction.rows if row.rounds == 0).mode_mass
    told = not math.isnan(now.point)
    mass, sharp = (f"{now.point:.2f}", now.point >= SHARP) if told else (f"{now.low:.2f} or more", now.low >= SHARP)
    notes = ""
    if sampling.truncation_rate > 0.5:
        notes += f" {sampling.truncation_rate:.0%} of the samples are cut at the maximal length (--max-new-tokens)."
    if not told:
        notes += (
            f" Only {min(round(100 * sequence.mode_certified_share), 99)}% of the modes are certified: elsewhere the "
            "best response known stands for the mode, and what is forecast is intervals (--search-budget)."
        )
    if labels is None or right is None:
        if sharp:
            return Verdict(
                "saturated", f"the mode has {mass} of the mass already, and training only adds to it.{notes}"
            )
        one = next(r for r in prediction.rows if r.rounds == 3 and r.beta == 1 and r.target == "escort").mode_mass
        raised = (
            f"three exact rounds would raise the mode's mass from {mass} to {one.point:.2f}"
            if told
            else f"the mode has {mass} of the mass, and what three exact rounds would make of that is not known"
        )
        return Verdict("undecided", f"{raised}; only prompts with answers can tell whether modes are right.{notes}")
    gain, low, high = bounded_mean(right.mode - right.samples.mean(-1), -1, 1)
    numbers = (
        f"sampled accuracy is {labels.sampled[0]:.2f}, that of the modes {labels.mode[0]:.2f} "
        f"(gain {gain:+.2f} [{low:+.2f}, {high:+.2f}]); the mode is wrong on {1 - labels.mode[0]:.0%} of the prompts, "
        f"which sharpening makes worse; its mass is {mass}."
    )
    if low > 0 and gain >= LEAST_GAIN:
        return Verdict("worth it", numbers + notes)
    saturated = sharp or min(labels.sampled[0], labels.mode[0]) >= SHARP
    if saturated:
        return Verdict("saturated", numbers + notes)
    if high < LEAST_GAIN and sequence.mode_certified_share >= 0.5:
        return Verdict("hopeless", numbers + notes)
    return Verdict("undecided", numbers + " More prompts would tell." + notes)
