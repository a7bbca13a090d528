"""Benchmarks are run by hand, so what they import from is checked here."""

import importlib
import importlib.util
import json
import subprocess
import sys
import time
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


def test_the_round_that_an_estimate_is_held_against_runs(tiny, capsys, monkeypatch):
    """Responses go on to their last token, and every stage has its seconds and its peak."""
    from benchmarks import estimate
    from srlm.policies.transformer import respond
    from srlm.run.ledger import Ledger
    from srlm.training import trainer

    patched = ((time, "perf_counter"), (respond, "decode"), (Ledger, "stage"), (trainer, "become"))
    for owner, name in patched:  # by the benchmark; put back afterwards
        monkeypatch.setattr(owner, name, getattr(owner, name))
    estimate.run(estimate.Case(str(tiny), prompts=4, held_out=2, samples=2, tokens=3, rank=2))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"0 sample rollouts", "0 score rollouts", "0 update", "1 sample greedy"} <= found["seconds"].keys()
    assert found["peaks"].keys() == found["seconds"].keys()


def test_gain_and_collapse_of_runs_that_are_there(tmp_path, capsys):
    from benchmarks import reasoning

    rank = "token_likelihood_rank"
    told = {rank: 0.2, f"{rank}_error": 0.01, f"{rank}_prompts": 48}
    for number, found in ((8, (0.2, 0.5, 0.1)), (32, (0.2, 0.4, 0.45))):
        shared = {"accuracy_greedy": 0.4, "log10_kappa_upper_held_out": 1.5, "mode_fidelity": 0.9, "pass_at_8": 0.6}
        records = [
            {"round": t, "accuracy_sampled": value, **shared} | (told if value == 0.1 else {})
            for t, value in enumerate(found)
        ]
        (tmp_path / f"log_likelihood-{number}").mkdir()
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"log_likelihood-{number}" / "records.jsonl").write_text(lines)
    reasoning.main(["collapse", "--table", "--output", str(tmp_path), "--figures", str(tmp_path)])
    eight, more = capsys.readouterr().out.splitlines()[2:]
    assert eight.startswith("| log_likelihood | 8 | 2 | 0.20, 0.50 (1), 0.10 |") and eight.endswith("| round 2 |")
    assert more.startswith("| log_likelihood | 32 | 2 | 0.20, 0.45 (2), 0.45 |") and more.endswith("| none |")
    drawn = sorted(file.name for file in tmp_path.glob("*.svg"))
    assert drawn == [f"collapse-log_likelihood-{name}.svg" for name in ("accuracy", "log10", "mode")]
