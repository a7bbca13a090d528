"""vLLM as an engine, wherever it runs: weights go to it by a folder, prompts and responses as token ids."""

from __future__ import annotations

import json
import math
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import safetensors.torch
import torch
from accelerate import PartialState

from srlm.errors import UserError
from srlm.policies.transformer.engines import SyncReport
from srlm.policies.transformer.engines.trust import checked
from srlm.policies.transformer.engines.wire import MOST_STOPS, Asked, Said
from srlm.policies.transformer.processes import Progress, gather, silent
from srlm.policies.transformer.responses import Responses
from srlm.policies.transformer.sample import Decoding

if TYPE_CHECKING:
    from srlm.policies.transformer.policy import TransformerPolicy

Carrier: TypeAlias = Literal["folder", "adapter"]
Report: TypeAlias = Callable[[str], object]


class Backend(Protocol):
    """Where vLLM runs.

    carrier: what it takes, whole models or LoRA adapters. log_probs: those it gives, raw_logprobs (of the model),
    processed_logprobs (of what is drawn from), or empty, where that is not known. context: most tokens of a prompt
    and its response; infinite where that is not known.
    """

    name: str
    carrier: Carrier

    @property
    def log_probs(self) -> str: ...
    @property
    def context(self) -> float: ...
    def put(self, folder: Path, version: str) -> None: ...
    def complete(self, asked: Sequence[Asked], progress: Callable[[int], object]) -> list[list[Said]]: ...
    def close(self) -> None: ...


