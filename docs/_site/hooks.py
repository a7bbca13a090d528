"""What MkDocs does not do by itself: pages made from code, from files outside docs/ and from the notebook."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE = {"changelog.md": "CHANGELOG.md", "results.md": "benchmarks/RESULTS.md"}
_FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
_LINK = re.compile(r"(?<!!)\[([^\]\[]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add pages that no file of docs/ holds; leave those out of the navigation that are not there."""
    sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent)]  # not before: MkDocs cleans up behind its imports
    import options

    made = {f"options/{command}.md": text for command, text in options.pages()}
    made |= {
        page: (ROOT / file).read_text(encoding="utf-8") for page, file in OUTSIDE.items() if (ROOT / file).exists()
    }
    made["api/theory.md"] = theory()
    if (notebook := ROOT / "docs" / "notebook.ipynb").exists():
        made["notebook.md"] = cells(json.loads(notebook.read_text(encoding="utf-8")))
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    there = {file.src_uri for file in files if file.src_uri.endswith(".md")}
    nav = _there(config.nav, there, [page for page in made if page.startswith("options/")])
    nav[-1][next(iter(nav[-1]))] += sorted(there - set(_named(nav)))
    config.nav = nav
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links that are right in the repository, mended for the site: to files that became pages, and to files that did
    not, whose names alone are left."""
    markdown = markdown.replace(" ± ", "\u00a0±\u00a0")  # no cell of a table breaks there
    blocks = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(
        part if part.startswith("```") else _LINK.sub(lambda link: _mended(link, page.file, files), part)
        for part in blocks
    )


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Formulas as MathML, which browsers show by themselves."""
    return _FORMULA.sub(lambda found: _formula(unescape(found[2]), found[1] == "div"), html)


def _formula(text: str, display: bool) -> str:
    from latex2mathml.converter import convert

    return str(convert(text.strip()[2:-2], display="block" if display else "inline"))


def _mended(link: re.Match[str], file: File, files: Files) -> str:
    text, (target, _, anchor) = link[1], link[2].partition("#")
    if not target or "://" in target or target.startswith("mailto:"):
        return link[0]
    source = Path(OUTSIDE.get(file.src_uri, f"docs/{file.src_uri}"))
    parts: list[str] = []
    for part in (source.parent / target).parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    path = "/".join(parts)
    pages = {outside: page for page, outside in OUTSIDE.items()} | {
        "docs/notebook.ipynb": "notebook.md",
        "README.md": "index.md",
    }
    inside = pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if inside is None and (ROOT / path).exists():
        return text if "`" in text else f"`{text}`"
    if inside is None:
        return link[0]  # which the build then refuses
    up = "../" * file.src_uri.count("/")
    return f"[{text}]({up}{inside}{f'#{anchor}' if anchor else ''})"


def theory() -> str:
    """What `srlm.theory` exports, in its order."""
    from srlm import theory as public

    text = "# API: theory\n\nNumbers in, numbers out: `from srlm import theory`. [Theory](../theory.md) maps equations "
    text += "to these functions and their tests.\n"
    for name in public.__all__:
        text += f"\n::: {getattr(public, name).__module__}.{name}\n"
    return text


def cells(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: its text, its code, and what that printed."""
    parts: list[str] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        printed = ""
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if picture := data.get("image/png"):
                parts.append(f'<img alt="" src="data:image/png;base64,{"".join(picture).strip()}">')
            else:
                printed += "".join(output.get("text") or data.get("text/plain", "")).rstrip() + "\n"
        if printed.strip():
            parts.append(f"```text\n{printed}```")
    return "\n\n".join(parts) + "\n"


def _there(nav: Any, pages: set[str], options: list[str]) -> Any:
    """Of the navigation what is there."""
    if isinstance(nav, str):
        return nav if nav in pages else None
    if isinstance(nav, dict):
        kept = {name: _there(part, pages, options) for name, part in nav.items()}
        return {name: part for name, part in kept.items() if part} or None
    written = [one for part in nav for one in (options if part == "options/*" else [part])]
    return [part for part in (_there(part, pages, options) for part in written) if part]


def _named(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from _named(part)
