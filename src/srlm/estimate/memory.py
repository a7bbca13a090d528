"""Bytes on every device, by part, at each moment of a run at which they could be most."""

from __future__ import annotations

from dataclasses import dataclass, replace

from srlm.estimate.workload import Batch, Batches, Workload, decoded, laid_out
from srlm.policies.transformer.limits import CHUNK_ELEMENTS, LARGEST, ON_CPU, SHARE
from srlm.policies.transformer.shape import Shape

PROGRAM = {"cpu": 0.75e9, "gpu": 0.6e9}  # Python and its libraries; on an accelerator its context and kernels
MASTERS = 12  # bytes of what is trained: an fp32 master and AdamW's two moments
STARTS = "what it was"  # of what is trained, in the model's dtype: where a diverged round goes back to
FLAT = 3  # fp32 copies of the gradients at a step: those of the micro-batches summed, all in a row, and clipped
DRAWING = 12  # bytes a logit while a word is drawn, beside the logit itself
ENTROPY = 16  # bytes a logit while entropies are taken
RECOMPUTED = 14  # bytes a logit while those of a trained head go back
PASSING = 4  # tensors as wide as the widest layer that a layer holds at a time
HEAP = (
    1.35  # times the bytes of what a backward pass keeps that a process has for it: 1.22 to 1.58 on three models here
)
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


def memory(shape: Shape, work: Workload, *, cpu: bool, file: float = 0.0) -> Memory:
    """cpu: is the device the processor itself? file: bytes of the weights' files, which loading maps there."""
    train = laid_out(work.prompts, work.samples, work, shape)
    resident = _resident(shape, work, cpu=cpu)
    tables = work.mean * HOST * (len(work.prompts) * work.samples + len(work.held_out) * work.held_samples)
    kept = shape.trained * shape.size
    host = {"tables of a round": tables, "what is trained, as it was": float(kept)}
    every = resident | (host if cpu else {})
    moments = []
    if cpu:
        moments.append(Moment("loading", resident | {"files of the weights": file}))
    if work.built_in:
        moments.append(Moment("sampling", every | _drawing(shape, work)))
    moments.append(Moment("scoring", every | _scoring(shape, work, train)))
    update = _update(shape, work, train, cpu=cpu)
    moments.append(Moment("update", every | update))
    if cpu:  # small blocks stay with the process; those of logits do not
        again = _scoring(shape, work, train)
        again["activations"] = max(again["activations"], update["activations"])
        moments.append(Moment("scoring after an update", every | again))
    return Memory(moments, {} if cpu else host | {"program": PROGRAM["cpu"]})


def _resident(shape: Shape, work: Workload, *, cpu: bool) -> dict[str, float]:
    divided = work.devices if work.shard in ("zero3", "fsdp") else 1
    found = {
        "program": PROGRAM["cpu" if cpu else "gpu"],
        "weights": shape.weights / divided,
    }
    if shape.adapter:
        found["adapter"] = shape.adapter * shape.size / divided
    if divided > 1:
        found["a gathered layer"] = 2 * (shape.parameters / shape.layers) * shape.size
    return found


def _drawing(shape: Shape, work: Workload) -> dict[str, float]:
    divided = work.devices if work.shard in ("zero3", "fsdp") else 1
    found = {"folded copies": shape.folded * shape.size / divided} if shape.adapter else {}
    most = logits = prefill = 0.0
    for prompts, samples in ((work.prompts, max(work.samples, work.votes)), (work.held_out, work.held_samples)):
        for batch in decoded(prompts, samples, work):
            most = max(most, batch.rows * shape.cached(batch.length + work.longest))
            logits = max(logits, batch.rows * shape.vocabulary * float(shape.size + DRAWING))
            prefill = max(prefill, _passing(shape, batch.prompts * batch.length))
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


def _scoring(shape: Shape, work: Workload, train: Batches) -> dict[str, float]:
    return {
        "activations": max((_forward(shape, b) for b in train.batches), default=0.0),
        "logits": max((_chunk(shape, b) * (shape.size + ENTROPY) for b in train.batches), default=0.0),
    }


def _activations(shape: Shape, work: Workload, batch: Batch) -> float:
    each = shape.kept if work.recompute or batch.large else shape.saved
    return batch.padded * (each + PASSING * shape.widest * shape.size) + _mask(shape, batch)


def _update(shape: Shape, work: Workload, train: Batches, *, cpu: bool) -> dict[str, float]:
    """Either activations and the logits of a micro-batch, or, once they are gone, copies of the gradients."""
    shared = work.devices if work.shard != "none" else 1
    of_weights = work.devices if work.shard in ("zero3", "fsdp") else 1
    own = shape.trained / shared
    largest = max(train.batches, key=lambda b: _activations(shape, work, b), default=None)
    active = (_activations(shape, work, largest) if largest else 0.0) * (HEAP if cpu else 1.0)
    logits = 0.0
    if largest is not None:
        chunk = _chunk(shape, largest)
        hidden = largest.edges * shape.hidden * shape.size
        logits = chunk * (RECOMPUTED + shape.size) if shape.whole else chunk * shape.size + 2 * hidden
        logits += 0.0 if shape.whole else 3 * 4 * (2.0**20 if cpu else chunk)  # fp32, a slice at a time on a processor
    gradients = 4.0 * shape.trained / (of_weights if of_weights > 1 else 1)
    if shape.whole:
        gradients += max(shape.hidden * shape.vocabulary, shape.widest * shape.hidden) * shape.size  # one on its way
    flat = (FLAT - 1) * 4.0 * shape.trained / shared
    step = max(flat - (active + logits), 0.0)
    return {
        "fp32 masters and moments": MASTERS * own,
        STARTS: shape.trained * shape.size / of_weights,
        "gradients": gradients + step,
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
    fixed += shape.trained * (MASTERS + 4 * FLAT + shape.size) / shared
    each = (shape.kept if work.recompute else shape.saved) + PASSING * shape.widest * shape.size
    tokens = 1
    while 2 * tokens <= min(LARGEST, SHARE * max(memory_bytes - fixed, 0.0) / each):
        tokens *= 2
    return max(tokens, min(512, max(work.prompts, default=1) + work.longest))
