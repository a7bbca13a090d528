"""What tells of a damaged policy, and what of one that has learned all it will."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from srlm.estimators.intervals import student_bounds, wilson
from srlm.guard.settings import GuardSettings

if TYPE_CHECKING:
    from srlm.types import Record

SAME_BY_CHANCE = 4  # prompts; fewer agree exactly too often to say how far they scatter
TESTS = 9  # one-sided, of a round without labels; each has its share of the probability of a false alarm


def alarms(records: Sequence[Record], config: GuardSettings) -> list[str]:
    """Why the last of `records` is one of a damaged policy: one reason per signal.

    Signals without labels are tests of what healthy sharpening does not do (`measure.drift`; of the update, that it
    moves the other way than it was asked): an alarm is raised past a margin by more than the choice of prompts
    explains, at level guard_false_alarm / 9. None is in nats or tokens; tried on answers of 8 tokens and of 160
    (docs/methods.md). Self-consistency alone has no such level: it is held against its best round, by 95 % intervals
    that part. With labels, accuracy and the reward's AUROC count too.
    """
    if len(records) == 1:
        return []
    level = config.guard_false_alarm / TESTS
    return [
        *_faithfulness(records[-1], level),
        *_update(records[-1], config, level),
        *_shape(records[-1], config, level),
        *_sameness(records[0], records[-1], config, level),
        *_agreement(records, config),
        *_accuracy(records, config),
        *_auroc(records[-1], config),
    ]


@dataclass(frozen=True)
class _Estimate:
    """A mean over prompts, and what it surely is at least and at most; all or nothing where it is not known."""

    value: float = math.nan
    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def of(cls, record: Record, name: str, level: float, prompts: str | None = None) -> _Estimate:
        found = [figure(record, key) for key in (name, f"{name}_error", prompts or f"{name}_prompts")]
        value, error, number = found
        if value is None or error is None or number is None or error < 0 or (not error and number < SAME_BY_CHANCE):
            return cls()
        return cls(value, *student_bounds(value, error, number, level))

    @classmethod
    def pooled(cls, record: Record, names: Sequence[str], level: float) -> _Estimate:
        """The mean over the prompts of several sets, each weighed by its precision."""
        found = [[figure(record, name + end) for end in ("", "_error", "_prompts")] for name in names]
        known = [
            (mean, error, n)
            for mean, error, n in found
            if mean is not None and error is not None and n is not None and error >= 0 and n >= 1
            if error or n >= SAME_BY_CHANCE
        ]
        if not known:
            return cls()
        surest = any(error == 0 for _, error, _ in known)
        weights = [n if surest else error**-2 for _, error, n in known]
        value = sum(w * mean for w, (mean, _, _) in zip(weights, known, strict=True)) / sum(weights)
        error = math.hypot(*(w * spread for w, (_, spread, _) in zip(weights, known, strict=True))) / sum(weights)
        degrees = sum(n - 1 for _, _, n in known)
        return cls(value, *student_bounds(value, error, degrees + 1, level))

    def exp(self) -> _Estimate:
        return _Estimate(*(math.exp(min(value, 700.0)) for value in (self.value, self.low, self.high)))

    @property
    def at_most(self) -> str:
        return f"{self.value:.3g} (at most {self.high:.3g})"

    @property
    def at_least(self) -> str:
        return f"{self.value:.3g} (at least {self.low:.3g})"


def _faithfulness(now: Record, level: float) -> Iterator[str]:
    """Responses and answers against those of round 0."""
    rank = _Estimate.of(now, "token_likelihood_rank", level)
    if rank.high < 0.5:
        yield f"token likelihood rank is {rank.at_most}, below 0.5: per token, round 0 finds its own responses likelier"
    change = _Estimate.of(now, "agreement_change", level)
    if change.high < 0:
        yield f"agreement change is {change.at_most}, below 0: answers left those of round 0"


def _update(now: Record, config: GuardSettings, level: float) -> Iterator[str]:
    achieved = _Estimate.of(now, "achieved", level)
    if achieved.high < 0:
        yield f"achieved is {achieved.at_most} of the gain asked for, below 0: the update went the other way"
    # Of the responses it was told of, whose share an exact update conserves. That of others it lowers, too: it gives to
    # modes which few samples hit.
    kept = _Estimate.of(now, "leak", level, "prompts").exp()
    if kept.high < config.guard_kept_mass:
        said = f"kept mass is {kept.at_most}, below {config.guard_kept_mass:g}"
        yield f"{said}: probability leaked to what nobody sampled"


def _shape(now: Record, config: GuardSettings, level: float) -> Iterator[str]:
    length, far = _Estimate.pooled(now, ("length_change", "length_change_held_out"), level).exp(), config.guard_length
    if length.high < 1 and length.value < 1 / far:
        yield f"length of finished responses is {length.at_most} times round 0's, below 1/{far:g}"
    # Where round 0 finds them likelier by token than its own, longer answers are worked out further: sharpening, too.
    sharper = _Estimate.of(now, "token_likelihood_rank", level).low > 0.5
    if length.low > 1 and length.value > far and not sharper:
        yield f"length of finished responses is {length.at_least} times round 0's, above {far:g}"
    for name, most in (("truncation", config.guard_truncation), ("repetition", config.guard_repetition)):
        rise = _Estimate.of(now, f"{name}_change", level)
        if rise.low > most:
            yield f"{name} change is {rise.at_least} since round 0, above {most:g}"


def _sameness(start: Record, now: Record, config: GuardSettings, level: float) -> Iterator[str]:
    share, first, prompts = figure(now, "same_response"), figure(start, "same_response"), figure(now, "prompts")
    if share is None or first is None or prompts is None or not 0 <= share <= 1 <= prompts:
        return
    least, most = wilson(share * prompts, prompts, 1 - 2 * level)[0], config.guard_same_response
    if least > first + most:
        yield f"same response is {share:.3g} (at least {least:.3g}), more than {most:g} above round 0's {first:.3g}"


def _agreement(records: Sequence[Record], config: GuardSettings) -> Iterator[str]:
    """Of the responses with each other. Of few prompts chance alone makes it fall."""
    agreed = max(figure(record, "self_consistency") or 0.0 for record in records)
    now, prompts = figure(records[-1], "self_consistency"), figure(records[-1], "held_out_prompts")
    if now is None or prompts is None or not 0 <= now <= agreed <= 1 <= prompts:
        return
    if now >= agreed - config.guard_consistency:
        return
    if wilson(now * prompts, prompts)[1] < wilson(agreed * prompts, prompts)[0]:
        yield f"self consistency is {now:.3g}, down from {agreed:.3g}"


def _accuracy(records: Sequence[Record], config: GuardSettings) -> Iterator[str]:
    _, best = max((figure(r, "accuracy_sampled") or 0.0, t) for t, r in enumerate(records))
    now, high = figure(records[-1], "accuracy_sampled"), figure(records[-1], "accuracy_sampled_high")
    top, low = figure(records[best], "accuracy_sampled"), figure(records[best], "accuracy_sampled_low")
    if now is None or high is None or top is None or low is None:
        return
    if high < low and now < top - config.guard_accuracy_drop:
        yield f"accuracy sampled is {now:.3g}, down from {top:.3g} in round {best}"


def _auroc(now: Record, config: GuardSettings) -> Iterator[str]:
    auroc, high = figure(now, "auroc"), figure(now, "auroc_high")
    if auroc is not None and high is not None and high < config.guard_auroc:
        wrong = f"below {config.guard_auroc:g}: the self-reward prefers wrong responses"
        yield f"auroc is {auroc:.3g} (at most {high:.3g}), {wrong}"


def settled(records: Sequence[Record], config: GuardSettings) -> bool:
    """The last update changed little: displacement (on held-out prompts if there are any) and, where it is measured,
    the step of the J_0 gap are both within the share guard_saturated of round 0's mode surprisal and J_0 gap."""
    if len(records) == 1:
        return False
    gain, surprisal = held_out(records[-1], "displacement"), held_out(records[0], "mode_surprisal")
    first, before, now = (figure(record, "j0_gap") for record in (records[0], *records[-2:]))
    moved = 0.0 if before is None or now is None else now - before
    if gain is None or surprisal is None or abs(gain) >= config.guard_saturated * surprisal:
        return False
    return first is None or abs(moved) <= config.guard_saturated * abs(first)


def figure(record: Record, name: str) -> float | None:
    """A finite number of a record; a damaged one may hold anything."""
    value = record.get(name)
    return float(value) if isinstance(value, (int, float)) and abs(value) <= sys.float_info.max else None


def held_out(record: Record, name: str) -> float | None:
    value = figure(record, f"{name}_held_out")
    return figure(record, name) if value is None else value
