"""How often a model is right, sampled and greedy. The only reader of answers, beside the control `oracle`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from srlm import tasks
from srlm.answers import Match, auto, match_rule
from srlm.config import SelfRewardConfig
from srlm.console import Display
from srlm.errors import UserError
from srlm.loop import round_generator
from srlm.measure import accuracy_record, calibration_record
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.responses import Responses
from srlm.prompts.select import PromptSet
from srlm.prompts.sources import prompts_of
from srlm.run.files import check_new_file, write_atomically
from srlm.types import Record


def check_answers(labelled: PromptSet, match: Match) -> None:
    """Let a broken pattern or user function show before any sampling."""
    if tasks.is_task(labelled.source) and match is not auto:
        raise UserError(f"--match was given, but {labelled.source} judges its answers itself; leave --match out")
    for answers in labelled.answers or ():
        match("", answers)


def accuracy(
    policy: TransformerPolicy,
    answers: Sequence[Sequence[str]],
    match: Match,
    sampled: Responses,
    greedy: Responses,
    reward: Tensor | None = None,
) -> Record:
    """Accuracy of samples [P, K] and of greedy decoding [P, 1], with 95 % intervals; of a reward [P, K] of the samples,
    how well it tells right from wrong."""

    def right(responses: Responses) -> Tensor:
        texts = policy.texts(responses)
        return torch.tensor([[match(text, a) for text in row] for row, a in zip(texts, answers, strict=True)])

    flags = right(sampled)
    record = accuracy_record(flags, right(greedy)[:, 0])
    return record if reward is None else record | calibration_record(reward, flags)


def evaluate(
    model: str,
    prompts: str | Path | PromptSet,
    *,
    num_samples: int = 8,
    max_new_tokens: int = 64,
    max_prompts: int | None = None,
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    match: str = "auto",
    stop: Sequence[str] = (),
    raw_prompts: bool = False,
    dtype: str = "auto",
    token_budget: int = 2048,
    trust_remote_code: bool = False,
    adapter: str = "auto",
    seed: int = 0,
    output: str | None = None,
    display: Display | None = None,
) -> Record:
    """Sampled and greedy accuracy of a model on labelled prompts; the same numbers a run records at round t = 0.

    Raises:
        UserError: prompts without answers; `output` exists or cannot be written.
    """
    display = display or Display()
    config = SelfRewardConfig(  # refuses the values that training refuses
        max_new_tokens=max_new_tokens,
        stop=tuple(stop),
        dtype=dtype,
        token_budget=token_budget,
        seed=seed,
        prompt_column=prompt_column,
        answer_column=answer_column,
        adapter=adapter,
    )
    if output is not None:
        check_new_file(Path(output))
    labelled = prompts_of(prompts, config)
    labelled = labelled.take(max_prompts, seed)
    if labelled.answers is None:
        raise UserError(
            f"{labelled.source} has no answers, which evaluation needs: name their column with --answer-column, or add "
            "one"
        )
    if num_samples < 1:
        raise UserError(f"--num-samples is {num_samples}, expected at least 1: correct it")
    rule = match_rule(match)
    check_answers(labelled, rule)
    policy = TransformerPolicy.load(
        model,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        adapter=adapter,
        lora_rank=0,
        max_new_tokens=max_new_tokens,
        stop=stop,
        raw_prompts=raw_prompts,
        token_budget=token_budget,
    )
    policy.check_prompts(labelled.prompts, num_samples)
    draw = partial(policy.sample, labelled.prompts, num_samples, held_out_generator(seed, 0))
    with display.stage("sampled") as report:
        sampled = draw(progress=report)
    with display.stage("greedy") as report:
        greedy = policy.greedy(labelled.prompts, report)
    record = accuracy(policy, labelled.answers, rule, sampled, greedy)
    for kind in ("sampled", "greedy"):
        mean, low, high = (record[f"accuracy_{kind}{end}"] for end in ("", "_low", "_high"))
        display.say(f"accuracy {kind:<8} {mean:.3f}  [{low:.3f}, {high:.3f}]  on {len(labelled.prompts)} prompts")
    if output is not None:
        text = json.dumps(record | {"model": model, "prompts": labelled.source, "match": match, "seed": seed}, indent=2)
        write_atomically(Path(output), lambda p: p.write_text(text + "\n", encoding="utf-8"))
    return record


def held_out_generator(seed: int, round: int) -> torch.Generator:
    """Held-out draws never meet the training draws of any round."""
    return round_generator(seed + 1_000_003, round)
