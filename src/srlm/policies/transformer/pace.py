"""How fast this device does a run's own work: a few of the model's layers, timed for a few seconds."""

from __future__ import annotations

import copy
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from srlm.policies.transformer.continuation import Continuation, shares_prompts
from srlm.policies.transformer.fold import folded
from srlm.policies.transformer.layout.group import Group
from srlm.policies.transformer.layout.pack import Packed, pack
from srlm.policies.transformer.layout.tree import build_tree
from srlm.policies.transformer.load.adapters import with_lora
from srlm.policies.transformer.load.hub import DTYPES
from srlm.policies.transformer.load.packed import in_memory
from srlm.policies.transformer.log_prob import (
    Head,
    attention_mask,
    decoder_of,
    entropy,
    token_log_prob,
    token_log_prob_and,
)
from srlm.policies.transformer.respond import next_words
from srlm.policies.transformer.sample import Decoding
from srlm.policies.transformer.shape import Shape

SPENT = 0.4  # seconds, about, on each of seven things
ENOUGH = 2**28  # bytes of layers: no cache holds them
SAID = 32  # words behind a prompt, at most, that are fed before a step is timed
TIMED_TOKENS = 1024  # of a micro-batch: as good as a larger one
SIDE = 2048  # of the square matrices of `quick`
COPIED = 2**26  # bytes


@dataclass(frozen=True)
class Pace:
    """Seconds of the whole model: of a forward pass of `tokens` padded tokens, and forward and backward together; of
    log-probs with entropies, and of log-probs with their gradients, of `edges` scored tokens; of a step of decoding of
    `many` and of `few` rows; of putting LoRA into the weights and taking it out. bandwidth: bytes/s of memory."""

    tokens: int
    pairs: float
    edges: int
    forward: float
    learn: float
    log_prob: float
    head_learn: float
    many: int
    few: int
    step_many: float
    step_few: float
    fold: float
    bandwidth: float


