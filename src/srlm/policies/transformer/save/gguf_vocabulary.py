"""A tokenizer -> the tokenizer part of a GGUF file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf

from srlm.errors import UserError
from srlm.policies.transformer.load.cuts import CUTS, name_of

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def write_vocabulary(writer: gguf.GGUFWriter, folder: Path, rows: int, eos: Sequence[int]) -> None:
    """Write the tokenizer that lies in a folder. rows: of the embedding. eos: ids that end a response.

    Byte-level BPE keeps its merges. BPE with byte fallback, which Gemma and Llama 2 have, is what SentencePiece calls
    BPE: there a piece has a score, here minus the rank of the first merge that makes it, which orders merges alike.

    Raises:
        UserError: a tokenizer of another kind, or one that cuts text in a way llama.cpp would not know the name of.
    """
    try:
        said = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError("the tokenizer has no tokenizer.json, which GGUF is written from: use --merged") from error
    model = said["model"]
    if model["type"] != "BPE":
        raise UserError(f"the tokenizer is a {model['type']}, expected BPE for GGUF: use --merged")
    spm = bool(model.get("byte_fallback"))
    added = {token["id"]: token for token in said["added_tokens"]}
    tokens, kinds = _tokens(model["vocab"], added, rows, model.get("unk_token") if spm else None, spm)
    writer.add_tokenizer_model("llama" if spm else "gpt2")
    writer.add_tokenizer_pre("default" if spm else _cut(said.get("pre_tokenizer")))
    writer.add_token_list(tokens)
    if spm:
        writer.add_token_scores(_scores(tokens, model["merges"]))
        writer.add_add_space_prefix(_prepends(said.get("normalizer")) or _prepends(said.get("pre_tokenizer")))
    writer.add_token_types(kinds)
    special = gguf.SpecialVocab(folder, load_merges=not spm, n_vocab=rows)
    for ends in eos:  # the first is the EOS if the tokenizer names none; another one ends a turn
        special.special_token_ids.setdefault("eos", ends)
        if ends != special.special_token_ids["eos"]:
            special.special_token_ids.setdefault("eot", ends)
    special.add_special_token.setdefault("bos", False)
    special.add_to_gguf(writer, quiet=True)


def _tokens(
    vocabulary: dict[str, int], added: dict[int, Any], rows: int, unknown: str | None, spm: bool
) -> tuple[list[str], list[int]]:
    words = {number: word for word, number in vocabulary.items()} | {n: one["content"] for n, one in added.items()}
    kinds = gguf.TokenType
    tokens: list[str] = []
    found: list[int] = []
    for number in range(rows):
        word, one = words.get(number), added.get(number)
        if word is None:
            word, kind = f"[PAD{number}]", kinds.UNUSED
        elif word == unknown:
            kind = kinds.UNKNOWN
        elif one is not None:
            kind = kinds.CONTROL if one["special"] else kinds.USER_DEFINED
            word = word.replace("▁", " ") if spm and not one["special"] else word
        else:
            kind = kinds.BYTE if spm and _BYTE.fullmatch(word) else kinds.NORMAL
        tokens.append(word)
        found.append(int(kind))
    return tokens, found


def _scores(tokens: Sequence[str], merges: Sequence[Any]) -> list[float]:
    """Of a piece that no merge makes, less than of any other."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        rank.setdefault(left + right, number)
    return [-float(rank.get(token, len(merges) + number)) for number, token in enumerate(tokens)]


def _prepends(step: Any) -> bool:
    """Does a normalizer or pre_tokenizer put a space before the first word?"""
    if isinstance(step, list):
        return any(map(_prepends, step))
    if not isinstance(step, dict):
        return False
    metaspace = step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never"
    return metaspace or step.get("type") == "Prepend" or any(map(_prepends, step.values()))


def _cut(cut: Any) -> str:
    """
    Raises:
        UserError: it is not known.
    """
    if name := name_of(cut):
        return name
    raise UserError(
        f"the tokenizer cuts text in a way that GGUF has no name for here, expected that of {', '.join(CUTS)}: write "
        "the model with --merged and convert it with llama.cpp's convert_hf_to_gguf.py"
    )
