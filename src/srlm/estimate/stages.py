"""FLOPs, bytes, tokens and seconds of every stage of a round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from srlm.estimate.decoding import decoded, kept, shares_prompts
from srlm.estimate.rates import Rates
from srlm.estimate.workload import Batches, Workload, laid_out
from srlm.policies.transformer.shape import PACKED, Shape

FROM_CACHE = 3  # times that a step moves the KV cache: read, and read and written where a token is appended
OPTIMISER_PASSES = 16  # over fp32 numbers of what is trained: gradients summed, scaled and clipped, moments, masters
PER_LOGIT = 24  # bytes moved to draw a word: logits, their maximum, exponentials and block sums in fp32


@dataclass(frozen=True)
class Work:
    """FLOPs by kind, and bytes: of weights read by steps of decoding, of KV caches, where LoRA is folded in, where
    layers of few bits are unpacked, of others, between devices, and between a device and its host.
    read: what forward and backward passes read of weights; no second is counted for it. calls: of layers, in steps of
    decoding."""

    forward: float = 0.0
    learn: float = 0.0
    head: float = 0.0
    head_learn: float = 0.0
    decode: float = 0.0
    weights: float = 0.0
    cache: float = 0.0
    fold: float = 0.0
    unpack: float = 0.0
    other: float = 0.0
    link: float = 0.0
    host: float = 0.0
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
        return self.weights + self.cache + self.fold + self.unpack + self.other + self.read

    def seconds(self, rates: Rates) -> float:
        """One after another: nothing is taken to overlap."""
        names = ("forward", "learn", "head", "head_learn", "decode", "weights", "cache", "host")
        spent: float = sum(getattr(self, name) / getattr(rates, name) for name in names) + self.other / rates.bandwidth
        spent += self.fold / (rates.fold or rates.bandwidth) + self.unpack / (rates.unpack or rates.bandwidth)
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


def scoring(batches: Batches, shape: Shape, work: Workload) -> Work:
    """One pass."""
    found = Work()
    for batch in batches.batches:
        token, pair, head = (
            batch.padded * shape.cost.token,
            batch.pairs * shape.cost.pair,
            batch.edges * shape.cost.head,
        )
        found += Work(
            forward=2 * (token + pair),
            head=2 * head,
            unpack=_unpacked(shape, 1),
            read=weights_of_pass(shape),
            link=_gathered(shape, work),
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
            unpack=_unpacked(shape, 1 + again + batch.several, back=1),
            read=(2 + batch.several) * weights_of_pass(shape),
            link=(2 - (work.shard == "zero2") + batch.several) * _gathered(shape, work),
        )
    own = shape.trained / (work.devices if work.shard != "none" else 1)
    # Of a model in shards gradients are summed with every micro-batch, where they arise; else once a step.
    summed = _reduced(shape, work)
    step = Work(other=4 * OPTIMISER_PASSES * own, link=0.0 if work.shard != "none" else summed)
    passes = Work(link=summed if work.shard != "none" else 0.0) * len(batches.batches)
    return (found + passes + step * batches.steps) * batches.times


def sampling(prompts: Sequence[int], samples: int, shape: Shape, work: Workload, *, cpu: bool) -> Work:
    """Prompts are read, then a token a row and step is fed. Before, LoRA is folded in and put back afterwards; weights
    that are divided are gathered once."""
    found = folding(shape, cpu=cpu) + Work(link=_gathered(shape, work))
    shared = shares_prompts(shape, cpu=cpu)
    made = decoded(prompts, samples, work, cpu=cpu, shared=shared, vocabulary=shape.vocabulary)
    drawn = Work()
    for one in made.begun:
        tokens, pairs = one.prompts * one.tokens, one.prompts * one.tokens**2 / 2
        drawn += Work(
            forward=2 * (tokens * shape.plain + pairs * shape.cost.pair),
            head=2 * one.prompts * shape.cost.head,
            other=2 * one.rows * shape.cached(one.slots) * (one.before > 0 and not shared),  # caches become one
            cache=PER_LOGIT * float(one.rows - one.before) * shape.vocabulary,
            unpack=_unpacked(shape, 1),
            read=weights_of_pass(shape),
        )
    for fed in made.fed:
        number, middle = fed.rows * fed.steps, fed.slots + (fed.steps - 1) / 2
        held = kept(shape, fed.held) if shared else fed.rows * shape.cached(middle)
        drawn += Work(
            decode=2 * number * (shape.plain + shape.cost.head + middle * shape.cost.pair),
            weights=fed.steps * weights_of_pass(shape),
            unpack=_unpacked(shape, fed.steps),
            cache=FROM_CACHE * fed.steps * held + PER_LOGIT * float(number) * shape.vocabulary,
            other=2 * held * (fed.moved and not shared),  # what is left of a cache is copied
            calls=float(fed.steps * shape.layers),
        )
    return found + drawn * made.times


def writing(shape: Shape, work: Workload, *, cpu: bool) -> tuple[Work, float]:
    """Prompts are drawn, one behind each opening, and scored; and tokens of all of them."""
    made, tokens, own = Work(), 0.0, work.of_writing
    for asked, times in work.writing_batches():
        drawn = sampling(asked, 1, shape, own, cpu=cpu) if work.built_in else Work()
        made += (drawn + scoring(laid_out(asked, 1, own, shape), shape, own)) * times
        tokens += times * len(asked) * own.mean
    return made, tokens


def folding(shape: Shape, *, cpu: bool) -> Work:
    """LoRA put into weights, which are copied before and put back afterwards."""
    if not shape.adapter:
        return Work()
    # peft makes a difference, scales it and adds it: a write, a read and a write, two reads and a write; on a processor
    # in fp32 where weights are not, and then cast.
    moved = 4 * (1 + 2) + 6 + 6 if cpu and shape.size == 2 else (1 + 2 + 3) * shape.size
    copied = 2.0 * shape.size * shape.folded
    return Work(
        forward=2.0 * shape.folded * shape.rank,
        fold=moved * float(shape.folded) + (2 * copied if cpu else 0.0),
        host=0.0 if cpu else copied,
    )


def stages(shape: Shape, work: Workload, rates: Rates | None, *, later: bool, cpu: bool) -> list[Stage]:
    """Of round 0, or of a later one, which looks back at the one before and at the untouched model."""
    train = laid_out(work.prompts, work.samples, work, shape)
    held = laid_out(work.held_out, work.held_samples, work, shape)
    number, held_number = (
        len(work.prompts) * work.samples * work.mean,
        len(work.held_out) * work.held_samples * work.mean,
    )
    found: list[tuple[str, Work, float]] = []
    if work.writing:
        found.append(("write prompts", *writing(shape, work, cpu=cpu)))
    if work.built_in:
        found.append(("sample rollouts", sampling(work.prompts, work.samples, shape, work, cpu=cpu), number))
    found.append(("score rollouts", scoring(train, shape, work), number))
    voted = len(work.prompts) * work.votes * work.mean
    if work.votes and work.built_in:
        found.append(("sample votes", sampling(work.prompts, work.votes, shape, work, cpu=cpu), voted))
    if work.votes and work.weighed:
        weighed = scoring(laid_out(work.prompts, work.votes, work, shape), shape, work)
        found.append(("score votes", weighed, voted))
    if work.held_out:
        if work.built_in:
            drawn = sampling(work.held_out, work.held_samples, shape, work, cpu=cpu)
            found.append(("sample held_out", drawn, held_number))
        found.append(("score held_out", scoring(held, shape, work), held_number))
        if later:
            again = scoring(held, shape, work)
            found += [("score held_out under pi_0", again, held_number), ("score held_out again", again, held_number)]
        if work.built_in:
            greedy = sampling(work.held_out, 1, shape, work, cpu=cpu)
            found.append(("sample greedy", greedy, len(work.held_out) * work.mean))
    update = learning(train, shape, work) * work.epochs + scoring(train, shape, work)
    found.append(("update", update, number * work.epochs))
    return [
        Stage(name, made.flops, made.bytes, tokens, made.seconds(rates) if rates else None)
        for name, made, tokens in found
    ]


def weights_of_pass(shape: Shape) -> float:
    """Bytes of weights that the products of a pass read: a table of words that is no head is looked up, layers of 8
    bits are multiplied as they are."""
    eight = shape.packed if shape.quantize == "8bit" else 0
    return (shape.parameters - shape.table - eight) * shape.size + eight * PACKED["8bit"]


def _unpacked(shape: Shape, forward: int, back: int = 0) -> float:
    """Bytes that are read and written to unpack layers for so many passes; those of 8 bits are for going back alone."""
    passes = back + (0 if shape.quantize == "8bit" else forward)
    return passes * shape.packed * (PACKED[shape.quantize] + shape.size)


def _gathered(shape: Shape, work: Workload) -> float:
    """Bytes that a device is sent for all of the weights, where they are divided."""
    if work.shard == "none":
        return 0.0
    return (shape.parameters + shape.adapter) * shape.size * (work.devices - 1) / work.devices


def _reduced(shape: Shape, work: Workload) -> float:
    """Bytes that go through a device where fp32 gradients are summed: of all for all, or of each part for one."""
    times = 1 if work.shard != "none" else 2
    return times * 4.0 * shape.trained * (work.devices - 1) / work.devices


def whole(made: Sequence[Stage]) -> float | None:
    """Seconds of all stages."""
    seconds = [stage.seconds for stage in made]
    return None if None in seconds else math.fsum(s for s in seconds if s is not None)
