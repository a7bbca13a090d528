"""`srlm verify`: run experiments, print what they found, keep data and figures."""

from __future__ import annotations

import csv
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from rich.table import Table

from srlm.console import Display
from srlm.errors import UserError
from srlm.experiments import EXPERIMENTS
from srlm.experiments.outcome import Row, Verdict
from srlm.figures import write_svg
from srlm.run.files import write_atomically

KEPT = (".csv", ".svg", ".json")


def verify(names: list[str], *, output: Path | None, quick: bool, seed: int, display: Display) -> bool:
    """Run experiments by name, in order; True if every verdict holds.

    output: folder for NAME.csv, NAME.svg and NAME.json (the verdict), or None to keep nothing.
    """
    for name in names:
        if name not in EXPERIMENTS:
            raise UserError(f"there is no experiment {name!r}: choose from {', '.join(EXPERIMENTS)}")
    for file in [output / f"{name}{kind}" for name in names for kind in KEPT] if output is not None else []:
        if file.exists():
            raise UserError(f"{file} exists and is never overwritten: choose another --output")
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=output).close()
        except OSError as error:
            raise UserError(f"output {output} cannot be written ({error.strerror}): choose another --output") from error
    good = True
    for name in names:
        module = EXPERIMENTS[name]
        display.say(f"\n{name}: {(module.__doc__ or '').strip().splitlines()[0]}")
        start = time.perf_counter()
        with display.stage(name) as report:
            rows = module.run(quick=quick, seed=seed, report=report)
        verdict = module.check(rows)
        _show(rows, getattr(module, "PRINTED", tuple(rows[0])), verdict, display)
        display.say(f"{'holds' if verdict.holds else 'DOES NOT HOLD'} ({time.perf_counter() - start:.1f} s)")
        if output is not None:
            _keep(output, name, module, rows, verdict)
        good &= verdict.holds
    return good


def _show(rows: list[Row], shown: Sequence[str], verdict: Verdict, display: Display) -> None:
    """shown: the columns to print; the CSV file has all."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in shown))
    display.console.print(table)
    for finding in verdict.findings:
        display.say(f"- {finding}")


def _keep(output: Path, name: str, module: ModuleType, rows: list[Row], verdict: Verdict) -> None:
    def table(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    said = json.dumps(vars(verdict), indent=2, ensure_ascii=False) + "\n"
    write_atomically(output / f"{name}.csv", table)
    write_atomically(output / f"{name}.json", lambda path: path.write_text(said, encoding="utf-8"))
    write_atomically(output / f"{name}.svg", lambda path: write_svg(path, lambda axes: module.draw(rows, axes)))
