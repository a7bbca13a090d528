"""The policy condition number (Eq. 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp


def log_condition_number(mode_log_prob: ArrayLike, weight: ArrayLike | None = None) -> float:
    """log kappa = log E_x[1 / max_y pi(y|x)] (Eq. 5), in nats, without overflow for log-probs of -2000.

    mode_log_prob: [P] max_y log pi(y|x), each <= 0. From samples the largest log-prob seen only bounds the mode's from
    below, and the result bounds log kappa from above.
    weight: [P] prompt probabilities, uniform when None.
    """
    values = np.asarray(mode_log_prob, dtype=np.float64)
    if values.ndim != 1 or not values.size or np.isnan(values).any() or (values > 0).any():
        raise ValueError(f"mode_log_prob must be a non-empty vector of values <= 0, got {mode_log_prob!r}")
    share = np.full(values.shape, 1 / values.size) if weight is None else np.asarray(weight, dtype=np.float64)
    if share.shape != values.shape or (share < 0).any() or not np.isclose(share.sum(), 1):
        raise ValueError(f"weight must be non-negative, sum to 1 and match mode_log_prob's shape, got {weight!r}")
    return float(logsumexp(-values, b=share))
