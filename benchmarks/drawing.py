"""The built-in engine against `generate` and continuous batching of transformers: `benchmarks.gpu --engines`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.lengths import PROMPT, plain
from benchmarks.sampling import Sampled, real_tokens
from benchmarks.timing import interleave, machine, now, paragraph, ratios, say, spread, table
from srlm.policies.transformer.continuation import shares_prompts
from srlm.policies.transformer.load.hub import resolve_dtype
from srlm.policies.transformer.processes import processes, silent
from srlm.policies.transformer.respond import respond
from srlm.policies.transformer.room import Room, measured
from srlm.policies.transformer.sample import Decoding, prompt_seeds, streams

MEAN = 4  # responses end by themselves after a quarter of the tokens that they may have, on average
HEAD = ("model", "T", "engine", "response tokens/s", "tokens per response", "built-in ÷ this")


@dataclass(frozen=True)
class Drawing:
    """P prompts of PROMPT random words, K responses of at most T words to each."""

    prompts: int
    k: int
    tokens: tuple[int, ...]
    rounds: int


class Engines:
    """One model, the same prompts, three ways."""

    def __init__(self, name: str, sizes: Drawing, tokens: int) -> None:
        self.model: Any = plain(name, processes().device)
        self.k, self.tokens = sizes.k, tokens
        vocabulary = self.model.config.vocab_size
        # Random weights choose nearly evenly: so many ends give responses of the wanted length.
        self.eos = list(range(3, 3 + max(1, MEAN * vocabulary // tokens)))
        draw = torch.Generator().manual_seed(0)
        lowest = min(self.eos[-1] + 1, vocabulary - 1)
        self.prompts = torch.randint(lowest, vocabulary, (sizes.prompts, PROMPT), generator=draw)
        self.room = Room(measured(self.model, trained=False))
        self.shared = shares_prompts(self.model)
        self.seed = 0

    def builtin(self) -> Sampled:
        self.seed += 1
        seeds = prompt_seeds(len(self.prompts), torch.Generator().manual_seed(self.seed))
        start = now()
        said = respond(
            self.model,
            self.prompts.tolist(),
            self.k,
            streams(seeds, self.k, self.tokens),
            Decoding(self.tokens, frozenset(self.eos)),
            padding=True,
            shared=self.shared,
            room=self.room,
            together=processes(),
            progress=silent,
        )
        return Sampled(now() - start, int(said.length.sum()))

    def _asked(self, **more: Any) -> GenerationConfig:
        return GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=self.tokens, eos_token_id=self.eos, pad_token_id=0, **more
        )

    @torch.inference_mode()
    def generate(self) -> Sampled:
        """As many prompts at a time as the built-in engine takes."""
        at_once = max(1, 8 * self.room.tokens // (self.k * (PROMPT + self.tokens)))
        start, count = now(), 0
        for part in self.prompts.split(at_once):
            ids = part.to(self.model.device)
            asked = self._asked(num_return_sequences=self.k)
            rows = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=asked)
            count += real_tokens(rows[:, ids.shape[1] :], frozenset(self.eos))
        return Sampled(now() - start, count)

    def continuous(self) -> Sampled:
        rows = [ids for ids in self.prompts.tolist() for _ in range(self.k)]
        # Without an accelerator it would reserve most of the host's memory.
        room = {"num_blocks": 64, "max_batch_tokens": 256} if self.model.device.type == "cpu" else {}
        how: Any = ContinuousBatchingConfig(**room)
        start = now()
        said = self.model.generate_batch(rows, generation_config=self._asked(), continuous_batching_config=how)
        if len(said) < len(rows):
            raise RuntimeError(f"{len(said)} of {len(rows)} responses came")
        return Sampled(now() - start, sum(len(one.generated_tokens) for one in said.values()))


def compare(models: tuple[str, ...], sizes: Drawing, seconds: float) -> str:
    """seconds: after these no further point is begun."""
    start, rows = time.perf_counter(), []
    for name in models:
        for tokens in sizes.tokens:
            if time.perf_counter() - start > seconds:
                break
            engines = Engines(name, sizes, tokens)
            arms: dict[str, Callable[[], Sampled]] = {"built-in": engines.builtin, "generate": engines.generate}
            for arm in arms.values():
                arm()
            try:
                engines.continuous()
                arms["continuous batching"] = engines.continuous
            except Exception as error:  # it asks for kernels and devices of its own
                say(f"  continuous batching does not run here: {error}")
            got = interleave(arms, sizes.rounds)
            own = [sampled.rate for sampled in got["built-in"]]
            for arm_name, each in got.items():
                rate = [sampled.rate for sampled in each]
                mean = sum(sampled.tokens for sampled in each) / len(each) / sizes.prompts / sizes.k
                against = spread(ratios(own, rate))
                rows.append((name, str(tokens), arm_name, spread(rate, 0), f"{mean:.1f}", against))
                say(" | ".join(rows[-1]))
    setting = paragraph(
        f"{sizes.prompts} prompts of {PROMPT} random words, {sizes.k} responses of at most T to each, which end after",
        "a quarter of that on average; temperature 1, whole vocabulary; median (least–most) of",
        f"{sizes.rounds} interleaved rounds.",
    )
    here = machine(processes().device.type, resolve_dtype("auto"))
    return f"# Engines\n\n{here}\n\n{setting}\n\n{table(HEAD, cast(Any, rows))}\n"
