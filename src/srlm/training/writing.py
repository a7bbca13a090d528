"""The prompts that each round's policy writes; the ledger keeps them, so that a run that goes on meets the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from srlm.config import SelfRewardConfig
from srlm.harvest import ending_of, texts_of
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.processes import Progress
from srlm.prompts.columns import dressed
from srlm.prompts.select import PromptSet
from srlm.run.columns import rows as as_rows
from srlm.run.ledger import Ledger
from srlm.run.tables import Columns
from srlm.types import PromptItem, Prompts
from srlm.writing.filters import Filters
from srlm.writing.write import Pool, write

TABLE, STAGE = "written", "write prompts"


def pool_of(config: SelfRewardConfig, train: PromptSet) -> Pool:
    """
    Raises:
        UserError: there are too few prompts to draw examples from.
    """
    ending = ending_of(train.source, config.instruction)
    return Pool(train.prompts.items, config.written_examples, train.source, ending)


@dataclass(frozen=True)
class Writer:
    """pool: of the prompts that were given. given: how many these are; written ones are numbered behind them.
    held_out: texts that nothing written may come near."""

    config: SelfRewardConfig
    ledger: Ledger
    pool: Pool
    given: int
    held_out: Sequence[str]
    say: Callable[[str], object]

    @classmethod
    def of(
        cls,
        config: SelfRewardConfig,
        ledger: Ledger,
        train: PromptSet,
        held_out: PromptSet | None,
        say: Callable[[str], object],
    ) -> Writer:
        """
        Raises:
            UserError: there are too few prompts to draw examples from.
        """
        kept_out = [] if held_out is None else texts_of(held_out, config.instruction)
        return cls(config, ledger, pool_of(config, train), len(train.prompts), kept_out, say)

    def __call__(self, policy: TransformerPolicy, round: int) -> tuple[Prompts, tuple[int, ...]]:
        """The prompts that pi_t wrote in round t, and their numbers. How many it wrote, and how many each filter
        dropped, go with the stage: `drawn_write_prompts`, `dropped_length_write_prompts`, ..."""
        names = ("prompt", "prompt_index", "tokens", "examples", "draw", "log_prob")
        kept = self.ledger.columns(round, TABLE, names, lambda: self._columns(policy, round)).read(names)
        items = [self._dressed(text) for text in kept["prompt"].to_pylist()]
        if items:
            policy.encode.keep(items, as_rows(kept["tokens"]))
        return Prompts.uniform(items), tuple(kept["prompt_index"].to_pylist())

    def _columns(self, policy: TransformerPolicy, round: int) -> Columns:
        config = self.config
        earlier = [self.ledger.run.table(t, TABLE).read(["prompt"])["prompt"].to_pylist() for t in range(round)]
        filters = Filters(
            config,
            self.pool.texts,
            held_out=self.held_out,
            written=[text for some in earlier for text in some],
            overlong=lambda text: bool(policy.overlong(Prompts.uniform([self._dressed(text)]))),
        )

        def work(progress: Progress) -> Columns:
            made = write(
                *(policy, self.pool, config.written_prompts, filters, config),
                seed=config.seed,
                round=round,
                progress=progress,
            )
            self.ledger.note("drawn", made.drawn)
            for name, number in made.dropped.items():
                self.ledger.note(f"dropped_{name}", number)
            if len(made.prompts) < config.written_prompts:
                self.say(
                    f"round {round} · {len(made.prompts)} of {config.written_prompts} prompts written: the other "
                    f"{made.drawn - len(made.prompts)} of {made.drawn} were dropped ({made.losses()})"
                )
            first = self.given + round * config.written_prompts
            ids = policy.ids(Prompts.uniform([self._dressed(one.prompt) for one in made.prompts]))
            return {
                "prompt": pa.array([one.prompt for one in made.prompts], pa.string()),
                "prompt_index": pa.array(range(first, first + len(made.prompts)), pa.int32()),
                "tokens": pa.array(ids, pa.list_(pa.int32())),
                "examples": pa.array([list(one.examples) for one in made.prompts], pa.list_(pa.int32())),
                "draw": pa.array([one.draw for one in made.prompts], pa.int32()),
                "log_prob": pa.array([one.log_prob for one in made.prompts], pa.float32()),
            }

        return self.ledger.stage(round, STAGE, work, lambda made: sum(map(len, made["tokens"].to_pylist())))

    def _dressed(self, text: str) -> PromptItem:
        return dressed("a written prompt", text, self.config.system_prompt, self.pool.instruction)
