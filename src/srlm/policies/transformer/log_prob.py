"""Log-probabilities of packed responses: the one code path of scoring, reference and training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel

from srlm.errors import UserError
from srlm.policies.transformer.bits import exact
from srlm.policies.transformer.layout.group import Group
from srlm.policies.transformer.layout.pack import Packed, pack
from srlm.policies.transformer.layout.tree import build_tree
from srlm.policies.transformer.limits import CHUNK_ELEMENTS, SLICE

PROBED_WINDOW = 8  # tokens
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM

# What models raise that are asked for what they cannot do.
UNFIT = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)

# What models call what they keep of the past: transformers 5.24 has one name for all, earlier ones another for some
# recurrent models.
CACHES = ("cache", "past_key_values", "cache_params")

Statistic: TypeAlias = Callable[[Tensor], Tensor]
"""log pi(.|history) [E, V] -> [E]"""


@dataclass(frozen=True)
class Head:
    """logits = cap(scale * (W h + b)), with cap(z) = softcap * tanh(z / softcap) where a model has one."""

    weight: Tensor  # [V, D]
    bias: Tensor | None
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        linear = cast(nn.Linear, model.get_output_embeddings())
        config = cast(Any, model.config).get_text_config()
        scale = 1.0
        for name in ("logit_scale", "lm_head_multiplier"):  # Cohere and Falcon-H1 multiply
            if isinstance(value := getattr(config, name, None), int | float):
                scale = float(value)
        for name in ("logits_scaling", "logits_mup_width_multiplier"):  # Granite and Inkling divide
            if isinstance(value := getattr(config, name, None), int | float):
                scale = 1.0 / float(value)
        caps = (getattr(config, name, None) for name in SOFT_CAPS)
        return cls(linear.weight, linear.bias, scale, next((cap for cap in caps if cap is not None), None))

    def logits(self, hidden: Tensor) -> Tensor:
        """[E, D] -> fp32 [E, V]."""
        return self.cap(F.linear(hidden, self.weight, self.bias))

    def cap(self, raw: Tensor) -> Tensor:
        """W h + b -> fp32 logits."""
        logits = raw.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logits / d (W h + b)."""
        return self.scale if self.softcap is None else self.scale * (1 - (logits / self.softcap) ** 2)


