"""The study and the curves of docs/reasoning.md.

    python -m benchmarks.reasoning study --output DIR [--seeds 0 1] [--arms majority random] [--problems 12]
        [--held-out 24] [--rounds 2] [--no-diagnose]
    python -m benchmarks.reasoning collapse --output DIR [--prompts 8 32 128 512] [--rewards majority]

Finished runs are kept, unfinished ones resumed. What they measured goes to benchmarks/reasoning/records, of which the
tables and, with --figures FOLDER, the figures are made; without --output no more is done than that.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reasoning import collapse, study
from benchmarks.reasoning.kept import KEPT


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("study")
    one.add_argument("--model", default="qwen2.5-coder-1.5b")
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    one.add_argument("--arms", nargs="+", default=list(study.ARMS))
    one.add_argument("--diagnose", action=argparse.BooleanOptionalAction, default=True)
    for name, value in (("problems", 12), ("held-out", 24), ("rounds", 2)):
        one.add_argument(f"--{name}", type=int, default=value)
    two = parts.add_parser("collapse")
    two.add_argument("--prompts", type=int, nargs="+", default=[8, 32, 128, 512])
    two.add_argument("--rewards", nargs="+", default=["log_likelihood", "majority"])
    for part in (one, two):
        part.add_argument("--figures", type=Path, help="folder to draw into")
        part.add_argument("--records", type=Path, default=KEPT, help="folder to keep what was measured in")
        part.add_argument("--output", type=Path, help="folder of the runs; without it nothing is run")
    given = parser.parse_args(argv)
    if given.part == "study":
        if given.output:
            study.run(given)
        arms = study.read(given.records, given.arms, given.seeds)
        print(study.table(arms), study.paired(arms), sep="\n\n")
        if given.figures:
            study.draw(arms, given.figures)
        return
    if given.output:
        collapse.run(given)
    found = collapse.read(given)
    print(collapse.table(found))
    if given.figures:
        collapse.draw(found, given.figures)


if __name__ == "__main__":
    main()
