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

from srlm import __version__, objectives, tasks
from srlm.answers import Match, answer_classes, match_rule
from srlm.config import SelfRewardConfig
from srlm.console import Display
from srlm.errors import UserError
from srlm.evaluation import accuracy, check_answers, held_out_generator
from srlm.loop import self_reward
from srlm.measure import HeldOut, held_out_record, train_record
from srlm.policies.transformer import Diverged, Optimisation, TransformerPolicy, fit, processes
from srlm.prompts import PromptSet, load_prompts
from srlm.report import report_or_reason
from srlm.report.card import card_or_reason
from srlm.rewards import LABELLED, asks_model, reward_function
from srlm.runs import RunFolder, read_manifest, write_atomically
from srlm.types import PromptItem, Prompts, Record, Reward, Rollouts, Step, UpdateInfo

MOST_HELD_OUT = 64  # of the prompts set aside when no held-out file is given
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy")


@dataclass(frozen=True)
class TrainResult:
    """model: folder of the trained model. records: one per round, t = 0..T."""

    output: Path
    model: Path
    records: list[Record]


class SelfRewardTrainer:
    """T rounds of self-rewarding training (Eqs. 1-4) on a causal LM.

        SelfRewardTrainer(model="smollm2", config=SelfRewardConfig(output="run"), prompts="prompts.jsonl").train()

    model: Hub id, folder, .gguf file or alias.
    prompts, held_out: a source for `srlm.prompts.load_prompts`, or a PromptSet. Answers of `held_out` are used to
        measure accuracy and nothing else; answers of `prompts` are dropped unread. The control `oracle` alone is
        handed both, and the manifest says so.
    resume: continue the unfinished run in `config.output`.
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
    ) -> None:
        self.model, self.config, self.display = model, config, display or Display()
        self.match = match_rule(config.match)
        train, held = prompt_sets(prompts, held_out, config)
        self.held_out_given = held_out is not None
        self.prompts: Prompts = train.without_answers()
        self.held_out = held
        self._notes: dict[str, float] = {}  # what the reward says of itself, for the stage that computes it
        self.rewards: dict[str, Reward] = {
            table: reward_function(
                config.reward,
                classes=answer_classes(config.answers),
                right=_right(labelled, self.match) if config.reward == LABELLED else None,
                note=self._notes.__setitem__,
            )
            for table, labelled in (("rollouts", train), ("held_out", held))
            if labelled is not None
        }
        if held is not None:
            check_answers(held, self.match)
        self.resume = resume
        self.run = RunFolder(Path(config.output), self._manifest(train, held))  # not on disk before train()
        self.processes = processes()
        self.main = self.processes.is_main_process
        if resume:
            manifest = read_manifest(self.run.path)
            _check_same(manifest, self.run.manifest)
            self.run.manifest = manifest
        elif self.main:
            RunFolder.refuse_used(self.run.path)
        if not self.main:
            self.display = Display(silent=True)
        self._before: HeldOut | None = None  # the held-out probe of the round before

    def train(self) -> TrainResult:
        """Run, or go on with, all rounds; leave `model/` behind.

        Raises:
            UserError: the prompts do not suit the model (nothing is written then), or training diverged (the last good
                round is saved).
        """
        if self.run.manifest["state"] == "finished":
            self.display.say(f"run {self.run.path} is finished already; nothing to do")
            return self._result()
        policy = load_policy(self.model, self.config)
        policy.check_prompts(self.prompts)
        if self.held_out is not None:
            policy.check_prompts(self.held_out.prompts)
        try:
            self._begin()
            return self._train(policy)
        finally:
            self.run.release()

    def _begin(self) -> None:
        path = self.run.path
        if self.main:
            self.run = RunFolder.open(path) if self.resume else RunFolder.create(path, self.run.manifest)
        self.processes.wait_for_everyone()

    def _train(self, policy: TransformerPolicy) -> TrainResult:
        config = self.config
        self.display.say(self._headline(policy))
        recorded = self.run.records()
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
                self.display.row(record)
        except Diverged as error:
            self._save(policy, f"stopped: {error}")
            raise UserError(f"{error} (the last good round is saved in {self.run.path / 'model'})") from error
        self._save(policy, "finished")
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

    def _add(self, round: int, table: str, **columns: Tensor) -> None:
        flat = {name: values.flatten().tolist() for name, values in columns.items()}
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
            "prompt": [item for item in _one_kind(prompts.items) for _ in range(k)],
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
            work = partial(policy.score, prompts, responses, with_entropy=True)
            count = int(responses.length.sum())
            log_prob, entropy = self._stage(round, f"score {table}", work, lambda _: count)
            self._add(round, table, log_prob=log_prob, entropy=entropy)
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
                return work()
            count = int(rollouts.responses.length.sum())
            reward: Tensor = self._stage(rollouts.round, f"reward {table}", work, lambda _: count)
            return reward

        return self._column(rollouts.round, table, "reward", compute)

    def _update(
        self, policy: TransformerPolicy, rollouts: Rollouts, reward: Tensor
    ) -> tuple[TransformerPolicy, UpdateInfo]:
        config, round = self.config, rollouts.round
        after = self.run.round(round + 1) / ("adapter" if config.lora_rank else "weights")
        if not after.exists():
            checkpoint = self.run.checkpoint(round)
            work = partial(
                fit,
                policy,
                rollouts,
                reward,
                objective=partial(objectives.regression, beta=config.beta, anchor=config.anchor, clip=config.clip),
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
        record = train_record(step, responses.length, responses.finished, tokens, self.config.beta, self.config.clip)
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
        reward = self._rewarded(policy, rollouts, "held_out")
        count = int(rollouts.responses.length.sum())

        def initial() -> Tensor:
            if round == 0:
                return rollouts.log_prob
            with policy.initial():
                work = partial(policy.score, prompts, rollouts.responses)
                log_prob: Tensor = self._stage(round, "score held_out under pi_0", work, lambda _: count)[0]
                return log_prob

        under_initial = self._column(round, "held_out", "log_prob_initial", initial)
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
        self._before = HeldOut(rollouts, reward, under_initial, best, first_best)
        record = held_out_record(self._before, before, following, self.config.beta, self.config.clip)
        greedy = self._responses(policy, round, "greedy", prompts, partial(policy.greedy, prompts))
        if self.held_out.answers is not None:
            record |= accuracy(policy, self.held_out.answers, self.match, rollouts.responses, greedy)
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
            "config": dataclasses.asdict(self.config) | {"stop": list(self.config.stop)},
            "data": data,
            "labels_used": labels_used,
            "held_out_given": self.held_out_given,
            "command": sys.argv,
            "git_commit": _git_commit(),
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in PACKAGES},
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
            "threads": torch.get_num_threads(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }

    def _save(self, policy: TransformerPolicy, state: str) -> None:
        def commit() -> None:
            write_atomically(self.run.path / "model", partial(self._save_model, policy, state))
            if self.config.lora_rank:
                write_atomically(self.run.path / "adapter", policy.save_weights)
            self.run.save_manifest(state=state)

        self._write(commit)
        if self.main:
            self.display.say(report_or_reason(self.run.path))

    def _save_model(self, policy: TransformerPolicy, state: str, folder: Path) -> None:
        policy.save_model(folder)
        if reason := card_or_reason(folder, self.run.manifest | {"state": state}, self.run.records()):
            self.display.say(reason)

    def _result(self) -> TrainResult:
        return TrainResult(self.run.path, self.run.path / "model", self.run.records())


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

    Raises:
        UserError: another version wrote the manifest.
    """
    try:
        config = manifest["config"] | {"stop": tuple(manifest["config"]["stop"]), "output": str(folder)}
        data = manifest["data"]
        held_out = data["held_out"]["source"] if manifest["held_out_given"] else None
        return SelfRewardConfig(**config), data["prompts"]["source"], held_out
    except (KeyError, TypeError) as error:
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


