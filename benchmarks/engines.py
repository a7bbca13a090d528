"""Who draws fastest: the built-in decoder, vLLM in this process and transformers' `generate`, in turns.

    python -m benchmarks.engines --model smollm2 --prompts 16 --k 8 --tokens 128 --rounds 3 [--endless]
        [--without generate vLLM]

The built-in one twice: its responses read one copy of their prompt, or one each. Run it in the environment that
`make test-vllm` makes; without vLLM the others are compared.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.sampling import Sampled, ours, theirs
from benchmarks.timing import interleave, machine, ratios, say, spread, table
from benchmarks.workload import Sizes, load_policy, load_prompts
from srlm.policies.transformer.engines.inside import Inside
from srlm.policies.transformer.engines.vllm import VllmEngine
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.types import Prompts


def run(
    policy: TransformerPolicy, sizes: Sizes, scratch: Path, dtype: str, options: list[str], without: list[str]
) -> str:
    prompts = load_prompts(policy, dataclasses.replace(sizes, tokens=sizes.tokens // 4))
    few = Prompts.uniform(prompts.items[:2])
    builtin, repeated, seeds = policy.engine, copy.copy(policy.engine), iter(range(10**6))
    cast(Any, repeated)._shared = False  # as on devices where it is the better way

    def drawn(engine: Any, prompts: Prompts) -> Sampled:
        # `generate` asks for the head once a row (59 GB of Qwen2.5-1.5B, 128 rows); torch then does without oneDNN.
        torch.backends.mkldnn.set_flags(True)
        policy.engine = engine
        policy.sample(few, 2, torch.Generator().manual_seed(0))  # the weights go before the clock runs
        return ours(policy, prompts, sizes.k, next(seeds))

    arms: dict[str, Callable[[Prompts], Sampled]] = {
        "built-in": partial(drawn, builtin),
        "built-in, a prompt for each response": partial(drawn, repeated),
    }
    if "generate" not in without:  # a second model
        merged = cast(Any, copy.deepcopy(policy.weights.peft_model)).merge_and_unload()
        arms["generate, LoRA merged"] = lambda prompts: theirs(merged, policy, prompts, sizes.k, next(seeds))
    engine = None
    if importlib.util.find_spec("vllm") is not None and "vLLM" not in without:
        engine = VllmEngine(Inside(dtype, options, trust_remote_code=False), scratch / "engine", policy.processes)
        arms["vLLM"] = partial(drawn, engine)
    arms = {name: arm for name, arm in arms.items() if not name.startswith(tuple(without))}
    say("  warming up")
    for arm in arms.values():
        arm(few)
    got = interleave({name: partial(arm, prompts) for name, arm in arms.items()}, sizes.rounds)
    if engine is not None:
        engine.close()
    rate = {name: [sampled.rate for sampled in each] for name, each in got.items()}
    own = rate["built-in"]
    rows = [(name, spread(rate[name], 0), f"**{spread(ratios(own, rate[name]))}**") for name in got]
    size = sum(len(policy.encode(item)) for item in prompts.items) / len(prompts)
    setting = f"{sizes.prompts} prompts of {size:.0f} tokens × {sizes.k}, at most {sizes.tokens} new tokens"
    return f"{setting}\n\n" + table(
        ("", "response tokens/s", f"built-in ÷ this, {sizes.rounds} interleaved pairs"), rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__.splitlines()[0])
    for name, value in (("prompts", 16), ("k", 8), ("tokens", 128), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--without", nargs="*", default=[], help="arms to leave out, by how they begin")
    parser.add_argument("--endless", action="store_true", help="no response ends before its last token")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--engine-options", nargs="*", default=["max_model_len=1024"])
    given = parser.parse_args()
    sizes = Sizes(given.prompts, given.k, given.tokens, given.rounds, 4, 2048, 4)
    policy = load_policy(given.model, given.dtype, sizes)
    if given.endless:  # a word that is next to never said
        last = policy.model.get_input_embeddings().weight.shape[0] - 1
        policy.decoding = dataclasses.replace(policy.decoding, eos=frozenset({last}))
    print(machine(policy.model.device.type, policy.model.dtype))
    with tempfile.TemporaryDirectory() as scratch:
        print(run(policy, sizes, Path(scratch), given.dtype, given.engine_options, given.without))


if __name__ == "__main__":
    main()
