"""GGUF files -> plain safetensors folders, dequantised once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from srlm.errors import UserError
from srlm.policies.transformer.load.checks import first_line, forget_quantisation, refuse_misfit
from srlm.policies.transformer.load.cuts import CUTS
from srlm.policies.transformer.load.positions import SCALES, scaling_of
from srlm.policies.transformer.load.spill import spill

CONVERSION = 3  # what an earlier one kept may lack tensors, how positions are scaled, or how text is cut


def cache_folder() -> Path:
    """Where converted GGUF models are kept: $SRLM_CACHE, else srlm/ in the user's cache folder."""
    if own := os.environ.get("SRLM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "srlm"


def convert_gguf(path: Path, *more: Path, name: str | None = None) -> Path:
    """Dequantise a GGUF file, whole or in parts, once into a plain fp32 safetensors folder in the cache; return that
    folder. name: what it is called there, if not as the file."""
    digest = hashlib.sha256()
    for part in (path, *more):
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    called = name or path.name.partition(".gguf")[0]
    target = cache_folder() / f"{called}-{digest.hexdigest()[:16]}-{CONVERSION}"
    if (target / "config.json").exists():
        return target
    with _joined(path, *more) as whole:
        return dequantised(whole, target)


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


def dequantised(path: Path, target: Path) -> Path:
    """A GGUF file as a plain fp32 folder, which is `target`.

    Raises:
        UserError: it cannot be read, or not without losing something.
    """
    said = _metadata(path)
    if (parts := said.get("split.count", 1)) > 1:
        raise UserError(
            f"GGUF file {path} is one of {parts} parts of a split model: merge them first (llama-gguf-split --merge), "
            "or give a safetensors folder of the same model"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        if (cut := said.get("tokenizer.ggml.pre")) in CUTS and said.get("tokenizer.ggml.model") == "gpt2":
            tokenizer.backend_tokenizer.pre_tokenizer = CUTS[cut]  # transformers takes the family's, or GPT-2's
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        _scale_rope(path, config, said)
        if _spilled(path, config, tokenizer, said, target):
            return target
        model, report = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=config, dtype=torch.float32, output_loading_info=True
        )
    except UserError:
        raise
    except Exception as error:  # a damaged file fails wherever the reader happens to be
        raise UserError(
            f"cannot convert GGUF file {path}: {first_line(error)}; use an architecture that transformers can read "
            "from GGUF, or a safetensors folder of the same model"
        ) from error
    refuse_misfit(str(path), model, report["missing_keys"], report["unexpected_keys"])
    weights = sum(number for name, number in said["tensors"].items() if name != SCALES)
    left = weights - sum(value.numel() for value in model.parameters())
    if left > 0:  # tensors whose names the reader does not know are passed over in silence
        raise UserError(
            f"GGUF file {path} holds {left} numbers more than a {type(model).__name__} has, so some of its weights, "
            "biases perhaps, would be dropped: give a safetensors folder of the same model"
        )
    forget_quantisation(model)
    _end_turns(model.generation_config, tokenizer, said)
    with kept_in(path.name, target) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    return target


def _spilled(path: Path, config: Any, tokenizer: Any, said: dict[str, Any], target: Path) -> bool:
    """Convert without ever holding the whole model, if that can be done."""
    with kept_in(path.name, target) as scratch:
        try:
            if not spill(path, said.get("architecture", ""), config, scratch):
                return False
        except (OSError, safetensors.SafetensorError):
            raise
        except Exception:  # the other way, which is transformers' own, says what is wrong
            for file in scratch.iterdir():
                file.unlink()
            return False
        config.dtype, config.architectures = torch.float32, [AutoModelForCausalLM._model_mapping[type(config)].__name__]
        config.save_pretrained(scratch)
        generation = GenerationConfig.from_model_config(config)
        _end_turns(generation, tokenizer, said)
        generation.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    return True


def _end_turns(generation: Any, tokenizer: Any, said: dict[str, Any]) -> None:
    if isinstance(turn_end := said.get("tokenizer.ggml.eot_token_id"), int):
        ends = generation.eos_token_id
        known = ends if isinstance(ends, list) else [tokenizer.eos_token_id if ends is None else ends]
        generation.eos_token_id = sorted({*known, turn_end})


@contextlib.contextmanager
def kept_in(name: str, target: Path) -> Iterator[Path]:
    """A folder that becomes `target` if something is in it in the end. name: what it holds.

    Raises:
        UserError: it cannot be written.
    """
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".convert-"))
        yield scratch
        if not target.exists() and any(scratch.iterdir()):
            os.replace(scratch, target)
    except Exception as error:  # on a full disk safetensors and tokenizers raise types of their own
        raise UserError(
            f"cannot keep the converted {name} in {target.parent} ({first_line(error)}): free space there, or "
            "name another folder in SRLM_CACHE"
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _metadata(path: Path) -> dict[str, Any]:
    """What a GGUF file says of itself in numbers and words, without the architecture's name; `tensors`, its weights
    with the number of their elements; and `scales` of its positions, where it has some.

    Raises:
        UserError: it is no GGUF file.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        fields = {key: value.contents() for key, value in reader.fields.items() if len(value.data) == 1}
        architecture = fields.get("general.architecture", "")
        plain = {key.removeprefix(f"{architecture}."): value for key, value in fields.items()}
        scales = [gguf.dequantize(one.data, one.tensor_type) for one in reader.tensors if one.name == SCALES]
        return plain | {
            "scales": torch.from_numpy(scales[0].copy()).float() if scales else None,
            "architecture": architecture,
            "tensors": {tensor.name: int(tensor.n_elements) for tensor in reader.tensors},
        }
    except Exception as error:  # whatever a damaged header leads to
        raise UserError(
            f"cannot read GGUF file {path}: {first_line(error) or type(error).__name__}; download or write it again"
        ) from error


def _scale_rope(path: Path, config: Any, said: dict[str, Any]) -> None:
    """Positions as the file scales them, which transformers does not read.

    Raises:
        UserError: they are scaled in a way that is not known here.
    """
    kind, factor = said.get("rope.scaling.type", "none"), float(said.get("rope.scaling.factor", 1.0))
    scaled = any(name.startswith(("rope_freqs", "rope_factors")) for name in said["tensors"])
    text = config.get_text_config()
    rope: Any = getattr(text, "rope_parameters", None)
    if said["scales"] is not None and factor == 1.0 and (like_llama := scaling_of(text, said["scales"])) is not None:
        text.rope_parameters = rope | like_llama
        return
    if scaled or (factor != 1.0 and (kind not in ("linear", "yarn", "none") or not isinstance(rope, dict))):
        raise UserError(
            f"GGUF file {path} scales its positions ({'rope_freqs' if scaled else kind}) in a way that is dropped when "
            "it is converted: give a safetensors folder of the same model"
        )
    if factor == 1.0 or kind == "none":
        return
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn" and "rope.scaling.original_context_length" in said:
        scaling["original_max_position_embeddings"] = said["rope.scaling.original_context_length"]
    if "full_attention" in rope:  # layers that slide keep theirs
        rope["full_attention"] = rope["full_attention"] | scaling
    else:
        text.rope_parameters = rope | scaling