class VllmEngine:
    """folder: for weights on their way. An adapter goes without the gain of the final norm, which vLLM would refuse:
    it is a temperature, and sampling is at 1 / gain of the one that was asked for."""

    def __init__(self, backend: Backend, folder: Path, together: PartialState) -> None:
        self.backend, self._folder, self._together = backend, folder, together
        self._gain = 1.0
        self._words: float = math.inf  # ids of the model, which the first sync tells

    @property
    def context(self) -> float:
        return self.backend.context

    def sync(self, policy: TransformerPolicy) -> SyncReport:
        start = time.perf_counter()
        adapter = self.backend.carrier == "adapter"
        if adapter and (policy.weights.peft_model is None or policy.weights.begun):
            what = "all weights are trained" if policy.weights.peft_model is None else "the adapter was there before"
            raise UserError(f"--engine-weights is adapter, but {what}: choose folder, and start the engine for it")
        version = f"srlm-{uuid.uuid4().hex[:12]}"  # names and caches of other weights are not to be mistaken for these
        policy.weights.collect(model=not adapter)
        if self._together.is_main_process:
            last = list(self._folder.iterdir()) if self._folder.is_dir() else []
            self._folder.mkdir(parents=True, exist_ok=True)
            folder = (self._folder / version).resolve()
            if adapter:
                policy.save_weights(folder)
                _only_lora(folder)
            else:
                policy.weights.save_model(folder, policy.tokenizer)
                policy.weights.forget()
            self.backend.put(folder, version)
            for one in last:
                shutil.rmtree(one, ignore_errors=True)  # in the worst case it lies there a round longer
        self._together.wait_for_everyone()
        self._gain = policy.sharpness() if adapter else 1.0
        self._words = policy.model.get_input_embeddings().weight.shape[0]
        seconds = time.perf_counter() - start
        context = min(policy.context, self.backend.context)
        report = checked(policy, self._draw, self.backend.name, gained=not adapter, context=context)
        return SyncReport(report.difference, report.tokens, report.facts | {"sync_seconds": seconds})

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        num_samples: int,
        how: Decoding,
        seeds: Sequence[int] | None,
        progress: Progress,
    ) -> Responses:
        made = self._draw(prompts, num_samples, how, seeds, progress, temperature=how.temperature / self._gain)
        exploring = seeds is None or how.temperature != 1 or how.top_p != 1 or how.top_k > 0
        kind = self.backend.log_probs
        if (kind != "processed_logprobs" and self._gain != 1) or (kind != "raw_logprobs" and exploring):
            return Responses(made.tokens, made.length, made.finished)  # log-probs of another distribution than ours
        return made

    def _draw(
        self,
        prompts: Sequence[Sequence[int]],
        num_samples: int,
        how: Decoding,
        seeds: Sequence[int] | None,
        progress: Progress = silent,
        *,
        temperature: float,
    ) -> Responses:
        """
        Raises:
            UserError: a prompt and its response are more than the engine takes, or it does not answer.
        """
        longest = max(map(len, prompts), default=0)
        if longest + how.max_new_tokens > self.backend.context:
            raise UserError(
                f"a prompt has {longest} tokens, which with {how.max_new_tokens} new ones exceeds the max_model_len of "
                f"{self.backend.context:.0f} of the engine ({self.backend.name}): start it with more, shorten the "
                "prompt or lower --max-new-tokens"
            )
        shape = (len(prompts), num_samples)
        tokens = torch.zeros(*shape, how.max_new_tokens, dtype=torch.int32)
        log_prob = torch.zeros(*shape, how.max_new_tokens)
        length, finished = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        if self._together.is_main_process:

            def asked(prompt: Sequence[int], number: int, most: int, seed: int | None) -> Asked:
                greedy = seeds is None
                return Asked(
                    prompt,
                    number,
                    most,
                    0.0 if greedy else temperature,
                    1.0 if greedy else how.top_p,
                    how.eos,
                    how.stop,
                    None if greedy else seed,
                    0 if greedy else how.top_k,
                )

            first = [
                asked(ids, num_samples, how.max_new_tokens, None if seeds is None else seeds[p])
                for p, ids in enumerate(prompts)
            ]
            said = self._said(first, lambda done: progress(done, len(prompts)))
            told = len(how.stop) <= MOST_STOPS  # of all of them
            rows = {
                (p, k): one if told and how.eos.isdisjoint(one.tokens[:-1]) else _cut(one, how)
                for p, row in enumerate(said)
                for k, one in enumerate(row)
            }
            while open_ := [at for at, one in rows.items() if self._open(one, how)]:
                # It saw an end where we see none: on with it, as our own decoder would go on.
                more = [
                    asked([*prompts[p], *(now := rows[p, k].tokens)], 1, how.max_new_tokens - len(now), None)
                    for p, k in open_
                ]
                for at, (rest,) in zip(open_, self._said(more, lambda _: None), strict=True):
                    whole = Said(rows[at].tokens + rest.tokens, rows[at].log_prob + rest.log_prob)
                    rows[at] = _cut(whole, how, len(rows[at].tokens))  # a stop string may have begun before the rest
            for (p, k), one in rows.items():
                n = len(one.tokens)
                tokens[p, k, :n] = torch.tensor(one.tokens, dtype=torch.int32)
                log_prob[p, k, :n] = torch.tensor(one.log_prob)
                length[p, k], finished[p, k] = n, how.ended(one.tokens)
        every = (gather(self._together, values) for values in (tokens, length, finished, log_prob))
        tokens, length, finished, log_prob = every
        return Responses(tokens, length, finished.bool(), log_prob)

    def _said(self, asked: Sequence[Asked], progress: Callable[[int], object]) -> list[list[Said]]:
        """
        Raises:
            UserError: there is nothing in an answer (asked for the rest, it would be asked for ever), or words of
                another model.
        """
        said = self.backend.complete(asked, progress) if asked else []
        if any(not one.tokens for row in said for one in row):
            raise UserError(
                f"the engine ({self.backend.name}) answers a prompt with no token, expected at least one: see what it "
                "logged, and go on with --resume"
            )
        foreign = next((t for row in said for one in row for t in one.tokens if t >= self._words), None)
        if foreign is not None:
            raise UserError(
                f"the engine ({self.backend.name}) answers with the token id {foreign}, expected ids below "
                f"{self._words}, as many as the model has: have it serve the very model that is trained"
            )
        return said

    @staticmethod
    def _open(one: Said, how: Decoding) -> bool:
        return len(one.tokens) < how.max_new_tokens and not how.ended(one.tokens)

    def close(self) -> None:
        self.backend.close()
        if self._together.is_main_process:
            shutil.rmtree(self._folder, ignore_errors=True)


def _cut(one: Said, how: Decoding, open_: int = 0) -> Said:
    """Up to its end, where an engine saw none; its first `open_` tokens have none."""
    newest = ((n, one.tokens[max(0, n - max(how.window, 1)) : n]) for n in range(open_ + 1, len(one.tokens)))
    end = next((n for n, tokens in newest if how.ended(tokens)), len(one.tokens))
    return Said(one.tokens[:end], one.log_prob[:end])


def _only_lora(folder: Path) -> None:
    """Of an adapter as peft keeps it, what vLLM takes."""
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    kept = {name: value for name, value in safetensors.torch.load_file(file).items() if ".lora_" in name}
    safetensors.torch.save_file(kept, file, metadata={"format": "pt"})
    said = json.loads(config.read_text(encoding="utf-8")) | {"modules_to_save": None}
    config.write_text(json.dumps(said, indent=2), encoding="utf-8")
