"""What a run will cost, before it is begun: memory by part, and FLOPs, bytes, tokens and seconds by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from srlm.config import SelfRewardConfig
from srlm.errors import UserError
from srlm.estimate.advice import remedies
from srlm.estimate.memory import automatic, memory
from srlm.estimate.rates import Rates
from srlm.estimate.result import USABLE, Estimate
from srlm.estimate.stages import stages
from srlm.estimate.workload import Workload, Writing, evenly
from srlm.policies.transformer.limits import ON_CPU
from srlm.policies.transformer.shape import Shape
from srlm.writing.settings import ATTEMPTS

__all__ = ["Estimate", "Rates", "Workload", "Writing", "estimate", "workload"]


def workload(
    config: SelfRewardConfig,
    prompts: Sequence[int],
    held_out: Sequence[int],
    *,
    expected: float | None = None,
    devices: int = 1,
    shard: str = "none",
    votes: int = 0,
    weighed: bool = False,
    writing: Writing | None = None,
    uncounted: Sequence[str] = (),
) -> Workload:
    """Of a run with these settings. prompts, held_out: tokens of each. weighed: are votes scored? writing: of prompts,
    if there is any. uncounted: what else costs time, in words."""
    number = config.prompts_per_round
    chosen = list(prompts) if number is None or number >= len(prompts) else evenly(prompts, number)
    written = evenly(prompts, config.written_prompts) if prompts else []  # as long as those from which they are written
    return Workload(
        prompts=(*chosen, *written),
        held_out=tuple(held_out),
        samples=config.num_samples,
        held_samples=config.held_out_samples,
        longest=config.max_new_tokens,
        expected=expected,
        votes=votes,
        epochs=config.epochs,
        step=config.prompts_per_step,
        budget=config.token_budget if isinstance(config.token_budget, int) else 0,
        rounds=config.rounds,
        recompute=config.gradient_checkpointing,
        built_in=config.engine == "builtin",
        devices=devices,
        shard=shard,
        writing=writing,
        weighed=weighed,
        uncounted=tuple(uncounted),
    )


def estimate(
    shape: Shape,
    work: Workload,
    rates: Rates | None,
    *,
    device: str,
    cpu: bool,
    room: float | None,
    with_lora: Callable[[int], Shape] | None = None,
) -> Estimate:
    """
    Args:
        rates: None if nothing is known; seconds are then left out.
        room: bytes of a device, if they are known.
        with_lora: the shape with an adapter of some rank.

    Raises:
        UserError: the work has no prompts.
    """
    if not work.prompts:
        raise UserError("there are no prompts to train on, expected at least one: name a file with more")
    assumed = []
    if not work.budget:
        budget = automatic(shape, work, room, cpu=cpu)
        known = cpu or room is not None
        assumed.append(
            f"token budget {budget}, as --token-budget auto would take it"
            if known
            else f"token budget {ON_CPU}: what auto takes depends on the device's memory (--memory)"
        )
        work = replace(work, budget=budget)
    assumed.append(
        f"every response has {work.longest} tokens, the most (--expected-length says otherwise)"
        if work.expected is None
        else f"responses have {work.expected:g} tokens on average, {work.longest} at most"
    )
    if shape.guessed:
        assumed.append("what a backward pass keeps is guessed, by the width of the model: its layers cannot be tried")
    if work.writing is not None:
        assumed.append(
            f"written prompts have {work.writing.mean:.3g} tokens, as their examples do, and none is dropped (up to "
            f"{ATTEMPTS} times as many are written otherwise)"
        )
    if rates is not None:
        assumed.append(f"rates: {rates.source}")
        if shape.packed and rates.unpack is None:
            bits = shape.quantize
            assumed.append(f"unpacking {bits} layers is counted by its bytes, its time is not known (--measure)")
        if work.devices > 1 and rates.link is None:
            assumed.append("the time of talking between devices is unknown and not counted (--link)")
    if not work.built_in:
        assumed.append("an engine of its own draws the responses: its time and its memory are not counted")
    elif work.devices > 1 and work.shard != "none":
        assumed.append("each device holds all of the weights while it draws (an engine of its own would spare that)")
    assumed += [f"not counted: {what}" for what in work.uncounted]
    found = memory(shape, work, cpu=cpu)
    made = (
        []
        if room is None
        else remedies(shape, work, USABLE * room, cpu=cpu, with_lora=with_lora or (lambda rank: shape))
    )
    first, later = (stages(shape, work, rates, later=later, cpu=cpu) for later in (False, True))
    last = [stage for stage in later if stage.name != "update"]
    return Estimate(shape, work, rates, device, cpu, found, room, made, first, later, last, assumed)
