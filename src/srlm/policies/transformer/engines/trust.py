"""Did the weights arrive, and how far are an engine's log-probs from ours?"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srlm.errors import UserError
from srlm.policies.transformer.engines import SyncReport
from srlm.policies.transformer.processes import silent
from srlm.policies.transformer.responses import Responses
from srlm.policies.transformer.sample import Decoding

if TYPE_CHECKING:
    from srlm.policies.transformer.policy import TransformerPolicy

PROMPTS, SAMPLES, TOKENS = 4, 4, 16  # of what is said and scored again after every sync
LIMITS = {torch.float32: 0.02, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Nats a token, on average, that two implementations of one model may be apart."""
SURE = 4.0  # standard errors by which the untouched model explains an engine's log-probs better than what was sent
TOLD_APART = 0.1  # of the limit: what the untouched model explains better by less, rounding may have done


def checked(
    policy: TransformerPolicy, draw: Callable[..., Responses], name: str, *, gained: bool, context: float
) -> SyncReport:
    """Let the engine say something to the first prompts and score it again.

    gained: has the engine the gain of the final norm too? context: most tokens that it and the policy read.

    Raises:
        UserError: its log-probs are not those of the policy.
    """
    room = max(context - TOKENS, 1)
    prompts = [ids[: int(min(len(ids), room))] for ids in policy.encode.some(PROMPTS)]
    if not prompts:
        return SyncReport()
    how = Decoding(TOKENS, policy.decoding.eos)
    said = draw(prompts, SAMPLES, how, list(range(1, len(prompts) + 1)), temperature=1.0)
    assert said.log_prob is not None
    inside = torch.arange(TOKENS) < said.length[..., None]
    theirs = said.log_prob[inside]

    def ours() -> Tensor:
        each = torch.zeros(said.tokens.shape)
        policy.scorer.score(policy.scorer.groups(prompts, said), None, silent, each)
        return each[inside]

    with nullcontext() if gained else policy.ungained():
        apart = (theirs - ours()).abs()
    sent = apart
    if gained and policy.scorer.shards is None:
        # LoRA goes merged, and what of it is smaller than the dtype resolves is lost on the way, as where we sample.
        with policy.merged():
            sent = (theirs - ours()).abs()
    with policy.initial():
        before = (theirs - ours()).abs()
    far = float(apart.mean())
    limit = LIMITS[policy.model.dtype]
    nearer = untouched_is_nearer(sent, before, _first_of_their_kind(said)[inside], TOLD_APART * limit)
    if nearer or not far <= limit:
        why = (
            f"those of the untouched model are nearer, by {nearer:.2g}, so the weights did not arrive: "
            "see what the engine logged"
            if nearer
            else "let it serve the very model that is trained, in the same --dtype, and start it anew if an earlier "
            "run has put weights into it"
        )
        raise UserError(
            f"the weights of this round went to the engine ({name}), but its log-probs of {len(theirs)} tokens differ "
            f"from ours by {far:.2g} nats a token, expected at most {limit:g}: {why}"
        )
    return SyncReport(far, len(theirs))


def untouched_is_nearer(sent: Tensor, untouched: Tensor, new: Tensor, least: float) -> float:
    """By how many nats a token the untouched model explains an engine's log-probs better than the weights that it was
    sent, where that is no chance (SURE standard errors) and no rounding (more than `least`); else 0.

    sent, untouched: [N] |log-prob by the engine - ours| of tokens. new: [N] which of them count: the same response to
    the same prompt, said again, says nothing new.
    """
    better = (sent - untouched)[new].double()
    mean = float(better.mean())
    error = float(better.std()) / math.sqrt(len(better)) if len(better) > 1 else 0.0
    return mean if mean > max(SURE * error, least) else 0.0


def _first_of_their_kind(said: Responses) -> Tensor:
    """[P, K, T] bool: tokens of responses that no earlier one to the same prompt repeats."""
    new = torch.zeros(said.tokens.shape, dtype=torch.bool)
    for p in range(len(said)):
        rows = [tuple(ids) for ids in said.ids(p)]
        new[p] = torch.tensor([row not in rows[:k] for k, row in enumerate(rows)])[:, None]
    return new


def mismatch(ours: Tensor, theirs: Tensor, length: Tensor) -> dict[str, float]:
    """How far an engine's log-probs are from ours, before anything is masked or cut.

    ours, theirs: [P, K, T] log-probs of single tokens in nats; what lies behind `length` [P, K] counts for nothing.

    With d = theirs - ours of a token, D its sum over a response and w = exp(-D) the importance weight of the response:
    mean of d, quantiles of |d|, share with |d| > .1 nat, mean and quantile of |D|, and the effective sample size
    (sum w)^2 / (N sum w^2), as a share of the N responses.
    """
    inside = torch.arange(ours.shape[-1]) < length[..., None]
    apart = torch.where(inside, theirs - ours, 0.0).double()
    each, whole = apart[inside], apart.sum(-1).flatten()
    half, most = torch.quantile(_some(each.abs()), torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist()
    log_weight = -whole
    share = 2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0) - math.log(len(whole))
    return {
        "mismatch": float(each.mean()),
        "mismatch_absolute": float(each.abs().mean()),
        "mismatch_median": half,
        "mismatch_q99": most,
        "mismatch_beyond": float((each.abs() > 0.1).double().mean()),
        "mismatch_response": float(whole.abs().mean()),
        "mismatch_response_q99": float(torch.quantile(_some(whole.abs()), 0.99)),
        "mismatch_effective": float(share.exp()),
    }


def _some(values: Tensor, most: int = 2**23) -> Tensor:
    """At most so many, evenly taken: what `torch.quantile` takes."""
    return values[:: -(-len(values) // most)] if len(values) > most else values


def importance(log_prob: Tensor, theirs: Tensor, cap: float) -> tuple[Tensor, dict[str, float]]:
    """Truncated importance weights [P, K] = min(pi_t(y|x) / mu(y|x), cap) of responses that mu drew, from both their
    log-probs [P, K], and what they do: their mean, and the share that is cut."""
    bare = (log_prob - theirs).double().exp()
    return bare.clamp(max=cap), {
        "correction": float(bare.clamp(max=cap).mean()),
        "correction_cut": float((bare > cap).double().mean()),
    }
