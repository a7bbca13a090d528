"""How a model is asked by the commands that train nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from srlm.commands.options import Parser, Shared
from srlm.config import RunSettings
from srlm.policies.transformer.settings import DecodingSettings, ModelSettings, OptimisationSettings

DRESSED = ("raw_prompts", "chat_template_kwargs")


def add_asking(made: Parser, decoding: Sequence[str] = ("stop", *DRESSED), **defaults: Any) -> None:
    """decoding: which settings of it matter. defaults: as `Parser.add` takes them."""
    made.add("How", DecodingSettings, decoding, **defaults)
    made.add("How", ModelSettings, ("adapter", "dtype", "quantize", "trust_remote_code"), **defaults)
    made.add("How", OptimisationSettings, ("token_budget",), **defaults)
    made.add("How", RunSettings, ("seed",))
    made.add("How", Shared, ("quiet",))
