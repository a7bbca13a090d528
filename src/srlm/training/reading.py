"""How answers are read, set by set: those of a task or benchmark as it wants them, whatever the other set is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from srlm.answers import AnswerClass, Match, answer_classes, match_rule
from srlm.config import SelfRewardConfig
from srlm.prompts.presets import parsers


@dataclass(frozen=True)
class Reading:
    """Names of answer classes and of a match rule."""

    answers: str
    match: str

    @property
    def classes(self) -> AnswerClass:
        return answer_classes(self.answers)

    @property
    def rule(self) -> Match:
        return match_rule(self.match)


def readings(asked: SelfRewardConfig, config: SelfRewardConfig, sources: Mapping[str, str]) -> dict[str, Reading]:
    """By table. asked: as it was given, where `auto` leaves it to the source; config: what that came to for the run."""
    found = {}
    for table, source in sources.items():
        answers, match = parsers(source)
        found[table] = Reading(
            (asked.answers == "auto" and answers) or config.answers, (asked.match == "auto" and match) or config.match
        )
    return found


def kept_readings(
    manifest: Mapping[str, Any], config: SelfRewardConfig, tables: Mapping[str, str]
) -> dict[str, Reading]:
    """Of a run that goes on, as it began; one that did not say read both sets alike. A name that no source has is
    somebody's own, and of those the configuration's alone are to be heeded: what they run was asked for."""
    kept = manifest.get("readings")
    said = kept if isinstance(kept, dict) else {}

    def name(table: str, key: str) -> str:
        one = said.get(table)
        value = one.get(key) if isinstance(one, dict) else None
        plain = isinstance(value, str) and (":" not in value or value.startswith("regex:"))
        return str(value if plain else getattr(config, key))

    return {table: Reading(name(table, "answers"), name(table, "match")) for table in tables}


def as_kept(found: Mapping[str, Reading]) -> dict[str, Any]:
    return {table: asdict(one) for table, one in found.items()}
