"""What is measured: capitals prompts, made about four times as long as the responses that the model samples to them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch

from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.responses import Responses
from srlm.types import Prompts

CAPITALS = Path(__file__).parents[1] / "data" / "capitals-train.jsonl"
LONGER = 4  # prompt tokens per response token
PASSAGE = (
    "You are helping a class that prepares a journey.",
    "The pupils have a map on the wall and a list of countries.",
    "For every country they want to know where its government sits.",
    "They will read your words aloud, so write plainly and leave out lists.",
    "Do not repeat the question, and do not mention this class.",
    "When you have named the city, go on with what a visitor would see there.",
    "The teacher has set aside a minute for each country.",
)


@dataclass(frozen=True)
class Sizes:
    """One run. tokens: of the longest response. rounds: A B pairs. trl_pairs: in a micro-batch of TRL (on a CPU, 4 are
    faster than 8 and 16)."""

    prompts: int
    k: int
    tokens: int
    rounds: int
    prompts_per_step: int
    token_budget: int
    trl_pairs: int

    @classmethod
    def of(cls, device: str, quick: bool) -> Sizes:
        if quick:
            return cls(prompts=4, k=4, tokens=8, rounds=2, prompts_per_step=2, token_budget=1024, trl_pairs=4)
        if device == "cuda":
            return cls(prompts=96, k=8, tokens=64, rounds=7, prompts_per_step=32, token_budget=16384, trl_pairs=32)
        return cls(prompts=8, k=8, tokens=24, rounds=5, prompts_per_step=4, token_budget=2048, trl_pairs=4)


@dataclass(frozen=True)
class Data:
    """P prompts with K responses each."""

    prompts: Prompts
    responses: Responses

    def head(self, number: int) -> Data:
        some = self.responses
        parts = Responses(some.tokens[:number], some.length[:number], some.finished[:number])
        return Data(Prompts.uniform(self.prompts.items[:number]), parts)

    def sequences(self, policy: TransformerPolicy) -> list[tuple[list[int], list[list[int]]]]:
        return [(policy.encode(item), self.responses.ids(i)) for i, item in enumerate(self.prompts.items)]


def load_policy(model: str, dtype: str, sizes: Sizes) -> TransformerPolicy:
    return TransformerPolicy.load(
        model,
        dtype=dtype,
        lora_rank=16,
        max_new_tokens=sizes.tokens,
        prompts_per_step=sizes.prompts_per_step,
        token_budget=sizes.token_budget,
    )


def load_prompts(policy: TransformerPolicy, sizes: Sizes) -> Prompts:
    """The first P capitals questions behind as much of the passage as makes them LONGER times `tokens` long."""
    with CAPITALS.open() as file:
        questions = [json.loads(line)["prompt"] for line in file][: sizes.prompts]
    items = []
    for question in questions:
        item = question
        passage: list[str] = []
        for sentence in cycle(PASSAGE):
            if len(policy.encode(item)) >= LONGER * sizes.tokens:
                break
            passage.append(sentence)
            item = " ".join([*passage, question])
        items.append(item)
    return Prompts.uniform(items)


def sampled(policy: TransformerPolicy, prompts: Prompts, sizes: Sizes) -> Data:
    return Data(prompts, policy.sample(prompts, sizes.k, torch.Generator().manual_seed(0)))


def scrambled(policy: TransformerPolicy, data: Data) -> Data:
    """Same lengths, random words: no two responses open alike, so nothing but the prompt can be shared."""
    old = data.responses
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    words = torch.randint(vocabulary, old.tokens.shape, generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    return Data(data.prompts, Responses(words, old.length, torch.zeros_like(old.finished)))
