"""Settings -> the functions and objects that the loop is handed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from srlm import tasks
from srlm.answers import Match
from srlm.config import SelfRewardConfig
from srlm.errors import UserError
from srlm.evaluation import check_answers
from srlm.objectives import imitation, policy_gradient, preferences, regression
from srlm.objectives.settings import BETA
from srlm.policies.transformer.engines import Engine
from srlm.policies.transformer.engines.vllm import Backend, VllmEngine
from srlm.policies.transformer.processes import processes
from srlm.prompts.given import Given
from srlm.prompts.select import PromptSet
from srlm.prompts.sources import prompts_of
from srlm.rewards.judging import Judging
from srlm.rewards.rubric import read_rubric
from srlm.rewards.table import LABELLED, Teacher, checks, judged_by, judges, reward_function, votes
from srlm.starting import load_policy as load_policy
from srlm.training.reading import Reading
from srlm.types import Level, Objective, Reward

BY_TOKEN = {"grpo": policy_gradient.grpo, "dapo": policy_gradient.dapo, "dr_grpo": policy_gradient.dr_grpo}
CLIPPED = BY_TOKEN | {"gspo": policy_gradient.gspo}
PROPORTIONAL = ("regression", "dr_grpo")  # they pull in the reward's unit, so that a part of it keeps its weight


def engine_of(config: SelfRewardConfig, folder: Path, say: Callable[[str], object]) -> Engine | None:
    """Who draws responses, if it is not the policy itself. folder: for weights on their way.

    Raises:
        UserError: it is not there.
    """
    if config.engine == "builtin":
        return None
    if config.engine_correction and (config.temperature != 1 or config.top_p != 1 or config.top_k):
        raise UserError(
            f"--engine-correction is {config.engine_correction:g} beside --temperature {config.temperature:g}, --top-p "
            f"{config.top_p:g} and --top-k {config.top_k}, expected the policy's own distribution to be drawn from "
            "(1, 1 and 0), since an engine does not say what it draws from otherwise: leave one out"
        )
    together = processes()
    if config.servers:
        from srlm.policies.transformer.engines.servers import Servers

        backend: Backend = Servers(config.servers, config.engine_weights if config.lora_rank else "folder", say)
    else:
        from srlm.policies.transformer.engines.inside import Inside

        if together.num_processes > 1:
            raise UserError(
                f"--engine vllm was given to {together.num_processes} processes, expected one: start vLLM servers "
                "instead and name their addresses"
            )
        backend = Inside(config.dtype, config.engine_options, trust_remote_code=config.trust_remote_code)
    return VllmEngine(backend, folder, together)


def prompt_sets(
    prompts: str | Path | PromptSet | Given,
    held_out: str | Path | PromptSet | Given | None,
    config: SelfRewardConfig,
) -> tuple[PromptSet, PromptSet | None]:
    """Prompts to train on, and prompts to measure on: those given, or a part that is set aside."""
    keep_columns = checks(config.reward)
    train = prompts_of(prompts, config, keep_columns=keep_columns)
    if held_out is not None:
        given = prompts_of(held_out, config, keep_columns=keep_columns)
        if tasks.is_task(train.source) and tasks.is_task(given.source):
            train = train.without(given)  # what is drawn at random may be drawn twice
        held: PromptSet | None = given
        if not uses_labels(config):
            train = dataclasses.replace(train, answers=None)
    else:
        train, held = train.set_aside(config.held_out_share, config.seed)
    return train.take(config.max_prompts, config.seed), held and held.take(config.max_held_out, config.seed)


def reward_of(
    config: SelfRewardConfig,
    prompts: PromptSet,
    read: Reading,
    *,
    note: Callable[[str, float], None],
    teacher: Teacher,
) -> Reward:
    """The reward of responses to `prompts`, whose answers the control `oracle` and a check of a run with labels alone
    may see."""
    right = _right_responses(prompts, read.rule) if config.reward == LABELLED else None

    def columns(number: int) -> Mapping[str, Any]:
        row = prompts.columns[number] if prompts.columns is not None else {}
        if not config.labelled:
            return row
        return {**row, "answer": () if prompts.answers is None else prompts.answers[number]}

    return reward_function(
        config.reward,
        classes=read.classes,
        right=right,
        columns=columns,
        note=note,
        teacher=teacher,
        judging=judging_of(config),
    )


def judging_of(config: SelfRewardConfig) -> Judging:
    return Judging(
        config.rubric,
        config.judge_samples,
        config.judge_tokens,
        config.judge_opponents,
        config.seed,
        config.judge_temperature,
    )


def rubric_texts(config: SelfRewardConfig) -> tuple[str, ...]:
    """Of the files that a judge of this run was given.

    Raises:
        UserError: one cannot be read.
    """
    return tuple(read_rubric(name).text for name in config.rubric)


def uses_labels(config: SelfRewardConfig) -> bool:
    """Does training see answers?"""
    return config.reward == LABELLED or config.labelled


def check_new(config: SelfRewardConfig) -> None:
    """Of a run that begins; one that began with it goes on.

    Raises:
        UserError: a setting that would not be what it says.
    """
    if config.kl_initial and config.objective not in PROPORTIONAL:
        raise UserError(
            f"--kl-initial is {config.kl_initial:g} beside --objective {config.objective}, expected "
            f"{' or '.join(PROPORTIONAL)}, since others rank rewards or rescale them, and the term: leave one out"
        )


def refuse_idle(config: SelfRewardConfig) -> None:
    """Of a run by itself: arms of a comparison share settings that some have no use for.

    Raises:
        UserError: a setting that nothing would heed.
    """
    refuse_unasked(config)
    paired, written = config.objective in ("dpo", "ipo"), [name for name in vars(config) if name.startswith("written_")]
    continued = config.adapter == "continue"
    clips = " (it is --ratio-clip that clips ratios)" if config.objective in CLIPPED else ""
    heeded = {  # setting -> where it is
        "beta": (paired or config.objective == "regression", "--objective regression, dpo or ipo"),
        "clip": (config.objective == "regression", f"--objective regression{clips}"),
        "anchor": (config.objective == "regression", "--objective regression"),
        "reward": (config.objective != "imitation" or config.nll > 0, "another --objective"),
        "length_penalty": (config.objective != "imitation", "another --objective"),
        "truncated": (config.objective != "imitation" or config.truncated != "penalise", "another --objective"),
        "pairs": (paired, "--objective dpo or ipo"),
        "label_smoothing": (paired, "--objective dpo or ipo"),
        "margin": (paired or config.nll > 0, "--objective dpo or ipo, or --nll"),
        "lora_alpha": (config.lora_rank > 0 and not continued, "--lora-rank 1 or more, and new layers,"),
        "engine_correction": (config.engine != "builtin", "--engine"),
        "engine_weights": (
            (bool(config.servers) and config.lora_rank > 0)
            or (config.engine != "builtin" and config.engine_weights == "folder"),
            "addresses of servers as --engine and --lora-rank 1 or more",
        ),
        "engine_options": (config.engine == "vllm", "--engine vllm (servers have options of their own)"),
        **{name: (config.written_prompts > 0, "--written-prompts") for name in written if name != "written_prompts"},
    }
    for name, (there, where) in heeded.items():
        value = getattr(config, name)
        if not there and value not in (getattr(SelfRewardConfig, name), BETA if name == "beta" else None):
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise UserError(
                f"--{name.replace('_', '-')} is {shown}, which nothing would heed, expected {where} beside it: leave "
                "it out, or give that"
            )


def refuse_unasked(config: SelfRewardConfig) -> None:
    """Of a run by itself.

    Raises:
        UserError: a setting of votes, teachers, judges or checks that --reward has no use for.
    """
    for sentence in unasked(config).values():
        raise UserError(sentence)


def unasked(config: SelfRewardConfig) -> dict[str, str]:
    """Settings of votes, teachers, judges and checks that --reward has no use for, and what to say of each."""
    found, reward = dict[str, str](), config.reward
    polled = votes(reward) or config.consistency_band is not None
    if config.votes is not None and not polled:
        found["votes"] = (
            f"--votes is {config.votes}, but --reward {reward} takes no vote, expected majority, another of its "
            "kind or a --consistency-band beside it: leave it out or choose one"
        )
    if config.teacher != "live" and not (polled or judges(reward)):
        found["teacher"] = (
            f"--teacher is {config.teacher}, but --reward {reward} neither judges nor votes, expected judge, "
            "majority or one of their kind: leave it out or choose one"
        )
    kinds = judged_by(reward)
    for name in ("rubric", "judge_samples", "judge_tokens", "judge_temperature", "judge_opponents"):
        if not kinds and getattr(config, name) != getattr(SelfRewardConfig, name):
            found[name] = (
                f"--{name.replace('_', '-')} was given, but --reward {reward} does not judge, expected judge, "
                "judge_pairwise or meta_judge: leave it out or choose one"
            )
    if kinds and config.judge_opponents is not None and "judge_pairwise" not in reward:
        found["judge_opponents"] = (
            f"--judge-opponents is {config.judge_opponents}, but --reward {reward} compares no responses, "
            "expected judge_pairwise: leave it out or choose it"
        )
    if config.labelled and not checks(reward):
        found["labelled"] = (
            f"--labelled was given, but --reward {reward} has no check:module:function that could see answers, "
            "expected one: leave it out"
        )
    return found


def check_answer_column(config: SelfRewardConfig, train: PromptSet, held_out: PromptSet | None) -> None:
    """
    Raises:
        UserError: a column of answers was named, and nothing that would be looked at has it.
    """
    asked = (train, held_out) if held_out is None or uses_labels(config) else (held_out,)
    if config.answer_column != SelfRewardConfig.answer_column and all(
        one is None or one.answers is None for one in asked
    ):
        where = (held_out or train).source
        raise UserError(
            f"--answer-column is {config.answer_column!r}, which no row of {where} has, expected a column of answers: "
            "correct it, or leave it out"
        )


def check_rounds(config: SelfRewardConfig, prompts: PromptSet) -> None:
    """
    Raises:
        UserError: settings of rounds, votes and judges that cannot be.
    """
    number = config.prompts_per_round
    if number is not None and number > len(prompts.prompts):
        raise UserError(
            f"--prompts-per-round is {number}, but {prompts.source} has {len(prompts.prompts)} prompts to train on, "
            "expected at most as many: lower it or give more prompts"
        )
    if config.written_prompts and (checks(config.reward) or uses_labels(config)):
        raise UserError(
            f"--written-prompts is {config.written_prompts}, but --reward {config.reward} looks at a prompt's own "
            "columns or answers, which those that are written have not, expected another reward: choose one, or "
            "leave it out"
        )
    kinds = judged_by(config.reward)
    for name in config.rubric:
        if kinds and read_rubric(name).pairs not in kinds:
            kind, fitting = ("pairs", "judge_pairwise") if read_rubric(name).pairs else ("points", "judge")
            raise UserError(
                f"the rubric {name} is one of {kind}, which --reward {config.reward} does not ask for, expected "
                f"{fitting} or meta_judge beside it: choose another rubric or reward"
            )
    for name in ("judge_tokens", "judge_temperature"):
        if getattr(config, name) != getattr(SelfRewardConfig, name) and not config.judge_samples:
            raise UserError(
                f"--{name.replace('_', '-')} is {getattr(config, name)}, but no judgement is written, expected "
                "--judge-samples 1 or more beside it: leave it out or give both"
            )
    if config.labelled and checks(config.reward) and prompts.answers is None:
        raise UserError(
            f"--labelled was given, but {prompts.source} has no answers, expected them in its answer column: leave it "
            "out or add them"
        )


def level_of(config: SelfRewardConfig) -> Level:
    """Of the log-ratios that the objective takes."""
    if config.objective in BY_TOKEN:
        return "token"
    return "mean" if config.objective == "gspo" or config.length_normalised else "sum"


def objective_function(config: SelfRewardConfig, tau: object = None, beta: float | None = None) -> Objective:
    """What a round minimises; tau: Kendall's of this round's ranking against the last one, if there was one. beta: the
    round's, which may be left out unless every round solves its own."""
    beta = config.total_beta if beta is None else beta
    assert beta is not None
    if config.objective == "regression":
        chosen = regression.regression if config.step is None else regression.regression_in_nats
        base = partial(chosen, beta=beta, anchor=config.anchor, clip=config.clip)
    elif config.objective in ("dpo", "ipo"):
        smoothing = config.label_smoothing
        if isinstance(smoothing, str):
            smoothing = preferences.consistency(tau if isinstance(tau, float) else None)
        preferred = preferences.dpo if config.objective == "dpo" else preferences.ipo
        base = partial(preferred, beta=beta, pairs=config.pairs, margin=config.margin, label_smoothing=smoothing)
    elif config.objective in CLIPPED:
        base = partial(CLIPPED[config.objective])
        if config.ratio_clip is not None:
            base = partial(base, ratio_clip=config.ratio_clip)
    else:
        base = partial(imitation.imitation if config.objective == "imitation" else imitation.best_of_k)
    return base


def added_objective(config: SelfRewardConfig) -> Objective | None:
    """What a round minimises beside it, of log-ratios divided by length."""
    if not config.nll:
        return None
    return lambda log_ratio, reward, weight: config.nll * imitation.nll(log_ratio, reward, weight, margin=config.margin)


def _right_responses(labelled: PromptSet, match: Match) -> Callable[[int, str], bool]:
    """(number of the prompt, response text) -> is it right?"""
    answers = labelled.answers
    if answers is None:
        raise UserError(
            f"{labelled.source} has no answers, which the reward {LABELLED} needs: add an `answer` column or choose "
            "another reward"
        )
    check_answers(labelled, match)
    return lambda number, text: match(text, answers[number])
