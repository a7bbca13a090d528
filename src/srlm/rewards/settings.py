"""Settings of the self-reward."""

from __future__ import annotations

import re
from dataclasses import dataclass

from srlm.errors import UserError, expect
from srlm.sizes import Sizes

_EMA = re.compile(r"ema:(0?\.\d+)")
_NAME = re.compile(r"[^\W\d][\w.:]*")
_IN_NATS = {"log_likelihood", "implicit", "random", "inverted"}


@dataclass(frozen=True)
class RewardSettings(Sizes):
    """Self-reward"""

    reward: str = "log_likelihood"
    """Self-reward: log_likelihood (Eq. 1), mean_log_likelihood, self_certainty, negative_entropy, majority (the share
    of votes), log_majority, hard_majority (1 or 0), certain_majority (votes weighed by confidence), implicit, judge,
    judge_pairwise, meta_judge, module:function of (policy, rollouts), check:module:function of (response, columns), a
    sum such as 0.5*judge+0.5*mean_log_likelihood, or a control: random, inverted, oracle (uses labels)."""
    answers: str = "auto"
    """Which responses give the same answer, for majority, self-consistency and maj@k? exact, normalised, number,
    math (LaTeX, by math-verify), regex:PATTERN or module:function; auto is what a task or benchmark of this name says,
    or else normalised."""
    votes: int | None = None
    """Responses per prompt that vote, at least num_samples of which are then learned from; as many unless given."""
    teacher: str = "live"
    """Who judges and votes: the live policy, initial (the untouched model), or ema:A, an average of all rounds' weights
    in which those so far keep a share A (.9, say). The others' rewards are the live policy's own."""
    rubric: tuple[str, ...] = ()
    """What a judge is asked: YAML files, or names of those that come along (additive, statements, rating,
    additive-reasons, step-by-step; of pairs pairwise, pairwise-reasons, meta-judge). Several of one kind are averaged;
    each judge has its own unless given."""
    judge_samples: int = 0
    """Judgements that are written, parsed and averaged, for each question to the judge; 0 reads the grade from the
    logits, and nothing is written."""
    judge_tokens: int = 256
    """Longest judgement that is written."""
    judge_temperature: float = 1.0
    """Of writing judgements. At 1 the mean of several estimates the judge's own without bias; below it small models
    keep to the form more often."""
    judge_opponents: int | None = None
    """For judge_pairwise: compare each response with at least this many others, drawn anew each round; all unless
    given."""
    labelled: bool = False
    """Let check:module:function see the answers too: the run is then one with labels, and says so."""

    def __post_init__(self) -> None:
        if self.votes is not None and self.votes < self.num_samples:
            raise UserError(
                f"--votes is {self.votes} beside --num-samples {self.num_samples}, expected at least as many, since "
                "all that is learned from may vote: raise one or lower the other"
            )
        expect(self, "judge_samples", self.judge_samples >= 0, "0 or more")
        expect(self, "judge_tokens", self.judge_tokens >= 1, "at least 1")
        warm = 0 < self.judge_temperature < float("inf")
        expect(self, "judge_temperature", warm, "a finite number above 0")
        expect(self, "judge_opponents", self.judge_opponents is None or self.judge_opponents >= 1, "at least 1")
        known = self.teacher in ("live", "initial") or (self.average is not None and 0 < self.average < 1)
        expect(self, "teacher", known, "live, initial, or ema: with a share between 0 and 1, such as ema:.9")

    @property
    def in_nats(self) -> bool:
        """Has it the scale of a response's log-likelihood (Eq. 1), as itself or as a part of a sum?"""
        return not _IN_NATS.isdisjoint(_NAME.findall(self.reward))

    @property
    def average(self) -> float | None:
        """A of a teacher ema:A."""
        found = _EMA.fullmatch(self.teacher)
        return float(found[1]) if found else None
