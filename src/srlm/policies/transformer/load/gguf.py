"""GGUF files -> plain safetensors folders, dequantised once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from srlm.errors import UserError
from srlm.policies.transformer.load.checks import first_line


def cache_folder() -> Path:
    """Where converted GGUF models are kept: $SRLM_CACHE, else srlm/ in the user's cache folder."""
    if own := os.environ.get("SRLM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "srlm"


def convert_gguf(path: Path, *more: Path) -> Path:
    """Dequantise a GGUF file, whole or in parts, once into a plain fp32 safetensors folder in the cache; return that
    folder."""
    digest = hashlib.sha256()
    for part in (path, *more):
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    target = cache_folder() / f"{path.name.partition('.gguf')[0]}-{digest.hexdigest()[:16]}"
    if (target / "config.json").exists():
        return target
    with _joined(path, *more) as whole:
        return _dequantised(whole, target)


@contextlib.contextmanager
def _joined(path: Path, *more: Path) -> Iterator[Path]:
    """One file of all parts, for as long as it is needed."""
    if not more:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / path.with_suffix("").name
        with whole.open("wb") as file:
            for part in (path, *more):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file)
        yield whole


def _dequantised(path: Path, target: Path) -> Path:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except Exception as error:  # a damaged file fails wherever the reader happens to be
        raise UserError(
            f"cannot convert GGUF file {path}: {first_line(error)}; use an architecture that transformers can read "
            "from GGUF, or a safetensors folder of the same model"
        ) from error
    # Left in place, these marks make transformers refuse to save, or reload, the dequantised weights.
    for mark in ("quantization_method", "hf_quantizer"):
        setattr(model, mark, None)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".convert-"))
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        if not target.exists():
            os.replace(scratch, target)
    except Exception as error:  # on a full disk safetensors and tokenizers raise types of their own
        raise UserError(
            f"cannot keep the converted {path.name} in {target.parent} ({first_line(error)}): free space there, or "
            "name another folder in SRLM_CACHE"
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return target
