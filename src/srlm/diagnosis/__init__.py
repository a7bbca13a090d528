"""`srlm diagnose`: how far a model's responses to some prompts can be sharpened, and whether that would help, measured
before any training."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Literal

from srlm.answers import answer_classes, match_rule
from srlm.answers.math import given_up
from srlm.console import Display
from srlm.diagnosis import levels
from srlm.diagnosis.probe import probe, subject
from srlm.diagnosis.result import Diagnosis, new_folder
from srlm.diagnosis.tables import prompt_table, sample_table
from srlm.diagnosis.trained import trained_rounds, untold
from srlm.diagnosis.view import show
from srlm.errors import UserError
from srlm.estimators.consistency import self_consistency
from srlm.evaluation import check_answers
from srlm.policies.transformer.load.kept import Loaded, model_name
from srlm.policies.transformer.settings import strings
from srlm.prompts.given import Given
from srlm.prompts.presets import settled
from srlm.prompts.select import PromptSet
from srlm.run.folder import RunFolder
from srlm.thinking import unclosed

__all__ = ["Diagnosis", "diagnose"]


def diagnose(
    model: str | Path | Loaded | None = None,
    prompts: str | Path | PromptSet | Given | None = None,
    *,
    run: str | Path | None = None,
    round: int | None = None,
    output: str | Path | None = None,
    num_samples: int = 16,
    max_new_tokens: int | None = None,
    search_budget: int = 1024,
    search_best: int = 4,
    answers: str = "auto",
    match: str | None = None,
    clip: float | None = None,
    max_prompts: int | None = None,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    split: str | None = None,
    dataset_config: str | None = None,
    system_prompt: str | None = None,
    instruction: str | None = None,
    stop: str | Sequence[str] | None = None,
    raw_prompts: bool | None = None,
    chat_template_kwargs: Sequence[str] | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    token_budget: int | Literal["auto"] | None = None,
    trust_remote_code: bool | None = None,
    adapter: str | None = None,
    seed: int = 0,
    display: Display | None = None,
) -> Diagnosis:
    """Measure kappa, confidence, margin and, with labels, what sharpening would do to accuracy.

    model, prompts: as for `evaluate`; answers are optional, but only with them can a forecast tell better from worse.
    run, round: instead of a model, pi_t of a run folder (the one it kept unless told), on the run's held-out prompts
        unless others are given.
    output: new folder for diagnose.json, prompts.parquet and samples.parquet.
    num_samples: K. search_budget: most prefixes per prompt that the search evaluates. search_best: how many of the most
        probable responses to certify, at least 2; more narrow the forecast. answers: answer classes, see
        `srlm.answers.answer_classes`. clip: B of the clipped forecast. prompt_column, split, dataset_config,
        system_prompt, instruction: of prompts that are given, a run's own are read as it read them. For the rest, as in
        training, None stands for the run's value or the default.

    Raises:
        UserError: a value or an input out of range, or a model whose log-probs are numbers on no prompt.
    """
    display = display or Display()
    if output is not None:
        RunFolder.refuse_used(Path(output))
    for name, number, least in (
        ("samples", num_samples, 2),
        ("search-budget", search_budget, 1),
        ("search-best", search_best, 2),
    ):
        if number < least:
            raise UserError(f"--{name} is {number}, expected at least {least}: correct it")
    answer_classes(answers)  # is there one?
    given: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "match": match,
        "prompt_column": prompt_column,
        "answer_column": answer_column,
        "split": split,
        "dataset_config": dataset_config,
        "system_prompt": system_prompt,
        "instruction": instruction,
        "chat_template_kwargs": None if chat_template_kwargs is None else tuple(chat_template_kwargs),
        "clip": clip,
        "stop": None if stop is None else strings(stop),
        "raw_prompts": raw_prompts,
        "dtype": dtype,
        "quantize": quantize,
        "token_budget": token_budget,
        "trust_remote_code": trust_remote_code,
        "adapter": adapter,
    }
    # A search is over the full distribution, so samples are too.
    changes = {k: v for k, v in given.items() if v is not None} | {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "seed": seed,
    }
    called = None if model is None else model_name(model)
    name, load, labelled, config, known = subject(called, prompts, run, round, changes)
    if labelled.note:
        display.say(labelled.note)
    whole = labelled
    labelled = whole.take(max_prompts, seed)
    if labelled is not whole:  # what came after was measured on all of them
        known = dataclasses.replace(known, after=())
    parsers = settled(dataclasses.replace(config, answers=answers), labelled.source, None)
    answers, classes, rule = parsers.answers, answer_classes(parsers.answers), match_rule(parsers.match)
    check_answers(labelled, rule)
    policy = load()
    policy.check_prompts(labelled.prompts, num_samples)
    opened = policy.opens_thought

    def given_answer(text: str) -> Hashable | None:
        return classes(unclosed(text, opened))

    def is_right(text: str, answers: Sequence[str]) -> bool:
        return rule(unclosed(text, opened), answers)

    if output is not None:
        new_folder(Path(output))
    seen = probe(policy, labelled, num_samples, search_best, search_budget, seed, display)
    classified = levels.classify(seen, given_answer)
    seen = levels.with_majority(seen, classified)
    votes = self_consistency(classified.samples)
    shares = levels.modal_shares(seen, classified, votes)
    right = levels.judge(seen, is_right, classified, votes)
    sequence, sampling = levels.sequence_level(seen), levels.sample_level(seen)
    every = levels.evidence(seen, right)
    prediction = levels.forecasts(every, config.clip, known.solved, trained_rounds(every, known), untold(known))
    limit = prediction.limit.accuracy
    labels = None if right is None or limit is None else levels.label_level(seen, right, limit)
    settings = {
        "num_samples": num_samples,
        "search_best": search_best,
        "search_budget": search_budget,
        "answers": answers,
        "seed": seed,
    }
    kept = ("max_new_tokens", "match", "clip", "stop", "raw_prompts")
    result = Diagnosis(
        model=name,
        source=labelled.source,
        settings=settings | {k: getattr(config, k) for k in kept} | {"dtype": str(policy.model.dtype)[6:]},
        verdict=levels.verdict(sequence, sampling, labels, right, prediction),
        sequence=sequence,
        answers=levels.answer_level(answers, classified, votes, shares),
        sampling=sampling,
        labels=labels,
        forecast=prediction,
        broken=seen.broken,
        distinct=len(labelled.prompts) - labelled.copies,
        seconds=seen.seconds,
        prompts=prompt_table(seen, votes, shares, right),
        samples=sample_table(seen, classified, right),
    )
    if output is not None:
        result.save(Path(output))
    show(result, display)
    if unread := given_up():
        display.say(unread)
    return result
