"""What a run will cost, of its settings and a model that need not be loaded; and of one that is."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from srlm.config import SelfRewardConfig
from srlm.errors import UserError
from srlm.estimate import Estimate, estimate, workload
from srlm.estimate.decoding import decoded, shares_prompts
from srlm.estimate.measured import of_pace
from srlm.estimate.rates import ACCELERATORS, Rates, given, of_accelerator, recognised
from srlm.estimate.settings import Asked
from srlm.estimate.workload import Workload, Writing, laid_out
from srlm.policies.transformer import anatomy
from srlm.policies.transformer.load.hub import resolve_dtype
from srlm.policies.transformer.log_prob import UNFIT
from srlm.policies.transformer.pace import pace, quick
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.recompute import recomputes
from srlm.policies.transformer.shape import Shape
from srlm.prompts.select import MOST_HELD_OUT
from srlm.rewards.table import asks_model, votes, weighs_votes
from srlm.starting import beginning
from srlm.training.parts import prompt_sets
from srlm.training.writing import pool_of
from srlm.types import PromptItem
from srlm.writing.settings import at_once
from srlm.writing.write import Pool, asking

QUICK = {"forward": 0.6, "learn": 0.5, "head": 0.3, "decode": 0.3, "streamed": 0.5}
"""Of a square matrix product's FLOP/s, and of a copy's bytes/s: assumed where the work itself is not measured."""


def estimated(
    model: str, config: SelfRewardConfig, prompts: str | None, held_out: str | None, asked: Asked
) -> Estimate:
    """
    Raises:
        UserError: the model, the prompts or what is asked are not what they should be.
    """
    name, _, _ = beginning(model)
    train, held, writing = _lengths(name, config, prompts, held_out, asked)
    shape = _shape(name, config, config.lora_rank)
    work = workload(
        config,
        train,
        held,
        expected=asked.expected_length,
        devices=asked.devices,
        shard=asked.shard,
        votes=_votes(config),
        weighed=weighs_votes(config.reward),
        writing=writing,
        uncounted=_uncounted(config),
    )
    device = _device()
    return on(shape, work, config, asked, device=device, model=name)


def on(
    shape: Shape,
    work: Workload,
    config: SelfRewardConfig,
    asked: Asked,
    *,
    device: torch.device,
    model: str | None = None,
) -> Estimate:
    """On the device that is asked for, or on `device`. model: is read again for a shape with an adapter."""
    cpu, called, room = device.type == "cpu", _called(device), _room(device)
    if asked.accelerator is not None:
        rates: Rates | None = of_accelerator(asked.accelerator, shape.dtype, asked.devices)
        sheet = ACCELERATORS[asked.accelerator]
        cpu, called, room = False, sheet.name, sheet.memory
    elif asked.flops is not None and asked.bandwidth is not None:
        rates, called = None, "a device of these rates"
    elif asked.measure:
        rates = None
    else:
        rates = usual(device, shape.dtype, asked.devices)
    if asked.flops is not None or asked.bandwidth is not None or (asked.link is not None and rates is not None):
        rates = given(rates, flops=asked.flops, bandwidth=asked.bandwidth, link=asked.link)
    room = asked.memory if asked.memory is not None else room

    def with_lora(rank: int) -> Shape:
        return shape if model is None else _shape(model, config, rank)

    typed = [name for name in ("flops", "bandwidth", "memory") if getattr(asked, name) is not None]

    def made(rates: Rates | None) -> Estimate:
        found = estimate(shape, work, rates, device=called, cpu=cpu, room=room, with_lora=with_lora)
        if typed and asked.accelerator is None:
            kind, other = ("a processor", "an accelerator is named") if cpu else ("an accelerator", "another is named")
            names = ", ".join(f"--{name}" for name in typed)
            found.assumed.append(f"{names}: of {kind}, which is what is here ({other} with --accelerator)")
        return found

    first = made(rates)
    if not asked.measure or model is None:
        return first
    return made(_measured(shape, first.work, config, model, device, asked.link))


def _measured(
    shape: Shape, work: Workload, config: SelfRewardConfig, model: str, device: torch.device, link: float | None
) -> Rates:
    """
    Raises:
        UserError: the model has no layers that could be left out, or some of them do not fit, or cannot be packed.
    """
    batches = laid_out(work.prompts, work.samples, work, shape).batches
    typical = sorted(batches, key=lambda b: b.padded)[len(batches) // 2]
    cpu = device.type == "cpu"
    shared = shares_prompts(shape, cpu=cpu)
    drawn = decoded(work.prompts, work.samples, work, cpu=cpu, shared=shared, vocabulary=shape.vocabulary)
    try:
        found = pace(
            anatomy.config_of(model, adapter=config.adapter, trust_remote_code=config.trust_remote_code),
            shape,
            device,
            rank=config.lora_rank,
            rows=typical.rows,
            tokens=typical.tokens,
            edges=typical.edges,
            masked=typical.masked,
            decoded=drawn.rows,
            cached=drawn.seen,
            said=max(0, drawn.seen - round(statistics.fmean(work.prompts))),
            unequal=len(set(work.prompts)) > 1,
            trust_remote_code=config.trust_remote_code,
        )
    except UserError:
        raise
    except UNFIT as error:
        raise UserError(
            f"--measure could not time some layers of {shape.name} here ({type(error).__name__}), expected a model of "
            "like layers that fit: leave it out, or give --flops and --bandwidth"
        ) from error
    return of_pace(found, shape, drawn.seen, cpu=cpu, link=link)


def writing_of(
    config: SelfRewardConfig, pool: Pool, tokens: Callable[[Sequence[PromptItem]], Sequence[int]]
) -> Writing:
    """Of prompts, from examples of the pool; what is written is as long as they are. tokens: of prompts."""
    examples = config.written_examples
    chosen = [pool.draw(examples, config.seed, 0, draw) for draw in range(at_once(config.written_prompts))]
    item, openings = asking([[""] * examples, *([pool.texts[place] for place in places] for places in chosen)])
    bare, *asked = tokens([item + opening for opening in openings])
    each = statistics.fmean(size - bare for size in asked) / examples + 1  # and what ends it
    return Writing.of(config.written_prompts, asked, each, config.written_tokens)


def foreseen(
    name: str,
    policy: TransformerPolicy,
    config: SelfRewardConfig,
    prompts: Sequence[int],
    held_out: Sequence[int],
    pool: Pool | None = None,
) -> Estimate | None:
    """Of a policy that is loaded, in a fraction of a second; None if it cannot be told. pool: of examples from which it
    writes prompts."""
    model, together, passing = policy.model, policy.processes, policy.encode.passing
    try:
        shape = anatomy.shape_of(name, model, trees=policy.shared, quantize=policy.quantised)
        settled = dataclasses.replace(config, token_budget=policy.room.tokens, gradient_checkpointing=recomputes(model))
        shards = policy.scorer.shards
        work = workload(
            settled,
            prompts,
            held_out,
            devices=together.num_processes,
            shard="none" if shards is None else "fsdp" if shards.reshard else "zero2",
            votes=_votes(config),
            weighed=weighs_votes(config.reward),
            writing=None if pool is None else writing_of(config, pool, lambda some: [len(passing(i)) for i in some]),
            uncounted=_uncounted(config),
        )
        rates = usual(model.device, shape.dtype, together.num_processes)
        return estimate(
            *(shape, work, rates),
            device=_called(model.device),
            cpu=model.device.type == "cpu",
            room=_room(model.device),
        )
    except (*UNFIT, ArithmeticError, MemoryError):
        return None


@cache
def usual(device: torch.device, dtype: str, devices: int = 1) -> Rates:
    """Of a device that is known by name, by its data sheet; of another by what a large matrix product and a copy take,
    in a fraction of a second."""
    if device.type == "cuda" and (name := recognised(_called(device))) is not None:
        return of_accelerator(name, dtype, devices)
    flops, bandwidth = quick(device, resolve_dtype(dtype))
    streamed = QUICK["streamed"] * bandwidth
    return Rates(
        forward=QUICK["forward"] * flops,
        learn=QUICK["learn"] * flops,
        head=QUICK["head"] * flops,
        head_learn=QUICK["head"] * flops,
        decode=QUICK["decode"] * flops,
        weights=streamed,
        cache=streamed,
        bandwidth=bandwidth,
        link=None,
        source=f"shares that are usual of the {flops / 1e9:.3g} GFLOP/s and {bandwidth / 1e9:.3g} GB/s found here",
    )


def _lengths(
    name: str, config: SelfRewardConfig, prompts: str | None, held_out: str | None, asked: Asked
) -> tuple[list[int], list[int], Writing | None]:
    number = config.written_prompts
    if asked.num_prompts is not None:
        if prompts or held_out:
            raise UserError(
                f"--num-prompts is {asked.num_prompts} beside --prompts or --held-out, expected one of the two: leave "
                "one out"
            )
        held = min(MOST_HELD_OUT, int(config.held_out_share * asked.num_prompts))
        held = min(held, config.max_held_out or held)
        each = asked.prompt_length
        writing = Writing.of(number, [config.written_examples * each], each, config.written_tokens) if number else None
        return [each] * asked.num_prompts, [each] * held, writing
    if not prompts:
        raise UserError("no prompts were given: name a file or dataset with --prompts, or how many with --num-prompts")
    train, held_set = prompt_sets(prompts, held_out, config)

    def read(items: Sequence[PromptItem]) -> list[int]:
        return anatomy.prompt_lengths(
            name,
            items,
            adapter=config.adapter,
            raw_prompts=config.raw_prompts,
            chat_template_kwargs=config.chat_template_kwargs,
            trust_remote_code=config.trust_remote_code,
        )

    pool = pool_of(config, train) if number else None
    writing = None if pool is None else writing_of(config, pool, read)
    return read(train.prompts.items), [] if held_set is None else read(held_set.prompts.items), writing


def _shape(name: str, config: SelfRewardConfig, rank: int) -> Shape:
    model = anatomy.unloaded(
        name,
        dtype=config.dtype,
        adapter=config.adapter,
        rank=rank,
        alpha=config.lora_alpha,
        trust_remote_code=config.trust_remote_code,
    )
    return anatomy.shape_of(
        name, model, gain=config.gain_learning_rate > 0, quantize=config.quantize if rank else "none"
    )


def _votes(config: SelfRewardConfig) -> int:
    """Drawn beside the responses that are learned from."""
    if not (votes(config.reward) or config.consistency_band is not None):
        return 0
    return (config.votes or config.num_samples) - (0 if config.teacher != "live" else config.num_samples)


def _uncounted(config: SelfRewardConfig) -> list[str]:
    found = []
    if asks_model(config.reward):
        found.append(f"what --reward {config.reward} asks of the model beside log-probs")
    if config.kl_initial:
        found.append("log-probs under the untouched model (--kl-initial)")
    return found


def _device() -> torch.device:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")  # type: ignore[return-value]


def _called(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of this processor" if device.type == "cpu" else device.type


def _room(device: torch.device) -> float | None:
    """Bytes of memory, used or not, as far as this process may use them."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu":
        return None
    try:
        whole = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return min(whole, float(limit)) if limit != "max" else whole
    except (OSError, ValueError):
        return whole if "whole" in locals() else None
