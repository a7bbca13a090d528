"""Which held-out samples are right, where a run kept accuracies only."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from srlm.errors import UserError
from srlm.prompts.settings import PromptSettings
from srlm.report.folders.folder import HELD_OUT, Sample
from srlm.report.folders.responses import words
from srlm.report.folders.salvage import at

# A user's own function is code, which looking at a run must not run.
_RULES = ("auto", "contains", "exact", "number", "math", "regex")


def judged(samples: list[Sample], manifest: dict[str, Any]) -> tuple[list[Sample], str | None]:
    """Right or wrong for held-out samples. The run keeps accuracies only, so the answers are read again from where the
    run had them, and believed if they are the same."""
    rule = at(manifest, "config", "match")
    if rule not in _RULES:
        return samples, f"Which samples are right is not shown: the match rule {rule} is not one of srlm's own."
    source = "held_out" if manifest.get("held_out_given") else "prompts"
    given = at(manifest, "data", source, "source")
    prompts = {s.prompt_index: s.prompt for s in samples if s.part == HELD_OUT}
    from srlm.answers import match_rule

    try:
        config = manifest.get("config") or {}
        asked = PromptSettings(**{f.name: config[f.name] for f in fields(PromptSettings) if f.name in config})
        known = _answers(str(given), Path(str(given)).stat().st_mtime_ns, asked)
        answers = {i: known[prompt] for i, prompt in sorted(prompts.items())}
        fingerprint = hashlib.sha256(repr(tuple(answers.values())).encode()).hexdigest()
        if fingerprint != at(manifest, "data", "held_out_answers", "fingerprint"):
            raise ValueError
        right = match_rule(rule)
        return [
            Sample(**vars(s) | {"right": bool(right(s.response, answers[s.prompt_index]))}) if s.part == HELD_OUT else s
            for s in samples
        ], None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, UserError, RecursionError):
        return samples, (
            "Which samples are right is not shown: the run keeps accuracies only, and the answers it was measured "
            f"with are no longer in {given} (seen from this folder)."
        )


@functools.lru_cache(maxsize=8)
def _answers(source: str, changed: int, asked: PromptSettings) -> dict[str, tuple[str, ...]]:
    """Answers by prompt; `changed` keeps the cache honest."""
    if not Path(source).is_file():  # never the network
        raise ValueError(f"{source} is not a file")
    from srlm.prompts.sources import prompts_of

    given = prompts_of(source, asked)
    return {words(item): one for item, one in zip(given.prompts.items, given.answers or (), strict=True)}
