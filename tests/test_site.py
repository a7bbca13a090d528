"""What the documentation's site is made of."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from srlm.config import SelfRewardConfig

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "_site"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"site_{name}", SITE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_every_option_of_every_command_has_a_row_with_its_default():
    options = module("options")
    for command, page in options.pages():
        for name, option in options.parser_of(command).options.items():
            assert f'<span id="{name}"></span>`{option.flag}' in page, (command, name)
    page = options.page("train")
    for field in dataclasses.fields(SelfRewardConfig):
        (row,) = (line for line in page.splitlines() if f'id="{field.name}"' in line)
        _, default, said = (cell.strip() for cell in row.strip("|").split(" | "))
        assert len(said) > 10, field.name
        if isinstance(field.default, bool):
            assert default == ("yes" if field.default else "no"), field.name
        elif field.default in (None, "", ()):
            assert default == "", field.name
        elif isinstance(field.default, str):
            assert default == f"`{field.default}`", field.name
        elif isinstance(field.default, int | float):
            assert float(default.strip("`")) == pytest.approx(field.default), field.name
    assert page.index("## Objective") < page.index('id="beta"') < page.index("## Optimisation")  # grouped as in help
    assert "|" not in re.sub(r" \| |^\| | \|$", "", re.search(r"^\| .*--consistency.*$", page, re.MULTILINE)[0])


def test_docstrings_become_lists():
    readable = module("docstrings").readable if importlib.util.find_spec("griffe") else None
    if readable is None:
        pytest.skip("pip install 'srlm[docs]'")
    text = "A rate [..., P].\n\nbeta, kappa: of Eq. 2, which\n    goes on. tau: none.\n\nAs it is: so.\n\n"
    text += "    code(x[0])\n\nRaises:\n    Error: no."
    made = readable(text)
    assert r"A rate \[..., P\]." in made and "- **beta, kappa**: of Eq. 2, which\n  goes on. tau: none." in made
    assert "\nAs it is: so." in made
    assert "    code(x[0])" in made and made.endswith("Raises:\n    Error: no.")


def test_links_and_nothing_of_the_machine_in_the_pages():
    """Of the pages that lie in docs/: links lead to files; the build checks the rest."""
    for page in [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/api/*.md"), ROOT / "README.md"]:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if "://" not in target and not target.startswith(("../options/", "options/")):
                assert (page.parent / target).exists(), (page.name, target)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="pip install 'srlm[docs]'")
def test_the_site_builds_without_a_warning(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "--consistency-band" in (tmp_path / "site" / "options" / "train.html").read_text()
