"""`python -m benchmarks.campaign --inputs 10000 --damaged 300 --kills 500`: counts as it goes, a line per sort of
failure with what repeats it, and a table at the end. Exit code 1 if anything failed."""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

MEMORY = 8 << 30  # bytes of address space: what asks for more fails alone, and not the machine


def main() -> None:
    reader = argparse.ArgumentParser(prog="python -m benchmarks.campaign", description=__doc__)
    reader.add_argument("--inputs", type=int, default=10_000)
    reader.add_argument("--damaged", type=int, default=300)
    reader.add_argument("--kills", type=int, default=500)
    reader.add_argument("--seed", type=int, default=None, help="by default another one each time; it is printed")
    reader.add_argument("--only", action="append", help="one kind (may be repeated)")
    reader.add_argument("--start", type=int, default=0, help="number of the first attempt, to go on or to repeat one")
    reader.add_argument("--folder", type=Path, default=None, help="where failures are left (a temporary one)")
    given = reader.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import torch

    from benchmarks.campaign import damage, inputs, kills
    from benchmarks.campaign.engine import Tally, campaign, in_turn
    from benchmarks.campaign.world import World

    torch.set_num_threads(1)
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="srlm-campaign-"))).resolve()
    (folder / "world").mkdir(parents=True)
    print(f"seed {seed}; failures are left in {folder}", flush=True)
    world, tally, began = World(folder / "world"), Tally(), time.time()
    parts = (
        (inputs.kinds(world), given.inputs),
        (damage.Damages(world).kinds(), given.damaged),
        (kills.kinds(world), given.kills),
    )
    try:
        for kinds, count in parts:
            names = [name for name in kinds if not given.only or name in given.only]
            if names and count:
                campaign(
                    in_turn(kinds, names, given.start, count), seed, folder, tally, lambda line: print(line, flush=True)
                )
    except KeyboardInterrupt:
        print("interrupted")
    print(f"\n{tally.table()}\n\n{time.time() - began:.0f} s")
    for sort, number in tally.sorts.most_common():
        print(f"{number} × {sort}")
    sys.exit(1 if tally.failures else 0)


if __name__ == "__main__":
    main()
