"""Benchmarks are run by hand, so what they import from is checked here."""

import importlib
import importlib.util
from pathlib import Path

import pytest

NAMES = [file.stem for file in (Path(__file__).parents[1] / "benchmarks").glob("*.py") if file.stem != "__main__"]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_benchmark_can_be_imported(name):
    if name == "update" and importlib.util.find_spec("trl") is None:
        pytest.skip("trl, which it is held against, is not installed")
    importlib.import_module(f"benchmarks.{name}")
