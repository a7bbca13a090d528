"""A causal LM as a policy on the loop. The only importer of transformers, peft and accelerate is this folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from srlm import search
from srlm.errors import UserError
from srlm.policies.transformer.gain import Gain
from srlm.policies.transformer.load import first_line, load_model, recompute_activations
from srlm.policies.transformer.log_prob import Statistic, entropy, reads_trees, response_log_prob, self_certainty
from srlm.policies.transformer.packing import Packed, Tree, build_tree, layout, micro_batches, pack
from srlm.policies.transformer.prefix_trees import CachedTrees, PlainPrefixes
from srlm.policies.transformer.sample import Decoding, decode
from srlm.search import Found
from srlm.types import PromptItem, Prompts

Progress = Callable[[int, int], None]  # (done, total)
TYPICAL_SEARCH = 256  # prefixes of a prompt that find its mode, as a rule
DECODE_BUDGET = 8  # tokens in a decoding batch per token of `token_budget`: decoding keeps no activations


def processes() -> PartialState:
    """Who takes part: one process, or those that `accelerate launch` or `torchrun` started."""
    # Without an accelerator it must be told so, or it takes each of several CPU processes for the only one.
    return PartialState(cpu=not torch.accelerator.is_available())


def silent(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Responses:
    """K responses to each of P prompts, as token ids, cut at `length`; the token that ended a response is its last.

    finished: [P, K] ended by itself (EOS or stop string) rather than cut at the maximal length.
    """

    tokens: Tensor  # [P, K, T] int32
    length: Tensor  # [P, K]
    finished: Tensor  # [P, K] bool

    def ids(self, prompt: int) -> list[list[int]]:
        return [row[:n] for row, n in zip(self.tokens[prompt].tolist(), self.length[prompt].tolist(), strict=True)]


class TransformerPolicy:
    """pi(y|x) of a causal LM. `model` is the plain model; LoRA layers, if any, are injected into it.

    stop: strings that end a response exactly like EOS.
    raw_prompts: take string prompts as they are even if the tokenizer has a chat template (default: one user turn).
    prompts_per_step, token_budget: prompts per optimiser step; padded tokens per micro-batch.
    gain: train the gain of the final norm, where there is one, as one scalar.
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
        raw_prompts: bool = False,
        prompts_per_step: int = 4,
        token_budget: int = 2048,
        peft_model: PeftModel | None = None,
        gain: bool = True,
        name: str = "",
    ) -> None:
        self.processes = processes()
        self.model = model.to(self.processes.device)
        self.tokenizer = cast(Any, tokenizer)
        self.peft_model = peft_model
        self.name = name
        self.stop = tuple(stop)
        self.raw_prompts = raw_prompts
        self.prompts_per_step = prompts_per_step
        self.token_budget = token_budget
        eos = self._eos_ids()
        if not eos and not stop:
            raise UserError(f"the tokenizer of {name} has no EOS token: pass --stop with strings that end a response")
        self.decoding = Decoding(max_new_tokens, eos, temperature, top_p, self._stopped if stop else None)
        self.shared = reads_trees(self.model)
        self.gain = Gain.of(self.model) if gain else None
        self._initial_gain = self.gain.size() if self.gain is not None else 1.0
        self._initial: dict[str, Tensor] | None = None

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        lora_rank: int = 16,
        lora_alpha: float | None = None,
        gain: bool = True,
        seed: int = 0,
        gradient_checkpointing: bool = False,
        **options: Any,
    ) -> TransformerPolicy:
        """Load any causal LM; `lora_rank` 0 trains all weights."""
        model, tokenizer = load_model(name, dtype=dtype, trust_remote_code=trust_remote_code)
        peft_model = None
        if lora_rank > 0:
            torch.manual_seed(seed)
            found = Gain.of(model) if gain else None
            lora = LoraConfig(
                r=lora_rank,
                lora_alpha=cast(int, lora_alpha or 2 * lora_rank),
                target_modules="all-linear",
                modules_to_save=[found.name] if found is not None else None,
            )
            # fp32 adapters inside a bf16 model would compute in fp32; the optimiser keeps fp32 masters instead.
            try:
                peft_model = cast(PeftModel, get_peft_model(model, lora, autocast_adapter_dtype=False))
            except ValueError as error:
                raise UserError(
                    f"peft cannot adapt model class {type(model).__name__}: {first_line(error)}; "
                    "train all weights with --lora-rank 0"
                ) from error
            model = cast(PreTrainedModel, peft_model.get_base_model())
            peft_model.eval()
        if gradient_checkpointing:
            recompute_activations(model)
        return cls(model, tokenizer, peft_model=peft_model, gain=gain, name=name, **options)

    # Prompts

    def _eos_ids(self) -> frozenset[int]:
        generation = self.model.generation_config
        ids = getattr(generation, "eos_token_id", None) if generation is not None else None
        found = {self.tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])}
        return frozenset(i for i in found if isinstance(i, int))

    def _stopped(self, tokens: Sequence[int]) -> bool:
        # A stop string ends with the newest token, so a window that surely covers it is enough.
        window = max(len(stop.encode()) for stop in self.stop) + 4  # a token can be a single byte
        text = self.tokenizer.decode(tokens[-window:])
        return any(stop in text for stop in self.stop)

    def encode(self, item: Any) -> list[int]:
        """Prompt -> token ids: the chat template for conversations (and strings, if there is one), else raw text."""
        template = self.tokenizer.chat_template is not None
        if isinstance(item, str) and (self.raw_prompts or not template):
            ids = self.tokenizer(item)["input_ids"]
            # Some tokenizers close every text with EOS; a prompt must stay open.
            if len(ids) > 1 and ids[-1] in self.decoding.eos:
                ids = ids[:-1]
        else:
            if not template:
                raise UserError(
                    f"the tokenizer of {self.name} has no chat template, which `messages` need: "
                    "give `prompt` strings (with --stop) or an instruction-tuned model"
                )
            turns = [{"role": "user", "content": item}] if isinstance(item, str) else [dict(turn) for turn in item]
            ids = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        if not ids:
            raise UserError(f"prompt {item!r} has no tokens: give a longer prompt or a tokenizer with a BOS token")
        return list(ids)

    def check_prompts(self, prompts: Prompts) -> None:
        """Refuse, before any work, a prompt that does not fit the context together with its response."""
        for number, item in enumerate(prompts.items, 1):
            size = len(self.encode(item))
            if size + self.decoding.max_new_tokens > self.context:
                raise UserError(
                    f"prompt {number} has {size} tokens, which with {self.decoding.max_new_tokens} new ones exceeds "
                    f"the context of {self.context} of {self.name}: shorten it or lower --max-new-tokens"
                )

    @property
    def context(self) -> float:
        """Most tokens that the model reads; infinite if it does not say."""
        config = cast(Any, self.model.config).get_text_config()
        return cast(float, getattr(config, "max_position_embeddings", None) or math.inf)

    def fits(self, item: PromptItem, spare: int) -> bool:
        """Does a prompt leave room for `spare` tokens more?"""
        return len(self.encode(item)) + spare <= self.context

    # Sampling

    def sample(
        self, prompts: Prompts, num_samples: int, generator: torch.Generator, progress: Progress = silent
    ) -> Responses:
        """K i.i.d. responses per prompt. Each prompt has its own random stream: batches and processes don't matter."""
        seeds = torch.randint(2**62, (len(prompts),), generator=generator)
        shape = (num_samples, self.decoding.max_new_tokens)

        def draws(indices: Sequence[int]) -> Tensor:
            streams = [torch.Generator().manual_seed(int(seeds[i])) for i in indices]
            return torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in streams])

        return self._decode(prompts, num_samples, draws, progress)

    def greedy(self, prompts: Prompts, progress: Progress = silent) -> Responses:
        """The argmax word at every step, [P, 1]: not the mode of pi(y|x) in general (Prop. 4.3)."""
        return self._decode(prompts, 1, None, progress)

    def _decode(
        self, prompts: Prompts, k: int, draws: Callable[[Sequence[int]], Tensor] | None, progress: Progress
    ) -> Responses:
        encoded = [self.encode(item) for item in prompts.items]
        width = self.decoding.max_new_tokens
        tokens = torch.zeros(len(prompts), k, width, dtype=torch.int32)
        length = torch.zeros(len(prompts), k, dtype=torch.long)
        finished = torch.zeros(len(prompts), k, dtype=torch.long)
        (batches,) = micro_batches(
            [k * (len(ids) + width) for ids in encoded],
            range(len(prompts)),
            prompts_per_step=len(prompts),
            token_budget=DECODE_BUDGET * self.token_budget,
            rank=self.processes.process_index,
            world=self.processes.num_processes,
        )
        done, total = 0, sum(map(len, batches))
        with self.merged():
            for batch in batches:
                uniform = None if draws is None else draws(batch)
                index = torch.tensor(batch)
                tokens[index], length[index], finished[index] = (
                    part.to(whole.dtype)
                    for part, whole in zip(
                        decode(self.model, [encoded[i] for i in batch], uniform, k, self.decoding),
                        (tokens, length, finished),
                        strict=True,
                    )
                )
                done += len(batch)
                progress(done, total)
        return Responses(self.gather(tokens), self.gather(length), self.gather(finished).bool())

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
        return self._score(groups, entropy if with_entropy else None, progress, token_log_prob)

    def self_certainty(self, prompts: Prompts, responses: Responses) -> Tensor:
        """Mean of KL(U || pi(.|x, y_<i)) along each response [P, K] in nats, U uniform over the vocabulary."""
        return self._score(self.groups(prompts, responses), self_certainty, silent)[1]

    def choice_log_prob(self, items: Sequence[Sequence[PromptItem]], opening: str, choices: Sequence[str]) -> Tensor:
        """log-prob [G, N, C] in nats that a response which begins with `opening` goes on with each choice, written with
        or without a space before it.

        items: G groups of N prompts; what the prompts of a group begin with in common is computed once.
        """
        written = [
            (number, form)
            for number, choice in enumerate(choices)
            for form in dict.fromkeys(tuple(self._tokens(text)) for text in (choice, f" {choice}"))
        ]
        begun = [[self.encode(item) + self._tokens(opening) for item in row] for row in items]
        groups = [_endings(row, [form for _, form in written], self.shared) for row in begun]
        values = self._score(groups, None, silent)[0].view(len(items), -1, len(written))
        kinds = torch.tensor([number for number, _ in written])
        return torch.stack([values[..., kinds == number].logsumexp(-1) for number in range(len(choices))], -1)

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _score(
        self,
        groups: Sequence[Sequence[Tree]],
        statistic: Statistic | None,
        progress: Progress,
        token_log_prob: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Per response of each group, all of one size: log-prob, and mean of the statistic (zeros without one)."""
        shape = (len(groups), sum(len(tree.path) for tree in groups[0]))
        log_prob, mean = torch.zeros(shape), torch.zeros(shape)
        batches = [batch for step in self.steps(groups, range(len(groups))) for batch in step]
        done, total = 0, sum(map(len, batches))
        with torch.no_grad():
            for batch in batches:
                packed = self.pack([groups[i] for i in batch])
                each: list[Tensor] = []
                values, means = response_log_prob(self.model, packed, statistic=statistic, each=each)
                log_prob[batch] = values.view(len(batch), -1).cpu()
                if means is not None:
                    mean[batch] = means.view(len(batch), -1).cpu()
                if token_log_prob is not None:
                    length = torch.bincount(packed.owner, minlength=packed.num_responses).view(len(batch), -1, 1).cpu()
                    part = torch.zeros(len(batch), *token_log_prob.shape[1:])
                    part[torch.arange(part.shape[-1]) < length] = each[0].cpu()
                    token_log_prob[batch] = part
                done += len(batch)
                progress(done, total)
        if token_log_prob is not None:
            token_log_prob.copy_(self.gather(token_log_prob))
        return self.gather(log_prob), self.gather(mean)

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
        encoded = [self.encode(item) for item in prompts.items]
        (batches,) = micro_batches(
            [len(ids) + min(budget, TYPICAL_SEARCH) for ids in encoded],
            range(len(prompts)),
            prompts_per_step=len(prompts),
            token_budget=DECODE_BUDGET * self.token_budget,
        )
        results: dict[int, Found] = {}

        def report(done: int, _: int) -> None:
            progress(len(results) + done, len(prompts))

        with self.merged():
            for batch in batches:
                ids = [encoded[i] for i in batch]
                trees = (
                    CachedTrees(self.model, ids) if self.shared else PlainPrefixes(self.model, ids, self.token_budget)
                )
                found = search.most_probable(
                    trees,
                    [starts[i] for i in batch],
                    ended=self.ended,
                    eos=sorted(self.decoding.eos),
                    max_tokens=self.decoding.max_new_tokens,
                    num_best=num_best,
                    budget=budget,
                    width=width,
                    progress=report,
                )
                results |= zip(batch, found, strict=True)
        return [results[i] for i in range(len(prompts))]

    def ended(self, response: Sequence[int]) -> bool:
        """Does a response end with its last token?"""
        return response[-1] in self.decoding.eos or (bool(self.stop) and self._stopped(response))

    def groups(self, prompts: Prompts, responses: Responses) -> list[list[Tree]]:
        return [layout(self.encode(item), responses.ids(i), self.shared) for i, item in enumerate(prompts.items)]

    def steps(self, groups: Sequence[Sequence[Tree]], order: Sequence[int]) -> list[list[list[int]]]:
        return micro_batches(
            [len(trees) * max(map(len, trees)) for trees in groups],
            order,
            prompts_per_step=self.prompts_per_step,
            token_budget=self.token_budget,
            rank=self.processes.process_index,
            world=self.processes.num_processes,
        )

    def pack(self, groups: Sequence[Sequence[Tree]]) -> Packed:
        return pack([tree for trees in groups for tree in trees], self.shared).to(self.model.device)

    # Text and tables

    def columns(self, responses: Responses) -> dict[str, list[Any]]:
        """Flat columns, prompt by prompt, of what a table keeps of responses."""
        every = range(len(responses.length))
        return {
            "response": [text for row in self.texts(responses) for text in row],
            "tokens": [ids for p in every for ids in responses.ids(p)],
            "finished": responses.finished.flatten().tolist(),
        }

    def responses(self, columns: Mapping[str, Sequence[Any]], num_prompts: int) -> Responses:
        """The inverse of `columns`."""
        rows = columns["tokens"]
        tokens = torch.zeros(len(rows), self.decoding.max_new_tokens, dtype=torch.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids, dtype=torch.int32)
        length = torch.tensor([len(ids) for ids in rows])
        finished = torch.tensor(columns["finished"], dtype=torch.bool)
        k = len(rows) // num_prompts
        return Responses(tokens.view(num_prompts, k, -1), length.view(-1, k), finished.view(-1, k))

    def text(self, ids: Sequence[int]) -> str:
        """Without special tokens, cut before the stop string."""
        whole = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return whole[: min((at for stop in self.stop if (at := whole.find(stop)) >= 0), default=len(whole))]

    def token_ends(self, ids: Sequence[int]) -> list[int]:
        """How far `text(ids)` reaches with each token, in characters; a token that leaves one in pieces adds none."""
        size, ends = len(self.text(ids)), [0]
        for i in range(len(ids)):
            reached = len(self.text(ids[: i + 1]).rstrip("\ufffd"))
            ends.append(max(ends[-1], min(reached, size)))
        return ends[1:]

    def texts(self, responses: Responses) -> list[list[str]]:
        """[P][K]"""
        return [[self.text(ids) for ids in responses.ids(p)] for p in range(len(responses.length))]

    # Weights

    def trainable(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def sharpness(self) -> float:
        """Gain of the final norm, pi_0's being 1: the inverse of the temperature that training gave the logits."""
        return 1.0 if self.gain is None else self.gain.size() / self._initial_gain

    def gather(self, mine: Tensor) -> Tensor:
        """Sum over processes: each filled in its own prompts and left zeros elsewhere."""
        if self.processes.num_processes == 1:
            return mine
        device = self.processes.device
        return cast(Tensor, reduce(mine.to(device), "sum")).to(mine.device)

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Fold LoRA into the weights while decoding, then put the original weights back bit for bit."""
        if self.peft_model is None:
            yield
            return
        layers = [m for m in self.model.modules() if isinstance(m, LoraLayer)]
        # A layer holds one weight, or those of all the experts of a mixture.
        kept = {p: p.data for layer in layers for name, p in layer.named_parameters() if "lora_" not in name}
        try:
            for parameter, original in kept.items():
                parameter.data = original.clone()
            for layer in layers:
                cast(Any, layer).merge()
            yield
        finally:
            for layer in layers:
                layer.merged_adapters.clear()
            for parameter, original in kept.items():
                parameter.data = original

    def keep_initial(self) -> None:
        """Before weights change for the first time: what is trained is kept on the host as it was, for J_0 and for
        `reset`."""
        if self._initial is None:
            self._initial = {k: v.detach().to("cpu", copy=True) for k, v in self.trainable().items()}

    @contextmanager
    def initial(self) -> Iterator[None]:
        """pi_0 in place of pi_t: the adapter switched off, or the kept weights put in."""
        if self.peft_model is not None:
            with self.peft_model.disable_adapter():
                yield
            return
        if self._initial is None:  # nothing has changed yet
            yield
            return
        now = {name: value.detach().clone() for name, value in self.trainable().items()}
        self._put(self._initial)
        try:
            yield
        finally:
            self._put(now)

    def reset(self) -> None:
        """Become pi_0 for good."""
        if self._initial is not None:
            self._put(self._initial)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trainable().items():
                parameter.copy_(values[name])

    def save_weights(self, folder: Path) -> None:
        """The trained weights alone: a peft adapter folder, or a whole model folder."""
        if self.peft_model is not None:
            self.peft_model.peft_config["default"].base_model_name_or_path = self.name
            # False: or peft asks the Hub whether the vocabulary has grown.
            self.peft_model.save_pretrained(str(folder), save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
        else:
            self.save_model(folder)

    def load_weights(self, folder: Path) -> None:
        """Become the policy that `save_weights` left in `folder`."""
        self.keep_initial()
        if self.peft_model is not None:
            state = safetensors.torch.load_file(folder / "adapter_model.safetensors")
            set_peft_model_state_dict(self.peft_model, state)
            return
        saved = type(self.model).from_pretrained(folder, dtype=self.model.dtype, use_safetensors=True)
        self._put(dict(saved.named_parameters()))

    def save_model(self, folder: Path) -> None:
        """A folder for `AutoModelForCausalLM.from_pretrained`: merged weights (bit for bit those that sample here),
        tokenizer, chat template."""
        model, generation = cast(Any, self.model), self.model.generation_config
        model.generation_config = GenerationConfig()  # transformers refuses to save some flags that it has loaded
        try:
            with self.merged():
                state = model.state_dict()
                plain = {
                    k.replace("base_layer.", "").replace("modules_to_save.default.", ""): value
                    for k, value in state.items()
                    if ".lora_" not in k and ".original_module." not in k
                }
                model.save_pretrained(folder, state_dict=plain)
        finally:
            model.generation_config = generation
        if generation is not None:
            generation.to_json_file(folder / "generation_config.json")
        self.tokenizer.save_pretrained(folder)


def _endings(prompts: Sequence[list[int]], endings: Sequence[Sequence[int]], shared: bool) -> list[Tree]:
    """Every ending behind every prompt, as the trees of one group in which the endings alone are scored."""
    first, last = min(prompts), max(prompts)
    common = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    if shared and common:
        tree = build_tree(first[:common], [[*ids[common:], *ending] for ids in prompts for ending in endings])
        sizes = [len(ending) for _ in prompts for ending in endings]
        return [replace(tree, path=[edges[-n:] for edges, n in zip(tree.path, sizes, strict=True)])]
    trees = [build_tree(ids, endings) for ids in prompts]
    if shared or all(tree.parent == list(range(-1, len(tree) - 1)) for tree in trees):  # a chain is a plain row
        return trees
    return [tree for ids in prompts for tree in layout(ids, endings, shared)]
