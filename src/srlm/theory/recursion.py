"""How kappa moves from round to round (App. C.6-C.8, Thm 5.3, Cor. 5.7)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

from srlm.theory._check import Number, argument, as_given, log_start, number, per_round


def tail_integral(failure_rate: ArrayLike, confidence: ArrayLike) -> Number:
    """The largest kappa that P[pi(y*) <= 1 - delta] <= A/delta for all delta, and pi(y*) >= p, allow (Eq. 52-56).

        1 + A/p + A log((1-p)(1-A)/(pA))   if A < 1 - p,   else 1/p

    The layer-cake integral of min(1, A z/(z-1)) over 1 < z < 1/p: exact, no constant, and attained by that tail.
    failure_rate A [0, inf); confidence p (0, 1]. Broadcast.
    """
    rate = argument("failure_rate", failure_rate, "[0, inf)")
    p = argument("confidence", confidence, "(0, 1]")
    return number(_tail_integral(rate, p))


def tail_integral_recursion(
    kappa0: ArrayLike | None,
    rounds: int | None,
    statistical_rate: ArrayLike,
    beta_rate: ArrayLike,
    confidence: ArrayLike,
    *,
    log_kappa0: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """kappa_{t+1} = tail_integral(A_t, p) with A_t = statistical_rate sqrt(kappa_t) + beta_rate log(kappa_t).

    Eq. 43 into Eq. 56, nothing relaxed. The rates are C B sqrt(log(|Pi| T/rho)/n)/gamma and beta/gamma: the constant C
    is in the first. Never above `kappa_recursion` with coefficients (rates/p) * `relaxation_factor`.

    kappa0 [1, inf); rounds T whole [0, inf); both rates [0, inf); confidence p (0, 1], the least pi_t(y*|x) of rounds
    t >= 1: kappa0 may exceed 1/p. rounds None: beta_rate [..., T] has one entry a round. Returns [..., T+1], kappa_0
    first. With log_kappa0 [0, inf) in the place of kappa0 (None then), logarithms.
    """
    statistical = argument("statistical_rate", statistical_rate, "[0, inf)")
    p = argument("confidence", confidence, "(0, 1]")
    rates = _rates("beta_rate", beta_rate, rounds)
    logs = _start(log_start(kappa0, log_kappa0), rates, statistical, p)
    for t, beta in enumerate(rates):
        logs[..., t + 1] = np.log(_tail_integral(_failure_rate(logs[..., t], statistical, beta), p))
    return as_given(logs, log_kappa0)


def kappa_recursion(
    kappa0: ArrayLike | None,
    rounds: int | None,
    baseline: ArrayLike,
    sqrt_coefficient: ArrayLike,
    log_coefficient: ArrayLike,
    *,
    log_kappa0: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """kappa_{t+1} = a + b sqrt(kappa_t) + c log(kappa_t), the relaxed recursion (Eq. 59).

    The paper's a = 1, b = C B sqrt(log(|Pi| T/rho)/n)/(gamma p) and c = beta/(gamma p) drop A log(...) of Eq. 56: b and
    c times `relaxation_factor` bound kappa_t, up to the constant C.

    kappa0 and baseline a [1, inf); rounds T whole [0, inf); sqrt_coefficient b and log_coefficient c [0, inf).
    rounds None: log_coefficient [..., T] has one entry a round, beta_t/(gamma p). Returns [..., T+1], kappa_0 first.
    With log_kappa0 [0, inf) in the place of kappa0 (None then), logarithms.
    """
    a = argument("baseline", baseline, "[1, inf)")
    b = argument("sqrt_coefficient", sqrt_coefficient, "[0, inf)")
    rates = _rates("log_coefficient", log_coefficient, rounds)
    logs = _start(log_start(kappa0, log_kappa0), rates, a, b)
    for t, c in enumerate(rates):
        with np.errstate(divide="ignore"):
            terms = np.logaddexp(np.log(b) + logs[..., t] / 2, np.log(c * logs[..., t]))
        logs[..., t + 1] = np.logaddexp(np.log(a), terms)
    return as_given(logs, log_kappa0)


def relaxation_factor(smallest_failure_rate: ArrayLike, confidence: ArrayLike) -> Number:
    """F = 1 + p log(1/(p A_min))_+ with tail_integral(A, p) <= 1 + F A/p for all A >= A_min (ours).

    What Eq. 59 owes Eq. 56. In the recursion A_min is the statistical rate, because kappa >= 1.
    smallest_failure_rate A_min (0, inf); confidence p (0, 1]. Broadcast; at least 1.
    """
    rate = argument("smallest_failure_rate", smallest_failure_rate, "(0, inf)")
    p = argument("confidence", confidence, "(0, 1]")
    return number(1 + p * np.maximum(-np.log(p) - np.log(rate), 0))


def kappa_fixed_point(baseline: ArrayLike, coefficient: ArrayLike) -> Number:
    """kappa_inf = ((s + sqrt(s^2 + 4a))/2)^2, the fixed point of f(kappa) = a + s sqrt(kappa) (Eq. 68-70).

    s = b + c of `kappa_recursion`, by log kappa <= sqrt(kappa). baseline a [1, inf); coefficient s [0, inf). Broadcast.
    """
    a, s = _line(baseline, coefficient)
    with np.errstate(over="ignore"):
        return number(((s + np.hypot(s, 2 * np.sqrt(a))) / 2) ** 2)


def contraction_factor(baseline: ArrayLike, coefficient: ArrayLike) -> Number:
    """lambda = f'(kappa_inf) = s / (s + sqrt(s^2 + 4a)), below 1/2 whatever s is (Eq. 71). Arguments as above."""
    a, s = _line(baseline, coefficient)
    return number(s / (s + np.hypot(s, 2 * np.sqrt(a))))


