"""docs/figures/failures-*.svg, drawn from the tables of docs/methods.md: `python docs/_site/figures.py`."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.axes import Axes

from srlm.figures import write_svg

DOCS = Path(__file__).parents[1]
FIGURES = {
    "failures-controls": ("Capitals, SmolLM2:", ("log_likelihood", "random", "300*judge_pairwise", "inverted")),
    "failures-sums": ("Sums, Gemma:", ("log_likelihood", "20*majority", "random", "oracle beta=0.125")),
}


def accuracies(heading: str) -> dict[str, list[list[float]]]:
    """arm -> accuracy by round, for each seed, of the table behind a heading of docs/methods.md."""
    table = (DOCS / "methods.md").read_text(encoding="utf-8").split(f"\n{heading}\n")[1].strip().split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0]: [[float(value) for value in seed.split()] for seed in row[1].split(";")] for row in rows}


def draw(axes: Axes, heading: str, arms: tuple[str, ...]) -> None:
    found = accuracies(heading)
    for number, arm in enumerate(arms):
        for seed, values in enumerate(found[arm]):
            name = re.sub(r"^\d+\*| beta=.*$", "", arm)
            axes.plot(values, color=f"C{number}", marker="o", alpha=0.8, label=None if seed else name)
    axes.set_xlabel("round")
    axes.set_ylabel("held-out accuracy of samples")
    axes.set_xticks(range(3))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def main() -> None:
    for name, (heading, arms) in FIGURES.items():
        write_svg(DOCS / "figures" / f"{name}.svg", lambda axes, h=heading, a=arms: draw(axes, h, a))


if __name__ == "__main__":
    main()
