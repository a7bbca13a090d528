"""What one round cannot do (Thm 4.1, App. D): the bound, the hard instance behind it, and its exact Bayes failure."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Decimal, localcontext

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc
from scipy.stats import binom

from srlm.theory._check import Number, argument, number, scalar, whole_number

MOST_LABELS = int(sys.float_info.max)


def single_step_lower_bound(
    num_samples: ArrayLike, log_kappa: ArrayLike, log_class_size: ArrayLike, constant: ArrayLike = 1.0
) -> Number:
    """The least failure that n samples in one round allow (Thm 4.1): eps with eps^2 (1 + log(kappa/eps)) = q (Eq. 99).

        q = c kappa log|Pi| / n,    eps = sqrt(q/u),    u = -1/2 W_{-1}(-2 q / (e kappa)^2) = 1 + log(kappa/eps)

    and 1 where q >= 1 + log kappa. Proved up to the universal constant c, which the paper leaves open: 1 is a
    convention, and `HardInstance` supports about 1/(2e) = 0.18 (docs/theory.md).
    u solves u - 1/2 log u = 1 + log kappa - 1/2 log q, and is found there: W's own argument underflows for large kappa.

    num_samples [1, inf); log_kappa [0, inf) and log_class_size (0, inf) in nats; constant (0, inf). All broadcast.
    """
    log_q, log_kappa = _log_q(num_samples, log_kappa, log_class_size, constant)
    target = np.maximum(1 + log_kappa - log_q / 2, 1)
    # g(u) = u - log(u)/2 is convex and rises from u = 1/2: Newton from above falls onto the root, quadratically.
    u = target + np.log(2 * target) / 2
    for _ in range(6):
        u = u - (u - np.log(u) / 2 - target) / (1 - 0.5 / u)
    with np.errstate(over="ignore"):
        failure = np.exp((log_q - np.log(u)) / 2)
    return number(np.where(log_q >= np.log1p(log_kappa), 1.0, np.minimum(failure, 1)))


def single_step_lower_bound_asymptotic(
    num_samples: ArrayLike, log_kappa: ArrayLike, log_class_size: ArrayLike, constant: ArrayLike = 1.0
) -> Number:
    """sqrt(2q / log((e kappa)^2 / (2q))), q = c kappa log|Pi| / n (Eq. 101), clipped to 1: simple, and not a bound.

    It drops 1/2 log(2u) from u, so it lies *above* `single_step_lower_bound`, by a factor that falls to 1 like
    1 + log(2u)/(4u) only: slowly, in the logarithm of n. Arguments as there.
    """
    log_q, log_kappa = _log_q(num_samples, log_kappa, log_class_size, constant)
    twice_u = 2 + 2 * log_kappa - math.log(2) - log_q
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        failure = np.exp((math.log(2) + log_q - np.log(twice_u)) / 2)
    return number(np.where(log_q >= np.log1p(log_kappa), 1.0, np.minimum(failure, 1)))


def samples_needed(
    failure: ArrayLike, log_kappa: ArrayLike, log_class_size: ArrayLike, constant: ArrayLike = 1.0
) -> Number:
    """n >= c kappa log|Pi| / (eps^2 (1 + log(kappa/eps))): what failure <= eps takes in one round (Thm 4.1, Eq. 92).

    Necessary, not sufficient, and up to the constant c. The inverse of `single_step_lower_bound`; inf beyond the range
    of floats. failure (0, 1]; log_kappa [0, inf) and log_class_size (0, inf) in nats; constant (0, inf). All broadcast.
    """
    log_failure = np.log(argument("failure", failure, "(0, 1]"))
    log_q, log_kappa = _log_q(1.0, log_kappa, log_class_size, constant)
    with np.errstate(over="ignore"):
        return number(np.exp(log_q - 2 * log_failure - np.log1p(log_kappa - log_failure)))


@dataclass(frozen=True)
class HardInstance:
    """App. D, Step 1: d informative prompts of total mass Delta, and a silent one whose answer is certain.

    An informative prompt has M labels: its hidden key with probability (1 + gamma)/M, the others with
    (1 - gamma/(M-1))/M. gamma is the construction's own; the margin of Def. 5.2 is its log-odds against the others,
    log((1 + gamma)/(1 - gamma/(M-1))). Pi holds all M^d assignments of keys.

    num_prompts d >= 1 and num_labels M >= 2, whole; informative_mass Delta [0, 1]; margin gamma [0, M - 1).
    """

    num_prompts: int
    num_labels: int
    informative_mass: float
    margin: float = 0.0

    def __post_init__(self) -> None:
        d = whole_number("num_prompts", self.num_prompts, "[1, inf)")
        m = whole_number("num_labels", self.num_labels, "[2, inf)")
        mass = scalar("informative_mass", self.informative_mass, "[0, 1]")
        gamma = scalar("margin", self.margin, f"[0, {float(m) - 1})")
        # Whole numbers of any kind are Python's from here on: numpy's overflow.
        for name, value in zip(self.__dataclass_fields__, (d, m, mass, gamma), strict=True):
            object.__setattr__(self, name, value)

    @property
    def kappa(self) -> float:
        """kappa_0 = 1 - Delta + Delta M / (1 + gamma)."""
        return 1 - self.informative_mass + self.informative_mass * self.num_labels / (1 + self.margin)

    @property
    def log_class_size(self) -> float:
        """log|Pi| = d log M, in nats."""
        return self.num_prompts * math.log(self.num_labels)

    def bayes_failure(self, num_samples: ArrayLike, samples_per_prompt: ArrayLike = 1) -> Number:
        """The least P_x[answer != key] of any learner that sees n prompts with K draws each, exactly.

        The learner may evaluate log pi of what it drew: it knows a key once drawn (for gamma = 0 read this as
        gamma -> 0), and otherwise can only name one of the labels not drawn, all equally likely. With s = Delta/d,
        rho = 1 - gamma/(M-1), N the draws on a prompt and U the labels that N *uniform* draws leave out,

            failure = Delta/M E[rho^N (U - 1)_+] = Delta/M sum_{j>=2} (-1)^j C(M,j) (1 - s (1 - (rho (1 - j/M))^K))^n

        which for gamma = 0 is Delta [(1 - s (1 - (1 - 1/M)^K))^n - P(U > 0)/M]. Every margin in [0, M - 1) is exact.
        The floor under any algorithm on this family, with no constant. To about 1e-13 relative; milliseconds, but
        seconds once every label of M > 5000 is likely to be drawn.

        num_samples n and samples_per_prompt K: whole, [1, inf), broadcast.
        """
        n = argument("num_samples", num_samples, "[1, inf)", whole=True)
        k = argument("samples_per_prompt", samples_per_prompt, "[1, inf)", whole=True)
        return number(np.vectorize(self._bayes_failure, otypes=[np.float64])(n, k))

    def adaptive_failure(self, num_samples: ArrayLike, samples_per_prompt: ArrayLike = 1) -> Number:
        """The least P_x[answer != key] of a learner that chooses, prompt by prompt, what its K draws come from (ours).

        It draws without replacement, from any distribution given all that it has seen, over any number of rounds, and
        names a label that it has not drawn: for a margin of 0, which makes it the floor under every loop of rounds,

            failure = Delta E[(1 - (J + 1)/M)_+],      J = K Bin(n, Delta/d) draws on one prompt

        Exact (docs/theory.md), to about 1e-9 relative; the margin of the instance is not used.
        num_samples n, prompts of all rounds together, and samples_per_prompt K: whole, [1, inf), broadcast.
        """
        n = argument("num_samples", num_samples, "[1, inf)", whole=True)
        k = argument("samples_per_prompt", samples_per_prompt, "[1, inf)", whole=True)
        share, most = self.informative_mass / self.num_prompts, float(self.num_labels - 1)
        # E[(M - 1 - K m)_+]: visits m up to c leave a label to be wrong about.
        c = np.floor(most / k)
        left = most * binom.cdf(c, n, share) - k * n * share * binom.cdf(c - 1, n - 1, share)
        return number(self.informative_mass * np.maximum(left, 0) / self.num_labels)

    def policy(self, keys: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(log pi [d+1, M], prompt probabilities [d+1]) for keys [d] in 0..M-1; the silent prompt is the last row.

        With gamma = 0 the rows are uniform and the key is no unique mode: take a small margin for a policy to learn.
        """
        chosen = argument("keys", keys, f"[0, {self.num_labels - 1}]", whole=True).astype(np.int64)
        if chosen.shape != (self.num_prompts,):
            raise ValueError(f"keys must have shape ({self.num_prompts},), one a prompt, got {chosen.shape}")
        other = math.log1p(-self.margin / (self.num_labels - 1)) - math.log(self.num_labels)
        log_prob = np.full((self.num_prompts + 1, self.num_labels), other)
        log_prob[np.arange(self.num_prompts), chosen] = math.log1p(self.margin) - math.log(self.num_labels)
        log_prob[-1] = -np.inf
        log_prob[-1, 0] = 0
        weight = np.append(
            np.full(self.num_prompts, self.informative_mass / self.num_prompts), 1 - self.informative_mass
        )
        return log_prob, weight

    def _bayes_failure(self, num_samples: float, draws: float) -> float:
        labels = float(self.num_labels)
        missed = self._power_mean(num_samples, draws * _log_rest((1 + self.margin) / labels))
        thinned = self._power_mean(num_samples, draws * _log_rest(self.margin / (labels - 1)))
        surplus = missed - thinned / labels  # E[rho^N (U - 1)]/M, which differs by no more than P(U = 0)/M
        none_left = self._all_drawn_at_most(num_samples, draws)
        cancels = thinned / labels > missed / 2
        # Some label is as good as always left, and dozens are on average; or what is left out is next to nothing of it.
        if none_left <= 1e-16 or (not cancels and none_left <= 1e-12 * labels * surplus):
            return self.informative_mass * surplus
        return self.informative_mass * self._surplus_by_inclusion_exclusion(int(num_samples), int(draws))

    def _power_mean(self, num_samples: float, log_base: float) -> float:
        """E[b^m] = (1 - s (1 - b))^n for the visits m ~ Bin(n, s) of one prompt."""
        visited = self.informative_mass / self.num_prompts * -math.expm1(log_base)
        return math.exp(num_samples * math.log1p(-visited)) if visited < 1 else 0.0

    def _all_drawn_at_most(self, num_samples: float, draws: float) -> float:
        """A bound on P(U = 0): occupancy is negatively associated, so N draws do it with at most (1 - (1-1/M)^N)^M."""
        labels = float(self.num_labels)
        if labels <= 46:
            return 1.0
        share = -math.log1p(-1 / labels) * draws / math.log(labels / 46)  # of the visits up to which that is e^-46
        if share * num_samples <= 1:
            return 1e-20
        visits = min(math.floor(1 / share), num_samples - 1)
        tail = betainc(visits + 1, num_samples - visits, self.informative_mass / self.num_prompts)
        return 1e-20 + float(tail)

    def _surplus_by_inclusion_exclusion(self, num_samples: int, draws: int) -> float:
        """E[rho^N (U - 1)_+]/M. The terms cancel by many digits, so they are carried in as many as it takes."""
        precision = 60
        while True:
            with localcontext() as context:
                context.prec, context.Emax, context.Emin = precision, MAX_EMAX, MIN_EMIN
                labels = Decimal(self.num_labels)
                share = Decimal(float(self.informative_mass)) / self.num_prompts
                rho = 1 - Decimal(float(self.margin)) / (labels - 1)
                total = largest = Decimal(0)
                choices = labels
                for j in range(2, self.num_labels + 1):
                    choices = choices * (self.num_labels - j + 1) / j
                    term = choices * (1 - share * (1 - (rho * (1 - j / labels)) ** draws)) ** num_samples
                    total += term if j % 2 == 0 else -term
                    largest = max(largest, term)
                    # Bonferroni: what is left out is never more than the last term.
                    if term <= abs(total).scaleb(-20):
                        break
                if largest.scaleb(36 - precision) <= abs(total):
                    return float(total / labels)
            precision *= 2


