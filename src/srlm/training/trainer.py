"""Assembles a run: prompts, policy, stages, probe and guard around the one loop. Resuming is running again."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srlm.answers import answer_classes, match_rule
from srlm.answers.math import given_up
from srlm.config import SelfRewardConfig
from srlm.console import Display
from srlm.estimate.view import brief
from srlm.evaluation import check_answers
from srlm.guard.advice import advice
from srlm.guard.decision import decide
from srlm.handed import named
from srlm.loop import self_reward
from srlm.measure import length_record, log_lengths, peak_memory_gb, train_record
from srlm.policies.transformer.bits import elements
from srlm.policies.transformer.devices.alike import refuse_unlike, refuse_unshared
from srlm.policies.transformer.devices.watch import Watch, watching
from srlm.policies.transformer.load.kept import Loaded, model_name
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.processes import Progress, processes
from srlm.policies.transformer.update import Diverged
from srlm.prompts.given import Given
from srlm.prompts.presets import settled
from srlm.prompts.select import PromptSet
from srlm.report import REPORT, report_or_reason
from srlm.run.columns import rows
from srlm.run.folder import RunFolder
from srlm.run.going_back import go_back
from srlm.run.ledger import Ledger
from srlm.run.manifest import new_manifest, read_manifest, run_config, taken_up
from srlm.trackers import Trackers, tracker_names
from srlm.training.beforehand import foreseen
from srlm.training.ending import TrainResult, become, leave, saved
from srlm.training.parts import check_rounds, engine_of, load_policy, prompt_sets, reward_of, rubric_texts, uses_labels
from srlm.training.probe import Probe
from srlm.training.stages import OWN_COLUMNS, Stages, is_lendable, looks_back, prompt_columns
from srlm.training.teacher import Teacher
from srlm.training.writing import Writer
from srlm.types import Prompts, Record, Step

ENGINE = "engine"  # where weights lie on their way to who draws responses


class SelfRewardTrainer:
    """T rounds of self-rewarding training (Eqs. 1-4) on a causal LM.

        SelfRewardTrainer(model="smollm2", config=SelfRewardConfig(output="run"), prompts="prompts.jsonl").train()

    model: Hub id, folder, .gguf file or alias; or a (model, tokenizer) that are loaded, of which a copy in the cache is
        trained (`srlm.policies.transformer.load.kept`).
    prompts, held_out: a source for `srlm.load_prompts`, a file, a `datasets.Dataset` or a list, or a PromptSet.
        Answers of `held_out` are used to measure accuracy, which the guard heeds, and nothing else; those of `prompts`
        are dropped unread. The control `oracle` alone is handed both, and the manifest says so.
    reward: a function of (policy, rollouts) that returns [P, K], in place of `config.reward`. match: a function of
        (response, answers) that returns True or False, in place of `config.match`. The run knows them by their code
        (`srlm.named`), and goes on with the same alone.
    resume: continue the unfinished run in `config.output`. from_round: go back to that round first; what came after is
        set aside.
    start: runs of the same model, prompts and seed; the first that is through with round 0 spares this one to sample
        and score it again.
    on_round: called with the record of each round once it is on disk, in one process alone; of rounds that were there
        already, too, when a run is resumed. What it raises ends the run, which can be resumed.
    """

    def __init__(
        self,
        model: str | Path | Loaded,
        config: SelfRewardConfig,
        prompts: str | Path | PromptSet | Given,
        held_out: str | Path | PromptSet | Given | None = None,
        *,
        reward: Callable[..., Any] | None = None,
        match: Callable[..., Any] | None = None,
        resume: bool = False,
        from_round: int | None = None,
        display: Display | None = None,
        start: Sequence[Path] = (),
        on_round: Callable[[Record], object] | None = None,
    ) -> None:
        if reward is not None:
            config = dataclasses.replace(config, reward=named(reward))
        if match is not None:
            config = dataclasses.replace(config, match=named(match))
        self.model, self.resume, self.start = model_name(model), resume or from_round is not None, start
        self.from_round, self.on_round = from_round, on_round
        match_rule(config.match), answer_classes(config.answers)  # are there such?
        train, held = prompt_sets(prompts, held_out, config)
        output = Path(config.output)
        begun = vars(run_config(read_manifest(output), output)[0]) if self.resume else None
        config = settled(config, train.source, None if held is None else held.source, begun)
        asked, config = config, config.with_strength(begun)
        self.config = config
        self.processes = processes()
        self.main = self.processes.is_main_process
        self.display = display if self.main and display else Display(silent=not self.main)
        for note in dict.fromkeys(one.note for one in (train, held) if one is not None and one.note):
            self.display.say(note)
        if config.step != asked.step:
            self.display.say(
                f"{config.reward} has a unit of its own: every round solves its beta for a step of {config.step:.3g} "
                "nats, unless --beta or --step is given"
            )
        self.report_to = tracker_names(config.report_to)
        manifest = new_manifest(
            *(self.model, config, train, held),
            held_out_given=held_out is not None,
            labels_used=uses_labels(config),
            rubrics=rubric_texts(config),
        )
        self.run = RunFolder(Path(config.output), manifest)  # not on disk before train()
        self._facts = {name: manifest[name] for name in ("srlm", "model")} | {
            **{
                f"the fingerprint of the {name.replace(chr(95), chr(32))}": entry["fingerprint"][:12]
                for name, entry in manifest["data"].items()
            },
            **{f"version of {name}": version for name, version in manifest["versions"].items()},
            **{f"--{name.replace('_', '-')}": value for name, value in manifest["config"].items()},
        }
        self._watch: Watch | None = None
        self.ledger = Ledger(self.run, self.processes, self)
        self._lengths: NDArray[np.float64] | None = None  # of round 0
        self.teacher = Teacher(config, self.ledger)
        self._assemble(train, held)
        if self.resume:
            self.run.manifest = taken_up(self.run.path, manifest)
        elif self.main:
            RunFolder.refuse_used(self.run.path)

    def _assemble(self, train: PromptSet, held: PromptSet | None) -> None:
        """Stages and probe on these prompts."""
        check_rounds(self.config, train)
        config, match, classes = self.config, match_rule(self.config.match), answer_classes(self.config.answers)
        if not uses_labels(config):  # nobody who learns is to find them
            train = dataclasses.replace(train, answers=None)
        sets = {"rollouts": train} | ({} if held is None else {"held_out": held})
        self.prompts, self.held_out = train.without_answers(), held
        rewards = {
            table: reward_of(config, one, classes=classes, match=match, note=self.ledger.note, teacher=self.teacher)
            for table, one in sets.items()
        }
        # Not the sets themselves: nothing that hangs on a trainer leads to an answer.
        self._sets: Callable[[], dict[str, PromptSet]] = lambda: sets
        writer = Writer.of(config, self.ledger, train, held, self.display.say) if config.written_prompts else None
        self.stages = Stages(config, self.ledger, rewards, classes, self.teacher, writer)
        self.probe = None if held is None else Probe(self.stages, held, match, classes)
        if held is not None:
            check_answers(held, match)

    def train(self) -> TrainResult:
        """Run, or go on with, all rounds; leave `model/` behind.

        Raises:
            UserError: the prompts do not suit the model; nothing is written then.
            Diverged: training did; the last good round is saved.
        """
        if self.run.manifest["state"] == "finished" and self.from_round is None:
            return self._finished()
        with watching(self.processes) as self._watch:
            self._watch.at("loading the model")
            refuse_unlike(self.processes, self._facts)
            return self._trained()

    def stage(self, name: str) -> AbstractContextManager[Progress]:
        """Shown to a person, and known to the other processes."""
        if self._watch is not None:
            self._watch.at(f"in {name}")
        return self.display.stage(name)

    def _trained(self) -> TrainResult:
        engine = engine_of(self.config, self.run.path / ENGINE, self.display.say)
        policy = load_policy(self.model, self.config)
        self._leave_out(policy)
        self._read_prompts(policy)
        if engine is not None:
            policy.engine = engine
        with self._held(), closing(policy.engine):
            self._keep_prompts(policy)
            names, folder = self.report_to if self.main else [], self.run.path
            trackers = Trackers(names, folder / "trackers", folder.resolve().name, self.display.say)
            try:
                return self._train(policy, trackers)
            finally:
                trackers.finish()

    def _train(self, policy: TransformerPolicy, trackers: Trackers) -> TrainResult:
        config = self.config
        self.display.say(self._headline(policy))
        if config.token_budget == self.run.manifest["config"]["token_budget"]:  # else it was given anew
            policy.room.tokens = self.run.manifest.get("token_budget", policy.room.tokens)
        policy.room.say = partial(self._remember_room, policy)
        if self.main:
            self.run.save_manifest(token_budget=policy.room.tokens)
        for note in policy.notes:
            self.display.say(note)
        self._foresee(policy)
        recorded = self.run.records()
        chosen = config.rounds
        steps = self_reward(
            policy,
            self.prompts,
            sampler=self.stages.rollouts,
            reward=self.stages.reward,
            update=self.stages.update,
            rounds=config.rounds,
            seed=config.seed,
        )
        try:
            for step in steps:
                record = self._measure(step)
                if step.round < len(recorded):
                    record = recorded[step.round]
                else:
                    self.ledger.write(partial(self.run.append_record, record))
                    self._track(trackers, record, step.round)
                if step.round:  # the round before is over, now that it has been looked at again
                    self.ledger.close(step.round - 1)
                decision = decide(self.run.records()[: step.round + 1], config)
                self.display.row(record | {"stage": decision.stage})
                if self.main and self.on_round is not None:
                    self.on_round(dict(record))
                for said in advice(record, config) if step.round == 0 else ():
                    self.display.say(f"advice: {said}")
                if decision.stage == "collapsing":
                    self.display.say(f"round {step.round} · guard: {decision.reason}")
                if decision.action != "continue":
                    chosen = decision.round
                    self.display.say(f"{decision.action}: the model is that of round {chosen}")
                    break
        except Diverged as error:
            leave(policy, self.ledger, config, self.display, f"stopped: {error}")
            raise Diverged(f"{error} (the last good round is saved in {self.run.path / 'model'})") from error
        if unread := given_up():
            self.display.say(unread)
        become(policy, self.run, config, chosen)
        leave(policy, self.ledger, config, self.display, "finished", chosen)
        self.display.say(saved(policy, self.run.path))
        return TrainResult.of(self.run)

    def _measure(self, step: Step) -> Record:
        policy, responses = step.policy, step.rollouts.responses
        how = self.stages.update_before(step.round)
        record = train_record(step, responses.length, responses.finished, responses.rows(), *how)
        record |= self.stages.step(step.rollouts, step.reward) | self.stages.achieved(step.info)
        record |= self.stages.mismatch(step.rollouts)
        record["gain"] = policy.sharpness()
        if not self.config.fresh_prompts:  # else no round has the prompts of round 0
            lengths = log_lengths(responses)
            if self._lengths is None:
                self._lengths = lengths
            else:
                record |= length_record(self._lengths, lengths)
        if self.probe is not None:
            record |= self.probe(policy, step.round)
        record |= self.ledger.costs(step.round)
        record["peak_memory_gb"] = peak_memory_gb()
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}

    def _track(self, trackers: Trackers, record: Record, round: int) -> None:
        if self.report_to:
            table = self.run.table(round, "rollouts" if self.held_out is None else "held_out")
            trackers.log(record, table.head().to_pydict())

    def _remember_room(self, policy: TransformerPolicy, said: str) -> None:
        """Memory was too small; a run that is resumed need not find out again."""
        self.display.say(said)
        if self.main:
            self.run.save_manifest(token_budget=policy.room.tokens)

    # Beginning and end

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The run folder, begun or taken up, for this run alone."""
        refuse_unshared(self.processes, self.run.path)
        try:
            if self.main:
                if self.resume:
                    self.run.take_up()
                    if self.from_round is not None:
                        aside = go_back(self.run, self.from_round, looks_back)
                        self.display.say(f"back to round {self.from_round}: what came after is set aside in {aside}")
                    self.run.verify()
                    self.run.manifest.pop("guard", None)  # what was said at its end, if it had one, holds no longer
                    self.run.save_manifest(state="running")
                else:
                    self.run.begin(started=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
                self.ledger.borrow(self.start, is_lendable, OWN_COLUMNS)
            self.processes.wait_for_everyone()
            yield
        finally:
            self.run.release()

    def _tables(self) -> dict[str, Prompts]:
        return {"rollouts": self.prompts} | ({} if self.held_out is None else {"held_out": self.held_out.prompts})

    def _leave_out(self, policy: TransformerPolicy) -> None:
        """Prompts that are too long for the context, if they are to be skipped: once a run, whatever a template says
        tomorrow."""
        if self.config.overlong != "skip":
            return
        manifest, sets = self.run.manifest, dict(self._sets())
        if "skipped" not in manifest:
            manifest["skipped"] = {table: policy.overlong(one.prompts) for table, one in sets.items()}
        for table, skipped in manifest["skipped"].items():
            if skipped:
                whole = sets[table]
                self.display.say(
                    f"{len(skipped)} of {len(whole.prompts)} prompts of {whole.source} are too long: skipped"
                )
                sets[table] = whole.leave_out(skipped)
        self._assemble(sets["rollouts"], sets.get("held_out"))

    def _read_prompts(self, policy: TransformerPolicy) -> None:
        """Token ids of all prompts, those that the run has kept where it has; refused here if they do not fit."""
        for table, prompts in self._tables().items():
            if self.from_round != 0 and (kept := self.run.prompt_ids(table)) is not None:
                policy.encode.keep(prompts.items, rows(kept["tokens"]))
            policy.check_prompts(prompts, max(self.config.num_samples, self.config.votes or 0))

    def _keep_prompts(self, policy: TransformerPolicy) -> None:
        for table, prompts in self._tables().items():
            kept = self.ledger.prompt_ids(table, partial(prompt_columns, policy, prompts))
            policy.encode.keep(prompts.items, rows(kept["tokens"]))

    def _finished(self) -> TrainResult:
        self.display.say(f"run {self.run.path} is finished already; nothing to do")
        lacks_report = not (self.run.path / REPORT).exists()
        if self.main and (lacks_report or self.run.locked):  # it was killed just before its end
            self.run.take_up()
            if lacks_report:
                self.display.say(report_or_reason(self.run.path))
            self.run.release()
        return TrainResult.of(self.run)

    def _foresee(self, policy: TransformerPolicy) -> None:
        """What a round will take, where that can be told. Every process looks: its weights may be needed."""
        lengths = {table: [len(ids) for ids in policy.ids(prompts)] for table, prompts in self._tables().items()}
        made = foreseen(self.model, policy, self.config, lengths["rollouts"], lengths.get("held_out", []))
        if made is not None:
            self.display.say(brief(made))

    def _headline(self, policy: TransformerPolicy) -> str:
        model, config = policy.model, self.config
        trained = sum(p.numel() for p in policy.trainable().values())
        whole = sum(elements(p) for p in model.parameters())
        packed = "" if policy.quantised == "none" else f" on layers of {policy.quantised}"
        held = f"{len(self.held_out.prompts)} held out" if self.held_out is not None else "none held out"
        each = f", {config.prompts_per_round} a round," if config.prompts_per_round is not None else ""
        each += f" and {config.written_prompts} written" if config.written_prompts else ""
        exploring = (
            ""
            if config.temperature == 1 and config.top_p == 1 and not config.top_k
            else f"; sampling at temperature {config.temperature:g}, top-p {config.top_p:g}"
            f"{f', top-k {config.top_k}' if config.top_k else ''} (scores at 1)"
        )
        begun = self.run.manifest["config"]["engine"]
        drawn = "" if config.engine == "builtin" == begun else f"; responses drawn by {config.engine}"
        if config.engine != begun:
            drawn += f" (the run began with {begun})"
        stops = f"; {', '.join(map(repr, config.stop))} ends a response" if config.stop else ""
        return (
            f"{self.model} · {whole / 1e6:.0f}M parameters, {trained / 1e6:.1f}M trained, {str(model.dtype)[6:]}"
            f"{packed}, {model.device} · {len(self.prompts)} prompts{each} × {config.num_samples}, "
            f"{held}{exploring}{stops}{drawn}\n"
            "reference, reward model and sampler of round t: π_t itself"
        )
