"""(a) One epoch of updates: srlm's `fit` against TRL's `DPOTrainer`, LoRA r=16 on all linear layers, same sequences."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
import trl.trainer.utils
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.epoch import RATE, Parts, ours
from benchmarks.timing import interleave, now, paragraph, ratios, say, spread, table
from benchmarks.workload import Data, Sizes, load_prompts, sampled, scrambled
from srlm.policies.transformer.load.hub import load_model
from srlm.policies.transformer.policy import TransformerPolicy


class GivenTokens(DPOTrainer):
    """Trains on token ids as they are: re-reading sampled text could cut it into other tokens."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def pairs(policy: TransformerPolicy, data: Data) -> tuple[Dataset, Tensor]:
    """K/2 disjoint pairs a prompt: every response once, the better half as chosen. Sorted by length: least padding.

    Also srlm's own log-probs of chosen and rejected [N, 2], to check that both packages score the same thing.
    """
    log_prob = policy.log_prob(data.prompts, data.responses)
    order = log_prob.argsort(-1, descending=True).tolist()
    rows = []
    for i, (prompt, responses) in enumerate(data.sequences(policy)):
        half = len(responses) // 2
        for chosen, rejected in zip(order[i][:half], order[i][half:], strict=True):
            ids = {"prompt_ids": prompt, "chosen_ids": responses[chosen], "rejected_ids": responses[rejected]}
            rows.append((len(prompt) + max(len(responses[chosen]), len(responses[rejected])), i, chosen, rejected, ids))
    rows.sort(key=lambda row: row[0])
    mine = torch.stack([log_prob[i, [chosen, rejected]] for _, i, chosen, rejected, _ in rows])
    return Dataset.from_list([row[-1] for row in rows]), mine


@contextlib.contextmanager
def compact_head(active: bool) -> Iterator[None]:
    """TRL scores the head at response positions on CUDA, but at every position on a CPU. Make the CPU do as CUDA."""
    if not active:
        yield
        return
    with mock.patch.object(trl.trainer.utils, "_use_triton", lambda device: True):
        yield


