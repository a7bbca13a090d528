"""A causal LM as a policy on the loop: what the other modules of this folder do, put together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from srlm.errors import UserError
from srlm.policies.transformer import modes
from srlm.policies.transformer.bits import quantised
from srlm.policies.transformer.context import Context
from srlm.policies.transformer.devices.asked import sharding
from srlm.policies.transformer.devices.shards import Shards
from srlm.policies.transformer.devices.weights import weights_of
from srlm.policies.transformer.encode import Encoder
from srlm.policies.transformer.engines import Engine
from srlm.policies.transformer.engines.builtin import Builtin
from srlm.policies.transformer.gain import Gain
from srlm.policies.transformer.layout.group import Group
from srlm.policies.transformer.limits import DECODE_BUDGET
from srlm.policies.transformer.load.packed import refuse_unready
from srlm.policies.transformer.load.trainable import load_trainable
from srlm.policies.transformer.log_prob import entropy, reads_trees, self_certainty
from srlm.policies.transformer.processes import Progress, processes, silent
from srlm.policies.transformer.recompute import recompute_activations
from srlm.policies.transformer.responses import Responses, Written, refuse_too_many
from srlm.policies.transformer.room import room_for
from srlm.policies.transformer.sample import Decoding, prompt_seeds
from srlm.policies.transformer.score import Scorer
from srlm.policies.transformer.text import Texts, eos_ids
from srlm.search import Found
from srlm.types import PromptItem, Prompts


class TransformerPolicy:
    """pi(y|x) of a causal LM. `model` is the plain model; LoRA layers, if any, are injected into it.

    stop: strings that end a response exactly like EOS.
    raw_prompts: take string prompts as they are even if the tokenizer has a chat template (default: one user turn).
    chat_template_kwargs: name=value, variables of the template.
    prompts_per_step, token_budget: prompts per optimiser step; padded tokens per micro-batch, or auto.
    gain: train the gain of the final norm, where there is one, as one scalar.
    trained: will it be? Else there is more room for what is scored and sampled at a time.
    base: what the LoRA layers lie on, where they were trained before and are part of pi_0.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        raw_prompts: bool = False,
        chat_template_kwargs: Sequence[str] = (),
        prompts_per_step: int = 4,
        token_budget: int | Literal["auto"] = "auto",
        peft_model: PeftModel | None = None,
        gain: bool = True,
        name: str = "",
        base: str | None = None,
        trained: bool = True,
    ) -> None:
        eos = eos_ids(model, tokenizer, template=not raw_prompts)
        if not eos and not stop:
            raise UserError(f"the tokenizer of {name} has no EOS token: pass --stop with strings that end a response")
        self.processes = processes()
        asked = sharding() if trained and self.processes.num_processes > 1 else None
        if asked is not None and asked.recompute:
            recompute_activations(model)
        # What is to be cut into shards comes to its devices piece by piece.
        self.model = model.to(self.processes.device) if asked is None else model
        self.tokenizer = cast(Any, tokenizer)
        _say_ends(model, eos)
        self.name = name
        self.tells_thoughts = True  # a run that began before they were told goes on without
        self.notes = [asked.note] if asked is not None and asked.note else []  # what a person should know of it
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        self.encode = Encoder(
            *(tokenizer, name),
            raw_prompts=raw_prompts,
            eos=eos,
            vocabulary=vocabulary,
            template_kwargs=chat_template_kwargs,
        )
        self._texts = Texts(tokenizer, stop, eos)
        stopped = self._texts.stopped if stop else None
        self.decoding = Decoding(
            *(max_new_tokens, eos, temperature, top_p, stopped, self._texts.window), top_k=top_k, stop=tuple(stop)
        )
        trees = reads_trees(self.model)
        self._context = Context.of(self.model)
        self.gain = Gain.of(self.model) if gain else None
        self._initial_gain = self.gain.size() if self.gain is not None else 1.0
        shards = None
        if asked is not None:
            shards = Shards(self.model, asked, self.gain.parameters if self.gain else (), self.processes)
        self.weights = weights_of(self.model, peft_model, base or name, begun=base is not None, shards=shards)
        held = sum(value.numel() for value in self.weights.held().values())
        self.room = room_for(self.model, token_budget, trained=trained, held=held, shards=shards)
        self.scorer = Scorer(
            self.model,
            self.processes,
            trees=trees,
            prompts_per_step=prompts_per_step,
            room=self.room,
            shards=shards,
        )
        self.engine: Engine = Builtin(self.model, self.weights, self.room, self.processes)
        self._synced: tuple[Engine, int] | None = None
        self.drawn: dict[str, float] = {}  # what is to be known of how the last responses were drawn

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        adapter: str = "auto",
        quantize: str = "none",
        lora_rank: int = 16,
        lora_alpha: float | None = None,
        gain: bool = True,
        seed: int = 0,
        gradient_checkpointing: bool = False,
        **options: Any,
    ) -> TransformerPolicy:
        """Load any causal LM; `lora_rank` 0 trains all weights, or none that an adapter would not be merged into."""
        refuse_unready(quantize, trained=options.get("trained", True))
        found = load_trainable(
            name,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            adapter=adapter,
            quantize=quantize,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            gain=gain,
            seed=seed,
        )
        if gradient_checkpointing:
            recompute_activations(found.model)
        policy = cls(
            *(found.model, found.tokenizer),
            peft_model=found.peft_model,
            gain=gain,
            name=name,
            base=found.base,
            **options,
        )
        policy.notes += found.notes
        return policy

    @property
    def shared(self) -> bool:
        """Does the model read trees?"""
        return self.scorer.trees

    # Prompts

    def check_prompts(self, prompts: Prompts, num_samples: int = 1) -> None:
        """Refuse, before any work, a prompt that does not fit the context together with its response, and more
        responses than memory holds."""
        refuse_too_many(len(prompts), num_samples, self.decoding.max_new_tokens)
        self.encode.check(prompts, self.decoding.max_new_tokens, self._context)

    @property
    def context(self) -> float:
        """Most tokens that the model reads; infinite if it does not say."""
        return self._context.tokens

    def fits(self, item: PromptItem, spare: int, *, drawn: bool = False) -> bool:
        """Does a question leave room for `spare` tokens of its answer? drawn: by the engine, whose room is its own."""
        room = min(self.context, self.engine.context) if drawn else self.context
        return len(self.encode.answering(item)) + spare <= room

    def overlong(self, prompts: Prompts) -> list[int]:
        """Numbers of the prompts that leave a response no room in the context."""
        return self.encode.overlong(prompts, self.decoding.max_new_tokens, self._context)

    def ids(self, prompts: Prompts) -> list[list[int]]:
        return [self.encode(item) for item in prompts.items]

    # Sampling

    def sample(
        self,
        prompts: Prompts,
        num_samples: int,
        generator: torch.Generator,
        progress: Progress = silent,
        *,
        explore: bool = True,
    ) -> Responses:
        """K i.i.d. responses per prompt. Each prompt has its own random stream: batches and processes don't matter.

        explore: at the temperature, top-p and top-k that were asked for; else from pi(y|x) itself.
        """
        how = self.decoding if explore else replace(self.decoding, temperature=1.0, top_p=1.0, top_k=0)
        return self._drawn(self.ids(prompts), num_samples, how, prompt_seeds(len(prompts), generator), progress)

    def greedy(self, prompts: Prompts, progress: Progress = silent) -> Responses:
        """The argmax word at every step, [P, 1]: not the mode of pi(y|x) in general (Prop. 4.3)."""
        return self._drawn(self.ids(prompts), 1, self.decoding, None, progress)

    def _drawn(
        self,
        ids: Sequence[Sequence[int]],
        num_samples: int,
        how: Decoding,
        seeds: Sequence[int] | None,
        progress: Progress,
    ) -> Responses:
        self.drawn = {}
        now = (self.engine, self.weights.version())
        if self._synced != now:
            report = self.engine.sync(self)
            # Other weights were put in meanwhile, and these put back.
            self._synced = (self.engine, self.weights.version())
            if report.difference is not None:
                self.drawn = {"sync_difference": report.difference, **report.facts}
        return self.engine.sample(ids, num_samples, how, seeds, progress)

    def written(
        self,
        items: Sequence[PromptItem],
        openings: Sequence[str],
        num_samples: int,
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 1.0,
        top_p: float = 1.0,
        progress: Progress = silent,
    ) -> Written:
        """What N answers go on with, of which each begins with an opening: K texts each, that end with EOS or before
        one of `stop`. Questions that will not come again, as `choice_log_prob` has them: nothing is kept, and a model
        that thinks is asked for its answer without.

        seeds: [N] below 2^62.
        """
        starts = [
            self.encode.answering(item) + (self.encode.continuation(opening) if opening else [])
            for item, opening in zip(items, openings, strict=True)
        ]
        texts = Texts(self.tokenizer, stop, self.decoding.eos)
        stopped = texts.stopped if stop else None
        how = Decoding(max_new_tokens, self.decoding.eos, temperature, top_p, stopped, texts.window, stop=tuple(stop))
        responses = self._drawn(starts, num_samples, how, seeds, progress)

        def score() -> Tensor:
            return self.scorer.score(self.scorer.groups(starts, responses), None, silent)[0]

        return Written(texts.texts(responses), responses.finished, score)

    # Scoring

    def log_prob(self, prompts: Prompts, responses: Responses) -> Tensor:
        """log pi(y|x) [P, K] in nats, at temperature 1 over the full vocabulary, EOS included once."""
        return self.score(prompts, responses)[0]

    def score(
        self,
        prompts: Prompts,
        responses: Responses,
        *,
        with_entropy: bool = False,
        token_log_prob: Tensor | None = None,
        progress: Progress = silent,
    ) -> tuple[Tensor, Tensor]:
        """log pi(y|x) and mean next-token entropy (zeros unless asked for), both [P, K] in nats.

        Same micro-batches, in the same order, as the first epoch of an update. token_log_prob: [P, K, T] zeros on the
        CPU, to be filled as far as each response goes.
        """
        groups = self.groups(prompts, responses)
        return self.scorer.score(groups, entropy if with_entropy else None, progress, token_log_prob)

    def self_certainty(self, prompts: Prompts, responses: Responses) -> Tensor:
        """Mean of KL(U || pi(.|x, y_<i)) along each response [P, K] in nats, U uniform over the vocabulary."""
        return self.scorer.score(self.groups(prompts, responses), self_certainty, silent)[1]

    def choice_log_prob(self, items: Sequence[Sequence[PromptItem]], opening: str, choices: Sequence[str]) -> Tensor:
        """log-prob [G, N, C] in nats that an answer which begins with `opening` goes on with each choice, written with
        or without a space before it. A model that thinks is asked for its answer without.

        items: G groups of N prompts; what the prompts of a group begin with in common is computed once.
        """
        tokens = self.encode.continuation
        written = [
            (number, form)
            for number, choice in enumerate(choices)
            for form in dict.fromkeys(tuple(tokens(text)) for text in (choice, f" {choice}"))
        ]
        begun = [[self.encode.answering(item) + tokens(opening) for item in row] for row in items]
        groups = [self.scorer.endings(row, [form for _, form in written]) for row in begun]
        values = self.scorer.score(groups, None, silent)[0].view(len(items), -1, len(written))
        kinds = torch.tensor([number for number, _ in written])
        return torch.stack([values[..., kinds == number].logsumexp(-1) for number in range(len(choices))], -1)

    def groups(self, prompts: Prompts, responses: Responses) -> list[Group]:
        return self.scorer.groups(map(self.encode, prompts.items), responses)

    # Searching

    def most_probable(
        self,
        prompts: Prompts,
        starts: Sequence[Sequence[Sequence[int]]],
        *,
        num_best: int = 2,
        budget: int = 1024,
        width: int = 16,
        progress: Progress = silent,
    ) -> list[Found]:
        """The most probable responses to each prompt (see `srlm.search.most_probable`), of at most max_new_tokens.

        starts: token ids of complete responses, per prompt.
        """
        with self.weights.merged():
            return modes.most_probable(
                self.model,
                self.ids(prompts),
                starts,
                shared=self.shared,
                ended=self.ended,
                eos=sorted(self.decoding.eos),
                max_tokens=self.decoding.max_new_tokens,
                num_best=num_best,
                budget=budget,
                width=width,
                cache_tokens=DECODE_BUDGET * self.room.tokens,
                row_tokens=self.room.tokens,
                progress=progress,
            )

    # Text

    @property
    def opens_thought(self) -> bool:
        """Does a response begin inside a thinking block, which its prompt opens?"""
        return self.tells_thoughts and self.encode.opens_thought

    def ended(self, response: Sequence[int]) -> bool:
        """Does a response end with its last token?"""
        return self._texts.ended(response)

    def text(self, ids: Sequence[int]) -> str:
        """Without special tokens, cut before the stop string."""
        return self._texts.text(ids)

    def token_ends(self, ids: Sequence[int]) -> list[int]:
        """How far `text(ids)` reaches with each token, in characters; a token that leaves one in pieces adds none."""
        return self._texts.token_ends(ids)

    def texts(self, responses: Responses) -> list[list[str]]:
        """[P][K]"""
        return self._texts.texts(responses)

    # Weights

    @property
    def quantised(self) -> str:
        """none, 4bit or 8bit: into what linear layers of the base are packed."""
        return quantised(self.model)

    def trainable(self) -> dict[str, Tensor]:
        return self.weights.trainable()

    def sharpness(self) -> float:
        """Gain of the final norm, pi_0's being 1: the inverse of the temperature that training gave the logits."""
        return 1.0 if self.gain is None else self.gain.size() / self._initial_gain

    def merged(self) -> AbstractContextManager[None]:
        """LoRA folded into the weights for a while."""
        return self.weights.merged()

    def initial(self) -> AbstractContextManager[None]:
        """pi_0 in place of pi_t for a while."""
        return self.weights.initial()

    def ungained(self) -> AbstractContextManager[None]:
        """pi_t with the gain of pi_0 for a while."""
        return nullcontext() if self.gain is None else self.gain.scaled(-torch.tensor(self.sharpness()).log())

    def reset(self) -> None:
        """Become pi_0 for good."""
        self.weights.reset()

    def save_weights(self, folder: Path) -> None:
        """The trained weights alone: a peft adapter folder, or a whole model folder."""
        self.weights.save(folder, self.tokenizer)

    def load_weights(self, folder: Path) -> None:
        """Become the policy that `save_weights` left in `folder`."""
        self.weights.load(folder)

    def save_model(self, folder: Path) -> None:
        """A folder for `AutoModelForCausalLM.from_pretrained`: merged weights, tokenizer, chat template; read again to
        see that they are those. Over a packed base, the adapter and the base's name instead.

        Raises:
            UserError: they are not.
        """
        if self.weights.packed:
            self.weights.save_on_base(folder, self.tokenizer)
            return
        self.weights.save_model(folder, self.tokenizer)
        self.weights.check_saved(folder, self.encode.some(2) or [[0, 1, 2, 3]])


def _say_ends(model: PreTrainedModel, eos: frozenset[int]) -> None:
    """What is saved of a model ends where it was trained to, also at the end of a turn of its template's."""
    generation = model.generation_config
    known = None if generation is None else generation.eos_token_id
    ends = known if isinstance(known, list) else [known]
    if generation is not None and any(one not in ends for one in eos):
        generation.eos_token_id = sorted(eos)