def _right(labelled: PromptSet, match: Match) -> Callable[[int, str], bool]:
    """(number of the prompt, response text) -> is it right?"""
    answers = labelled.answers
    if answers is None:
        raise UserError(
            f"{labelled.source} has no answers, which the reward {LABELLED} needs: add an `answer` column or choose "
            "another reward"
        )
    check_answers(labelled, match)
    return lambda number, text: match(text, answers[number])


def _one_kind(items: Sequence[PromptItem]) -> Sequence[PromptItem]:
    """A column holds strings or conversations: where both occur, a string is one user turn."""
    if all(isinstance(item, str) for item in items):
        return items
    return [({"role": "user", "content": item},) if isinstance(item, str) else item for item in items]


def _check_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    """A run goes on with what it began with."""

    def facts(manifest: dict[str, Any]) -> dict[str, Any]:
        data = {
            name: (f"{entry['number']} prompts " if "number" in entry else "") + entry["fingerprint"][:12]
            for name, entry in manifest["data"].items()
        }
        settings = {name: value for name, value in manifest["config"].items() if name != "output"}  # it may move
        return {"model": manifest["model"]} | settings | data

    was, now = facts(old), facts(new)
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            raise UserError(
                f"this run began with {key} = {was.get(key)}, now it is {now.get(key)}: resume with what it began "
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