class _FrozenHeadLogProb(torch.autograd.Function):
    """log softmax(head(h))[target] when the head is frozen.

    The gradient in h is W[target] - softmax(logits) W up to the incoming scalar, so it is formed while the chunk of
    logits is at hand: the backward pass needs neither the logits nor a second product with the vocabulary.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, target: Tensor, head: Head) -> Tensor:
        # Results are laid out beforehand: small blocks kept between two chunks of logits would fragment the heap.
        values = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradients = torch.empty_like(hidden)
        pieces = zip(_chunks(hidden, target, head), _chunks(gradients, values, head), strict=True)
        rows = _slice(hidden, head)
        for (h, t), (gradient, value) in pieces:
            raw = F.linear(h, head.weight, head.bias)
            own = head.weight[t]
            slices = (torch.split(x, rows) for x in (raw, t, own, value))
            for part, word, pull, out in zip(*slices, strict=True):
                logits = head.cap(part)
                normaliser = torch.logsumexp(logits, -1, keepdim=True)
                out.copy_(_pick(logits, word) - normaliser[:, 0])
                slope = head.slope(logits)
                if isinstance(slope, Tensor):
                    pull *= _pick(slope, word)[:, None].to(pull.dtype)
                elif slope != 1.0:
                    pull *= slope
                part.copy_(logits.sub_(normaliser).exp_().mul_(slope))
            gradient.copy_(own - raw @ head.weight)
            del raw
        ctx.save_for_backward(gradients)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None].to(gradient.dtype), None, None


def _chunks(hidden: Tensor, target: Tensor, head: Head) -> list[tuple[Tensor, Tensor]]:
    rows = max(1, CHUNK_ELEMENTS // head.weight.shape[0])
    return list(zip(torch.split(hidden, rows), torch.split(target, rows), strict=True))


def _slice(hidden: Tensor, head: Head) -> int:
    """Rows of logits that stay in a CPU's cache; on an accelerator one slice is the whole chunk."""
    return max(1, SLICE // head.weight.shape[0] if hidden.device.type == "cpu" else len(hidden))


def _pick(logits: Tensor, target: Tensor) -> Tensor:
    return logits.gather(-1, target[:, None])[:, 0]


def decoder_of(model: PreTrainedModel) -> Any:
    """What maps token ids to the hidden states that the head reads."""
    found = cast(Any, model.get_decoder())
    return cast(Any, model).model if found is model and hasattr(model, "model") else found  # Llama 4 does not say


def token_log_prob(hidden: Tensor, target: Tensor, head: Head) -> Tensor:
    """log pi(target | history) [E] in nats, fp32, from hidden states [E, D]."""

    def chunk(h: Tensor, t: Tensor) -> Tensor:
        logits = head.logits(h)
        return _pick(logits, t) - torch.logsumexp(logits, -1)

    if hidden.requires_grad and not head.weight.requires_grad:
        return cast(Tensor, cast(Any, _FrozenHeadLogProb).apply(hidden, target, head))
    if torch.is_grad_enabled() and (hidden.requires_grad or head.weight.requires_grad):
        pairs = _chunks(hidden, target, head)
        return torch.cat([cast(Tensor, checkpoint(chunk, h, t, use_reentrant=False)) for h, t in pairs])
    return torch.cat([chunk(h, t) for h, t in _chunks(hidden, target, head)])


def entropy(log_p: Tensor) -> Tensor:
    """-sum_j pi_j log pi_j in nats: 0..log V."""
    p = log_p.exp()
    return -torch.xlogy(p, p).sum(-1)


def self_certainty(log_p: Tensor) -> Tensor:
    """KL(U || pi) = -(1/V) sum_j log(V pi_j) in nats: 0 for the uniform distribution, without an upper bound."""
    return -(log_p.mean(-1) + math.log(log_p.shape[-1]))


@torch.no_grad()
def token_log_prob_and(statistic: Statistic, hidden: Tensor, target: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """`token_log_prob` [E], bit for bit, and a statistic [E] of the same distributions, from one product with the
    vocabulary."""
    log_prob, values = (torch.empty(len(hidden), dtype=torch.float32, device=hidden.device) for _ in range(2))
    rows = _slice(hidden, head)
    for (h, t), (own, value) in zip(_chunks(hidden, target, head), _chunks(log_prob, values, head), strict=True):
        logits = head.logits(h)
        normaliser = torch.logsumexp(logits, -1)
        own.copy_(_pick(logits, t) - normaliser)
        slices = (torch.split(x, rows) for x in (logits, normaliser, value))
        for part, whole, out in zip(*slices, strict=True):
            out.copy_(statistic(part.sub_(whole[:, None])))
    return log_prob, values


def attention_mask(model: PreTrainedModel, visible: Tensor, query: Tensor, key: Tensor) -> Tensor | dict[str, Tensor]:
    """Additive masks [R, 1, Q, S], one per layer type where some layers slide.

    visible: [R, Q, S] may a query see a key? query [R, Q], key [R, S]: their positions.
    """
    config = cast(Any, model.config).get_text_config()

    def additive(seen: Tensor) -> Tensor:
        mask = torch.zeros(seen.shape, dtype=model.dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(model.dtype).min)[:, None]

    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if window is None or kinds == {"full_attention"}:
        return additive(visible)
    sliding = additive(visible & (query[:, :, None] - key[:, None, :] < window))
    if not kinds:
        return sliding
    return {"full_attention": additive(visible), "sliding_attention": sliding}


def response_log_prob(
    model: PreTrainedModel,
    packed: Packed,
    *,
    statistic: Statistic | None = None,
    each: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """log pi(y|x) [R*K] in nats, fp32, and, if asked, the mean of a statistic of the next-token distributions along
    each response [R*K]; both without a gradient then.

    each: takes the log-probs of single tokens [S], response by response.
    """
    position, visible = packed.position_ids, packed.visible
    output = decoder_of(model)(
        input_ids=packed.input_ids,
        attention_mask=None if visible is None else attention_mask(model, visible, position, position),
        position_ids=position,
        use_cache=False,
    )
    hidden = output.last_hidden_state.flatten(0, 1)[packed.source]
    head = Head.of(model)

    def along_paths(values: Tensor) -> Tensor:
        own = values[packed.edge]
        if own.device.type == "cuda":  # where index_add adds in any order, and equal responses would differ
            return by_response(own, packed, int(torch.bincount(packed.owner).max())).sum(-1)
        sums = torch.zeros(packed.num_responses, dtype=values.dtype, device=values.device)
        return sums.index_add(0, packed.owner, own)

    values = None
    if statistic is None:
        edges = token_log_prob(hidden, packed.target, head)
    else:
        edges, values = token_log_prob_and(statistic, hidden, packed.target, head)
    if each is not None:
        each.append(edges[packed.edge])
    if values is None:
        return along_paths(edges), None
    lengths = torch.bincount(packed.owner, minlength=packed.num_responses)
    return along_paths(edges), along_paths(values) / lengths


def by_response(each: Tensor, packed: Packed, width: int) -> Tensor:
    """Values of single tokens [S], response by response, as [R*K, width], 0 behind each response."""
    length = torch.bincount(packed.owner, minlength=packed.num_responses)
    inside = torch.arange(width, device=each.device) < length[:, None]
    return each.new_zeros(inside.shape).masked_scatter(inside, each)


@contextmanager
def short_windows(model: PreTrainedModel) -> Iterator[bool]:
    """Meanwhile sliding windows are so short that a probe sees past them. Has the model any?"""
    config = cast(Any, model.config).get_text_config()
    window = getattr(config, "sliding_window", None)
    if not isinstance(window, int):
        yield False
        return
    modules = list(model.modules())
    told = (one for module in modules if isinstance(one := getattr(module, "config", None), PreTrainedConfig))
    holders = {id(one): one for one in (config, *modules, *told)}.values()
    named = [(one, name, value) for one in holders for name, value in vars(one).items() if "window" in name]
    found = [(one, name) for one, name, value in named if type(value) is int and value == window]
    try:
        for one, name in found:
            setattr(one, name, PROBED_WINDOW)
        yield True
    finally:
        for one, name in found:
            setattr(one, name, window)


def reads_trees(model: PreTrainedModel) -> bool:
    """Does a prefix tree give this model's own log-probs? False for models that mix tokens outside attention, and for
    those whose config names a window through which they do not look.

    Raises:
        UserError: not even plain rows do, so the model's head is of a kind this code does not know.
    """
    config = cast(Any, model.config).get_text_config()
    kinds = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ())}
    # A mask cannot express other kinds (chunks, convolutions, recurrence), nor a short probe find them all out.
    if kinds <= {"full_attention", "sliding_attention", "global"} and _reproduces(model, masked=True):
        with short_windows(model) as shortened:
            if not shortened or _reproduces(model, masked=True):
                return True
    if _reproduces(model, masked=False):
        return False
    raise UserError(
        f"model class {type(model).__name__} computes its logits in a way srlm does not reproduce: "
        "use a causal LM whose head is a linear map, optionally scaled or soft-capped"
    )


@torch.no_grad()
def _reproduces(model: PreTrainedModel, *, masked: bool) -> bool:
    """Are log-probs of a tree, or of plain rows, those of the model's own forward?"""
    size = cast(Any, model.config).get_text_config().vocab_size
    ids = [(7919 * i + 13) % size for i in range(64)]
    # A long sibling between prompt and response, so that a distance counted in slots is far off.
    prompt, responses = ids[:12], [ids[24:64], ids[12:18], ids[12:14] + ids[18:22], ids[20:24]]
    own = []
    for response in responses:
        row = torch.tensor([[*prompt, *response]], device=model.device)
        logits = cast(Any, model)(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        own.append(_pick(torch.log_softmax(logits, -1), row[0, len(prompt) :]).sum())
    tolerance = torch.tensor([len(y) * (1e-3 if exact(model) else 0.15) for y in responses])
    try:
        group = Group.of(prompt, responses)
        trees = [build_tree(group, members) for members in ([range(4)] if masked else [[i] for i in range(4)])]
        mine, _ = response_log_prob(model, pack(trees, masked=masked).to(model.device))
    except UNFIT:  # a 4-D mask it cannot take
        return False
    return bool(((mine - torch.stack(own)).abs().cpu() <= tolerance).all())
