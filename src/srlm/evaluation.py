"""How often a model is right: sampled, greedy, pass@k and maj@k. The only reader of answers, beside the control
`oracle`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from srlm import tasks
from srlm.answers import Match, answer_classes, auto, match_rule
from srlm.answers.math import given_up
from srlm.config import SelfRewardConfig
from srlm.console import Display
from srlm.errors import UserError
from srlm.loop import round_generator
from srlm.measure import accuracy_record, agreement_record, at_k_record, subset_sizes
from srlm.policies.transformer.load.kept import Loaded, model_name
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.responses import Responses
from srlm.policies.transformer.settings import strings
from srlm.prompts.given import Given
from srlm.prompts.presets import settled
from srlm.prompts.select import PromptSet, said_of_copies
from srlm.prompts.sources import prompts_of
from srlm.rewards._needs import each_answer
from srlm.rewards.majority import answers_given
from srlm.run.files import check_new_file, write_atomically
from srlm.starting import policy_asked
from srlm.types import Record


def check_answers(labelled: PromptSet, match: Match) -> None:
    """Let a broken pattern or user function show before any sampling."""
    if tasks.is_task(labelled.source) and match is not auto:
        raise UserError(f"--match was given, but {labelled.source} judges its answers itself; leave --match out")
    for answers in labelled.answers or ():
        match("", answers)


def right_or_wrong(
    policy: TransformerPolicy, responses: Responses, answers: Sequence[Sequence[str]], match: Match
) -> Tensor:
    """[P, K] bool."""
    texts = each_answer(policy, responses)
    return torch.tensor([[match(text, a) for text in row] for row, a in zip(texts, answers, strict=True)])


def evaluate(
    model: str | Path | Loaded,
    prompts: str | Path | PromptSet | Given,
    *,
    num_samples: int = 8,
    max_new_tokens: int = 64,
    max_prompts: int | None = None,
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    split: str | None = None,
    dataset_config: str | None = None,
    system_prompt: str | None = None,
    instruction: str | None = None,
    overlong: str = "refuse",
    match: str = "auto",
    answers: str = "auto",
    stop: str | Sequence[str] = (),
    raw_prompts: bool = False,
    chat_template_kwargs: Sequence[str] = (),
    dtype: str = "auto",
    quantize: str = "none",
    token_budget: int | Literal["auto"] = "auto",
    trust_remote_code: bool = False,
    adapter: str = "auto",
    seed: int = 0,
    output: str | None = None,
    display: Display | None = None,
) -> Record:
    """Sampled and greedy accuracy, pass@k, maj@k and agreement of a model on labelled prompts; the same numbers a run
    records at round t = 0.

    model, prompts: as for `SelfRewardTrainer`. num_samples: K. answers: answer classes, see
        `srlm.answers.answer_classes`; maj@k is a vote among them.

    Raises:
        UserError: prompts without answers; `output` exists or cannot be written.
    """
    display = display or Display()
    config = SelfRewardConfig(  # refuses the values that training refuses
        max_new_tokens=max_new_tokens,
        stop=strings(stop),
        dtype=dtype,
        quantize=quantize,
        token_budget=token_budget,
        trust_remote_code=trust_remote_code,
        seed=seed,
        prompt_column=prompt_column,
        answer_column=answer_column,
        split=split,
        dataset_config=dataset_config,
        system_prompt=system_prompt,
        instruction=instruction,
        overlong=overlong,
        raw_prompts=raw_prompts,
        chat_template_kwargs=tuple(chat_template_kwargs),
        match=match,
        answers=answers,
        adapter=adapter,
    )
    if output is not None:
        check_new_file(Path(output))
    labelled = prompts_of(prompts, config)
    if labelled.note:
        display.say(labelled.note)
    labelled = labelled.take(max_prompts, seed)
    if labelled.answers is None:
        raise UserError(
            f"{labelled.source} has no answers, which evaluation needs: name their column with --answer-column, or add "
            "one"
        )
    if num_samples < 1:
        raise UserError(f"--num-samples is {num_samples}, expected at least 1: correct it")
    config = settled(config, labelled.source, None)
    rule, classes = match_rule(config.match), answer_classes(config.answers)
    check_answers(labelled, rule)
    called = model_name(model)
    policy, _ = policy_asked(called, config)
    labelled = fitting(policy, labelled, config.overlong, display)
    assert labelled.answers is not None
    policy.check_prompts(labelled.prompts, num_samples)
    draw = partial(policy.sample, labelled.prompts, num_samples, held_out_generator(seed, 0))
    with display.stage("sampled") as report:
        sampled = draw(progress=report)
    with display.stage("greedy") as report:
        greedy = policy.greedy(labelled.prompts, report)
    right, greedy_right = (right_or_wrong(policy, r, labelled.answers, rule) for r in (sampled, greedy))
    given = answers_given(policy, sampled, classes)
    record = accuracy_record(right, greedy_right[:, 0]) | at_k_record(right, given) | agreement_record(given)
    _show(record, len(labelled.prompts), num_samples, display)
    if labelled.copies:
        display.say(said_of_copies(labelled.copies, len(labelled.prompts)))
    if said := given_up():
        display.say(said)
    if output is not None:
        asked = {"model": called, "prompts": labelled.source, "seed": seed}
        asked |= {"match": config.match, "answers": config.answers}
        text = json.dumps(record | asked, indent=2)
        write_atomically(Path(output), lambda p: p.write_text(text + "\n", encoding="utf-8"))
    return record


def fitting(policy: TransformerPolicy, prompts: PromptSet, overlong: str, display: Display) -> PromptSet:
    """The prompts, or, if told to skip others, those that leave a response room in the context; says how many are left
    out.

    Raises:
        UserError: none is left.
    """
    skipped = policy.overlong(prompts.prompts) if overlong == "skip" else []
    if skipped:
        display.say(f"{len(skipped)} of {len(prompts.prompts)} prompts of {prompts.source} are too long: skipped")
    return prompts.leave_out(skipped) if skipped else prompts


def _show(record: Record, prompts: int, num_samples: int, display: Display) -> None:
    def with_interval(key: str) -> str:
        return "{:.3f}  [{:.3f}, {:.3f}]".format(*(record[key + end] for end in ("", "_low", "_high")))

    for kind in ("sampled", "greedy"):
        display.say(f"accuracy {kind:<8} {with_interval(f'accuracy_{kind}')}  on {prompts} prompts")
    for k in subset_sizes(num_samples):
        both = (f"{f'{kind}@{k}':<9}{with_interval(f'{kind}_at_{k}')}" for kind in ("pass", "maj"))
        display.say("   ".join(both))
    display.say(f"all {num_samples} samples give one answer on {record['unanimous']:.3f} of the prompts")


def held_out_generator(seed: int, round: int) -> torch.Generator:
    """Held-out draws never meet the training draws of any round."""
    return round_generator(seed + 1_000_003, round)
