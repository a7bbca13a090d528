"""Seconds of some of a run's work -> rates of all of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from srlm.estimate.rates import Rates
from srlm.estimate.stages import folding, weights_of_pass
from srlm.policies.transformer.shape import Shape

if TYPE_CHECKING:  # torch is for who measures
    from srlm.policies.transformer.pace import Pace


def of_pace(pace: Pace, shape: Shape, cached: int, *, cpu: bool, link: float | None = None) -> Rates:
    """cached: tokens behind which decoding was timed. A step of decoding takes a + b rows: a is put down to weights
    that are read, and unpacked, b to what a row multiplies, its cache included."""
    trained = shape.cost.token if shape.whole else float(shape.adapter)
    forward = pace.tokens * shape.cost.token + pace.pairs * shape.cost.pair
    back = pace.tokens * (shape.cost.token + trained) + 2.5 * pace.pairs * shape.cost.pair
    head = 2 * pace.edges * shape.cost.head
    row = (pace.step_many - pace.step_few) / (pace.many - pace.few) if pace.many > pace.few else 0.0
    row = max(row, 0.0)
    fixed = max(pace.step_many - row * pace.many, 0.05 * pace.step_many)
    made = folding(shape, cpu=cpu)
    copying = max(pace.fold - made.forward * pace.forward / (2 * forward), 0.1 * pace.fold)
    multiplied = 2 * (shape.plain + shape.cost.head + cached * shape.cost.pair)
    return Rates(
        forward=2 * forward / pace.forward,
        learn=2 * (forward + back) / pace.learn,
        head=head / pace.log_prob,
        head_learn=(4 if shape.whole else 2) * head / pace.head_learn,
        decode=multiplied / row if row else math.inf,
        weights=weights_of_pass(shape) / fixed,
        cache=math.inf,
        bandwidth=pace.bandwidth,
        link=link,
        fold=made.fold / copying if pace.fold and made.fold else None,
        unpack=math.inf,  # in what was timed
        source="measured here, on some of the model's layers at this run's sizes",
        sure=True,
    )
