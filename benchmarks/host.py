"""(g) What a round of many long responses costs the host: layout, packing, tables, records and report.

    python -m benchmarks.host

A stub stands in for the model: it draws random words and random log-probs, and no forward pass is made. All else is
what a run does: `Stages`, ledger, tables, layout and packing of every micro-batch, the record of the round with its
held-out prompts, the closed tables and the report. Megabytes and gigabytes are 10^6 and 10^9 bytes; processor seconds
tell what a stage costs where other work shares the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import peak_from_now, resident
from benchmarks.timing import machine, now, say, table
from benchmarks.workload import PASSAGE
from srlm.config import SelfRewardConfig
from srlm.console import Display
from srlm.loop import round_generator
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.processes import Progress, silent
from srlm.policies.transformer.responses import Responses
from srlm.report import report
from srlm.training.trainer import SelfRewardTrainer
from srlm.types import Prompts, Step


class Stub(TransformerPolicy):
    """Says random words, all of them to the last token, and finds them randomly probable. spent: processor
    seconds."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.spent = {"sampling": 0.0, "layout": 0.0, "text": 0.0}
        self.laid_out = self.decoded = 0  # response tokens

    def sample(
        self,
        prompts: Prompts,
        num_samples: int,
        generator: torch.Generator,
        progress: Progress = silent,
        *,
        explore: bool = True,
    ) -> Responses:
        shape = (len(prompts), num_samples, self.decoding.max_new_tokens)
        words = self.model.get_input_embeddings().weight.shape[0]
        start = time.process_time()
        tokens = torch.randint(words, shape, generator=generator, dtype=torch.int32)
        self.spent["sampling"] += time.process_time() - start
        return Responses(tokens, torch.full(shape[:2], shape[2]), torch.zeros(shape[:2], dtype=torch.bool))

    def greedy(self, prompts: Prompts, progress: Progress = silent) -> Responses:
        return self.sample(prompts, 1, torch.Generator().manual_seed(0), progress)

    def score(
        self,
        prompts: Prompts,
        responses: Responses,
        *,
        with_entropy: bool = False,
        token_log_prob: Tensor | None = None,
        progress: Progress = silent,
    ) -> tuple[Tensor, Tensor]:
        start = time.process_time()
        groups = self.groups(prompts, responses)
        for step in self.scorer.steps(range(len(groups))):
            for share in self.scorer.shares(groups, step):
                for batch in share.batches:
                    self.scorer.pack(groups, batch, masked=share.masked)
        self.spent["layout"] += time.process_time() - start
        self.laid_out += int(responses.length.sum())
        if token_log_prob is not None:
            token_log_prob.uniform_(-5, 0)
        shape = responses.length.shape
        return -torch.rand(shape) * responses.length, torch.rand(shape)

    def text(self, ids: Any) -> str:
        start = time.process_time()
        text = super().text(ids)
        self.spent["text"] += time.process_time() - start
        self.decoded += len(ids)
        return text


@contextlib.contextmanager
def stage(name: str, rows: list[tuple[str, ...]], base: int) -> Iterator[None]:
    """A row of the table: seconds, processor seconds, and the most memory beyond `base` meanwhile."""
    gc.collect()
    peak = peak_from_now()
    start, used = now(), time.process_time()
    yield
    seconds, used, most = now() - start, time.process_time() - used, (peak() - base) / 1e9
    rows.append((name, f"{seconds:.1f}", f"{used:.1f}", f"{most:.2f}"))
    say(f"  {name}: {seconds:.1f} s, {used:.1f} of the processor, at most {most:.2f} GB")


def arrow_bytes(trainer: SelfRewardTrainer) -> tuple[int, int]:
    """Of the table of training responses: all columns, and the token ids."""
    pieces = [(piece.nbytes, piece["tokens"].nbytes) for piece in trainer.run.table(0, "rollouts").pieces()]
    return sum(whole for whole, _ in pieces), sum(tokens for _, tokens in pieces)


