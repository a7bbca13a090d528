"""docs/models.md: which classes of transformers work with srlm, each tried on a tiny random model.

    python -m benchmarks.families --output FILE.jsonl [--classes llama mamba ...] [--write docs/models.md]

Every class that `AutoModelForCausalLM` knows is built tiny (fp32, CPU), scored, decoded and searched against its own
plain forward, trained for a round with LoRA and with all weights, saved and loaded again. A class has a process of its
own and so many seconds. FILE keeps a line a class, and a class that has one is not tried again. Printed are the stages
that gave a wrong number or an exception instead of a number or a refusal.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.families.page import layout, page, wrong
from benchmarks.families.processes import server, tried
from benchmarks.timing import say


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--classes", nargs="+", help="model types, as in config.json; all by default")
    parser.add_argument("--seconds", type=float, default=120, help="for a class")
    parser.add_argument("--write", type=Path, help="the page")
    given = parser.parse_args(arguments)
    known = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if unknown := sorted({*(given.classes or ())} - {*known}):
        parser.error(f"no causal LM of transformers is called {', '.join(unknown)}")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    forks = server()
    lines = given.output.read_text().splitlines() if given.output.exists() else []
    records = {record["model_type"]: record for record in map(json.loads, lines)}
    for kind in given.classes or known:
        if kind not in records:
            records[kind] = tried(kind, given.seconds, forks)
            with given.output.open("a") as file:
                file.write(json.dumps(records[kind]) + "\n")
            say(f"{len(records)} {kind}: {', '.join(wrong(records[kind])) or layout(records[kind])}")
    chosen = [records[kind] for kind in given.classes or known]
    if given.write:
        given.write.write_text(page(chosen))
    for record in chosen:
        if stages := wrong(record):
            print(f"{record['model_type']}: {', '.join(stages)}")


if __name__ == "__main__":
    main()
