"""What a run made, for the tools that come next: preferences, responses, adapter, whole model, GGUF."""

from __future__ import annotations

from collections.abc import Sequence

from srlm.commands.options import Parser, Shared, taken
from srlm.errors import UserError
from srlm.export.settings import KINDS, MATTERS_TO, Export
from srlm.policies.transformer.settings import ModelSettings


def parser() -> Parser:
    made = Parser("export", __doc__ or "", "RUN[@ROUND] --output DIR KIND ... [options]")
    made.positional("run", "Folder of a run, or one of its rounds: run@2; by default the round of its model.")
    made.add("What", Export, ("output", *KINDS))
    made.add("How", Export, tuple(MATTERS_TO))
    made.add("How", ModelSettings, ("trust_remote_code",))
    made.add("How", Shared, ("quiet",))
    return made


def run(words: Sequence[str]) -> None:
    first, rest = taken(words, "config")
    chosen = parser().parsed(rest, first["config"])
    runs, quiet, trusted = (chosen.pop(name) for name in ("run", "quiet", "trust_remote_code"))
    asked = Export(**chosen)
    if len(runs) != 1:
        raise UserError(f"{len(runs)} runs were given, expected one: name the folder of a run, or RUN@2 for a round")
    if not asked.output:
        raise UserError("no folder to write to was given: name a new one with --output")
    from srlm.console import Display
    from srlm.export import export

    kinds = [kind for kind in KINDS if getattr(asked, kind)]
    how = {name: getattr(asked, name) for name in MATTERS_TO}
    export(runs[0], asked.output, *kinds, **how, trust_remote_code=trusted, display=Display(quiet))
