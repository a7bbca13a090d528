"""How fast: multiplications and bytes a second, measured, given, or from a data sheet."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from srlm.errors import UserError

GIVEN = "given"


@dataclass(frozen=True)
class Rates:
    """FLOP/s of forward passes, of forward and backward together, of the head, of the head with its backward pass, and
    of single tokens behind a cache; bytes/s of weights read for a step of decoding, of the KV cache, of all other
    memory, of the link between devices (None: unknown, and not counted), and between a device and its host. What the
    measurement of another rate has counted already is infinite.

    call: seconds that a layer takes in a step of decoding whatever it computes. fold: bytes/s where LoRA is folded in,
    if that is slower than other memory, since blocks are new each time. unpack: bytes/s where layers of few bits are
    unpacked, if not those of other memory. source: where they are from, in words. sure: was this very work measured?
    """

    forward: float
    learn: float
    head: float
    head_learn: float
    decode: float
    weights: float
    cache: float
    bandwidth: float
    link: float | None
    source: str
    call: float = 0.0
    host: float = math.inf
    fold: float | None = None
    unpack: float | None = None
    sure: bool = False

    @classmethod
    def plain(cls, flops: float, bandwidth: float, source: str, link: float | None = None) -> Rates:
        """One rate of multiplications and one of memory, reached everywhere."""
        return cls(flops, flops, flops, flops, flops, bandwidth, bandwidth, bandwidth, link, source)


@dataclass(frozen=True)
class Accelerator:
    """Of its data sheet: dense FLOP/s in bf16 (sums in fp32) and in fp32, bytes/s of its memory, bytes of it, and
    bytes/s of its link to others in the same machine, in one direction."""

    name: str
    bf16: float
    fp32: float
    bandwidth: float
    memory: float
    link: float


# Vendors' data sheets, without sparsity.
ACCELERATORS = {
    "h100": Accelerator("NVIDIA H100 SXM", 989e12, 67e12, 3.35e12, 80e9, 450e9),
    "h200": Accelerator("NVIDIA H200 SXM", 989e12, 67e12, 4.8e12, 141e9, 450e9),
    "a100": Accelerator("NVIDIA A100 SXM 80GB", 312e12, 19.5e12, 2.039e12, 80e9, 300e9),
    "l40s": Accelerator("NVIDIA L40S", 362e12, 91.6e12, 0.864e12, 48e9, 32e9),
    "l4": Accelerator("NVIDIA L4", 121e12, 30.3e12, 0.3e12, 24e9, 32e9),
    "mi300x": Accelerator("AMD MI300X", 1307e12, 163.4e12, 5.3e12, 192e9, 448e9),
}
REACHED, STREAMED = 0.4, 0.6  # of a data sheet's FLOP/s and bytes/s: assumed
HOST = 10e9  # bytes/s between a device and ordinary memory of its host: assumed
CALL = 0.5e-3  # seconds of a layer in a step of decoding, of Python and of starting kernels: assumed
BETWEEN_MACHINES = 50e9  # bytes/s, 400 Gbit/s: assumed
PER_MACHINE = 8  # accelerators


def recognised(called: str) -> str | None:
    """Which accelerator of the table a driver calls so, if it is one; a part of one (MIG) is none."""
    words = re.findall(r"[a-z0-9]+", called.lower())
    return None if "mig" in words else next((name for name in ACCELERATORS if name in words), None)


def of_accelerator(name: str, dtype: str, devices: int = 1) -> Rates:
    """What is assumed to be reached of a data sheet.

    Raises:
        UserError: it is not in the table.
    """
    if name not in ACCELERATORS:
        known = ", ".join(ACCELERATORS)
        raise UserError(
            f"--accelerator is {name!r}, expected one of {known}: choose one, or give --flops, --bandwidth and --memory"
        )
    sheet = ACCELERATORS[name]
    flops = sheet.fp32 if dtype == "fp32" else sheet.bf16
    link = sheet.link if devices <= PER_MACHINE else BETWEEN_MACHINES
    said = f"{sheet.name}, {100 * REACHED:.0f} % of the FLOP/s and {100 * STREAMED:.0f} % of the bytes/s of its data"
    made = Rates.plain(REACHED * flops, STREAMED * sheet.bandwidth, f"{said} sheet (assumed)", link)
    return replace(made, call=CALL, host=HOST)


def given(rates: Rates | None, *, flops: float | None, bandwidth: float | None, link: float | None) -> Rates:
    """Numbers that somebody gives, in place of those that are known; the others stay.

    Raises:
        UserError: one is missing, or none at all.
    """
    if rates is None and (flops is None or bandwidth is None):
        missing = "--bandwidth" if flops is not None else "--flops"
        raise UserError(f"{missing} is missing, expected beside the other: give FLOP/s and bytes/s as they are reached")
    said = [f"{value:.3g} {unit}" for value, unit in ((flops, "FLOP/s"), (bandwidth, "B/s")) if value is not None]
    source = f"{GIVEN}: {', '.join(said)}"
    if rates is None:
        assert flops is not None and bandwidth is not None
        return Rates.plain(flops, bandwidth, source, link)
    made = rates
    if flops is not None:
        made = replace(made, forward=flops, learn=flops, head=flops, head_learn=flops, decode=flops)
    if bandwidth is not None:
        made = replace(made, weights=bandwidth, cache=bandwidth, bandwidth=bandwidth)
    if said:
        made = replace(made, source=f"{source}; else {rates.source}")
    return made if link is None else replace(made, link=link)
