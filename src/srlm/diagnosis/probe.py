"""The model's part of a diagnosis: samples, greedy responses, scores and the search, as plain lists and arrays."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from srlm.config import SelfRewardConfig
from srlm.console import Display
from srlm.diagnosis.history import History, history
from srlm.errors import UserError
from srlm.evaluation import held_out_generator
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.prompts.given import Given, gone, is_handed
from srlm.prompts.select import PromptSet, prompt_set
from srlm.prompts.sources import prompts_of
from srlm.rewards.table import REWARDS
from srlm.run.columns import rows
from srlm.run.files import verify
from srlm.run.folder import RunFolder
from srlm.run.manifest import read_manifest, refuse_code, run_config
from srlm.run.rounds import round_of
from srlm.search import Found
from srlm.starting import load_policy, policy_asked, refuse_packed_otherwise
from srlm.training.parts import prompt_sets
from srlm.types import Prompts, Rollouts

# Self-rewards that need no options and at most one pass; `levels.with_majority` adds the one that needs answer classes.
LOG_PROBABILITIES = ("log_likelihood", "mean_log_likelihood", "negative_entropy")  # of something
CALIBRATED = ("log_likelihood", "mean_log_likelihood", "self_certainty", "negative_entropy", "random")
READING = ("prompt_column", "split", "dataset_config", "system_prompt", "instruction")  # what makes other prompts
MEASURED_BY = (  # what a run's accuracies depend on, beside the model and the prompts
    *("match", "answer_column", "max_new_tokens", "stop", "temperature", "top_p", "top_k"),
    *("raw_prompts", "chat_template_kwargs"),
)
STARTS = 3  # best samples that a search begins with, beside the greedy response
Result = TypeVar("Result")


@dataclass(frozen=True)
class Probe:
    """P prompts whose log-probs are numbers, with K samples each.

    indices: of the prompts in the set that was asked about. answers: acceptable ones, None without labels.
    tokens, texts: samples [P][K]. finished: [P][K] ended by themselves. log_prob, entropy, rewards: [P, K].
    found, found_texts: the search's responses, most probable first; mode_finished: the first ended by itself.
    broken: prompts left out.
    """

    indices: list[int]
    items: list[Any]
    answers: list[Sequence[str]] | None
    tokens: list[list[list[int]]]
    texts: list[list[str]]
    finished: list[list[bool]]
    log_prob: NDArray[np.float64]
    entropy: NDArray[np.float64]
    rewards: dict[str, NDArray[np.float64]]
    greedy: list[list[int]]
    greedy_texts: list[str]
    found: list[Found]
    found_texts: list[list[str]]
    mode_finished: list[bool]
    broken: int
    seconds: dict[str, float]


def subject(
    model: str | None,
    prompts: str | Path | PromptSet | Given | None,
    run: str | Path | None,
    round: int | None,
    changes: dict[str, Any],
) -> tuple[str, Callable[[], TransformerPolicy], PromptSet, SelfRewardConfig, History]:
    """Whom to ask, what, and with which settings: a name, how to load the policy, prompts, a configuration, and what
    a run knows of the rounds before and after."""
    if run is None:
        if round is not None:
            raise UserError(f"--round {round} is a round of a run: name its folder with --run")
        if prompts is None:
            raise UserError("no prompts were given: name a file or dataset with --prompts")
        config = SelfRewardConfig(**changes, gain_learning_rate=0.0)
        labelled = prompts_of(prompts, config)
        name = model or "smollm2"
        return name, lambda: policy_asked(name, config)[0], labelled, config, History()
    if model is not None:
        raise UserError(f"both --model {model} and --run {run} were given: choose one")
    manifest = read_manifest(Path(run), "--run")
    config, source, held_source = run_config(manifest, Path(run))
    if prompts is None and is_handed(held_source or source):  # of which no answers are kept that would be matched
        config = dataclasses.replace(config, match="auto")
    unused = {"reward": config.reward, "answers": config.answers}  # a diagnosis asks neither
    refuse_code(Path(run), config, unused | changes)
    if prompts is None:
        labelled = _prompts_of_run(manifest, Path(run), source, held_source, config, changes)
    else:  # a run that streamed its own says nothing of how to read others
        labelled = prompts_of(prompts, dataclasses.replace(config, **changes, streaming=None, streaming_buffer=0))
    chosen = round_of(Path(run), manifest, round, "--round")
    as_run, config = config, dataclasses.replace(config, **changes)
    refuse_packed_otherwise(config.quantize, as_run.quantize, Path(run))
    alike = ("raw_prompts", "chat_template_kwargs")
    own_prompts = prompts is None and all(getattr(config, name) == getattr(as_run, name) for name in alike)

    def load() -> TransformerPolicy:
        policy = load_policy(manifest["model"], config, trained=False)
        if own_prompts and (ids := RunFolder(Path(run), manifest).prompt_ids(_table_of(manifest))) is not None:
            policy.encode.keep(labelled.prompts.items, rows(ids["tokens"]))
        if chosen:
            kept = Path(run) / f"round-{chosen:03d}" / config.weights_folder
            verify(kept)
            policy.load_weights(kept)
        return policy

    known = history(Path(run), chosen, as_run, RunFolder(Path(run), manifest).records())
    if prompts is not None or any(getattr(config, name) != getattr(as_run, name) for name in MEASURED_BY):
        known = dataclasses.replace(known, after=())
    return f"{manifest['model']}, round {chosen} of {run}", load, labelled, config, known


def _prompts_of_run(
    manifest: dict[str, Any],
    run: Path,
    source: str,
    held_source: str | None,
    config: SelfRewardConfig,
    changes: Mapping[str, Any],
) -> PromptSet:
    """The held-out prompts; those it was trained on where there are none. Of objects that a program handed over, what
    the run kept of them. Their answers may be read from another column.

    Raises:
        UserError: `changes` would read others, or the source has changed.
    """
    handed = is_handed(held_source or source)
    for name in (*READING, *["answer_column"] * handed):
        if name in changes:
            raise UserError(
                f"--{name.replace('_', '-')} was given beside --run {run}, whose prompts are read as it read them, "
                "expected --prompts beside it: name the prompts that it goes with, or leave it out"
            )
    if handed:
        return _kept(manifest, run, held_source or source)
    config = dataclasses.replace(config, answer_column=changes.get("answer_column", config.answer_column))
    if held_source is not None:  # the others may be gone
        labelled = prompts_of(held_source, config).take(config.max_held_out, config.seed)
    else:
        train, held = prompt_sets(source, None, config)
        labelled = held or train
    table = _table_of(manifest)
    then = manifest["data"]["held_out" if table == "held_out" else "prompts"]
    if labelled.fingerprint != then["fingerprint"]:
        raise UserError(f"{labelled.source} has changed since {run} was begun: restore it, or choose with --prompts")
    return labelled.leave_out(manifest.get("skipped", {}).get(table, ()))  # a fingerprint is of the whole


def _kept(manifest: dict[str, Any], run: Path, source: str) -> PromptSet:
    """The prompts in a run folder, which have no answers.

    Raises:
        UserError: the run was not begun far enough to have kept any.
    """
    table = RunFolder(run, manifest).prompt_ids(_table_of(manifest))
    if table is None:
        raise gone(source)
    items = [item if isinstance(item, str) else tuple(item) for item in table["prompt"].to_pylist()]
    note = f"{source}: {len(items)} prompts as the run kept them, without answers; --prompts gives others, with theirs"
    return dataclasses.replace(prompt_set(items, None, source), note=note)


def _table_of(manifest: dict[str, Any]) -> str:
    """Of the prompts that the run measured itself on."""
    return "held_out" if "held_out" in manifest["data"] else "rollouts"


def probe(
    policy: TransformerPolicy,
    labelled: PromptSet,
    num_samples: int,
    num_best: int,
    budget: int,
    seed: int,
    display: Display,
) -> Probe:
    """Sample, decode greedily, score and search.

    Raises:
        UserError: the model's log-probs are not numbers on any prompt.
    """
    seconds: dict[str, float] = {}

    def stage(name: str, work: Callable[..., Result]) -> Result:
        with display.stage(name) as report:
            start = time.perf_counter()
            result = work(progress=report)
            seconds[name] = time.perf_counter() - start
        return result

    prompts = labelled.prompts
    samples = stage("sample", partial(policy.sample, prompts, num_samples, held_out_generator(seed, 0)))
    greedy = stage("greedy", partial(policy.greedy, prompts))
    log_prob, entropy = stage("score", partial(policy.score, prompts, samples, with_entropy=True))
    ids = [samples.ids(i) for i in range(len(prompts))]
    starts = [starting_points(greedy.ids(i)[0], ids[i], log_prob[i].tolist()) for i in range(len(prompts))]
    found = stage("search", partial(policy.most_probable, prompts, starts, num_best=num_best, budget=budget))
    whole = [i for i, one in enumerate(found) if not one.broken and bool(log_prob[i].isfinite().all())]
    if not whole:
        raise UserError(
            f"the log-probs of {policy.name} are numbers on none of {len(prompts)} prompts, expected numbers: "
            "its weights are damaged, or --dtype is too narrow for it (try fp32)"
        )
    found = [_with_best(one, ids[i], log_prob[i].tolist()) for i, one in enumerate(found)]
    kept = Prompts.uniform([prompts.items[i] for i in whole])
    part = dataclasses.replace(
        samples, tokens=samples.tokens[whole], length=samples.length[whole], finished=samples.finished[whole]
    )
    weight = torch.full_like(log_prob[whole], 1 / num_samples)
    rollouts = Rollouts(0, kept, part, log_prob[whole], weight, entropy[whole])
    rewards = {name: REWARDS[name](policy, rollouts).double().numpy() for name in CALIBRATED}
    return Probe(
        indices=whole,
        items=list(kept.items),
        answers=None if labelled.answers is None else [labelled.answers[i] for i in whole],
        tokens=[ids[i] for i in whole],
        texts=policy.texts(part),
        finished=part.finished.tolist(),
        log_prob=log_prob[whole].double().clamp(max=0).numpy(),
        entropy=entropy[whole].double().numpy(),
        rewards=rewards,
        greedy=[greedy.ids(i)[0] for i in whole],
        greedy_texts=[policy.text(greedy.ids(i)[0]) for i in whole],
        found=[found[i] for i in whole],
        found_texts=[[policy.text(response) for response in found[i].responses] for i in whole],
        mode_finished=[policy.ended(found[i].responses[0]) for i in whole],
        broken=len(prompts) - len(whole),
        seconds=seconds,
    )


def starting_points(greedy: list[int], samples: list[list[int]], log_prob: list[float]) -> list[list[int]]:
    best = sorted(zip(log_prob, samples, strict=True), key=lambda pair: -pair[0])
    distinct = {tuple(ids): ids for _, ids in best if ids != greedy}
    return [greedy, *list(distinct.values())[:STARTS]]


def _with_best(found: Found, samples: list[list[int]], log_prob: list[float]) -> Found:
    """A search of a small budget may not come as far as the best sample, which is then the best response known."""
    best = max(range(len(samples)), key=log_prob.__getitem__)
    response, value = tuple(samples[best]), min(log_prob[best], found.open_log_prob)
    if response in found.responses or (found.responses and value <= found.log_prob[0]):
        return found
    return dataclasses.replace(found, responses=[response, *found.responses], log_prob=[value, *found.log_prob])
