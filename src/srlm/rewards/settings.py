"""Settings of the self-reward."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RewardSettings:
    """Self-reward"""

    reward: str = "log_likelihood"
    """Self-reward: log_likelihood (Eq. 1), mean_log_likelihood, self_certainty, negative_entropy, majority, implicit,
    judge, judge_pairwise, module:function, a sum such as 0.5*judge+0.5*mean_log_likelihood, or a control: random,
    inverted, oracle (uses labels). Set beta to its scale, or leave that to a step."""
    answers: str = "auto"
    """Which responses give the same answer, for majority, self-consistency and maj@k? exact, normalised, number,
    math (LaTeX, by math-verify), regex:PATTERN or module:function; auto is what a task or benchmark of this name says,
    or else normalised."""
