"""(b) Sampling: srlm's `policy.sample` against transformers' `generate`, same prompts in one batch, K samples each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.timing import interleave, now, paragraph, ratios, say, spread, table
from benchmarks.workload import Sizes, load_prompts
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.types import Prompts


@dataclass(frozen=True)
class Sampled:
    """tokens: up to and with the one that ends a response; padding behind it does not count."""

    seconds: float
    tokens: int

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def ours(policy: TransformerPolicy, prompts: Prompts, k: int, seed: int) -> Sampled:
    """From text to responses; folding LoRA into the weights and back is in the time."""
    start = now()
    responses = policy.sample(prompts, k, torch.Generator().manual_seed(seed))
    return Sampled(now() - start, int(responses.length.sum()))


def left_padded(policy: TransformerPolicy, prompts: Prompts, pad: int) -> tuple[Tensor, Tensor]:
    """(ids, mask) [P, L]"""
    encoded = [policy.encode(item) for item in prompts.items]
    longest = max(map(len, encoded))
    ids = [[pad] * (longest - len(prompt)) + prompt for prompt in encoded]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in encoded]
    device = policy.model.device
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def real_tokens(rows: Tensor, eos: frozenset[int]) -> int:
    ended = torch.isin(rows, torch.tensor(sorted(eos), device=rows.device)).long()
    return int((ended.cumsum(-1) - ended == 0).sum())


def theirs(model: Any, policy: TransformerPolicy, prompts: Prompts, k: int, seed: int) -> Sampled:
    eos = policy.decoding.eos
    pad = min(eos)
    torch.manual_seed(seed)
    start = now()
    ids, mask = left_padded(policy, prompts, pad)
    rows = model.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=policy.decoding.max_new_tokens,
        num_return_sequences=k,
        eos_token_id=sorted(eos),
        pad_token_id=pad,
    )
    seconds = now() - start
    return Sampled(seconds, real_tokens(rows[:, ids.shape[1] :], eos))


def run(policy: TransformerPolicy, sizes: Sizes) -> str:
    prompts = load_prompts(policy, sizes)
    policy.room.tokens = 10**9  # all prompts in one batch, as in generate
    merged = cast(Any, copy.deepcopy(policy.weights.peft_model)).merge_and_unload()
    seeds = {name: iter(range(10**6)) for name in ("ours", "lora", "merged")}
    say("  warming up")
    few = Prompts.uniform(prompts.items[:2])
    ours(policy, few, 2, 0)
    theirs(policy.weights.peft_model, policy, few, 2, 0)
    arms: dict[str, Callable[[], Sampled]] = {
        "srlm": lambda: ours(policy, prompts, sizes.k, next(seeds["ours"])),
        "generate": lambda: theirs(policy.weights.peft_model, policy, prompts, sizes.k, next(seeds["lora"])),
        "generate, LoRA merged": lambda: theirs(merged, policy, prompts, sizes.k, next(seeds["merged"])),
    }
    got = interleave(arms, sizes.rounds)
    rate = {name: [sampled.rate for sampled in each] for name, each in got.items()}
    mean = {name: sum(s.tokens for s in each) / len(each) / sizes.prompts / sizes.k for name, each in got.items()}
    rows = [
        (name, spread(rate[name], 0), f"{mean[name]:.1f}", "" if name == "srlm" else f"**{spread(ratio)}**")
        for name in got
        for ratio in [ratios(rate["srlm"], rate[name])]
    ]
    size = sum(len(policy.encode(item)) for item in prompts.items) / len(prompts)
    setting = paragraph(
        f"{sizes.prompts} prompts of {size:.0f} tokens × {sizes.k} samples in one batch, at most {sizes.tokens} new",
        f"tokens, temperature 1, whole vocabulary, LoRA r=16 active, {str(policy.model.dtype)[6:]}.",
        f"`generate(do_sample=True, top_k=0, top_p=1, num_return_sequences={sizes.k})`.",
    )
    return f"""## (b) Sampling against `generate`

{setting}

{table(("", "response tokens/s", "tokens per response", f"srlm ÷ this, {sizes.rounds} interleaved pairs"), rows)}
"""
