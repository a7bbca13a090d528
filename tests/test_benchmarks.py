"""Benchmarks are run by hand, so what they import from is checked here."""

import importlib
import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = [".".join(file.relative_to(FOLDER).with_suffix("").parts) for file in FOLDER.rglob("[!_]*.py")]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_benchmark_can_be_imported(name):
    if name == "update" and importlib.util.find_spec("trl") is None:
        pytest.skip("trl, which it is held against, is not installed")
    importlib.import_module(f"benchmarks.{name}")


def test_long_responses_at_toy_sizes(capsys):
    """What an accelerator is lent for runs as one command; here it has to run at all."""
    from benchmarks import gpu, lengths

    gpu.main(["--models", "toy", "--tokens", "8", "--k", "2", "--rounds", "1"])
    assert "| toy | 4096 | 8 |" in capsys.readouterr().out
    lengths.main(["--models", "toy", "--tokens", "8", "300", "--k", "4", "--rounds", "1", "--no-memory"])
    out = capsys.readouterr().out
    assert "| toy | 8 | 1 trees |" in out and "| toy | 300 | " in out
