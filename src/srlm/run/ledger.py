"""What the rounds of a run have computed: looked up where it is there, computed and kept where it is not.

Resuming is therefore running again. Only this room knows that something may be there already: a stage says what it
computes and under which names. In several processes all of them compute, and one writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import pyarrow as pa
from torch import Tensor

from srlm.run.files import damaged, verify, with_checksums, write_atomically
from srlm.run.folder import RunFolder, StepCheckpoint
from srlm.run.tables import Columns, Table, whole_files
from srlm.types import Record

Progress: TypeAlias = Callable[[int, int], None]  # (done, total)
Result = TypeVar("Result")


class Processes(Protocol):
    """Those that take part in a run."""

    @property
    def is_main_process(self) -> bool: ...
    def wait_for_everyone(self) -> None: ...


class Watch(Protocol):
    """Shows how a stage goes on."""

    def stage(self, name: str) -> AbstractContextManager[Progress]: ...


class Ledger:
    """The rounds of the run in `run`."""

    def __init__(self, run: RunFolder, processes: Processes, watch: Watch) -> None:
        self.run, self._processes, self._watch = run, processes, watch
        self._notes: dict[str, float] = {}

    def note(self, name: str, number: float) -> None:
        """A number that goes with the stage under way, beside its seconds and tokens."""
        self._notes[name] = number

    def write(self, write: Callable[[], object]) -> None:
        """One process writes: not before all have seen what is there, and nobody reads before it has."""
        self._processes.wait_for_everyone()
        if self._processes.is_main_process:
            write()
        self._processes.wait_for_everyone()

    def stage(
        self,
        round: int,
        name: str,
        work: Callable[[Progress], Result],
        tokens: int | Callable[[Result], int],
    ) -> Result:
        """Do a stage's work under a progress bar; note its seconds, its tokens and what `note` was told meanwhile."""
        self._notes.clear()
        with self._watch.stage(f"round {round} · {name}") as report:
            start = time.perf_counter()
            result = work(report)
            seconds = time.perf_counter() - start
        count = tokens if isinstance(tokens, int) else tokens(result)
        facts = {"seconds": seconds, "tokens": count} | self._notes
        self.write(lambda: self._note_stage(round, name, facts))
        return result

    def columns(
        self, round: int, table: str, names: Sequence[str], work: Callable[[], Columns | Iterable[Columns]]
    ) -> Table:
        """A table that has the columns `names`, which `work` computes, whole or some rows after others, and with other
        columns if it likes, where they are not there."""
        kept = self.run.table(round, table)
        if not set(names) <= set(kept.names()):
            columns = work()
            self.write(lambda: kept.add(names[0], columns))
        return kept

    def update(
        self,
        round: int,
        table: str,
        work: Callable[[StepCheckpoint, Progress], tuple[Columns, Tensor]],
        *,
        folder: str,
        prepare: Callable[[], object],
        save: Callable[[Path], object],
        load: Callable[[Path], object],
        names: Sequence[str],
        tokens: int,
        carry: bool,
    ) -> tuple[pa.Table, Sequence[float]]:
        """pi_{round+1}: taken up by `load` where it is kept, else made by `work` and kept in the next round's `folder`:
        all processes `prepare`, one does `save`. What `work` returns, columns `names` of a table and the loss of each
        step, comes from disk in either case: an update just made and one made before a kill give the same numbers.
        carry: the optimiser goes on from one update to the next.
        """
        after, checkpoint = self.run.round(round + 1) / folder, self.run.checkpoint(round, carry=carry)
        kept = self.run.table(round, table)
        if after.exists():
            verify(after)
            load(after)
            self.write(checkpoint.settle)  # of a run that was killed before it could
        else:
            columns, losses = self.stage(round, "update", partial(work, checkpoint), tokens)

            def commit() -> None:
                kept.add("update", columns)
                self._note_stage(round, "loss", losses.tolist())
                write_atomically(after, partial(with_checksums, after, save))
                checkpoint.settle()

            prepare()
            self.write(commit)
        loss = self.run.stages(round).get("loss")
        if loss is None:
            raise damaged(self.run.round(round) / "stages.json", "the losses of the update are not in it")
        return kept.read(names), loss

    def close(self, round: int) -> None:
        """The round is over: make one file of each of its tables."""

        def write() -> None:
            for table in self.run.tables(round):
                table.close()

        self.write(write)

    def costs(self, round: int) -> Record:
        """What the stages of a round took; the update that made a policy belongs to the policy's round."""
        stages = self.run.stages(round)
        spent = {name: facts for name, facts in stages.items() if isinstance(facts, dict)}
        spent.pop("update", None)
        if round:
            spent["update"] = self.run.stages(round - 1).get("update", {"seconds": math.nan, "tokens": 0})
        record: Record = {}
        for name, facts in spent.items():
            key = name.replace(" ", "_")
            record[f"seconds_{key}"] = facts["seconds"]
            record[f"tokens_per_second_{key}"] = facts["tokens"] / facts["seconds"] if facts["seconds"] else None
            record |= {f"{fact}_{key}": facts[fact] for fact in facts if fact not in ("seconds", "tokens")}
        record["seconds"] = sum(facts["seconds"] for facts in spent.values())
        return record

    def prompt_ids(self, table: str, work: Callable[[], Columns]) -> pa.Table:
        """Every prompt of a table as token ids, made once a run: neither a template that writes today's date nor a
        tokenizer that was replaced is to change what a resumed run scores."""
        if self.run.prompt_ids(table) is None:
            columns = work()
            self.write(lambda: self.run.save_prompt_ids(table, pa.table(dict(columns))))
        kept = self.run.prompt_ids(table)
        assert kept is not None
        return kept

    def record(self, round: int) -> Record:
        """What was measured of a round."""
        return self.run.records()[round]

    def borrow(self, others: Sequence[Path], lendable: Callable[[str], bool], own: Sequence[str]) -> None:
        """Before round 0 is over, take over what pi_0 said in another run of the same model, prompts and seed. Of
        `others` the first that is through with round 0, if any is. What is here already stays, so that an interrupted
        call is finished by another.

        lendable: does a stage depend on model, prompts and seed alone? own: columns that a run makes of its responses.
        """
        lender = next((run for run in (RunFolder(path, {}) for path in others) if run.records()), None)
        if lender is None or self.run.records():
            return
        for file in whole_files(lender.prompts):
            if (ids := lender.prompt_ids(file.stem)) is not None and self.run.prompt_ids(file.stem) is None:
                self.run.save_prompt_ids(file.stem, ids)
        theirs = {name: facts for name, facts in lender.stages(0).items() if lendable(name)}
        self.run.save_stages(0, theirs | self.run.stages(0))
        for lent in lender.tables(0):
            mine = self.run.table(0, lent.file.stem)
            if not mine.files():
                mine.take("start", lent, own)

    def _note_stage(self, round: int, name: str, facts: Any) -> None:
        self.run.save_stages(round, self.run.stages(round) | {name: facts})
