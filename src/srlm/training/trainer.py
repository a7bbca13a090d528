"""Assembles a run: prompts, policy, stages, probe and guard around the one loop. Resuming is running again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any

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
from srlm.policies.transformer.devices.alike import refuse_unlike, refuse_unshared
from srlm.policies.transformer.devices.watch import Watch, watching
from srlm.policies.transformer.load.kept import Loaded, model_name
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.processes import Progress, processes
from srlm.policies.transformer.rounding import lost_to_rounding
from srlm.policies.transformer.update import Diverged
from srlm.prompts.given import Given
from srlm.prompts.presets import settled
from srlm.prompts.select import PromptSet
from srlm.report import REPORT, report_or_reason
from srlm.run.folder import RunFolder
from srlm.run.ledger import Ledger
from srlm.run.manifest import new_manifest, read_manifest, run_config, taken_up
from srlm.run.rounds import rounds_of
from srlm.trackers import Trackers, tracker_names
from srlm.training.beforehand import foreseen
from srlm.training.encoding import keep_prompts, leave_out, read_prompts
from srlm.training.ending import TrainResult, become, leave, push, saved
from srlm.training.headline import headline
from srlm.training.holding import holding
from srlm.training.parts import (
    check_answer_column,
    check_new,
    check_rounds,
    engine_of,
    load_policy,
    prompt_sets,
    refuse_idle,
    reward_of,
    rubric_texts,
    uses_labels,
)
from srlm.training.probe import Probe
from srlm.training.reading import as_kept, kept_readings, readings
from srlm.training.recording import Recorder
from srlm.training.stages import Stages, optimisation
from srlm.training.tables import Tables
from srlm.training.teacher import Teacher
from srlm.training.weighing import Weighing
from srlm.training.writing import Writer
from srlm.types import Record

ENGINE = "engine"  # where weights lie on their way to who draws responses


MEASURES = 2  # held-out samples of the policy itself, and thoughts that were cut off; a run keeps to what it began with


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
        if not self.resume:
            check_new(config)
        if not self.resume and not start:
            refuse_idle(config)
        train, held = prompt_sets(prompts, held_out, config)
        output = Path(config.output)
        was = read_manifest(output) if self.resume else None
        begun = None if was is None else vars(run_config(was, output)[0])
        given, config = config, settled(config, train.source, None if held is None else held.source, begun)
        sources = {"rollouts": train.source} | ({} if held is None else {"held_out": held.source})
        if was is None:
            self._readings, self._measures = readings(given, config, sources), MEASURES
            check_answer_column(config, train, held)
        else:
            self._readings = kept_readings(was, config, sources)
            self._measures = MEASURES if was.get("measures") == MEASURES else 1
        asked, config = config, config.with_defaults(begun)
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
        ) | {"readings": as_kept(self._readings), "measures": MEASURES}
        self.run = RunFolder(Path(config.output), manifest)  # not on disk before train()
        self._facts = _in_common(manifest)
        self._watch: Watch | None = None
        self.ledger = Ledger(self.run, self.processes, self)
        self.teacher = Teacher(config, self.ledger)
        self._assemble(train, held)
        if self.resume:
            self.run.manifest = taken_up(self.run.path, manifest)
        elif self.main:
            RunFolder.refuse_used(self.run.path)

    def _assemble(self, train: PromptSet, held: PromptSet | None) -> None:
        """Stages and probe on these prompts."""
        check_rounds(self.config, train)
        config, read = self.config, self._readings
        if not uses_labels(config):  # nobody who learns is to find them
            train = dataclasses.replace(train, answers=None)
        sets = {"rollouts": train} | ({} if held is None else {"held_out": held})
        self.prompts, self.held_out = train.without_answers(), held
        rewards = {
            table: reward_of(config, one, read[table], note=self.ledger.note, teacher=self.teacher)
            for table, one in sets.items()
        }
        # Not the sets themselves: nothing that hangs on a trainer leads to an answer.
        self._sets: Callable[[], dict[str, PromptSet]] = lambda: sets
        writer = Writer.of(config, self.ledger, train, held, self.display.say) if config.written_prompts else None
        tables = Tables(config, self.ledger, rewards)
        weighing = Weighing(config, self.ledger, tables)
        self.stages = Stages(config, self.ledger, tables, weighing, read["rollouts"].classes, self.teacher, writer)
        probe = None
        if held is not None:
            own = read["held_out"]
            probe = Probe(tables, weighing, held, own.rule, own.classes, explore=self._measures < MEASURES)
        self.record = Recorder(config, self.ledger, weighing, probe)
        if held is not None:
            check_answers(held, read["held_out"].rule)

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
        policy.tells_thoughts = self._measures >= MEASURES
        if self.config.overlong == "skip":
            sets = leave_out(self.run, policy, self._sets(), self.display.say)
            self._assemble(sets["rollouts"], sets.get("held_out"))
        tables = {"rollouts": self.prompts} | ({} if self.held_out is None else {"held_out": self.held_out.prompts})
        samples = max(self.config.num_samples, self.config.votes or 0)
        read_prompts(self.run, policy, tables, samples, anew=self.from_round == 0)
        if engine is not None:
            policy.engine = engine
        refuse_unshared(self.processes, self.run.path)
        alone = holding(
            *(self.run, self.ledger, self.processes),
            resume=self.resume,
            from_round=self.from_round,
            start=self.start,
            say=self.display.say,
        )
        with alone, closing(policy.engine):
            keep_prompts(self.ledger, policy, tables)
            names, folder = self.report_to if self.main else [], self.run.path
            trackers = Trackers(names, folder / "trackers", folder.resolve().name, self.display.say)
            try:
                return self._train(policy, trackers)
            finally:
                trackers.finish()

    def _train(self, policy: TransformerPolicy, trackers: Trackers) -> TrainResult:
        config = self.config
        given = len(self.prompts), 0 if self.held_out is None else len(self.held_out.prompts)
        self.display.say(headline(self.model, policy, config, given, self.run.manifest["config"]["engine"]))
        if config.token_budget == self.run.manifest["config"]["token_budget"]:  # else it was given anew
            policy.room.tokens = self.run.manifest.get("token_budget", policy.room.tokens)
        policy.room.say = partial(self._remember_room, policy)
        if self.main:
            self.run.save_manifest(token_budget=policy.room.tokens, opens_thought=policy.opens_thought)
        for note in policy.notes:
            self.display.say(note)
        self._foresee(policy)
        if config.carry_optimizer:
            self._say_begins_anew()
        elif lost := lost_to_rounding(policy, optimisation(config), self._steps()):
            self.display.say(f"advice: {lost}")
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
                record = self.record(step)
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
                for said in advice(record, config, config):
                    self.display.say(f"advice: {said}")
                if decision.stage == "collapsing":
                    self.display.say(f"round {step.round} · guard: {decision.reason}")
                if decision.action != "continue":
                    chosen = decision.round
                    self.display.say(f"{decision.action}: the model is that of round {chosen}")
                    break
        except Diverged as error:
            # A round that could not be drawn has a policy, but no record: model/ is to be what the records tell of.
            become(policy, self.run, config, max(0, len(self.run.records()) - 1))
            leave(policy, self.ledger, config, self.display, f"stopped: {error}")
            raise Diverged(f"{error} (the last good round is saved in {self.run.path / 'model'})") from error
        if unread := given_up():
            self.display.say(unread)
        become(policy, self.run, config, chosen)
        leave(policy, self.ledger, config, self.display, "finished", chosen)
        self.display.say(saved(policy, self.run.path))
        return TrainResult.of(self.run)

    def _track(self, trackers: Trackers, record: Record, round: int) -> None:
        if self.report_to:
            table = self.run.table(round, "rollouts" if self.held_out is None else "held_out")
            trackers.log(record, table.head().to_pydict())

    def _remember_room(self, policy: TransformerPolicy, said: str) -> None:
        """Memory was too small; a run that is resumed need not find out again."""
        self.display.say(said)
        if self.main:
            self.run.save_manifest(token_budget=policy.room.tokens)

    def _finished(self) -> TrainResult:
        self.display.say(f"run {self.run.path} is finished already; nothing to do")
        result = TrainResult.of(self.run)
        lacks_report, hub = not (self.run.path / REPORT).exists(), self.config.push_to_hub
        lacks_push = bool(hub) and self.run.manifest.get("pushed") != hub
        if self.main and (lacks_report or lacks_push or self.run.locked):  # it was killed just before its end
            self.run.take_up()
            if lacks_report:
                self.display.say(report_or_reason(self.run.path))
            if hub:
                push(self.run, hub, self.display)
            self.run.release()
        if self.main and self.on_round is not None:
            for record in result.records:
                self.on_round(dict(record))
        return result

    def _say_begins_anew(self) -> None:
        """A run that goes back has its state of the newest round alone."""
        newest = rounds_of(self.run.path)[-1]
        if not 0 < newest < self.config.rounds:
            return
        now, last = (self.run.checkpoint(t, carry=True) for t in (newest, newest - 1))
        if not any(path.exists() for path in (now.path, now.before, last.path) if path):  # last: not settled yet
            self.display.say(f"AdamW begins anew in round {newest}: its state is kept of the newest round alone")

    def _steps(self) -> int:
        """Of a round's update."""
        number = self.config.prompts_per_round
        prompts = (len(self.prompts) if number is None else number) + (self.config.written_prompts or 0)
        return max(1, -(-prompts // self.config.prompts_per_step)) * self.config.epochs

    def _foresee(self, policy: TransformerPolicy) -> None:
        """What a round will take, where that can be told. Every process looks: its weights may be needed."""
        lengths, held_out = (
            [] if prompts is None else [len(ids) for ids in policy.ids(prompts)]
            for prompts in (self.prompts, None if self.held_out is None else self.held_out.prompts)
        )
        pool = None if self.stages.writer is None else self.stages.writer.pool
        made = foreseen(self.model, policy, self.config, lengths, held_out, pool)
        if made is not None:
            self.display.say(brief(made))


def _in_common(manifest: dict[str, Any]) -> dict[str, Any]:
    """What all processes are to be alike in, by names that a person knows."""
    return {name: manifest[name] for name in ("srlm", "model")} | {
        **{
            f"the fingerprint of the {name.replace('_', ' ')}": entry["fingerprint"][:12]
            for name, entry in manifest["data"].items()
        },
        **{f"version of {name}": version for name, version in manifest["versions"].items()},
        **{f"--{name.replace('_', '-')}": value for name, value in manifest["config"].items()},
    }
