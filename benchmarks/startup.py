"""How long srlm takes before it does anything: `import srlm`, `srlm --help`, `srlm train --help`, beside bare Python.

python -m benchmarks.startup [--rounds 15]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial

from benchmarks.timing import interleave, now, spread, table

ARMS = {
    "python": "pass",
    "import srlm": "import srlm; srlm.SelfRewardConfig",
    "srlm --help": "from srlm.cli import main; main(['--help'])",
    "srlm train --help": "from srlm.cli import main; main(['train', '--help'])",
    "srlm train --print-config": "from srlm.cli import main; main(['train', '--print-config'])",
}


def seconds(code: str) -> float:
    start = now()
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    return now() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    found = interleave({name: partial(seconds, code) for name, code in ARMS.items()}, given.rounds)
    bare = found["python"]
    rows = [
        (name, spread(values), spread([a - b for a, b in zip(values, bare, strict=True)]))
        for name, values in found.items()
    ]
    print(table(("", "seconds", "beyond bare Python"), rows))


if __name__ == "__main__":
    main()
