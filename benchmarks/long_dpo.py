"""An epoch of updates on long responses against TRL's `DPOTrainer`: `python -m benchmarks.long_dpo [--tokens 512]`.

Random words, so that nothing but the prompt can be shared; both compute their reference log-probs in the same epoch.
TRL's padding-free batches need FlashAttention, which no CPU has.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial

import torch

from benchmarks.epoch import ours
from benchmarks.timing import interleave, machine, ratios, say, spread, table
from benchmarks.update import dpo_trainer, pairs, quiet, theirs
from benchmarks.workload import Data, Sizes, load_policy, load_prompts
from srlm.policies.transformer.load.hub import load_model
from srlm.policies.transformer.responses import Responses


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_dpo", description=__doc__.splitlines()[0])
    for name, value in (("prompts", 2), ("k", 4), ("tokens", 512), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", default="smollm2")
    given = parser.parse_args()
    quiet()
    sizes = Sizes(given.prompts, given.k, given.tokens, given.rounds, given.prompts, 2048, 2)
    policy = load_policy(given.model, "auto", sizes)
    prompts = load_prompts(policy, dataclasses.replace(sizes, tokens=16))
    shape = (given.prompts, given.k, given.tokens)
    words = torch.randint(3, policy.model.get_input_embeddings().weight.shape[0], shape, dtype=torch.int32)
    full = torch.full(shape[:2], given.tokens)
    data = Data(prompts, Responses(words, full, torch.zeros(shape[:2], dtype=torch.bool)))
    plain, tokenizer = load_model(given.model)
    make = partial(dpo_trainer, plain.to(policy.model.device), tokenizer, pairs(policy, data)[0], sizes)
    arms = {
        "srlm": lambda: ours(policy, data),
        "TRL": lambda: theirs(make),
        "TRL, compact head": lambda: theirs(make, compact=True),
    }
    say("  warming up")
    ours(policy, data.head(1))
    got = interleave(arms, given.rounds)
    mine = [parts.whole for parts in got["srlm"]]
    rows = [("srlm, scoring before and after it included", spread(mine, 1), "")]
    for name in ("TRL", "TRL, compact head"):
        taken = [parts.epoch for parts in got[name]]
        rows.append((name, spread(taken, 1), f"**{spread(ratios(taken, mine))}**"))
    print(machine(policy.model.device.type, policy.model.dtype))
    print(f"\n{given.prompts} prompts × {given.k} responses of {given.tokens} random words, one epoch, LoRA r=16\n")
    print(table(("", "seconds", f"÷ srlm, {given.rounds} interleaved pairs"), rows))


if __name__ == "__main__":
    main()