def kappa_bound(
    kappa0: ArrayLike | None,
    rounds: ArrayLike,
    baseline: ArrayLike,
    coefficient: ArrayLike,
    *,
    log_kappa0: ArrayLike | None = None,
) -> Number:
    """kappa_T <= kappa_inf + lambda^T (kappa_0 - kappa_inf)_+ for kappa_{t+1} <= a + s sqrt(kappa_t) (Eq. 72-73).

    Proved: f is concave, so it lies under its tangent at kappa_inf. kappa0 and baseline a [1, inf); rounds T whole
    [0, inf); coefficient s [0, inf). Broadcast. With log_kappa0 [0, inf) in the place of kappa0 (None then), a
    logarithm.
    """
    start = log_start(kappa0, log_kappa0)
    power = argument("rounds", rounds, "[0, inf)", whole=True)
    limit = np.log(np.asarray(kappa_fixed_point(baseline, coefficient)))
    decay = xlogy(power, np.asarray(contraction_factor(baseline, coefficient)))
    return number(as_given(np.logaddexp(limit, decay + log_difference(start, limit)), log_kappa0))


def iterations_to_forget(
    kappa0: ArrayLike | None,
    baseline: ArrayLike,
    coefficient: ArrayLike,
    *,
    log_kappa0: ArrayLike | None = None,
) -> Number:
    """The least whole T >= 1 + log(kappa_0/kappa_inf)_+ / log(1/lambda) (Cor. 5.7): logarithmic in kappa_0.

    From then on sqrt(kappa_0) lambda^{(T-1)/2} <= sqrt(kappa_inf): the start costs no more than the limit does.
    Arguments as for `kappa_bound`. Broadcast; whole numbers, as floats.
    """
    start = log_start(kappa0, log_kappa0)
    limit = np.asarray(kappa_fixed_point(baseline, coefficient))
    ratio = np.asarray(contraction_factor(baseline, coefficient))
    excess = np.maximum(start - np.log(limit), 0)
    with np.errstate(divide="ignore"):
        # Even lambda = 0 needs the one round in which it acts.
        return number(1 + np.maximum(np.ceil(excess / -np.log(ratio)), excess > 0))


def log_difference(larger: NDArray[np.float64], smaller: NDArray[np.float64]) -> NDArray[np.float64]:
    """log (e^larger - e^smaller)_+."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(larger > smaller, larger + np.log(-np.expm1(smaller - larger)), -np.inf)


def _failure_rate(
    log_kappa: NDArray[np.float64], statistical: NDArray[np.float64], beta: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A of Eq. 43, inf beyond the floats."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.exp(np.log(statistical) + log_kappa / 2) + beta * log_kappa


def _tail_integral(rate: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.minimum(rate, 1 - p)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = xlogy(inside, 1 - p) + xlogy(inside, 1 - inside) - xlogy(inside, p) - xlogy(inside, inside)
    return np.where(rate < 1 - p, np.minimum(1 + inside / p + logs, 1 / p), 1 / p)


def _rates(name: str, value: ArrayLike, rounds: int | None) -> NDArray[np.float64]:
    """[T, ...], round by round."""
    if rounds is None:
        return np.moveaxis(per_round(name, value, "[0, inf)"), -1, 0)
    if np.ndim(rounds):
        raise ValueError(f"rounds must be one whole number in [0, inf), got {rounds!r}")
    rate = argument(name, value, "[0, inf)")
    return np.broadcast_to(rate, (int(argument("rounds", rounds, "[0, inf)", whole=True)), *rate.shape))


def _start(start: NDArray[np.float64], rates: NDArray[np.float64], *others: NDArray[np.float64]) -> NDArray[np.float64]:
    shape = np.broadcast_shapes(start.shape, rates.shape[1:], *(other.shape for other in others))
    trajectory = np.empty((*shape, len(rates) + 1))
    trajectory[..., 0] = start
    return trajectory


def _line(baseline: ArrayLike, coefficient: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return argument("baseline", baseline, "[1, inf)"), argument("coefficient", coefficient, "[0, inf)")
