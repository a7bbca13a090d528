"""Responses of pi_t beside those of pi_0 to the same prompts: has the policy kept to what it came from?

Every number is a mean over prompts and has its standard error, so that a guard can be given a probability of a false
alarm: none is in nats or tokens. Where pi_t is pi_0 sharpened, pi_t(y) = pi_0(y) f(s(y)) with f that never falls, the
score s of a sample of pi_t is stochastically larger than that of one of pi_0. Hence P(s(y_t) > s(y_0)) + P(=)/2 >= 1/2,
with 1/2 where nothing changed; and for s the probability q_0 of a response's answer, sum_c q_t(c) q_0(c) >= sum_c
q_0(c)^2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from srlm.estimators.diversity import repeated_ngrams
from srlm.estimators.intervals import mean_and_error
from srlm.estimators.rank import superiority
from srlm.measure.record import HeldOut
from srlm.types import Record

Values = NDArray[np.float64]
SLACK = 4  # tokens: a word more or less is no change of a short answer


def drift_record(start: HeldOut, now: HeldOut) -> Record:
    """Each name beside name_error, its standard error, and name_prompts, how many prompts it is the mean of.

    likelihood_rank: P(log pi_0(y_t) > log pi_0(y_0)) + P(=)/2, y_t ~ pi_t and y_0 ~ pi_0 to one prompt. In [0, 1]; it
        falls where responses grow longer, too.
    token_likelihood_rank: the same of log pi_0 per token. It falls where an update buys likelihood with length.
    agreement_change: P(y_t, y_0 give one answer) - P(y_0, y_0' give one answer), unbiased; None for K = 1.
    length_change_held_out: of `log_lengths`, on prompts where responses end in both rounds.
    truncation_change: of the share of truncated responses.
    repetition_change: of the share of trigrams that stood in the same response before.
    """
    first, last = start.rollouts.responses, now.rollouts.responses
    lengths = [responses.length.double().numpy() for responses in (last, first)]
    initial = [held_out.initial.double().numpy() for held_out in (now, start)]
    per_token = [values / np.maximum(length, 1) for values, length in zip(initial, lengths, strict=True)]
    return (
        _entry("likelihood_rank", superiority(*initial))
        | _entry("token_likelihood_rank", superiority(*per_token))
        | _entry("agreement_change", agreement_change(start.classes, now.classes))
        | _entry("length_change_held_out", log_lengths(last) - log_lengths(first))
        | _entry("truncation_change", _share(~last.finished) - _share(~first.finished))
        | _entry("repetition_change", _repetition(last) - _repetition(first))
    )


def length_record(start: Values, now: Values) -> Record:
    """length_change, as `drift_record` gives its entries, from `log_lengths` of two rounds on the same prompts."""
    return _entry("length_change", now - start)


def log_lengths(responses: Any) -> Values:
    """[P] mean log(tokens + 4) of the responses that ended; nan where none did. Thus a model that learns to end is not
    one whose answers shrink."""
    ended = responses.finished.numpy()
    total = (np.log(responses.length.numpy() + SLACK) * ended).sum(-1)
    number = ended.sum(-1)
    return np.asarray(np.where(number > 0, total / np.maximum(number, 1), math.nan), dtype=np.float64)


def agreement_change(start: Sequence[Sequence[Hashable | None]], now: Sequence[Sequence[Hashable | None]]) -> Values:
    """[P] sum_c q_t(c) q_0(c) - sum_c q_0(c)^2, unbiased, from answer classes [P][K] that mean the same in both; nan
    for K = 1. Without an answer (None) a response agrees with nothing."""
    found = []
    for before, after in zip(start, now, strict=True):
        counts = Counter(answer for answer in before if answer is not None)
        pairs = len(before) * (len(before) - 1)
        own = sum(n * (n - 1) for n in counts.values()) / pairs if pairs else math.nan
        found.append(sum(counts[answer] for answer in after) / (len(before) * len(after)) - own)
    return np.array(found)


def _entry(name: str, values: Values) -> Record:
    """Of the prompts that have a value."""
    known = values[~np.isnan(values)]
    mean, error = mean_and_error(known)
    return {name: mean, f"{name}_error": error, f"{name}_prompts": len(known)}


def _share(flags: Tensor) -> Values:
    return np.asarray(flags.double().mean(-1).numpy())


def _repetition(responses: Any) -> Values:
    """[P], 0 for what is too short to repeat itself."""
    shares = [np.nan_to_num(repeated_ngrams([row], 3)) for row in responses.rows()]
    return np.asarray(np.reshape(shares, responses.length.shape).mean(-1), dtype=np.float64)