def write_prompts(file: Path, number: int) -> Path:
    rows = ({"prompt": f"{' '.join(PASSAGE)} Which is city number {i}?"} for i in range(number))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(model: str, prompts: int, k: int, tokens: int, held_out: int, reward: str, folder: Path) -> str:
    config = SelfRewardConfig(
        output=str(folder / "run"),
        num_samples=k,
        held_out_samples=k,
        max_new_tokens=tokens,
        reward=reward,
        guard=False,
    )
    files = [write_prompts(folder / f"{name}.jsonl", n) for name, n in (("prompts", prompts), ("held-out", held_out))]
    policy = Stub.load(model, lora_rank=0, max_new_tokens=tokens)
    rows: list[tuple[str, ...]] = []
    gc.collect()
    base = resident()
    measured = partial(stage, rows=rows, base=base)
    with measured("prompts read, encoded and checked"):
        trainer = SelfRewardTrainer(model, config, *files, display=Display(silent=True))
        policy.check_prompts(trainer.prompts, k)
    trainer.run.begin()
    draw: Callable[..., Responses] = partial(policy.sample, trainer.prompts, k, round_generator(0, 0))
    with measured("sampled (stub), decoded to text, kept as columns, read again"):
        trainer.stages.tables.responses(policy, trainer.prompts, 0, "rollouts", draw)
    sampled = policy.spent["sampling"]
    written = float(rows[-1][2]) - sampled - policy.spent["text"]
    with measured("read again, laid out and packed, scored (stub), kept"):
        rollouts = trainer.stages.rollouts(policy, trainer.prompts, 0, round_generator(0, 0))
    speed = policy.laid_out / policy.spent["layout"] / 1e6
    with measured(f"rewarded by {reward}"):
        rewards = trainer.stages.reward(policy, rollouts)
    with measured(f"record, with {held_out * k:,} held-out responses by token"):
        trainer.run.append_record(trainer.record(Step(0, policy, rollouts, rewards, None)))
        parts = (*vars(rollouts.responses).values(), rollouts.log_prob, rewards)
        held = sum(value.nbytes for value in parts if value is not None)  # nobody else's log-probs
    held += rollouts.weight.nbytes + (0 if rollouts.entropy is None else rollouts.entropy.nbytes)
    count = int(rollouts.responses.length.sum())
    del rollouts, rewards
    whole, ids = arrow_bytes(trainer)
    with measured("tables closed: parts to one file"):
        trainer.ledger.close(0)
    closing = float(rows[-1][2])
    with measured("report"):
        page = report([trainer.run.path])
    most = max(float(row[3]) for row in rows)
    facts = [
        ("layout and packing of all groups, million tokens a processor second", f"{speed:.1f}"),
        ("bytes held a token between stages (padded ids, log-probs, rewards)", f"{held / count:.1f}"),
        ("bytes a token of peak memory beyond the stub", f"{most * 1e9 / count:.1f}"),
        (
            "columns of the responses made, added and read again, MB a processor second beside decoding",
            f"{whole / 1e6 / max(written, 0.01):.0f}",
        ),
        ("tables closed (read, checked, written), MB a processor second", f"{whole / 1e6 / max(closing, 0.01):.0f}"),
        ("columns of the training responses, MB (ids of them)", f"{whole / 1e6:.0f} ({ids / 1e6:.0f})"),
        ("decoding to text, million tokens a processor second", f"{policy.decoded / policy.spent['text'] / 1e6:.1f}"),
        ("most resident memory beyond the stub, GB", f"**{most:.2f}**"),
        ("report, MB", f"{page.stat().st_size / 1e6:.1f}"),
    ]
    setting = (
        f"{prompts:,} prompts × {k} responses × {tokens:,} tokens; a stub, with the words of `{model}`, for the model."
    )
    return f"""{setting}

{table(("stage", "seconds", "processor s", "most GB beyond the stub"), rows)}

{table(("", ""), facts)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=12_500)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--held-out", type=int, default=125, help="prompts whose responses are kept token by token")
    parser.add_argument("--reward", default="majority", help="of those that need no model")
    parser.add_argument("--model", default="smollm2", help="whose words and tokenizer the stub has")
    given = parser.parse_args()
    about = machine("cpu", torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        print(run(given.model, given.prompts, given.samples, given.tokens, given.held_out, given.reward, Path(folder)))
    print(about)


if __name__ == "__main__":
    main()
