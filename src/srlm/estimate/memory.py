"""Bytes on every device, by part, at each moment of a run at which they could be most."""

from __future__ import annotations

from dataclasses import dataclass, replace

from srlm.estimate.decoding import decoded, kept, shares_prompts
from srlm.estimate.workload import Batch, Batches, Workload, laid_out
from srlm.policies.transformer.limits import BUCKET, CHUNK_ELEMENTS, LARGEST, ON_CPU, OPTIMISER_BYTES, SHARE, SLICE
from srlm.policies.transformer.shape import Shape

PROGRAM = {"cpu": 0.7e9, "gpu": 0.6e9}  # Python and its libraries; on an accelerator its context and kernels
WORD = 1100  # bytes of a word in a tokenizer: 900 of SmolLM2's 49,152, 1,270 of Gemma's 262,144
MASTERS = "fp32 masters and moments"
OPTIMISED = 12  # bytes of what is trained that these are: a master and AdamW's two moments
GATHERED = "gathered weights"
KEPT = "what is trained, as it was"  # on the host, of pi_0 and, during an update, of pi_t, where one goes back to
FOLDED = "weights as they were before folding"  # on the host while words are drawn
DRAWING = 12  # bytes a logit while a word is drawn, beside the logit itself
ENTROPY = 16  # bytes a logit while entropies are taken
RECOMPUTED = 14  # bytes a logit while those of a trained head go back
PASSING = 4  # tensors as wide as the widest layer that a layer holds at a time
HEAP = 1.35  # times the bytes of what a backward pass keeps that a process has for it: 1.22 to 1.58 on three models
HOST = 24  # bytes a sampled token on the host: ids, twice while processes gather, log-probs, texts


@dataclass(frozen=True)
class Moment:
    """parts: bytes of one device by what they hold."""

    name: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Memory:
    """moments on a device; host: bytes of this process's own memory by part (empty where that is the device)."""

    moments: list[Moment]
    host: dict[str, float]

    @property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total)


def memory(shape: Shape, work: Workload, *, cpu: bool) -> Memory:
    """cpu: is the device the processor itself? Pages of files that loading maps come and go, and are not counted."""
    train = laid_out(work.prompts, work.samples, work, shape)
    resident = _resident(shape, work, cpu=cpu)
    tables = work.mean * HOST * (len(work.prompts) * work.samples + len(work.held_out) * work.held_samples)
    kept = shape.trained * shape.size / _divided(work)
    always = {"tables of a round": tables, "tokenizer": float(WORD * shape.vocabulary), KEPT: kept}
    folded = {FOLDED: float(shape.folded * shape.size)} if shape.adapter and work.built_in else {}

    def moment(name: str, parts: dict[str, float], host: dict[str, float]) -> Moment:
        return Moment(name, resident | parts | (always | host if cpu else {}))

    moments = []
    drawing = _drawing(shape, work, cpu=cpu) if work.built_in else {}
    if work.built_in:
        moments.append(moment("sampling", drawing, folded))
    moments.append(moment("scoring", _scoring(shape, train), {}))
    before = {KEPT: 2 * kept}
    update = _update(shape, work, train, cpu=cpu)
    moments.append(moment("update", update, before))
    # What was learned is scored while masters are there. Small blocks stay with a process; those of logits do not.
    again = _scoring(shape, train) | {MASTERS: update[MASTERS]}
    if cpu:
        stays = {"activations": max(again["activations"], update["activations"])}
        again |= stays
        if work.built_in:
            moments.append(moment("sampling after an update", drawing | stays, folded))
    moments.append(moment("scoring after an update", again, before))
    return Memory(moments, {} if cpu else always | before | folded | {"program": PROGRAM["cpu"]})


def _divided(work: Workload) -> int:
    """Devices that weights are divided among between passes."""
    return 1 if work.shard == "none" else work.devices


def _whole(shape: Shape) -> float:
    """Bytes of all weights and the adapter."""
    return shape.weights + shape.adapter * shape.size


def _resident(shape: Shape, work: Workload, *, cpu: bool) -> dict[str, float]:
    divided = _divided(work)
    found = {
        "program": PROGRAM["cpu" if cpu else "gpu"],
        "weights": shape.weights / divided,
    }
    if shape.adapter:
        found["adapter"] = shape.adapter * shape.size / divided
    if divided > 1:  # beside the parts; of FSDP the tables of words, as long as there are passes, and two layers
        words = shape.cost.head + shape.table
        of_two = (words + 2 * (shape.parameters - words) / shape.layers) * shape.size
        found[GATHERED] = _whole(shape) if work.shard == "zero2" else of_two
    return found


