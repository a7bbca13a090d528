"""`srlm train`: the loop of loop.py on a transformer, every stage kept in a run folder as soon as it is done.

A stage whose result lies in the folder is read instead of computed. Resuming is therefore running again: the loop
replays what is done and goes on with what is not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import math
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srlm import __version__, guard, objectives, tasks
from srlm.answers import Match, answer_classes, match_rule
from srlm.config import SelfRewardConfig
from srlm.console import Display
from srlm.errors import UserError
from srlm.evaluation import accuracy, check_answers, held_out_generator
from srlm.loop import self_reward
from srlm.measure import HeldOut, held_out_record, train_record
from srlm.policies.transformer import Diverged, Optimisation, Responses, TransformerPolicy, fit, processes
from srlm.prompts import PromptSet, load_prompts, one_kind
from srlm.report import REPORT, report_or_reason
from srlm.report.card import card_or_reason
from srlm.rewards import LABELLED, asks_model, judges, reward_function
from srlm.rewards.majority import answers_given
from srlm.runs import RunFolder, read_manifest, write_atomically
from srlm.trackers import Trackers, tracker_names
from srlm.types import Objective, Prompts, Record, Reward, Rollouts, Step, UpdateInfo

MOST_HELD_OUT = 64  # of the prompts set aside when no held-out file is given
FREE_TO_CHANGE = ("output", "report_to", "push_to_hub")  # on resume: a run may move, and be told of elsewhere
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy")


@dataclass(frozen=True)
class TrainResult:
    """model: folder of the trained model, the policy of `round`. records: one per round, t = 0..T, or up to the round
    after which the guard stopped."""

    output: Path
    model: Path
    records: list[Record]
    round: int


class SelfRewardTrainer:
    """T rounds of self-rewarding training (Eqs. 1-4) on a causal LM.

        SelfRewardTrainer(model="smollm2", config=SelfRewardConfig(output="run"), prompts="prompts.jsonl").train()

    model: Hub id, folder, .gguf file or alias.
    prompts, held_out: a source for `srlm.prompts.load_prompts`, or a PromptSet. Answers of `held_out` are used to
        measure accuracy, which the guard heeds, and nothing else; answers of `prompts` are dropped unread. The control
        `oracle` alone is handed both, and the manifest says so.
    resume: continue the unfinished run in `config.output`.
    start: runs of the same model, prompts and seed; the first that is through with round 0 spares this one to sample
        and score it again.
    """

    def __init__(
        self,
        model: str,
        config: SelfRewardConfig,
        prompts: str | Path | PromptSet,
        held_out: str | Path | PromptSet | None = None,
        *,
        resume: bool = False,
        display: Display | None = None,
        start: Sequence[Path] = (),
    ) -> None:
        self.model, self.config, self.display, self.start = model, config, display or Display(), start
        self.match, self.classes = match_rule(config.match), answer_classes(config.answers)
        train, held = prompt_sets(prompts, held_out, config)
        self.held_out_given = held_out is not None
        self.prompts: Prompts = train.without_answers()
        self.held_out = held
        self._notes: dict[str, float] = {}  # what the reward says of itself, for the stage that computes it
        self.rewards: dict[str, Reward] = {
            table: reward_function(
                config.reward,
                classes=self.classes,
                right=_right_responses(labelled, self.match) if config.reward == LABELLED else None,
                note=self._notes.__setitem__,
            )
            for table, labelled in (("rollouts", train), ("held_out", held))
            if labelled is not None
        }
        if held is not None:
            check_answers(held, self.match)
        self.resume = resume
        self.report_to = tracker_names(config.report_to)
        self.run = RunFolder(Path(config.output), self._manifest(train, held))  # not on disk before train()
        self.processes = processes()
        self.main = self.processes.is_main_process
        if resume:
            manifest = read_manifest(self.run.path)
            run_config(manifest, self.run.path)  # refuses what this version cannot read
            manifest["config"] = _settings(SelfRewardConfig()) | manifest["config"]
            _check_same(self.run.path, manifest, self.run.manifest)
            self.run.manifest = manifest
        elif self.main:
            RunFolder.refuse_used(self.run.path)
        if not self.main:
            self.display = Display(silent=True)
        self._before: HeldOut | None = None  # the held-out probe of the round before

    def train(self) -> TrainResult:
        """Run, or go on with, all rounds; leave `model/` behind.

        Raises:
            UserError: the prompts do not suit the model; nothing is written then.
            Diverged: training did; the last good round is saved.
        """
        if self.run.manifest["state"] == "finished":
            self.display.say(f"run {self.run.path} is finished already; nothing to do")
            lacks_report = not (self.run.path / REPORT).exists()
            if self.main and (lacks_report or self.run.locked):  # it was killed just before its end
                self.run = RunFolder.open(self.run.path)
                if lacks_report:
                    self.display.say(report_or_reason(self.run.path))
                self.run.release()
            return self._result()
        policy = load_policy(self.model, self.config)
        policy.check_prompts(self.prompts)
        if self.held_out is not None:
            policy.check_prompts(self.held_out.prompts)
        try:
            self._begin()
            names, folder = self.report_to if self.main else [], self.run.path
            trackers = Trackers(names, folder / "trackers", folder.resolve().name, self.display.say)
            try:
                return self._train(policy, trackers)
            finally:
                trackers.finish()
        finally:
            self.run.release()

    def _begin(self) -> None:
        path = self.run.path
        if self.main:
            manifest = self.run.manifest
            if self.resume:
                self.run = RunFolder.open(path)
                self.run.manifest.pop("guard", None)  # what was said at its end, if it had one, holds no longer
                self.run.save_manifest(state="running", config=manifest["config"])
            else:
                started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
                self.run = RunFolder.create(path, manifest | {"started": started})
            self.run.adopt_start(self.start)
        self.processes.wait_for_everyone()

    def _train(self, policy: TransformerPolicy, trackers: Trackers) -> TrainResult:
        config = self.config
        self.display.say(self._headline(policy))
        recorded = self.run.records()
        chosen = config.rounds
        steps = self_reward(
            policy,
            self.prompts,
            sampler=self._rollouts,
            reward=self._rewards,
            update=self._update,
            rounds=config.rounds,
            seed=config.seed,
        )
        try:
            for step in steps:
                record = self._measure(step)
                if step.round < len(recorded):
                    record = recorded[step.round]
                else:
                    self._write(partial(self.run.append_record, record))
                    if self.report_to:
                        samples = self.run.table(step.round, "held_out" if self.held_out else "rollouts")
                        trackers.log(record, samples)
                known = self.run.records()[: step.round + 1]
                decision = guard.decide(known, config)
                self.display.row(record | {"stage": decision.stage})
                if decision.stage == "collapsing":
                    self.display.say(f"round {step.round} · guard: {decision.reason}")
                if decision.action != "continue":
                    chosen = decision.round
                    self.display.say(f"{decision.action}: the model is that of round {chosen}")
                    break
        except Diverged as error:
            self._save(policy, f"stopped: {error}")
            raise Diverged(f"{error} (the last good round is saved in {self.run.path / 'model'})") from error
        self._become(policy, chosen)
        self._save(policy, "finished", chosen)
        self.display.say(f"model saved in {self.run.path / 'model'}")
        return self._result()

    # Stages: computed once, then read

    def _stage(self, round: int, name: str, work: Callable[..., Any], tokens: Callable[[Any], int]) -> Any:
        """Do a stage's work under a progress bar and note what it took."""
        self._notes.clear()
        with self.display.stage(f"round {round} · {name}") as report:
            start = time.perf_counter()
            result = work(progress=report)
            seconds = time.perf_counter() - start
        facts = {"seconds": seconds, "tokens": tokens(result)} | self._notes
        self._write(lambda: self.run.save_stage(round, name, facts))
        return result

    def _write(self, write: Callable[[], object]) -> None:
        """One process writes: not before all have seen what is there, and nobody reads before it has."""
        self.processes.wait_for_everyone()
        if self.main:
            write()
        self.processes.wait_for_everyone()

    def _add(self, round: int, table: str, **columns: Tensor | list[Any]) -> None:
        flat = {name: v if isinstance(v, list) else v.flatten().tolist() for name, v in columns.items()}
        self._write(lambda: self.run.save_table(round, table, self.run.table(round, table) | flat))

    def _column(self, round: int, table: str, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """A [P, K] column of a table of rollouts, added when it is first asked for."""
        columns = self.run.table(round, table)
        k = max(columns["sample_index"]) + 1
        if name not in columns:
            values = compute()
            self._add(round, table, **{name: values})
            return values
        return torch.tensor(columns[name], dtype=torch.float32).view(-1, k)

    def _responses(
        self, policy: TransformerPolicy, round: int, table: str, prompts: Prompts, draw: Callable[..., Any]
    ) -> Any:
        columns = self.run.table(round, table)
        if columns:
            return policy.responses(columns, len(prompts))
        responses = self._stage(round, f"sample {table}", draw, lambda r: int(r.length.sum()))
        k = responses.length.shape[1]
        index: dict[str, list[Any]] = {
            "prompt_index": [p for p in range(len(prompts)) for _ in range(k)],
            "sample_index": [s for _ in range(len(prompts)) for s in range(k)],
            "prompt": [item for item in one_kind(prompts.items) for _ in range(k)],
        }
        self._write(lambda: self.run.save_table(round, table, index | policy.columns(responses)))
        return responses

    def _scored(
        self, policy: TransformerPolicy, prompts: Prompts, round: int, table: str, k: int, generator: torch.Generator
    ) -> Rollouts:
        """Sample and score: the table `table` of a round, up to its columns log_prob and entropy."""
        draw = partial(policy.sample, prompts, k, generator)
        responses = self._responses(policy, round, table, prompts, draw)
        columns = self.run.table(round, table)
        if "entropy" in columns:
            log_prob, entropy = (torch.tensor(columns[name]).view(-1, k) for name in ("log_prob", "entropy"))
        else:
            each = torch.zeros(responses.tokens.shape) if table == "held_out" else None
            work = partial(policy.score, prompts, responses, with_entropy=True, token_log_prob=each)
            count = int(responses.length.sum())
            log_prob, entropy = self._stage(round, f"score {table}", work, lambda _: count)
            self._add(round, table, log_prob=log_prob, entropy=entropy, **_by_token(policy, responses, each))
        return Rollouts(round, prompts, responses, log_prob, torch.full_like(log_prob, 1 / k), entropy)

    def _rollouts(
        self, policy: TransformerPolicy, prompts: Prompts, round: int, generator: torch.Generator
    ) -> Rollouts:
        return self._scored(policy, prompts, round, "rollouts", self.config.num_samples, generator)

    def _rewards(self, policy: TransformerPolicy, rollouts: Rollouts) -> Tensor:
        return self._rewarded(policy, rollouts, "rollouts")

    def _rewarded(self, policy: TransformerPolicy, rollouts: Rollouts, table: str) -> Tensor:
        def work(progress: object = None) -> Tensor:
            return self.rewards[table](policy, rollouts).float()

        def compute() -> Tensor:
            if not asks_model(self.config.reward):
                return self._shaped(work(), policy, rollouts, table)
            count = int(rollouts.responses.length.sum())
            reward: Tensor = self._stage(rollouts.round, f"reward {table}", work, lambda _: count)
            return self._shaped(reward, policy, rollouts, table)

        return self._column(rollouts.round, table, "reward", compute)

    def _shaped(self, reward: Tensor, policy: TransformerPolicy, rollouts: Rollouts, table: str) -> Tensor:
        """What the objective is to see of the bare reward."""
        config, responses = self.config, rollouts.responses
        if config.length_penalty:
            reward = objectives.length_penalty(reward, responses.length, config.length_penalty, config.length_window)
        if config.kl_initial:
            initial = self._under_initial(policy, rollouts, table)
            reward = objectives.kl_initial(reward, rollouts.log_prob, initial, config.kl_initial)
        return objectives.truncated(reward, rollouts.weight, responses.finished, config.truncated)[0]

    def _under_initial(self, policy: TransformerPolicy, rollouts: Rollouts, table: str) -> Tensor:
        """[P, K] log pi_0 of a table's responses."""
        count = int(rollouts.responses.length.sum())

        def compute() -> Tensor:
            if rollouts.round == 0:
                return rollouts.log_prob
            with policy.initial():
                work = partial(policy.score, rollouts.prompts, rollouts.responses)
                log_prob: Tensor = self._stage(rollouts.round, f"score {table} under pi_0", work, lambda _: count)[0]
                return log_prob

        return self._column(rollouts.round, table, "log_prob_initial", compute)

    def _update(
        self, policy: TransformerPolicy, rollouts: Rollouts, reward: Tensor
    ) -> tuple[TransformerPolicy, UpdateInfo]:
        config, round, finished = self.config, rollouts.round, rollouts.responses.finished
        weight = objectives.truncated(reward, rollouts.weight, finished, config.truncated)[1]
        rollouts = dataclasses.replace(rollouts, weight=weight)
        after = self.run.round(round + 1) / ("adapter" if config.lora_rank else "weights")
        if not after.exists():
            checkpoint = self.run.checkpoint(round)
            work = partial(
                fit,
                policy,
                rollouts,
                reward,
                objective=objective_function(config, self.run.records()[round].get("kendall_tau")),
                optimisation=Optimisation(
                    config.learning_rate,
                    config.epochs,
                    config.gain_learning_rate,
                    checkpoint_steps=config.checkpoint_steps,
                ),
                seed=config.seed,
                checkpoint=checkpoint,
                main=self.main,
            )
            tokens = int(rollouts.responses.length.sum()) * config.epochs
            policy, info = self._stage(round, "update", work, lambda _: tokens)
            self._add(round, "rollouts", log_prob_next=rollouts.log_prob + info.log_ratio)

            def commit() -> None:
                self.run.save_stage(round, "loss", info.loss.tolist())
                write_atomically(after, policy.save_weights)
                checkpoint.remove()

            self._write(commit)
        else:
            policy.load_weights(after)
        # Read back in either case: an update that was just made and one made before a kill give the same numbers.
        following = torch.tensor(self.run.table(round, "rollouts")["log_prob_next"]).view_as(rollouts.log_prob)
        loss = torch.tensor(self.run.stages(round)["loss"], dtype=torch.float64)
        return policy, UpdateInfo(rollouts, reward, following - rollouts.log_prob, loss)

    # Measuring

    def _measure(self, step: Step) -> Record:
        policy, responses = step.policy, step.rollouts.responses
        tokens = [ids for p in range(len(self.prompts)) for ids in responses.ids(p)]
        beta = self.config.beta + self.config.kl_initial
        record = train_record(step, responses.length, responses.finished, tokens, beta, self.config.clip)
        record["gain"] = policy.sharpness()
        if self.held_out is not None:
            record |= self._held_out(policy, step.round)
        stages = self.run.stages(step.round)
        spent = {name: facts for name, facts in stages.items() if isinstance(facts, dict)}
        if step.round:  # the update that made this policy belongs to its row
            spent["update"] = self.run.stages(step.round - 1).get("update", {"seconds": math.nan, "tokens": 0})
        else:
            spent.pop("update", None)
        for name, facts in spent.items():
            key = name.replace(" ", "_")
            record[f"seconds_{key}"] = facts["seconds"]
            record[f"tokens_per_second_{key}"] = facts["tokens"] / facts["seconds"]
            record |= {f"{fact}_{key}": facts[fact] for fact in facts if fact not in ("seconds", "tokens")}
        record["seconds"] = sum(facts["seconds"] for facts in spent.values())
        record["peak_memory_gb"] = _peak_memory_gb()
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}

    def _held_out(self, policy: TransformerPolicy, round: int) -> Record:
        assert self.held_out is not None
        prompts, k = self.held_out.prompts, self.config.held_out_samples
        generator = held_out_generator(self.config.seed, round)
        rollouts = self._scored(policy, prompts, round, "held_out", k, generator)
        reward = None if judges(self.config.reward) else self._rewarded(policy, rollouts, "held_out")
        classes = answers_given(policy, rollouts, self.classes)
        count = int(rollouts.responses.length.sum())

        under_initial = self._under_initial(policy, rollouts, "held_out")
        before, following = self._before, None
        best = first_best = under_initial.amax(-1)
        if before is not None:
            best, first_best = torch.maximum(best, before.best_initial), before.first_best
            old = before.rollouts
            work = partial(policy.score, prompts, old.responses)
            following = self._column(
                round - 1,
                "held_out",
                "log_prob_next",
                lambda: self._stage(round, "score held_out again", work, lambda _: count)[0],
            )
        self._before = HeldOut(rollouts, reward, classes, under_initial, best, first_best)
        beta = self.config.beta + self.config.kl_initial
        record = held_out_record(self._before, before, following, beta, self.config.clip)
        greedy = self._responses(policy, round, "greedy", prompts, partial(policy.greedy, prompts))
        if self.held_out.answers is not None:
            record |= accuracy(policy, self.held_out.answers, self.match, rollouts.responses, greedy, reward)
        return record

    # Beginning and end

    def _headline(self, policy: TransformerPolicy) -> str:
        model = policy.model
        trained = sum(p.numel() for p in policy.trainable().values())
        whole = sum(p.numel() for p in model.parameters())
        held = f"{len(self.held_out.prompts)} held out" if self.held_out is not None else "none held out"
        exploring = (
            ""
            if self.config.temperature == 1 and self.config.top_p == 1
            else (f"; sampling at temperature {self.config.temperature:g}, top-p {self.config.top_p:g} (scores at 1)")
        )
        return (
            f"{self.model} · {whole / 1e6:.0f}M parameters, {trained / 1e6:.1f}M trained, {str(model.dtype)[6:]}, "
            f"{model.device} · {len(self.prompts)} prompts × {self.config.num_samples}, {held}{exploring}\n"
            "reference, reward model and sampler of round t: π_t itself"
        )

    def _manifest(self, train: PromptSet, held: PromptSet | None) -> dict[str, Any]:
        data = {"prompts": {"source": train.source, "number": len(train.prompts), "fingerprint": train.fingerprint}}
        if held is not None:
            data["held_out"] = {"source": held.source, "number": len(held.prompts), "fingerprint": held.fingerprint}
            # What accuracies of one run are compared by; training knows nothing of it.
            data["held_out_answers"] = {"fingerprint": hashlib.sha256(repr(held.answers).encode()).hexdigest()}
        labels_used = self.config.reward == LABELLED
        if labels_used:
            data["prompts_answers"] = {"fingerprint": hashlib.sha256(repr(train.answers).encode()).hexdigest()}
        return {
            "srlm": __version__,
            "state": "running",
            "model": self.model,
            "config": _settings(self.config),
            "data": data,
            "labels_used": labels_used,
            "held_out_given": self.held_out_given,
            "command": sys.argv,
            "git_commit": _git_commit(),
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in PACKAGES},
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
            "threads": torch.get_num_threads(),
        }

    def _become(self, policy: TransformerPolicy, round: int) -> None:
        """Put the weights of an earlier round, or the untouched ones, into the policy of the last."""
        if round == 0:
            policy.reset()
        elif round < len(self.run.records()) - 1:
            policy.load_weights(self.run.round(round) / ("adapter" if self.config.lora_rank else "weights"))

    def _save(self, policy: TransformerPolicy, state: str, chosen: int | None = None) -> None:
        """chosen: the round that the policy is of, if the run is over; by default that of the last record."""
        records = self.run.records()
        chosen = len(records) - 1 if chosen is None else chosen
        said = {"events": guard.history(records, self.config) if self.config.guard else [], "chosen": chosen}

        def commit() -> None:
            write_atomically(self.run.path / "model", partial(self._save_model, policy, state, chosen))
            if self.config.lora_rank:
                write_atomically(self.run.path / "adapter", policy.save_weights)
            self.run.save_manifest(state=state, guard=said)

        self._write(commit)
        if self.main:
            self.display.say(report_or_reason(self.run.path))
            if self.config.push_to_hub and state == "finished":
                self.display.say(pushed_or_reason(self.run.path / "model", self.config.push_to_hub))

    def _save_model(self, policy: TransformerPolicy, state: str, chosen: int, folder: Path) -> None:
        policy.save_model(folder)
        records = self.run.records()[: chosen + 1]  # the card speaks of this model, not of what came after
        if reason := card_or_reason(folder, self.run.manifest | {"state": state}, records):
            self.display.say(reason)

    def _result(self) -> TrainResult:
        records = self.run.records()
        chosen = self.run.manifest.get("guard", {}).get("chosen", len(records) - 1)
        return TrainResult(self.run.path, self.run.path / "model", records, chosen)


