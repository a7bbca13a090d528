"""Whatever a person brings: never wrong in silence, never a traceback. `python -m benchmarks.campaign` tries thousands
of mutated inputs, damaged files and kills, tests/test_campaign.py a minute's worth of the same."""

import sys
from pathlib import Path

# The tiny models, and the command line in this process, are those of the tests.
TESTS = str(Path(__file__).parents[2] / "tests")
if TESTS not in sys.path:
    sys.path.append(TESTS)
