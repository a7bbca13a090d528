"""An estimate as one screen of a terminal, as two lines before a run, and as a table of sizes and devices."""

from __future__ import annotations

from collections.abc import Sequence

from srlm.estimate.result import USABLE, Estimate
from srlm.estimate.stages import Stage, whole

WIDTH = 100


def quantity(value: float, unit: str = "") -> str:
    """1.23e12 -> 1.23 T"""
    for power, letter in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 0.9995 * 10**power:  # of which three digits are 1.00 already
            return f"{value / 10**power:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def lines(made: Estimate) -> list[str]:
    """24 to 40 of them, of 100 columns."""
    return [*_head(made), "", *_memory(made), "", *_time(made), "", *_assumed(made)]


def _head(made: Estimate) -> list[str]:
    shape, work = made.shape, made.work
    trained = "all trained" if shape.whole else f"{shape.trained / 1e6:.1f}M trained"
    devices = made.device if work.devices == 1 else f"{work.devices} × {made.device}, {_shard(work.shard)}"
    packed = "" if shape.quantize == "none" else f" ({shape.packed / 1e6:.0f}M packed into {shape.quantize})"
    written = f", {work.writing.number} of them written," if work.writing else ""
    held = f", {len(work.held_out)} × {work.held_samples} held out" if work.held_out else ""
    return [
        f"{shape.name} · {shape.parameters / 1e6:.0f}M parameters, {trained}, {shape.dtype}{packed} · {devices}",
        f"a round: {len(work.prompts)} prompts{written} × {work.samples} responses of {work.mean:g} tokens{held}, "
        f"{work.epochs} epochs, {work.rounds} rounds",
    ]


def _shard(shard: str) -> str:
    return "each with the whole model" if shard == "none" else f"divided by {shard}"


def _memory(made: Estimate) -> list[str]:
    peak = made.memory.peak
    where = "of this process" if made.cpu else "of each device"
    found = [f"memory {where}: {quantity(peak.total, 'B')} at most, {_at(peak.name)}"]
    found += [f"  {quantity(size, 'B'):>9}  {name}" for name, size in _largest(peak.parts)]
    others = [f"{m.name} {quantity(m.total, 'B')}" for m in made.memory.moments if m is not peak]
    found.append(f"  at other times: {', '.join(others)}")
    if made.memory.host:
        found.append(f"  on the host: {quantity(sum(made.memory.host.values()), 'B')}")
    if made.room is None:
        found.append("  whether that fits is not known: give --memory BYTES, or --accelerator")
    elif made.fits:
        found.append(f"  it fits: there are {quantity(made.room, 'B')}, and {100 * USABLE:.0f} % of that can be used")
    else:
        found.append(f"  IT DOES NOT FIT: there are {quantity(made.room, 'B')}. What would help:")
        found += [
            f"    {one.what}: {quantity(one.peak, 'B')}{'' if one.fits else ', not enough'}" for one in made.remedies
        ]
    return found


def _at(moment: str) -> str:
    return "" if not moment else f"while {moment}" if moment.split()[0].endswith("ing") else f"during the {moment}"


def _largest(parts: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(((name, size) for name, size in parts.items() if size > 0), key=lambda part: -part[1])


def _time(made: Estimate) -> list[str]:
    stages = made.first if made.work.rounds == 1 else made.later
    head = ("stage of a round", "FLOPs", "bytes", "tokens", "seconds", "tokens/s")
    rows = [_row(stage) for stage in stages]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    table = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    if made.seconds is None:
        return [*table, "how long that takes is not known: give --measure, --accelerator, or --flops and --bandwidth"]
    fits = " if it fitted" if made.fits is False else ""
    said = (
        f"a round takes {duration(whole(stages))}, the run {duration(made.seconds)}{fits}, beside loading and writing"
    )
    return [*table, said]


def _row(stage: Stage) -> tuple[str, ...]:
    rate = stage.tokens_per_second
    return (
        *(stage.name, quantity(stage.flops), quantity(stage.bytes), f"{stage.tokens:.0f}"),
        *("?" if stage.seconds is None else f"{stage.seconds:.3g}", "?" if rate is None else f"{rate:.3g}"),
    )


def _assumed(made: Estimate) -> list[str]:
    return [f"- {what}" for what in made.assumed]


def brief(made: Estimate) -> str:
    """One or two lines before a run."""
    peak = made.memory.peak
    fits = "" if made.fits is not False else f", MORE than the {quantity(made.room or 0, 'B')} there are"
    time = ""
    if (seconds := made.round_seconds) is not None:
        length = f"all responses have {made.work.mean:g} tokens"
        time = f"; a round takes {duration(seconds)} if {length} (by {made.rates.source if made.rates else ''})"
    return f"estimated: {quantity(peak.total, 'B')} of memory at most ({peak.name}){fits}{time}"


def table(rows: Sequence[tuple[str, Sequence[str]]], heads: Sequence[str]) -> str:
    """Markdown."""
    body = [f"| {' | '.join((name, *cells))} |" for name, cells in rows]
    return "\n".join([f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *body])