def objective_function(config: SelfRewardConfig, tau: object = None) -> Objective:
    """What a round minimises; tau: Kendall's of this round's policy against the last one, if there was one."""
    beta = config.beta + config.kl_initial
    if config.objective == "regression":
        base = partial(objectives.regression, beta=beta, anchor=config.anchor, clip=config.clip)
    elif config.objective in ("dpo", "ipo"):
        smoothing = config.label_smoothing
        if isinstance(smoothing, str):
            smoothing = objectives.consistency(tau if isinstance(tau, float) else None)
        chosen = objectives.dpo if config.objective == "dpo" else objectives.ipo
        base = partial(chosen, beta=beta, pairs=config.pairs, margin=config.margin, label_smoothing=smoothing)
    else:
        base = partial({"best_of_k": objectives.best_of_k, "grpo": objectives.grpo}[config.objective])
    if not config.nll:
        return base

    def with_nll(log_ratio: Tensor, reward: Tensor, weight: Tensor) -> Tensor:
        held_up = objectives.nll(log_ratio, reward, weight, margin=config.margin)
        return base(log_ratio, reward, weight) + config.nll * held_up

    return with_nll


def pushed_or_reason(model: Path, repository: str) -> str:
    """Upload a model; what to say of it. Never fails the run."""
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=model)
        return f"model pushed to {repository}"
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return f"the model was not pushed to {repository} ({reason}); it is kept in {model}"


