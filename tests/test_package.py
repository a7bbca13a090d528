"""What is built, installed elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from srlm.shipped import shipped

ROOT = Path(__file__).parents[1]


def test_what_comes_along_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped("data/capitals-train.jsonl").read_bytes() == (ROOT / "data/capitals-train.jsonl").read_bytes()
    assert shipped("configs/capitals.yaml").is_file()
    assert shipped("data/none.jsonl") == Path("data/none.jsonl")
    assert shipped("data/../pyproject.toml") == Path("data/../pyproject.toml")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "capitals-train.jsonl").write_text("mine")
    assert shipped("data/capitals-train.jsonl") == Path("data/capitals-train.jsonl")


@pytest.mark.slow
def test_the_wheel_brings_data_configs_types_and_a_command(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    made = subprocess.run([*build, str(tmp_path), str(ROOT)], capture_output=True, text=True)
    if made.returncode and "hatchling" in made.stderr:
        pytest.skip("pip install hatchling")
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    inside = ("py.typed", "data/capitals-train.jsonl", "configs/capitals.yaml", "report/templates/page.html")
    assert not [name for name in inside if f"srlm/{name}" not in names]
    target = tmp_path / "there"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True)
    where = os.environ | {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "srlm.cli", "verify", "greedy-trap", "--quick", "--quiet"]
    ran = subprocess.run(words, cwd=tmp_path, env=where, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    config = [sys.executable, "-m", "srlm.cli", "train", "--config", "configs/capitals.yaml", "--print-config"]
    assert (
        "data/capitals-train.jsonl"
        in subprocess.run(config, cwd=tmp_path, env=where, capture_output=True, text=True).stdout
    )
