"""How large a linear-softmax class is: covering numbers and effective dimension (Def. 6.1, App. F-G)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from srlm.theory._check import Number, argument, number


def covering_log_size(dimension: ArrayLike, norm_bound: ArrayLike, resolution: ArrayLike) -> Number:
    """d log(1 + 6 B_theta/eps), the log-size of a log-ratio eps-net of {theta : |theta| <= B_theta} (App. F), in nats.

    Proved with room: 4 would do for 6, because log pi_theta moves by at most 2 |theta - theta'|. Features of norm <= 1.
    dimension d, norm_bound B_theta and resolution eps: (0, inf), broadcast.
    """
    d = argument("dimension", dimension, "(0, inf)")
    radius = argument("norm_bound", norm_bound, "(0, inf)")
    eps = argument("resolution", resolution, "(0, inf)")
    return number(d * np.log1p(6 * radius / eps))


def effective_dimension(eigenvalues: ArrayLike, ridge: ArrayLike) -> Number:
    """d_eff(lambda) = sum_i mu_i/(mu_i + lambda) (Def. G.1): falls in lambda, at most the number of mu_i > 0.

    eigenvalues mu [..., D] in [0, inf), of the covariance of the differences phi(x,y) - phi(x,y') that are observed;
    ridge lambda (0, inf), broadcast against [...]. Returns [...].
    """
    mu = argument("eigenvalues", eigenvalues, "[0, inf)")
    if not mu.ndim:
        raise ValueError(f"eigenvalues must be an array [..., D] in [0, inf), got {eigenvalues!r}")
    lam = argument("ridge", ridge, "(0, inf)")
    with np.errstate(divide="ignore", over="ignore"):
        # not mu/(mu + lambda), whose sum overflows
        return number(np.sum(1 / (1 + lam[..., None] / mu), axis=-1))


def exponential_spectrum_bound(scale: ArrayLike, decay: ArrayLike, ridge: ArrayLike) -> Number:
    """d_eff(lambda) <= log(1 + C/lambda)/c for mu_i <= C e^{-c i}, i = 1, 2, ... (regime A, G.3).

    Proved, constant included: the sum is under the integral of a falling function from 0. scale C, decay c and ridge
    lambda: (0, inf), broadcast.
    """
    high = argument("scale", scale, "(0, inf)")
    rate = argument("decay", decay, "(0, inf)")
    lam = argument("ridge", ridge, "(0, inf)")
    return number(np.logaddexp(0, np.log(high) - np.log(lam)) / rate)


def polynomial_spectrum_bound(scale: ArrayLike, power: ArrayLike, ridge: ArrayLike) -> Number:
    """d_eff(lambda) <= (pi/a)/sin(pi/a) (C/lambda)^{1/a} for mu_i <= C i^{-a}, i = 1, 2, ... (regime B, G.4).

    Proved, constant included, by the same integral. scale C and ridge lambda (0, inf); power a (1, inf). Broadcast.
    """
    high = argument("scale", scale, "(0, inf)")
    a = argument("power", power, "(1, inf)")
    lam = argument("ridge", ridge, "(0, inf)")
    return number(np.exp((np.log(high) - np.log(lam)) / a) / np.sinc(1 / a))


def spiked_spectrum_bound(num_spikes: ArrayLike, tail_mass: ArrayLike, ridge: ArrayLike) -> Number:
    """d_eff(lambda) <= r + tau/lambda for r eigenvalues of any size and a tail that sums to tau (regime C, G.5-G.6).

    Proved: a term is at most 1, and at most mu_i/lambda. num_spikes r whole [0, inf); tail_mass tau [0, inf); ridge
    lambda (0, inf). Broadcast.
    """
    spikes = argument("num_spikes", num_spikes, "[0, inf)", whole=True)
    tail = argument("tail_mass", tail_mass, "[0, inf)")
    return number(spikes + tail / argument("ridge", ridge, "(0, inf)"))
