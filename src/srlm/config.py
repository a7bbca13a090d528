"""The one typed configuration: of `srlm train`, of a YAML file, of `SelfRewardTrainer`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from srlm.errors import UserError


@dataclass(frozen=True)
class SelfRewardConfig:
    """Every setting of a run. The defaults are the vetted setting of docs/evidence.md; log-probs and rewards are in
    nats, lengths in tokens."""

    output: str = "srlm-run"
    """Run folder; must be new or empty."""
    rounds: int = 3
    """T: rounds of {sample, score, update}."""
    num_samples: int = 8
    """K: responses per prompt and round (at least 2: the objective compares responses of one prompt)."""
    max_new_tokens: int = 64
    """Longest response; longer ones are cut there and flagged as truncated."""
    reward: str = "log_likelihood"
    """Self-reward: log_likelihood (Eq. 1), mean_log_likelihood, self_certainty, negative_entropy, majority, implicit,
    judge, judge_pairwise, module:function, a sum such as 0.5*judge+0.5*mean_log_likelihood, or a control: random,
    inverted, oracle (uses labels). Set beta to its scale."""
    answers: str = "normalised"
    """Which responses give the same answer, for majority and self-consistency? exact, normalised, number, regex:PATTERN
    or module:function."""
    beta: float = 1.0
    """Strength of the KL term (Eq. 2): one exact round turns pi into pi^(1 + 1/beta)."""
    clip: float = 8.0
    """B: of a response whose reward lies further under its group's best it is only asked to fall by B / beta or more;
    0 asks for exactly what Eq. 3 does."""
    anchor: float = 1.0
    """Lambda: weight of the mass-conserving anchor; 0 is the plain pairwise objective of Eq. 3."""
    objective: str = "regression"
    """regression (Eq. 3, with clip and anchor), dpo, ipo, best_of_k (fine-tuning on the best) or grpo."""
    pairs: str = "all"
    """Of dpo and ipo: all pairs of a group, or best_worst."""
    margin: float = 0.0
    """Of dpo, ipo and nll: responses make a pair if their rewards differ by more than this; ties never do."""
    label_smoothing: float | Literal["consistency"] = 0.0
    """Of dpo and ipo: how often a preference is taken to be wrong; consistency is CREAM's (1 - tau) / 2 with Kendall's
    tau of this round's policy against the last one."""
    nll: float = 0.0
    """Weight of an added -log pi of each group's best response."""
    length_penalty: float = 0.0
    """Nats of reward that a token costs; with a length window, that each token outside it costs."""
    length_window: tuple[int, int] | None = None
    """Fewest and most tokens that cost nothing."""
    kl_initial: float = 0.0
    """beta0: weight of a KL term to the untouched model, beside that to the last round's (beta)."""
    truncated: str = "keep"
    """Responses cut off at max_new_tokens: keep, penalise (no better than their group's worst) or drop."""
    learning_rate: float = 1.5e-4
    """Peak step size of AdamW; falls linearly to zero within each round."""
    gain_learning_rate: float = 0.1
    """Peak step size of the logarithm of the final norm's gain, which sharpens every next-token distribution alike; 0
    leaves the gain as it is."""
    epochs: int = 3
    """Passes over a round's rollouts."""
    prompts_per_step: int = 4
    """Prompts (with all their responses) per optimiser step, over all processes."""
    token_budget: int = 2048
    """Padded tokens per micro-batch of one process: memory, never what is learned."""
    checkpoint_steps: int = 10
    """Optimiser steps between checkpoints inside a round."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora_rank: int = 16
    """Rank of the LoRA adapter; 0 trains all weights."""
    lora_alpha: float | None = None
    """LoRA scale times rank; twice the rank by default."""
    dtype: str = "auto"
    """bf16, fp32, or auto (bf16 where the hardware multiplies it natively)."""
    temperature: float = 1.0
    """Sampling only (exploration): scores are always those of the full distribution at temperature 1."""
    top_p: float = 1.0
    """Sampling only (exploration), like temperature."""
    stop: tuple[str, ...] = ()
    """Strings that end a response exactly like EOS."""
    raw_prompts: bool = False
    """Take `prompt` strings as they are; otherwise a tokenizer with a chat template reads each as one user turn."""
    max_prompts: int | None = None
    """Train on a random subset of this many prompts."""
    max_held_out: int | None = None
    """Measure on a random subset of this many held-out prompts."""
    held_out_share: float = 0.1
    """Without a held-out file: share of the prompts (at most 64) set aside to measure fidelity on."""
    held_out_samples: int = 8
    """Responses per held-out prompt."""
    match: str = "auto"
    """When is a response right? contains, exact, number, regex or module:function (evaluation only); auto asks a task's
    own verifier, or is contains."""
    guard: bool = True
    """Stop when a round did damage, and leave the best round in model/ (guard.py); off for controls."""
    until: Literal["rounds", "saturated"] = "rounds"
    """When is a healthy run over? After all its rounds, or once it is saturated; rounds is then the most."""
    patience: int = 1
    """Rounds in a row that must be damaged, or saturated, before the run ends."""
    guard_mode_fidelity: float = 0.75
    """Alarm if mode fidelity, by the upper end of its 95 % interval, is below this."""
    guard_displacement: float = -1.0
    """Alarm if each group's best response gained less than this on average, in nats."""
    guard_leak: float = -2.0
    """Alarm if the log of the mass that the samples keep is below this, in nats."""
    guard_accuracy_drop: float = 0.1
    """With labels: alarm if sampled accuracy fell from its best by more than this and their 95 % intervals part."""
    guard_auroc: float = 0.5
    """With labels: alarm if the self-reward's AUROC within prompts, by the upper end of its 95 % interval, is below."""
    guard_consistency: float = 0.1
    """Alarm if held-out self-consistency fell from its best by more than this and their 95 % intervals part."""
    guard_kappa: float = 1.0
    """Alarm if the held-out mode surprisal (log kappa as an average over prompts) rose and is above the forecast of the
    exact update by more than this, in nats."""
    guard_entropy: float = 1.5
    """Alarm if entropy is above this many times that of round 0."""
    guard_length: float = 4.0
    """Alarm if responses that end are this many times longer or shorter than in round 0."""
    guard_truncation: float = 0.3
    """Alarm if the share of truncated responses rose by more than this since round 0."""
    guard_repetition: float = 0.3
    """Alarm if the share of repeated n-grams rose by more than this since round 0."""
    guard_same_response: float = 0.5
    """Alarm if the share of prompts with one and the same best response rose by more than this since round 0."""
    guard_kendall: float = 0.4
    """Alarm if Kendall's tau of the samples' order before and after an update is below this."""
    guard_log_ratio: float = 16.0
    """Alarm if a log-ratio exceeds this many nats per token of max_new_tokens."""
    guard_distinct_2: float = 0.0
    """Alarm if distinct-2 is below this share of round 0's over K. Off: a task with few answers has few bigrams."""
    guard_stable: float = 0.5
    """A run is stabilising (Stage I) while log10 of the estimated kappa is above this."""
    guard_saturated: float = 0.3
    """A run is saturated once the best response gains, and the J_0 gap changes, by less than this, in nats."""
    report_to: tuple[str, ...] = ()
    """Also report each round to trackers: tensorboard, wandb, trackio, mlflow; files go to trackers/ in the run."""
    push_to_hub: str | None = None
    """Upload model/ to this Hub repository at the end, which is created private if it is new."""
    trust_remote_code: bool = False
    """Run code that a model repository brings along."""
    seed: int = 0
    """Of subsets, adapter, sampling and order."""

    @property
    def total_beta(self) -> float:
        """Of the KL terms to the last round's policy and to the untouched one together, as the objective sees them."""
        return self.beta + self.kl_initial

    @property
    def weights_folder(self) -> str:
        """Where a round keeps its policy."""
        return "adapter" if self.lora_rank else "weights"

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise UserError(
                f"--num-samples is {self.num_samples}, expected at least 2: the objective compares responses to one "
                "prompt, and a single response has nothing to be compared with"
            )
        whole = (
            "rounds",
            "max_new_tokens",
            "epochs",
            "prompts_per_step",
            "token_budget",
            "checkpoint_steps",
            "patience",
        )
        for name in whole:
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_prompts", "max_held_out"):
            self._expect(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        self._expect("held_out_samples", self.held_out_samples >= 2, "at least 2")
        self._expect("lora_rank", self.lora_rank >= 0, "0 (all weights) or more")
        for name in ("beta", "learning_rate", "temperature"):
            value = getattr(self, name)
            self._expect(name, math.isfinite(value) and value > 0, "a finite number above 0")
        alpha = self.lora_alpha
        self._expect("lora_alpha", alpha is None or (math.isfinite(alpha) and alpha > 0), "a finite number above 0")
        for name in ("clip", "anchor", "gain_learning_rate", "margin", "nll", "length_penalty", "kl_initial"):
            value = getattr(self, name)
            self._expect(name, math.isfinite(value) and value >= 0, "a finite number of 0 or more")
        for name in (name for name in vars(self) if name.startswith("guard_")):
            self._expect(name, not math.isnan(getattr(self, name)), "a number")
        self._expect("until", self.until in ("rounds", "saturated"), "rounds or saturated")
        self._expect("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._expect("held_out_share", 0 <= self.held_out_share < 1, "0 or more and below 1")
        objectives = ("regression", "dpo", "ipo", "best_of_k", "grpo")
        self._expect("objective", self.objective in objectives, "regression, dpo, ipo, best_of_k or grpo")
        self._expect("pairs", self.pairs in ("all", "best_worst"), "all or best_worst")
        smoothing = self.label_smoothing
        fits = smoothing == "consistency" if isinstance(smoothing, str) else 0 <= smoothing <= 1
        self._expect("label_smoothing", fits, "a number from 0 to 1, or consistency")
        window = self.length_window
        self._expect("length_window", window is None or 0 <= window[0] <= window[1], "0 <= fewest <= most")
        needed = window is None or self.length_penalty > 0
        self._expect("length_window", needed, "a --length-penalty above 0 beside it")
        self._expect("truncated", self.truncated in ("keep", "penalise", "drop"), "keep, penalise or drop")
        self._expect("dtype", self.dtype in ("auto", "bf16", "fp32"), "auto, bf16 or fp32")
        self._expect("stop", all(self.stop), "non-empty strings")
        self._expect("seed", 0 <= self.seed < 2**63, "0 or more and below 2^63")

    def _expect(self, name: str, ok: bool, expected: str) -> None:
        if not ok:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is {getattr(self, name)!r}, expected {expected}: correct it")