def dpo_trainer(
    model: PreTrainedModel, tokenizer: Any, dataset: Dataset, sizes: Sizes, *, precompute: bool = False
) -> DPOTrainer:
    """TRL at its best here: no recomputed activations, adapters in the model's dtype instead of autocast, pairs sorted
    by length; as many sequences per optimiser step as srlm."""
    torch.manual_seed(0)  # the same adapter each time, so that TRL finds the reference log-probs it kept
    steps = max(1, sizes.prompts_per_step * sizes.k // 2 // sizes.trl_pairs)
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=sizes.trl_pairs,
            gradient_accumulation_steps=steps,
            learning_rate=RATE,
            gradient_checkpointing=False,
            bf16=False,
            precompute_ref_log_probs=precompute,
            train_sampling_strategy="sequential",
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=model.device.type != "cpu",
            max_length=None,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = GivenTokens(
            model=copy.deepcopy(model),
            args=config,
            train_dataset=dataset,
            processing_class=copy.deepcopy(tokenizer),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        )
    trainer.remove_callback(PrinterCallback)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(model.dtype)
    return trainer


def theirs(make: Callable[..., DPOTrainer], *, precompute: bool = False, compact: bool = False) -> Parts:
    """`train()`; with `precompute` the reference pass is done before the clock starts. Building is never timed."""
    with compact_head(compact):
        trainer = make(precompute=precompute)
        gc.collect()
        start = now()
        trainer.train()
        return Parts(0.0, now() - start)


def disagreement(trainer: DPOTrainer, mine: Tensor) -> float:
    """Largest difference of the two packages' reference log-probs, nats per response."""
    columns = [torch.tensor(trainer.train_dataset[f"ref_{side}_logps"]) for side in ("chosen", "rejected")]
    return float((torch.stack(columns, -1) - mine).abs().max())


def quiet() -> None:
    disable_progress_bars()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def describe(policy: TransformerPolicy, data: Data) -> tuple[str, ...]:
    """Row of the workload table."""
    sequences = data.sequences(policy)
    prompt = sum(len(p) for p, _ in sequences) / len(sequences)
    response = data.responses.length.float().mean().item()
    rows = sum(len(p) + len(y) for p, responses in sequences for y in responses)
    groups = policy.groups(data.prompts, data.responses)
    flat = sum(len(p) + sum(map(len, responses)) for p, responses in sequences)
    nodes = sum(sum(policy.scorer.plan(group).nodes) for group in groups)
    return (f"{prompt:.0f}", f"{response:.1f}", f"{prompt / response:.1f}", str(rows), str(flat), str(nodes))


def run(policy: TransformerPolicy, model: str, dtype: str, sizes: Sizes) -> str:
    quiet()
    device = policy.model.device
    real = sampled(policy, load_prompts(policy, sizes), sizes)
    noise = scrambled(policy, real)
    plain, tokenizer = load_model(model, dtype=dtype)
    plain.to(device)
    dataset, mine = pairs(policy, real)
    make = partial(dpo_trainer, plain, tokenizer, dataset, sizes)
    apart = disagreement(make(precompute=True), mine)

    say("  warming up")
    few = real.head(2)
    ours(policy, few)
    ours(policy, few, shared=False)
    theirs(partial(dpo_trainer, plain, tokenizer, pairs(policy, few)[0], sizes))
    arms: dict[str, Callable[[], Parts]] = {
        "srlm": lambda: ours(policy, real),
        "TRL": lambda: theirs(make),
        "srlm, plain rows": lambda: ours(policy, real, shared=False),
        "TRL, reference precomputed": lambda: theirs(make, precompute=True),
        "srlm, random words": lambda: ours(policy, noise),
        "srlm, plain rows, random words": lambda: ours(policy, noise, shared=False),
    }
    if device.type == "cpu":
        arms["TRL, compact head"] = lambda: theirs(make, compact=True)
        arms["TRL, compact head, reference precomputed"] = lambda: theirs(make, precompute=True, compact=True)
    got = interleave(arms, sizes.rounds)
    return _report(policy, got, (real, noise), apart, sizes)


def _report(
    policy: TransformerPolicy, got: dict[str, list[Parts]], data: tuple[Data, Data], apart: float, sizes: Sizes
) -> str:
    rows: list[tuple[str, str]] = []

    def compare(text: str, above: list[float], below: list[float]) -> None:
        rows.append((text, f"**{spread(ratios(above, below))}**"))

    def seconds(name: str, part: str) -> list[float]:
        return [getattr(parts, part) for parts in got[name]]

    mine = {part: seconds("srlm", part) for part in ("whole", "fit", "epoch")}
    three = [parts.reference + 3 * parts.epoch + parts.closing for parts in got["srlm"]]
    for name in [name for name in ("TRL", "TRL, compact head") if name in got]:
        inline, given = seconds(name, "epoch"), seconds(f"{name}, reference precomputed", "epoch")
        compare(f"{name} ÷ srlm, each with its reference pass", inline, mine["whole"])
        compare(f"{name} ÷ srlm, reference log-probs given to both", given, mine["fit"])
        compare(f"{name} ÷ srlm, the same without the scoring pass that ends `fit`", given, mine["epoch"])
        compare(
            f"{name} ÷ srlm, a round of 3 epochs with its reference pass (computed from these times)",
            [first + 2 * later for first, later in zip(inline, given, strict=True)],
            three,
        )
    noise, noise_rows = (seconds(f"{name}, random words", "whole") for name in ("srlm", "srlm, plain rows"))
    compare(
        "TRL ÷ srlm on random words of the same lengths, each with its reference pass", seconds("TRL", "epoch"), noise
    )
    compare("packing alone: srlm plain rows ÷ srlm, both on random words", noise_rows, noise)
    compare("packing and prefix tree: srlm plain rows ÷ srlm", seconds("srlm, plain rows", "whole"), mine["whole"])
    compare("the rest: TRL ÷ srlm plain rows", seconds("TRL", "whole"), seconds("srlm, plain rows", "whole"))

    times = []
    for name in got:
        cells = [seconds(name, part) for part in ("reference", "epoch", "closing")]
        times.append((name, *(spread(cell, 1) if any(cell) else "–" for cell in cells)))
    names = ("sampled by the model", "random words")
    head = ("responses", "prompt", "response", "ratio", "all rows", "packed", "prefix tree")
    workload = table(head, [(name, *describe(policy, each)) for name, each in zip(names, data, strict=True)])
    setting = paragraph(
        f"{sizes.prompts} prompts × {sizes.k} responses, {sizes.prompts_per_step} prompts per optimiser step in both.",
        f"LoRA r=16 on all linear layers, {str(policy.model.dtype)[6:]}, one epoch. srlm fits all",
        f"{sizes.k * (sizes.k - 1) // 2} pairs of a prompt; TRL is given {sizes.k // 2} disjoint pairs, the cheapest",
        "way to show it every sequence once. Mean tokens of a prompt and of a response, and tokens in all as separate",
        "rows, with one prompt per group, and as the prefix tree that srlm forwards:",
    )
    notes = [
        "TRL's setting: reference = adapter switched off, inside `train()`; or precomputed, before the clock starts.",
        "Gradient checkpointing off; adapter weights in the model's dtype, no autocast; micro-batches of",
        f"{sizes.trl_pairs} pairs, sorted by length; building the trainer is not timed.",
    ]
    if "TRL, compact head" in got:
        notes += [
            "On a CPU, TRL multiplies prompt positions by the vocabulary too; *compact head* is TRL patched to score",
            "response positions only, as it does on CUDA.",
        ]
    notes += [
        f"The packages' reference log-probs differ by at most {apart:.2f} nats per response (rounding of the dtype):",
        "they score the same sequences. srlm's reference pass is the reward of the round too, and its closing pass",
        "feeds the round's record; TRL has neither.",
    ]
    return f"""## (a) An update epoch against TRL's DPOTrainer

{setting}

{workload}

{table(("ratio", f"median (least–most) of {sizes.rounds} interleaved pairs"), rows)}

{table(("seconds", "reference pass", "epoch (TRL: `train()`)", "closing pass"), times)}

{paragraph(*notes)}
"""
