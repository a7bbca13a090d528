"""LoRA folded into the weights for decoding, or left beside them: processor seconds of drawing, and memory.

python -m benchmarks.folding [--model smollm2] [--rows 32] [--tokens 32,128] [--rounds 5]

With --layers N a model of N layers of the shape of Qwen2.5 1.5B and random weights takes the place of one that is
read. Memory is that of the process: at most while LoRA is folded in, and afterwards, each time anew.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time

import torch
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from benchmarks.memory import peak_from_now, resident
from benchmarks.timing import interleave, ratios, spread, table
from srlm.policies.transformer.load import load_model
from srlm.policies.transformer.load.adapters import with_lora
from srlm.policies.transformer.processes import processes, silent
from srlm.policies.transformer.respond import respond
from srlm.policies.transformer.room import Room
from srlm.policies.transformer.sample import Decoding, streams
from srlm.policies.transformer.weights import Weights
from srlm.training.sizes_table import models

PROMPT = 48  # tokens
K = 8


def weights_of(name: str, layers: int) -> Weights:
    if layers:
        config = models()["Qwen2.5 1.5B"]
        config.num_hidden_layers = layers
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.uniform_(-0.02, 0.02)
    else:
        model, _ = load_model(name, dtype="bf16")
    return Weights(*with_lora(model.eval(), rank=16, alpha=None, gain=False, seed=0), name)


def drawing(weights: Weights, rows: int, tokens: int) -> dict[str, list[float]]:
    prompts = [[(7919 * i + 13 * j) % 4000 + 100 for j in range(PROMPT)] for i in range(rows // K)]
    seeds = list(range(len(prompts)))

    def draw(fold: bool) -> float:
        start = time.process_time()
        with weights.merged() if fold else contextlib.nullcontext():
            respond(
                *(weights.model, prompts, K, streams(seeds, K, tokens), Decoding(tokens, frozenset({-1}))),
                padding=True,
                room=Room(2048),
                together=processes(),
                progress=silent,
            )
        return time.process_time() - start

    return interleave({"folded": lambda: draw(True), "beside": lambda: draw(False)}, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", default="32,128")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    weights = weights_of(given.model, given.layers)
    lines = []
    for number in range(given.rounds):
        before, peak, start = resident(), peak_from_now(), time.process_time()
        with weights.merged():
            pass
        taken = time.process_time() - start
        lines.append((str(number + 1), *(f"{b / 1e9:.2f}" for b in (before, peak(), resident())), f"{taken:.2f}"))
    print(table(("folded", "GB before", "at most", "afterwards", "seconds"), lines), flush=True)
    lines = []
    for tokens in map(int, filter(None, given.tokens.split(","))):
        took = drawing(weights, given.rows, tokens)
        median = (f"{statistics.median(took[name]):.2f}" for name in ("folded", "beside"))
        lines.append((str(tokens), *median, spread(ratios(took["beside"], took["folded"]))))
    if lines:
        print(table(("tokens", "folded, s", "beside, s", "beside ÷ folded"), lines))


if __name__ == "__main__":
    main()