def _drawing(shape: Shape, work: Workload, *, cpu: bool) -> dict[str, float]:
    shared = shares_prompts(shape, cpu=cpu)
    found = {GATHERED: _whole(shape)} if _divided(work) > 1 else {}
    most = rows = prefill = 0.0
    drawn = [(work.prompts, max(work.samples, work.votes), work), (work.held_out, work.held_samples, work)]
    drawn += [(tuple(asked), 1, work.of_writing) for asked, _ in work.writing_batches()]
    for prompts, samples, own in drawn:
        made = decoded(prompts, samples, own, cpu=cpu, shared=shared, vocabulary=shape.vocabulary)
        for one in made.begun:
            read = one.prompts * shape.cached(one.tokens)
            most = max(most, read if shared else one.rows * shape.cached(one.slots))
            prefill = max(prefill, _passing(shape, one.prompts * one.tokens))
        for fed in made.fed:
            every = fed.rows * shape.cached(fed.slots + fed.steps - 1)
            most = max(most, kept(shape, fed.held) if shared else every)
        rows = max(rows, float(made.rows))
    # Of all rows logits in the model's dtype, and beside them the next ones, or what drawing makes of them.
    each = rows * shape.vocabulary
    logits = each * shape.size + max(each * shape.size, DRAWING * min(each, SLICE if cpu else each))
    appended = most / max(shape.layers, 1)
    before = max(prefill - logits - appended, 0.0)  # gone once words are drawn
    return found | {"KV cache": most + appended, "logits": logits, "prefill": before}


def _forward(shape: Shape, batch: Batch) -> float:
    """What a pass without gradients holds at a time: a layer's tensors, and the mask."""
    return _passing(shape, batch.padded) + _mask(shape, batch)


def _passing(shape: Shape, tokens: float) -> float:
    return tokens * shape.size * (PASSING * shape.widest + 4.0 * shape.hidden)


def _mask(shape: Shape, batch: Batch) -> float:
    masks = 2 if shape.sliding and shape.cache else 1
    return batch.padded * batch.tokens * (1 + masks * shape.size) if batch.masked else 0.0


def _chunk(shape: Shape, batch: Batch) -> float:
    return float(min(CHUNK_ELEMENTS, batch.edges * shape.vocabulary))


def _scoring(shape: Shape, train: Batches) -> dict[str, float]:
    return {
        "activations": max((_forward(shape, b) for b in train.batches), default=0.0),
        "logits": max((_chunk(shape, b) * (shape.size + ENTROPY) for b in train.batches), default=0.0),
    }


def _activations(shape: Shape, work: Workload, batch: Batch) -> float:
    each = shape.kept if work.recompute or batch.large else shape.saved
    return batch.padded * (each + PASSING * shape.widest * shape.size) + _mask(shape, batch)


def _update(shape: Shape, work: Workload, train: Batches, *, cpu: bool) -> dict[str, float]:
    """Either activations and the logits of a micro-batch, or, once they are gone, what a step is made of."""
    shared = work.devices if work.shard != "none" else 1
    own = shape.trained / shared
    largest = max(train.batches, key=lambda b: _activations(shape, work, b), default=None)
    active = (_activations(shape, work, largest) if largest else 0.0) * (HEAP if cpu else 1.0)
    logits = 0.0
    if largest is not None:
        chunk = _chunk(shape, largest)
        hidden = largest.edges * shape.hidden * shape.size
        logits = chunk * (RECOMPUTED + shape.size) if shape.whole else chunk * shape.size + 2 * hidden
        logits += 0.0 if shape.whole else 3 * 4 * min(chunk, float(SLICE if cpu else chunk))  # fp32
    # Sums in fp32; those of a model in shards are cut where they arise.
    widest: float = max(shape.hidden * shape.vocabulary, shape.widest * shape.hidden)
    if shared > 1:  # of a unit at once
        words = shape.cost.head + shape.table
        widest = max(words, (shape.parameters - words) / shape.layers)
    arriving = widest * (shape.size + 4.0) if shape.whole else 0.0  # in the model's dtype, and in fp32
    # AdamW goes by the parameter on a processor, by all at once elsewhere; processes sum gradients in buckets.
    stepping = 2 * 4.0 * min(widest, own) if cpu else 4.0 * own
    summed = 2 * 4.0 * min(BUCKET, own) if work.devices > 1 and shared == 1 else 0.0
    step = max(max(stepping, summed) - (active + logits + arriving), 0.0)
    return {
        MASTERS: OPTIMISED * own,
        "gradients": 4.0 * own + arriving + step,
        "activations": active,
        "logits": logits,
    }


def automatic(shape: Shape, work: Workload, memory_bytes: float | None, *, cpu: bool) -> int:
    """What `--token-budget auto` finds: as many tokens as fit into its share of the memory that the weights and what
    is trained leave free."""
    if cpu or memory_bytes is None:
        return ON_CPU
    one = replace(work, budget=1)
    fixed = sum(_resident(shape, one, cpu=False).values())
    shared = work.devices if work.shard != "none" else 1
    fixed += shape.trained * OPTIMISER_BYTES / shared
    each = (shape.kept if work.recompute else shape.saved) + PASSING * shape.widest * shape.size
    tokens = 1
    while 2 * tokens <= min(LARGEST, SHARE * max(memory_bytes - fixed, 0.0) / each):
        tokens *= 2
    return max(tokens, min(512, max(work.prompts, default=1) + work.longest))
