"""`srlm verify`: every quick experiment holds, and one whose bound is crossed says so."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from support import command, refused

from srlm.experiments import EXPERIMENTS
from srlm.experiments.outcome import Verdict, failure, log_kappa, mean_and_error


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("verify") / "new" / "folder"
    said = command("verify", "--all", "--quick", "--quiet", "--output", output)
    assert said.code == 0, said.out + said.err
    return output, said.out


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_holds_and_leaves_data_and_a_figure(everything, name: str) -> None:
    output, said = everything
    with (output / f"{name}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert 2 <= len(rows) <= 64 and all(None not in row.values() and "nan" not in row.values() for row in rows)
    figure = (output / f"{name}.svg").read_text(encoding="utf-8")
    assert figure.startswith("<?xml") and "<svg" in figure and len(figure) > 5_000
    verdict = json.loads((output / f"{name}.json").read_text(encoding="utf-8"))
    assert verdict["holds"] is True and all(f"- {finding}" in said for finding in verdict["findings"])
    assert f"\n{name}: " in said
    statement = (EXPERIMENTS[name].__doc__ or "").splitlines()[0]
    assert statement in said and statement.endswith(".")


def test_all_verdicts_are_spelled_out(everything) -> None:
    _, said = everything
    assert said.count("\nholds (") == len(EXPERIMENTS) and "DOES NOT HOLD" not in said
    assert said.count("\n- ") >= 2 * len(EXPERIMENTS)


@pytest.mark.parametrize("name", ["greedy-trap", "lower-bound", "mass-leak", "linear-softmax"])
def test_rows_are_a_function_of_the_seed(name: str) -> None:
    module = EXPERIMENTS[name]
    one, same, other = (module.run(quick=True, seed=seed, report=lambda done, total: None) for seed in (1, 1, 2))
    assert one == same != other
    assert all(row.keys() == one[0].keys() for row in one)


def spoil(rows: list[dict], **changes) -> list[dict]:
    return [row | {key: change(row) for key, change in changes.items()} for row in rows]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lower-bound", {"learner": lambda row: 0.5 * row["bayes"]}),
        ("lower-bound", {"bayes": lambda row: 0.5 * row["closed form"]}),
        ("lower-bound", {"learner": lambda row: 0.2}),
        ("greedy-trap", {"greedy misses": lambda row: 1}),
        ("greedy-trap", {"greedy misses": lambda row: 0}),
        ("finite-sample", {"lost": lambda row: 0.3}),
        ("linear-softmax", {"d_eff": lambda row: row["d"] + 1.0}),
        ("linear-softmax", {"log-ratio error": lambda row: row["n"] ** -0.25}),
        ("mass-leak", {"modes lost": lambda row: 0.4}),
        ("mass-leak", {"excess": lambda row: 0.0}),
        ("mass-leak", {"loss left": lambda row: 0.5}),
    ],
)
def test_a_crossed_bound_does_not_pass(everything, name: str, changes) -> None:
    module = EXPERIMENTS[name]
    rows = module.run(quick=True, seed=0, report=lambda done, total: None)
    assert module.check(rows).holds
    verdict = module.check(spoil(rows, **changes))
    assert not verdict.holds and any(finding.startswith("FAILED: ") for finding in verdict.findings)


def test_what_does_not_hold_ends_with_exit_code_1(monkeypatch) -> None:
    module = EXPERIMENTS["greedy-trap"]
    monkeypatch.setattr(module, "check", lambda rows: Verdict.of((True, "this does"), (False, "this does not")))
    said = command("verify", "greedy-trap", "--quick", "--quiet")
    assert said.code == 1
    assert "- this does\n- FAILED: this does not\nDOES NOT HOLD" in said.out


def test_the_report_shows_every_verdict(everything) -> None:
    output, said = everything
    assert f"report in {output / 'report.html'}" in said
    page = (output / "report.html").read_text(encoding="utf-8")
    assert f"All {len(EXPERIMENTS)} experiments hold." in page and page.count("✓ holds") == len(EXPERIMENTS)


def test_bad_names_are_refused() -> None:
    assert "there is no experiment 'gravity': choose from lower-bound, " in refused("verify", "gravity")
    assert "expected either experiments or --all" in refused("verify")
    assert "expected either experiments or --all" in refused("verify", "greedy-trap", "--all")


def test_what_is_kept_is_never_overwritten(tmp_path: Path) -> None:
    kept = tmp_path / "greedy-trap.csv"
    kept.write_text("mine")
    words = ("verify", "lower-bound", "greedy-trap", "--quick", "--output", tmp_path)
    assert "greedy-trap.csv exists and is never overwritten" in refused(*words)
    assert kept.read_text() == "mine" and list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize("words", [("--output", "file"), ("--output", "file/inside"), ("--seed", "-1")])
def test_what_cannot_be_done_is_said_before_any_work(tmp_path: Path, monkeypatch, words: tuple[str, str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    monkeypatch.setattr(EXPERIMENTS["greedy-trap"], "run", lambda **_: pytest.fail("it ran"))
    said = refused("verify", "greedy-trap", "--quick", *words)
    assert ("cannot be written" if "--output" in words else "--seed is -1") in said
    assert Path("file").read_text() == "mine"


def test_a_file_of_any_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "probe").write_text("mine")
    assert command("verify", "greedy-trap", "--quick", "--output", tmp_path).code == 0
    assert (tmp_path / "probe").read_text() == "mine"


# What experiments measure with


def test_log_kappa_and_failure_of_tables() -> None:
    p = torch.tensor([[[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]], [[0.4, 0.3, 0.3], [1.0, 0.0, 0.0]]], dtype=torch.float64)
    weight = torch.tensor([0.25, 0.75], dtype=torch.float64)
    kappa = log_kappa(p.log(), weight).exp()
    assert kappa.tolist() == pytest.approx([0.25 / 0.5 + 0.75 / 0.7, 0.25 / 0.4 + 0.75])
    assert failure(p.log(), weight, level=0.5).tolist() == pytest.approx([0.25, 0.25])
    assert failure(p.log(), weight, best=torch.tensor([[1, 0], [0, 0]])).tolist() == pytest.approx([1.0, 0.25])
    assert mean_and_error(torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx((2.5, (5 / 3) ** 0.5 / 2))
