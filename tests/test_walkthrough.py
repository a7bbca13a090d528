"""The blocks of docs/walkthrough.md run in order, with the figures they promise."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "walkthrough.md"


def test_the_walkthrough_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 6
    space: dict[str, object] = {}
    kept = 0
    for number, block in enumerate(blocks):
        exec(compile(block, f"block {number + 1} of {PAGE.name}", "exec"), space)
        said = capsys.readouterr().out
        for promised in re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE):
            assert promised in said
            kept += 1
    assert {path.name for path in tmp_path.iterdir()} == {"single-step.svg", "contraction.svg"}
    assert kept >= 3
