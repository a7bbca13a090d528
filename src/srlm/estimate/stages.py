"""FLOPs, bytes, tokens and seconds of every stage of a round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from srlm.estimate.rates import Rates
from srlm.estimate.workload import Batches, Workload, decoded, laid_out
from srlm.policies.transformer.shape import Shape

FROM_CACHE = 3  # times that a step moves the KV cache: read, and read and written where a token is appended
OPTIMISER_PASSES = 16  # over fp32 numbers of what is trained: gradients summed, scaled and clipped, moments, masters
PER_LOGIT = 24  # bytes moved to draw a word: logits, their maximum, exponentials and block sums in fp32


@dataclass(frozen=True)
class Work:
    """FLOPs by kind, and bytes: of weights read by steps of decoding, of KV caches, of others, and between devices.
    read: what forward and backward passes read of weights; no second is counted for it. calls: of layers, in steps of
    decoding."""

    forward: float = 0.0
    learn: float = 0.0
    head: float = 0.0
    head_learn: float = 0.0
    decode: float = 0.0
    weights: float = 0.0
    cache: float = 0.0
    other: float = 0.0
    link: float = 0.0
    read: float = 0.0
    calls: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> Work:
        return Work(*(times * getattr(self, f.name) for f in fields(self)))

    @property
    def flops(self) -> float:
        return self.forward + self.learn + self.head + self.head_learn + self.decode

    @property
    def bytes(self) -> float:
        return self.weights + self.cache + self.other + self.read

    def seconds(self, rates: Rates) -> float:
        """One after another: nothing is taken to overlap."""
        names = ("forward", "learn", "head", "head_learn", "decode", "weights", "cache")
        spent: float = sum(getattr(self, name) / getattr(rates, name) for name in names) + self.other / rates.bandwidth
        spent += self.calls * rates.call
        return spent + (self.link / rates.link if rates.link else 0.0)


@dataclass(frozen=True)
class Stage:
    """name: as a run calls it. flops, bytes: of one device. tokens: of all. seconds: None if rates are unknown."""

    name: str
    flops: float
    bytes: float
    tokens: float
    seconds: float | None

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.seconds else None


def scoring(batches: Batches, shape: Shape, work: Workload, *, heads: int) -> Work:
    """One pass. heads: how often logits are formed: twice where entropies are asked for."""
    found = Work()
    for batch in batches.batches:
        token, pair, head = (
            batch.padded * shape.cost.token,
            batch.pairs * shape.cost.pair,
            batch.edges * shape.cost.head,
        )
        found += Work(
            forward=2 * (token + pair), head=2 * heads * head, read=_weights(shape), link=_gathered(shape, work)
        )
    return found * batches.times


def learning(batches: Batches, shape: Shape, work: Workload) -> Work:
    """One epoch. Backward: once for the inputs of every layer, once more for weights that are trained; attention 2.5
    times. A frozen head forms logits once and multiplies them once, a trained one has them recomputed."""
    found = Work()
    trained = shape.cost.token if shape.whole else float(shape.adapter)
    for batch in batches.batches:
        forward = batch.padded * shape.cost.token + batch.pairs * shape.cost.pair
        again = work.recompute or batch.large
        back = batch.padded * (shape.cost.token + trained) + 2.5 * batch.pairs * shape.cost.pair
        before = 2 * forward * batch.several
        logits = 2 * batch.edges * shape.cost.head
        found += Work(
            forward=before,
            learn=2 * (forward * (1 + again) + back),
            head=logits * batch.several,
            head_learn=logits * (4 if shape.whole else 2),
            read=(2 + batch.several) * _weights(shape),
            link=(2 + batch.several) * _gathered(shape, work),
        )
    own = shape.trained / (work.devices if work.shard != "none" else 1)
    step = Work(other=4 * OPTIMISER_PASSES * own, link=_reduced(shape, work))
    return (found + step * batches.steps) * batches.times


def sampling(prompts: Sequence[int], samples: int, shape: Shape, work: Workload) -> Work:
    """Prefill, then a token a row and step, until the last row of a batch has ended; LoRA is folded in before."""
    fold = Work(forward=2.0 * shape.folded * shape.rank, other=3 * shape.folded * shape.size)
    found = fold if shape.adapter else Work()
    for batch in decoded(prompts, samples, work):
        alive = batch.rows * work.alive
        steps = float((1 - (1 - work.alive) ** batch.rows)[1:].sum())  # that have a row left
        fed = float(alive[1:].sum())
        seen = float((alive[1:] * (batch.length + np.arange(1, work.longest))).sum())
        prefill = batch.prompts * batch.length
        pairs = batch.prompts * batch.length**2 / 2
        moved = sum(shape.cached(batch.length + t) * alive[t] for t in range(1, work.longest))
        found += Work(
            forward=2 * (prefill * shape.plain + pairs * shape.cost.pair),
            head=2 * batch.prompts * shape.cost.head,
            decode=2 * (fed * (shape.plain + shape.cost.head) + seen * shape.cost.pair),
            weights=steps * _weights(shape),
            cache=FROM_CACHE * float(moved) + PER_LOGIT * (fed + batch.rows) * shape.vocabulary,
            read=_weights(shape),
            link=(steps + 1) * _gathered(shape, work),
            calls=steps * shape.layers,
        )
    return found


def stages(shape: Shape, work: Workload, rates: Rates | None, *, later: bool) -> list[Stage]:
    """Of round 0, or of a later one, which looks back at the one before and at the untouched model."""
    train = laid_out(work.prompts, work.samples, work, shape)
    held = laid_out(work.held_out, work.held_samples, work, shape)
    number, held_number = (
        len(work.prompts) * work.samples * work.mean,
        len(work.held_out) * work.held_samples * work.mean,
    )
    found: list[tuple[str, Work, float]] = []
    if work.built_in:
        found.append(("sample rollouts", sampling(work.prompts, work.samples, shape, work), number))
    found.append(("score rollouts", scoring(train, shape, work, heads=2), number))
    if work.votes and work.built_in:
        votes = sampling(work.prompts, work.votes, shape, work)
        found.append(("sample votes", votes, len(work.prompts) * work.votes * work.mean))
    if work.held_out:
        if work.built_in:
            found.append(("sample held_out", sampling(work.held_out, work.held_samples, shape, work), held_number))
        found.append(("score held_out", scoring(held, shape, work, heads=2), held_number))
        if later:
            again = scoring(held, shape, work, heads=1)
            found += [("score held_out under pi_0", again, held_number), ("score held_out again", again, held_number)]
        if work.built_in:
            greedy = sampling(work.held_out, 1, shape, work)
            found.append(("sample greedy", greedy, len(work.held_out) * work.mean))
    update = learning(train, shape, work) * work.epochs + scoring(train, shape, work, heads=1)
    found.append(("update", update, number * work.epochs))
    return [
        Stage(name, made.flops, made.bytes, tokens, made.seconds(rates) if rates else None)
        for name, made, tokens in found
    ]


def _weights(shape: Shape) -> float:
    """Bytes of weights that a pass reads: a table of words that is no head is looked up."""
    return float((shape.parameters - shape.table) * shape.size)


def _gathered(shape: Shape, work: Workload) -> float:
    """Bytes that a device is sent for a pass over weights that are divided."""
    if work.shard not in ("zero3", "fsdp") or work.devices == 1:
        return 0.0
    return (shape.parameters + shape.adapter) * shape.size * (work.devices - 1) / work.devices


def _reduced(shape: Shape, work: Workload) -> float:
    """Bytes of a step's fp32 gradients that go through a device."""
    times = 1 if work.shard != "none" else 2
    return times * 4.0 * shape.trained * (work.devices - 1) / work.devices


def whole(made: Sequence[Stage]) -> float | None:
    """Seconds of all stages."""
    seconds = [stage.seconds for stage in made]
    return None if None in seconds else math.fsum(s for s in seconds if s is not None)
