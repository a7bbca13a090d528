"""Which held-out samples are right, where a run kept accuracies only."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlm.errors import UserError
from srlm.prompts.settings import PromptSettings
from srlm.report.folders.folder import HELD_OUT, Sample
from srlm.report.folders.responses import words
from srlm.report.folders.salvage import at
from srlm.shipped import shipped
from srlm.thinking import unclosed

if TYPE_CHECKING:  # it needs torch
    from srlm.prompts.select import PromptSet

# A user's own function is code, which looking at a run must not run.
_RULES = ("auto", "contains", "exact", "number", "math", "regex")


def judged(samples: list[Sample], manifest: dict[str, Any]) -> tuple[list[Sample], str | None]:
    """Right or wrong for held-out samples. The run keeps accuracies only, so its held-out set is made again from where
    it had it, and believed if the answers are the same: samples may be of a part of it."""
    rule = at(manifest, "config", "match")
    if rule not in _RULES:
        return samples, f"Which samples are right is not shown: the match rule {rule} is not one of srlm's own."
    source = "held_out" if manifest.get("held_out_given") else "prompts"
    given = at(manifest, "data", source, "source")
    prompts = {s.prompt_index: s.prompt for s in samples if s.part == HELD_OUT}
    from srlm.answers import match_rule

    try:
        config = manifest.get("config") or {}
        plain: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in config.items()}
        asked = PromptSettings(**{f.name: plain[f.name] for f in fields(PromptSettings) if f.name in plain})
        held = _prompts(str(given), shipped(Path(str(given)).expanduser()).stat().st_mtime_ns, asked)
        if source == "prompts":
            held = held.set_aside(asked.held_out_share, config["seed"])[1] or held
        held = held.take(asked.max_held_out, config["seed"])
        fingerprint = hashlib.sha256(repr(held.answers).encode()).hexdigest()
        if held.answers is None or fingerprint != at(manifest, "data", "held_out_answers", "fingerprint"):
            raise ValueError
        held = held.leave_out(at(manifest, "skipped", "held_out") or ())
        if any(words(held.prompts.items[i]) != prompt for i, prompt in prompts.items()):
            raise ValueError
        answers, right, opened = held.answers or (), match_rule(rule), manifest.get("opens_thought") is True

        def with_right(s: Sample) -> Sample:
            return Sample(**vars(s) | {"right": bool(right(unclosed(s.response, opened), answers[s.prompt_index]))})

        return [with_right(s) if s.part == HELD_OUT else s for s in samples], None
    except (OSError, ValueError, TypeError, AttributeError, LookupError, UserError, RecursionError):
        return samples, (
            "Which samples are right is not shown: the run keeps accuracies only, and the answers it was measured "
            f"with are no longer in {given} (seen from this folder)."
        )


@functools.lru_cache(maxsize=8)
def _prompts(source: str, changed: int, asked: PromptSettings) -> PromptSet:
    """`changed` keeps the cache honest."""
    if not shipped(Path(source).expanduser()).is_file():  # never the network
        raise ValueError(f"{source} is not a file")
    from srlm.prompts.sources import prompts_of

    return prompts_of(source, asked)
