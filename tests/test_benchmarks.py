"""Benchmarks are run by hand, so what they import from is checked here."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = [".".join(file.relative_to(FOLDER).with_suffix("").parts) for file in FOLDER.rglob("[!_]*.py")]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_benchmark_can_be_imported(name):
    if name in ("update", "long_dpo") and importlib.util.find_spec("trl") is None:
        pytest.skip("trl, which it is held against, is not installed")
    importlib.import_module(f"benchmarks.{name}")


def test_long_responses_at_toy_sizes(capsys):
    """What an accelerator is lent for runs as one command; here it has to run at all."""
    from benchmarks import gpu, lengths

    gpu.main(["--models", "toy", "--tokens", "8", "--k", "2", "--rounds", "1"])
    assert "| toy | 2048 | 8 |" in capsys.readouterr().out
    gpu.main(["--engines", "--models", "toy", "--tokens", "8", "--k", "2", "--rounds", "1", "--prompts", "2"])
    out = capsys.readouterr().out
    assert all(f"| toy | 8 | {engine} |" in out for engine in ("built-in", "generate", "continuous batching"))
    lengths.main(["--models", "toy", "--tokens", "8", "300", "--k", "4", "--rounds", "1", "--no-memory"])
    out = capsys.readouterr().out
    assert "| toy | 8 | 1 trees |" in out and "| toy | 300 | " in out


def test_the_hosts_part_of_a_round_runs(tiny):
    sizes = ["--prompts", "40", "--samples", "30", "--tokens", "20", "--held-out", "2"]  # more than one row group
    words = [sys.executable, "-m", "benchmarks.host", "--model", str(tiny), *sizes]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert "40 prompts × 30 responses × 20 tokens" in done.stdout
    rows = [line.split("|") for line in done.stdout.splitlines() if "most resident memory" in line]
    assert 0 < float(rows[0][2].strip(" *")) < 1