def load_policy(model: str, config: SelfRewardConfig) -> TransformerPolicy:
    return TransformerPolicy.load(
        model,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        gain=config.gain_learning_rate > 0,
        seed=config.seed,
        gradient_checkpointing=config.gradient_checkpointing,
        max_new_tokens=config.max_new_tokens,
        stop=config.stop,
        temperature=config.temperature,
        top_p=config.top_p,
        raw_prompts=config.raw_prompts,
        prompts_per_step=config.prompts_per_step,
        token_budget=config.token_budget,
    )


def run_config(manifest: dict[str, Any], folder: Path) -> tuple[SelfRewardConfig, str, str | None]:
    """What the run in `folder` was begun with: its configuration, prompts and, if they were given, held-out prompts.
    Thresholds of the guard that the run did not know yet are at their defaults.

    Raises:
        UserError: another version wrote the manifest, which had other settings of training.
    """
    try:
        config: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in manifest["config"].items()}
        for field in dataclasses.fields(SelfRewardConfig):
            if field.name not in config and not field.name.startswith("guard_"):
                raise KeyError(field.name)
        config["output"] = str(folder)
        data = manifest["data"]
        held_out = data["held_out"]["source"] if manifest["held_out_given"] else None
        return SelfRewardConfig(**config), data["prompts"]["source"], held_out
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"the manifest of {folder} is not one that srlm {__version__} wrote ({error}): use the version that began "
            "the run"
        ) from error


