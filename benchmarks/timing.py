"""Interleaved timings: machines drift, so A and B alternate and what is reported is the median of their ratios."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate")


def now() -> float:
    """Seconds, once everything asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def interleave(arms: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run A B C, A B C, ..: the results of each arm, in order. Arms return what they measured, timed by themselves."""
    results: dict[str, list[T]] = {name: [] for name in arms}
    for number in range(rounds):
        for name, arm in arms.items():
            start = now()
            results[name].append(arm())
            say(f"  {number + 1}/{rounds} {name}: {now() - start:.1f} s")
    return results


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """median (least–most)"""
    median, low, high = (f"{v:.{digits}f}" for v in (statistics.median(values), min(values), max(values)))
    return f"{median} ({low}–{high})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def paragraph(*parts: str) -> str:
    return textwrap.fill(" ".join(parts), 120)


def _processor() -> str:
    """As Linux names it; the platform's word elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    kinds = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{model} ({', '.join(kinds)})" if kinds else model


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def machine(device: str, dtype: torch.dtype) -> str:
    versions = ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name)))
    load = f", load {os.getloadavg()[0]:.1f} when the run began" if hasattr(os, "getloadavg") else ""
    lines = [
        f"- processor: {_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used{load}",
        f"- device of this run: {torch.cuda.get_device_name() if device == 'cuda' else 'cpu'}, {str(dtype)[6:]}",
        f"- versions: Python {platform.python_version()}, {versions}",
        f"- date: {time.strftime('%Y-%m-%d')}",
    ]
    return "\n".join(lines)
