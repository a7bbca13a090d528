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
