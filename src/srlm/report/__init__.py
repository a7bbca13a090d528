"""`srlm report`: folders of runs, diagnoses and experiments as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from srlm.errors import UserError
from srlm.report.charts import charts
from srlm.report.drawing import draw
from srlm.report.folders import Folder, read_folder
from srlm.report.page import MARK, page
from srlm.run.files import write_atomically

__all__ = ["REPORT", "report", "report_or_reason", "save_figures"]
REPORT = "report.html"


def report(
    folders: Sequence[str | Path], output: str | Path | None = None, *, forecast: str | Path | None = None
) -> Path:
    """Write the report of one folder, or of several laid over each other; return its file.

    output: by default report.html in the folder, comparison.html in the first of several. An older report there is
        overwritten: it is a view of the folder and nothing else.
    forecast: a diagnose.json whose forecast of kappa is drawn beside a run's.

    Raises:
        UserError: a folder with nothing to report; an output that is something else.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise UserError("no folder was given: name the folder that srlm train, diagnose or verify wrote")
    read = read_all(paths, None if forecast is None else Path(forecast))
    default = paths[0] / (REPORT if len(paths) == 1 else "comparison.html")
    file = default if output is None else Path(output)
    _check(file)
    _write(file, page(read))
    return file


def report_or_reason(folder: Path) -> str:
    """What to say at the end of a run: where the report lies, or why there is none. Never fails the run."""
    try:
        return f"report in {report([folder])}"
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return f"no report was written ({reason}); srlm report {folder} tries again"


def save_figures(
    folders: Sequence[str | Path], output: str | Path, *, forecast: str | Path | None = None
) -> list[Path]:
    """The curves of `report` as SVG files in `output`, in the style of `srlm.figures`, and captions.md.

    Raises:
        UserError: a folder with nothing to report; `output` cannot be written or holds one of the files.
    """
    paths, target = [Path(folder) for folder in folders], Path(output)
    made = charts(read_all(paths, None if forecast is None else Path(forecast)))
    if not made:
        raise UserError(f"{paths[0]} has no figures yet: wait for its first record")
    files = [target / f"{chart.id}.svg" for chart in made]
    captions = target / "captions.md"
    for file in [*files, captions]:
        if file.exists():
            raise UserError(f"{file} exists and is never overwritten: choose another folder for --figures")
    from srlm.figures import write_svg

    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({error.strerror}): choose another folder for --figures"
        ) from error
    for chart, file in zip(made, files, strict=True):
        write_svg(file, partial(draw, chart))
    lines = [f"- `{file.name}` {chart.title}. {chart.caption}\n" for chart, file in zip(made, files, strict=True)]
    captions.write_text("".join(lines), encoding="utf-8")
    return [*files, captions]


def read_all(paths: Sequence[Path], forecast: Path | None = None, *, patient: bool = False) -> list[Folder]:
    """Folders under names that tell them apart."""
    names = [path.resolve().name or str(path) for path in paths]
    alike = {name for name in names if names.count(name) > 1}
    return [
        read_folder(path, str(path) if name in alike else name, patient=patient, forecast=forecast)
        for path, name in zip(paths, names, strict=True)
    ]


def _check(file: Path) -> None:
    try:
        with file.open("rb") as handle:
            mine = handle.read(len(MARK)) == MARK.encode()
    except FileNotFoundError:
        mine = True
    except OSError as error:
        raise UserError(f"output {file} cannot be written ({error.strerror}): choose another --output") from error
    if not mine:
        raise UserError(
            f"output {file} exists and is no srlm report, so it is not overwritten: choose another --output"
        )


def _write(file: Path, text: str) -> None:
    try:
        write_atomically(file, lambda path: path.write_text(text, encoding="utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"output {file} cannot be written ({error.strerror}): choose another --output") from error