def prompt_sets(
    prompts: str | Path | PromptSet, held_out: str | Path | PromptSet | None, config: SelfRewardConfig
) -> tuple[PromptSet, PromptSet | None]:
    """Prompts to train on, and prompts to measure on: those given, or a part that is set aside."""
    train = prompts if isinstance(prompts, PromptSet) else load_prompts(prompts)
    if held_out is not None:
        given = held_out if isinstance(held_out, PromptSet) else load_prompts(held_out)
        if tasks.is_task(train.source) and tasks.is_task(given.source):
            train = train.without(given)  # what is drawn at random may be drawn twice
        held: PromptSet | None = given
        if config.reward != LABELLED:
            train = dataclasses.replace(train, answers=None)
    else:
        number = min(MOST_HELD_OUT, int(config.held_out_share * len(train.prompts)))
        train, held = train.split(number, config.seed) if number else (train, None)
    return train.take(config.max_prompts, config.seed), held and held.take(config.max_held_out, config.seed)


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


def _by_token(policy: TransformerPolicy, responses: Responses, each: Tensor | None) -> dict[str, list[Any]]:
    """Columns by which a reader sees how sure the policy was of each piece of a text."""
    if each is None:
        return {}
    ids = [row for p in range(len(each)) for row in responses.ids(p)]
    values = [row[: len(one)] for row, one in zip(each.flatten(0, 1).tolist(), ids, strict=True)]
    return {"token_log_prob": values, "token_end": [policy.token_ends(one) for one in ids]}


def _settings(config: SelfRewardConfig) -> dict[str, Any]:
    """As JSON gives them back."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(config).items()
    }


def _check_same(run: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """A run goes on with what it began with."""

    def facts(manifest: dict[str, Any]) -> dict[str, Any]:
        data = {
            name: (f"{entry['number']} prompts " if "number" in entry else "") + entry["fingerprint"][:12]
            for name, entry in manifest["data"].items()
        }
        settings = {name: value for name, value in manifest["config"].items() if name not in FREE_TO_CHANGE}
        return {"model": manifest["model"]} | settings | data

    was, now = facts(old), facts(new)
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            raise UserError(
                f"the run {run} began with {key} = {was.get(key)}, now it is {now.get(key)}: go on with what it began "
                "with, or start a new run in another --output"
            )


def _git_commit() -> str | None:
    """Of the project that the user runs this in."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _peak_memory_gb() -> float:
    """Of the accelerator if there is one, else of this process; 10^9 bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9
