"""Benchmarks are run by hand, so what they import from is checked here."""

import importlib
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import command, train_words, write_rows

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


def test_gain_and_collapse_of_records_that_are_there(tmp_path, capsys):
    from benchmarks.reasoning.__main__ import main

    (tmp_path / "collapse").mkdir()
    for number, found in ((8, (0.2, 0.5, 0.1)), (32, (0.2, 0.4, 0.45))):
        shared = {"accuracy_greedy": 0.4, "log10_kappa_upper_held_out": 1.5, "mode_fidelity": 0.9, "pass_at_8": 0.6}
        records = [
            {"round": t, "accuracy_sampled": value, "guard_unlabelled": ["rank"] if value == 0.1 else [], **shared}
            for t, value in enumerate(found)
        ]
        write_rows(tmp_path / "collapse" / f"log_likelihood-{number}.jsonl", records)
    main(["collapse", "--records", str(tmp_path), "--figures", str(tmp_path)])
    eight, more = capsys.readouterr().out.splitlines()[2:]
    assert eight.startswith("| log_likelihood | 8 | 2 | 0.20, 0.50 (1), 0.10 |") and eight.endswith("| round 2 |")
    assert more.startswith("| log_likelihood | 32 | 2 | 0.20, 0.45 (2), 0.45 |") and more.endswith("| none |")
    drawn = sorted(file.name for file in tmp_path.glob("*.svg"))
    assert drawn == [f"collapse-log_likelihood-{name}.svg" for name in ("accuracy", "log10", "mode")]


def test_a_run_is_kept_with_what_the_guard_says_and_which_samples_were_right(tiny, data, tmp_path):
    from benchmarks.reasoning.kept import keep, read

    given = {"model": tiny, "prompts": data / "prompts.jsonl", "held_out": data / "held-out.jsonl", "rounds": 1}
    assert command(*train_words(**given, max_held_out=3, seed=1, output=tmp_path / "run")).code == 0
    records = read(tmp_path / "run" / "records.jsonl")
    keep(tmp_path / "run", tmp_path / "records" / "kept.jsonl")
    found = read(tmp_path / "records" / "kept.jsonl")
    assert [one["round"] for one in found] == [0, 1] and found[0]["guard"] == found[0]["guard_unlabelled"] == []
    for record, one in zip(records, found, strict=True):
        assert len(one["right"]) == 3
        assert sum(one["right"]) / 3 == pytest.approx(record["accuracy_sampled"], abs=1e-4)
        assert one["mean_length"] == pytest.approx(record["mean_length"], rel=1e-4) and "seconds" not in one


def test_arms_are_paired_problem_by_problem(tmp_path, capsys):
    from benchmarks.reasoning.__main__ import main

    names = ("accuracy_sampled", "accuracy_greedy", "maj_at_4", "pass_at_4")
    shares = {name + end: 0.5 for name in names for end in ("", "_low", "_high")} | {"mean_length": 9.0, "guard": []}
    ends = {"majority": [[0.5, 1.0, 0.75], [1.0, 1.0, 1.0]], "random": [[0.25, 0.75, 0.5], [0.0, 0.0, 0.0]]}
    (tmp_path / "study").mkdir()
    for arm, seeds in ends.items():
        for seed, right in enumerate(seeds):
            rows = [{"round": 0, "right": [0.25, 0.5, 0.0], **shares}, {"round": 1, "right": right, **shares}]
            write_rows(tmp_path / "study" / f"{arm}-seed-{seed}.jsonl", rows)
    main(["study", "--records", str(tmp_path), "--figures", str(tmp_path)])
    table, pairs = capsys.readouterr().out.strip().split("\n\n")
    assert len(table.splitlines()) == 2 + 2 * 3
    half = 4.302653 * 0.25 / 3**0.5  # Student's for three problems that differ by .25, .5 and .75
    assert f"| majority | 0 | +0.50 [{0.5 - half:+.2f}, {0.5 + half:+.2f}] | +0.25 [+0.25, +0.25] |" in pairs
    assert "| majority | all | +0.62 [" in pairs and "| random | 1 | -0.25 [" in pairs
    assert len(list(tmp_path.glob("reasoning-*.svg"))) == 3
