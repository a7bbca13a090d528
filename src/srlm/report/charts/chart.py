"""What a figure is, whatever draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

Values = Sequence[float | None]


class Style(TypedDict):
    """Indices of a line's colour and dash, the same ones for the same thing in all figures."""

    colour: int
    dash: int


@dataclass(frozen=True)
class Series:
    """low, high: ends of an interval. colour, dash: as in `Style`."""

    name: str
    x: Values
    y: Values
    low: Values | None = None
    high: Values | None = None
    colour: int = 0
    dash: int = 0


@dataclass(frozen=True)
class Chart:
    """kind: line, step or bar (stacked). events: where something happened on the x axis, and what."""

    id: str
    title: str
    caption: str
    x_label: str
    y_label: str
    series: list[Series]
    kind: str = "line"
    log: bool = False
    events: list[tuple[float, str]] = field(default_factory=list)
