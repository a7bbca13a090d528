"""What is built, installed elsewhere."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from support import command

from srlm import __version__
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
def test_sdist_and_wheel_bring_all_and_run(tiny, tmp_path):
    """The wheel of the sdist, beside nothing of this repository: data, configs, types, a command that works."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("pip install hatchling")
    packed = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path / "sdist")]
    subprocess.run(packed, cwd=ROOT, check=True, capture_output=True)
    (sdist,) = (tmp_path / "sdist").glob("srlm-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    root = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert all((root / name).exists() for name in ("tests/conftest.py", "docs/index.md", "mkdocs.yml", "LICENSE"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(tmp_path), str(root)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    inside = (
        *("py.typed", "data/capitals-train.jsonl", "configs/capitals.yaml", "report/templates/page.html"),
        "rewards/rubrics/additive.yaml",
    )
    assert not [name for name in inside if f"srlm/{name}" not in archive.namelist()]
    (about,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    said = archive.read(about).decode()
    assert "Requires-Python: >=3.11" in said and f"Version: {__version__}" in said
    target = tmp_path / "there"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True)

    def ran(*words: object) -> str:
        where = os.environ | {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
        line = [sys.executable, "-m", "srlm", *map(str, words)]
        made = subprocess.run(line, cwd=tmp_path, env=where, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        return made.stdout

    ran("verify", "greedy-trap", "--quick", "--quiet")
    assert "data/capitals-train.jsonl" in ran("train", "--config", "configs/capitals.yaml", "--print-config")
    size = ("--max-prompts", 3, "--max-held-out", 2, "--rounds", 1, "--num-samples", 2, "--max-new-tokens", 4)
    ran(
        "train", "--config", "configs/capitals.yaml", "--model", tiny, *size, "--no-guard", "--output", "run", "--quiet"
    )
    assert (tmp_path / "run" / "model" / "config.json").exists() and (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("name", ["capitals", "cities"])
def test_a_config_that_comes_along_runs_from_any_folder(tiny, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    size = ("--max-prompts", 3, "--max-held-out", 2, "--rounds", 1, "--num-samples", 2, "--max-new-tokens", 4)
    line = ("train", "--config", f"configs/{name}.yaml", "--model", tiny, *size, "--no-guard", "--output", "run")
    outcome = command(*line)
    assert outcome.code == 0, outcome
    assert Path("run/model/config.json").exists()