def quick(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s of a square matrix product and bytes/s of a copy, in a fraction of a second."""
    size = SIDE * (4 if device.type != "cpu" else 1) // 2
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    flops = 2.0 * size**3 / _seconds(lambda: a @ b, device, spend=0.08)
    source = torch.ones(COPIED // 4 * (8 if device.type != "cpu" else 1), device=device)
    target = torch.empty_like(source)
    return flops, 2.0 * source.nbytes / _seconds(lambda: target.copy_(source), device, spend=0.05)


def pace(
    config: Any,
    shape: Shape,
    device: torch.device,
    *,
    rank: int,
    rows: int,
    tokens: int,
    edges: int,
    masked: bool,
    decoded: int,
    cached: int,
    said: int,
    unequal: bool,
    trust_remote_code: bool = False,
) -> Pace:
    """rows, tokens, edges, masked: of a typical micro-batch. decoded, cached: rows that are decoded at a time, tokens
    in the cache behind which, `said` of them words of their own; unequal: are prompts that share a batch?"""
    dtype = DTYPES[shape.dtype]
    layers = min(shape.layers, max(2, math.ceil(ENOUGH / (shape.plain / shape.layers * shape.size))))
    model = _some_layers(config, layers, dtype, trust_remote_code)
    model = in_memory(model, shape.quantize).to(device)
    if shape.packed:  # is then drawn from with LoRA beside
        model = _adapted(model, rank)
    head, times = Head.of(model), shape.layers / layers
    step: list[tuple[int, float]] = []
    plain, shared = Decoding(1, frozenset()), shares_prompts(model)
    with torch.inference_mode():
        for rows_at_once in (max(1, decoded // 4), decoded):
            apart = unequal and rows_at_once > 1 and cached > 1  # a mask is read then
            own = min(said, SAID, cached - 1) if shared else 0
            longest = cached - own
            prompts = [[1] * longest, [1] * (longest - 1)] if apart and longest > 1 else [[1] * longest]
            past = Continuation(model, prompts, rows_at_once // len(prompts), shared=shared)
            number = len(past.position)
            word = torch.ones(number, dtype=torch.long, device=device)
            for _ in range(own):
                past.feed(word)
            uniform = torch.full((number,), 0.5, device=device, dtype=torch.float64)
            hidden = torch.randn(number, shape.hidden, device=device, dtype=dtype)

            def fed(past: Continuation = past, word: Tensor = word) -> None:
                past.feed(word)

            def raw(hidden: Tensor = hidden) -> Tensor:
                return F.linear(hidden, head.weight, head.bias)

            def drawn(raw: Tensor = past.raw, uniform: Tensor = uniform) -> Tensor:
                return next_words(raw, head, uniform, plain)

            alone = _seconds(raw, device)  # once, however many layers there are
            layered = max(_seconds(fed, device) - alone, 0.0) * times
            step.append((number, layered + alone + _seconds(drawn, device)))
            del past
    if rank and not shape.packed:
        model = _adapted(model, rank)
    adapters = [module for module in model.modules() if isinstance(module, LoraLayer)]

    def fold() -> None:
        with folded(adapters):
            pass

    folding = _seconds(fold, device) * times if adapters and shape.folded else 0.0
    rows = max(1, min(rows, TIMED_TOKENS // tokens))
    edges = max(1, edges)
    packed = _packed(rows, tokens, edges, masked=masked).to(device)
    hidden = torch.randn(len(packed.target), shape.hidden, device=device, dtype=dtype)

    def forward() -> Tensor:
        position, visible = packed.position_ids, packed.visible
        mask = None if visible is None else attention_mask(model, visible, position, position)
        made = decoder_of(model)(
            input_ids=packed.input_ids, attention_mask=mask, position_ids=position, use_cache=False
        )
        return cast(Tensor, made.last_hidden_state)

    def learn() -> None:
        made = forward()
        torch.autograd.backward(made, torch.full_like(made, 1e-3))
        for parameter in model.parameters():
            parameter.grad = None

    def head_learn() -> None:
        own = hidden.detach().requires_grad_()
        torch.autograd.backward(token_log_prob(own, packed.target, Head.of(model)).sum())
        head.weight.grad = None

    with torch.no_grad():
        there = _seconds(forward, device) * times
        scored = _seconds(lambda: token_log_prob_and(entropy, hidden, packed.target, head), device)
    padded = packed.input_ids.numel()
    return Pace(
        *(padded, padded * packed.input_ids.shape[1] / (1 if masked else 2), len(packed.target)),
        forward=there,
        learn=_seconds(learn, device) * times,
        log_prob=scored,
        head_learn=_seconds(head_learn, device),
        many=step[1][0],
        few=step[0][0],
        step_many=step[1][1],
        step_few=step[0][1],
        fold=folding,
        bandwidth=quick(device, dtype)[1],
    )


def _some_layers(config: Any, layers: int, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    own = copy.deepcopy(config)
    text = own.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    with no_init_weights(), warnings.catch_warnings(action="ignore"):
        model = AutoModelForCausalLM.from_config(own, dtype=dtype, trust_remote_code=trust_remote_code)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
    return cast(PreTrainedModel, model.eval())


def _adapted(model: PreTrainedModel, rank: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        return with_lora(model, rank=rank, alpha=None, gain=False, seed=0)[0]


def _packed(rows: int, tokens: int, edges: int, *, masked: bool) -> Packed:
    """A micro-batch of about so many scored tokens."""
    each = max(1, edges // rows)
    responses = 8 if masked else 1
    length = max(1, min(each // responses, (tokens - 1) // responses))
    prompt = max(1, tokens - responses * (length - 1))
    group = Group.of([1] * prompt, [[2 + i] * length for i in range(responses)])
    return pack([build_tree(group) for _ in range(rows)], masked=masked)


def _seconds(work: Callable[[], object], device: torch.device, spend: float = SPENT) -> float:
    """Median of some runs after the first."""

    def once() -> float:
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - start

    once()
    found = [once()]
    while sum(found) < spend and len(found) < 15:
        found.append(once())
    return statistics.median(found)