def _log_rest(share: float) -> float:
    """log(1 - share); a margin a rounding below M - 1 leaves nothing."""
    return math.log1p(-share) if share < 1 else -math.inf


def worst_case_instance(
    num_samples: int, kappa: float, num_prompts: int, samples_per_prompt: int = 1, *, adaptive: bool = False
) -> HardInstance:
    """The `HardInstance` (margin -> 0) with this kappa and d on which the Bayes failure is largest.

    adaptive: of a learner that chooses what it draws from (`HardInstance.adaptive_failure`); n is that of all rounds.

    kappa fixes Delta = (kappa - 1)/(M - 1); the maximum is over whole M >= kappa, not over real ones, because only they
    are instances. The failure rises and then falls in M (tested, not proved): from the closed form's M the search goes
    out by factors of two, and in by thirds.
    num_samples, num_prompts and samples_per_prompt: whole, [1, inf); kappa [1, inf).
    """
    num_samples = whole_number("num_samples", num_samples, "[1, inf)")
    kappa = scalar("kappa", kappa, "[1, inf)")
    num_prompts = whole_number("num_prompts", num_prompts, "[1, inf)")
    samples_per_prompt = whole_number("samples_per_prompt", samples_per_prompt, "[1, inf)")

    def instance(num_labels: int) -> HardInstance:
        return HardInstance(num_prompts, num_labels, (kappa - 1) / float(num_labels - 1))

    def failure(num_labels: int) -> float:
        return _failure(instance(num_labels), num_samples, samples_per_prompt, adaptive)

    least = max(2, math.ceil(kappa))
    mass = min(1.0, math.sqrt(num_prompts / (2 * num_samples * samples_per_prompt)) * math.sqrt(kappa - 1))
    low = high = max(least, round(1 + (kappa - 1) / mass)) if mass > 0 else least
    while low > least and failure(max(least, low // 2)) >= failure(low):
        low = max(least, low // 2)
    while failure(min(2 * high, MOST_LABELS)) > failure(high):
        high = min(2 * high, MOST_LABELS)
    low, high = max(least, low // 2), min(2 * high, MOST_LABELS)
    while high - low > 2:
        third = (high - low) // 3
        if failure(low + third) < failure(high - third):
            low += third
        else:
            high -= third
    return instance(max(range(low, high + 1), key=failure))


def worst_case_failure(
    num_samples: ArrayLike,
    kappa: ArrayLike,
    num_prompts: ArrayLike,
    samples_per_prompt: ArrayLike = 1,
    *,
    adaptive: bool = False,
) -> Number:
    """max over instances with this kappa and d of `HardInstance.bayes_failure` (margin -> 0): no algorithm does better.

    A lower bound in the sense of Thm 4.1 with nothing hidden: for one n, K, kappa and d there is an instance on which
    every learner that sees n prompts with K draws each fails at least this often on average over the keys. adaptive:
    though it choose what it draws from, in any number of rounds, n prompts in all. Arguments as for
    `worst_case_instance`, broadcast; 0 for kappa = 1.
    """

    def one(n: float, k0: float, d: float, k: float) -> float:
        return _failure(worst_case_instance(int(n), k0, int(d), int(k), adaptive=adaptive), int(n), int(k), adaptive)

    arguments = _worst_case_arguments(num_samples, kappa, num_prompts, samples_per_prompt)
    return number(np.vectorize(one, otypes=[np.float64])(*arguments))


def worst_case_failure_closed_form(
    num_samples: ArrayLike, kappa: ArrayLike, num_prompts: ArrayLike, samples_per_prompt: ArrayLike = 1
) -> Number:
    """e^{-1/2} sqrt(d (kappa - 1)/(2nK)) - d/(2nK) <= `worst_case_failure` (ours), with explicit constants.

    That is Delta* = sqrt(d (kappa - 1)/(2nK)) <= 1, M rounded up to a whole number included (proof in docs/theory.md).
    Beyond, with few samples, Delta = (kappa - 1)/(M - 1) for M = ceil(kappa) gives
    Delta (e^{-nK Delta^2/(d (kappa - 1))} - 1/M). 0 where the expression is negative. Arguments as there.
    """
    n, k0, d, k = _worst_case_arguments(num_samples, kappa, num_prompts, samples_per_prompt)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        loss = d / (2 * n * k)
        best = np.sqrt(loss * (k0 - 1))
        labels = np.ceil(k0)
        mass = (k0 - 1) / (labels - 1)
        few = mass * (np.exp(-(mass**2) / (2 * loss * (k0 - 1))) - 1 / labels)
    failure = np.where(best <= 1, math.exp(-0.5) * best - loss, few)
    return number(np.where(k0 > 1, np.maximum(failure, 0), 0.0))


def rounds_lower_bound(
    num_samples: ArrayLike,
    rounds: ArrayLike,
    kappa: ArrayLike,
    num_prompts: ArrayLike,
    samples_per_prompt: ArrayLike = 1,
) -> Number:
    """2/(3 sqrt 3) sqrt(d (kappa_0 - 1)/(nTK)) - d/(3nTK) <= failure after T rounds of n prompts (ours).

    Of any learner: on a start of this kappa_0 no choice of what to draw from, round after round, does better. What is
    left of kappa_0 falls like T^{-1/2}, and for a given number nT of prompts not at all. No contradiction to Thm 5.3,
    whose p is 1/M there until every prompt is solved. Proved, constants included, for
    Delta* = sqrt(d (kappa_0 - 1)/(3nTK)) <= 1, M rounded up to a whole number (docs/theory-note.md). Beyond,
    M = ceil(kappa_0) and Delta = (kappa_0 - 1)/(M - 1) give Delta (1 - (nTK Delta/d + 1)/M). 0 where the expression is
    negative; `worst_case_failure` with adaptive=True is exact.

    num_samples n a round, rounds T, num_prompts d and samples_per_prompt K: whole, [1, inf); kappa [1, inf). Broadcast.
    """
    n, k0, d, k = _worst_case_arguments(num_samples, kappa, num_prompts, samples_per_prompt)
    n = n * argument("rounds", rounds, "[1, inf)", whole=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        loss = d / (3 * n * k)
        best = np.sqrt(loss * (k0 - 1))
        labels = np.ceil(k0)
        mass = (k0 - 1) / (labels - 1)
        few = mass * (1 - (n * k * mass / d + 1) / labels)
    failure = np.where(best <= 1, 2 / 3 * best - loss, few)
    return number(np.where(k0 > 1, np.maximum(failure, 0), 0.0))


def _failure(instance: HardInstance, num_samples: int, samples_per_prompt: int, adaptive: bool) -> float:
    least = instance.adaptive_failure if adaptive else instance.bayes_failure
    return float(least(num_samples, samples_per_prompt))


def _worst_case_arguments(
    num_samples: ArrayLike, kappa: ArrayLike, num_prompts: ArrayLike, samples_per_prompt: ArrayLike
) -> tuple[NDArray[np.float64], ...]:
    return (
        argument("num_samples", num_samples, "[1, inf)", whole=True),
        argument("kappa", kappa, "[1, inf)"),
        argument("num_prompts", num_prompts, "[1, inf)", whole=True),
        argument("samples_per_prompt", samples_per_prompt, "[1, inf)", whole=True),
    )


def _log_q(
    num_samples: ArrayLike, log_kappa: ArrayLike, log_class_size: ArrayLike, constant: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(log(c kappa log|Pi| / n), log kappa)."""
    samples = argument("num_samples", num_samples, "[1, inf)")
    values = argument("log_kappa", log_kappa, "[0, inf)")
    size = argument("log_class_size", log_class_size, "(0, inf)")
    factor = argument("constant", constant, "(0, inf)")
    return np.log(factor) + values + np.log(size) - np.log(samples), values
