"""Settings of the objective, and of what a reward becomes before it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from srlm.errors import UserError, expect
from srlm.sizes import Sizes

BETA = 1.0
"""Unless given, of rewards that have log_likelihood's scale, and of all other objectives than the regression."""


@dataclass(frozen=True)
class ObjectiveSettings(Sizes):
    """Objective"""

    objective: str = "regression"
    """regression (Eq. 3, with clip and anchor), dpo, ipo, best_of_k (fine-tuning on the best), imitation (on
    all), or a clipped policy gradient: grpo, dapo or dr_grpo with a ratio per token, gspo with one per response."""
    beta: float | None = None
    """Strength of the KL term (Eq. 2): one exact round turns pi into pi^(1 + 1/beta). 1 unless given; but where no step
    is given either, the regression on a reward in other units than log_likelihood's takes a step of half of log K."""
    step: float | None = None
    """Instead of beta: nats of KL that a round may move on average over prompts, above 0 and below log K. beta_t is
    solved from the round's samples, whatever unit the reward has."""
    clip: float = 8.0
    """B: of a response whose reward lies further under its group's best it is only asked to fall by B / beta or more;
    0 asks for exactly what Eq. 3 does. With step: by B nats or more, B beta_t under the best."""
    anchor: float = 1.0
    """Lambda: weight of the mass-conserving anchor; 0 is the plain pairwise objective of Eq. 3."""
    pairs: str = "all"
    """Of dpo and ipo: all pairs of a group, or best_worst."""
    margin: float = 0.0
    """Of dpo, ipo and nll: responses make a pair if their rewards differ by more than this; ties never do."""
    label_smoothing: float | Literal["consistency"] = 0.0
    """Of dpo and ipo: how often a preference is taken to be wrong; consistency is CREAM's (1 - tau) / 2 with Kendall's
    tau of this round's reward against the last one's, on held-out responses of the last round; of the policies'
    log-likelihoods, on those learned from, where nothing is held out, or the reward has no implicit one or a judge."""
    length_normalised: bool = False
    """Of dpo and ipo: log-ratios are means over a response's tokens instead of sums, and beta counts a token's nats:
    Tulu 3 takes 5 for dpo."""
    ratio_clip: tuple[float, float] | None = None
    """Of the clipped policy gradients: ratios count from 1 less the first to 1 plus the second; as published unless
    given: 0.2 0.2 for grpo and dr_grpo, 0.2 0.28 for dapo, 0.0003 0.0004 for gspo."""
    nll: float = 0.0
    """Weight of an added -log pi of each group's best response, divided by its tokens, as Iterative RPO and ScPO do."""

    def __post_init__(self) -> None:
        clipped = ("grpo", "dapo", "dr_grpo", "gspo")
        known = ("regression", "dpo", "ipo", "best_of_k", "imitation", *clipped)
        expect(self, "objective", self.objective in known, f"{', '.join(known[:-1])} or {known[-1]}")
        positive = self.beta is None or (math.isfinite(self.beta) and self.beta > 0)
        expect(self, "beta", positive, "a finite number above 0")
        if self.step is not None:
            self._check_step(self.step)
        for name in ("clip", "anchor", "margin", "nll"):
            value = getattr(self, name)
            expect(self, name, math.isfinite(value) and value >= 0, "a finite number of 0 or more")
        expect(self, "pairs", self.pairs in ("all", "best_worst"), "all or best_worst")
        smoothing = self.label_smoothing
        fits = smoothing == "consistency" if isinstance(smoothing, str) else 0 <= smoothing <= 1
        expect(self, "label_smoothing", fits, "a number from 0 to 1, or consistency")

        paired = not self.length_normalised or self.objective in ("dpo", "ipo")
        expect(self, "length_normalised", paired, "--objective dpo or ipo beside it")
        if self.ratio_clip is not None:
            low, high = self.ratio_clip
            expect(self, "ratio_clip", 0 < low <= 1 and 0 < high < math.inf, "two numbers above 0, the first at most 1")
            beside = f"--objective {', '.join(clipped[:-1])} or {clipped[-1]} beside it"
            expect(self, "ratio_clip", self.objective in clipped, beside)

    def _check_step(self, step: float) -> None:
        most = math.log(self.num_samples)
        told = f"above 0 and below log(--num-samples {self.num_samples}) = {math.floor(1000 * most) / 1000}"
        expect(self, "step", 0 < step < most, f"a number of nats {told}, the most that so many samples can tell")
        if self.objective != "regression":
            raise UserError(
                f"--step is {step} beside --objective {self.objective}, expected --objective regression, whose target "
                "it measures: leave one of the two out"
            )
        if self.beta not in (None, BETA):
            raise UserError(
                f"--beta is {self.beta} beside --step {step}, expected one of them, since a step solves its own beta: "
                "leave one out"
            )


@dataclass(frozen=True)
class ShapingSettings:
    """Shaping of the reward"""

    length_penalty: float = 0.0
    """Nats of reward that a token costs; with a length window, that each token outside it costs."""
    length_window: tuple[int, int] | None = None
    """Fewest and most tokens that cost nothing."""
    kl_initial: float = 0.0
    """beta0: of the regression and dr_grpo, weight of a KL term to the untouched model; the regression has it beside
    that to the last round's (beta): with a step, it is the least beta_t in all."""
    truncated: str = "keep"
    """Responses cut off at max_new_tokens: keep, penalise (no better than their group's worst) or drop."""

    def __post_init__(self) -> None:
        for name in ("length_penalty", "kl_initial"):
            value = getattr(self, name)
            expect(self, name, math.isfinite(value) and value >= 0, "a finite number of 0 or more")
        window = self.length_window
        expect(self, "length_window", window is None or 0 <= window[0] <= window[1], "0 <= fewest <= most")
        needed = window is None or self.length_penalty > 0
        expect(self, "length_window", needed, "a --length-penalty above 0 beside it")
        expect(self, "truncated", self.truncated in ("keep", "penalise", "drop"), "keep, penalise or drop")
