"""How byte-level BPE cuts text before it merges: what GGUF files call `tokenizer.ggml.pre`."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Regex, pre_tokenizers

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _by_words(digits: str) -> Any:
    split = pre_tokenizers.Split(Regex(_WORDS % digits), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


CUTS: dict[str, Any] = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": _by_words(r"\p{N}"),
    "llama-bpe": _by_words(r"\p{N}{1,3}"),
}


def name_of(cut: Any) -> str | None:
    """What GGUF calls the `pre_tokenizer` of a tokenizer.json; None if it has no name here."""
    return next((name for name, known in CUTS.items() if _bare(json.loads(known.__getstate__())) == _bare(cut)), None)


def _bare(cut: Any) -> Any:
    """Without what does not move a cut."""
    if isinstance(cut, dict):
        return {key: _bare(value) for key, value in cut.items() if key != "trim_offsets"}
    return [_bare(one) for one in cut] if isinstance(cut, list) else cut
