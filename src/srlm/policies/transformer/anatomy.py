"""A model, or its config alone -> its `Shape`: read off the modules and one forward pass, which need not be real.

On the meta device a model of any size has no weights, and a forward pass moves nothing: it tells what a backward pass
would keep, and what a KV cache would hold.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from srlm.errors import UserError
from srlm.policies.transformer.bits import elements
from srlm.policies.transformer.encode import Encoder
from srlm.policies.transformer.layout.cost import Cost
from srlm.policies.transformer.load.adapters import with_lora
from srlm.policies.transformer.load.brought import CONFIG, base_of
from srlm.policies.transformer.load.checks import first_line, refuse_unlike_causal
from srlm.policies.transformer.load.hub import DTYPES, resolve_dtype, resolve_model
from srlm.policies.transformer.log_prob import CACHES, UNFIT, decoder_of
from srlm.policies.transformer.shape import Shape
from srlm.types import PromptItem

PROBED = 32  # tokens of the forward pass
SAVED_PER_WIDTH = 34  # bytes a token and layer by element of a hidden state, where no forward pass can tell
_NAMES = {value: name for name, value in DTYPES.items()}
_READ = {"full_attention", "sliding_attention", "global"}  # kinds of layers that a tree's mask suits


def unloaded(
    name: str, *, dtype: str, adapter: str = "auto", rank: int, alpha: float | None = None, trust_remote_code: bool
) -> PreTrainedModel:
    """A model as it would be trained, on the meta device: of its file only the config is read.

    Raises:
        UserError: not a model.
    """
    config = config_of(name, adapter=adapter, trust_remote_code=trust_remote_code)
    if adapter == "continue" and rank:
        try:
            brought = json.loads((Path(resolve_model(name)) / CONFIG).read_text(encoding="utf-8"))
            rank, alpha = int(brought["r"]), None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"--adapter is continue, but {name} brings no LoRA adapter that says its rank, expected a folder with "
                "adapter_config.json: give one, or leave --adapter out"
            ) from error
    return of_config(name, config, resolve_dtype(dtype), rank=rank, alpha=alpha, trust_remote_code=trust_remote_code)


def config_of(name: str, *, adapter: str = "auto", trust_remote_code: bool = False) -> Any:
    """
    Raises:
        UserError: there is none.
    """
    source = resolve_model(name)
    while (base := base_of(Path(source), adapter)) is not None and (beneath := resolve_model(base)) != source:
        source, adapter = beneath, "merge"
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever the readers of configs raise
        raise UserError(
            f"cannot read the config of model {name}: {first_line(error)}; give a folder with config.json, a .gguf "
            "file, an alias, or a Hub id that can be reached"
        ) from error


def of_config(
    name: str,
    config: Any,
    dtype: torch.dtype,
    *,
    rank: int,
    alpha: float | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """
    Raises:
        UserError: it is no causal LM, or cannot be adapted.
    """
    refuse_unlike_causal(name, config)
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            made = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(
            f"cannot lay out model {name}: {first_line(error)}; give a causal LM that transformers knows"
        ) from error
    model = cast(PreTrainedModel, made.eval())
    if not rank:
        return model
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            model, _ = with_lora(model, rank=rank, alpha=alpha, gain=False, seed=0)
    except UserError:
        raise
    except UNFIT as error:
        raise UserError(
            f"cannot lay out LoRA layers in model {name}: {first_line(error)}; estimate it with --lora-rank 0"
        ) from error
    return model.to(dtype)


def shape_of(
    name: str, model: PreTrainedModel, *, gain: bool = True, trees: bool | None = None, quantize: str = "none"
) -> Shape:
    """gain: is the final norm trained beside an adapter? trees: are they read, if that is known. quantize: into what
    the layers under the adapter are, or would be, packed."""
    config = cast(Any, model.config).get_text_config()
    parameters = dict(model.named_parameters())
    added = {id(p): p.numel() for key, p in parameters.items() if "lora_" in key}
    copies = sum(p.numel() for key, p in parameters.items() if ".modules_to_save." in key)
    count = sum(elements(p) for p in parameters.values()) - sum(added.values()) - copies
    words, head = model.get_input_embeddings().weight, cast(Any, model.get_output_embeddings()).weight
    under = {
        id(p): p
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
        for key, p in layer.named_parameters()
        if "lora_" not in key
    }
    folded = sum(elements(p) for p in under.values())
    matrices = sum(elements(p) for key, p in parameters.items() if key.endswith("base_layer.weight"))
    cost = Cost.of(model)
    adapter = sum(added.values())
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
    hidden = int(head.shape[-1])
    if added and gain and not copies:
        trained += hidden
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight is not head]
    layers = max(1, sum(isinstance(m, GradientCheckpointingLayer) for m in model.modules()))
    kinds = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ())}
    packed = 0 if quantize == "none" else matrices
    tried, (cache, sliding) = _saved(model), _cached(model, config)
    saved = float(SAVED_PER_WIDTH * hidden * layers) if tried is None else tried
    size = head.element_size()
    return Shape(
        *(name, _NAMES.get(model.dtype, "bf16"), count, adapter, trained, 0 if packed else folded),
        rank=max((lora.r for lora in getattr(model, "peft_config", {}).values()), default=0),
        table=0 if words is head else words.numel(),
        cost=cost,
        plain=cost.token - (0 if packed else adapter),  # nothing is folded into packed layers
        vocabulary=int(head.shape[0]),
        hidden=hidden,
        layers=layers,
        widest=max((max(m.in_features, m.out_features) for m in linear), default=hidden),
        saved=saved,
        kept=min(saved, layers * hidden * size + saved / layers),
        cache=cache,
        sliding=sliding,
        window=int(getattr(config, "sliding_window", None) or 0) if sliding else 0,
        trees=kinds <= _READ if trees is None else trees,
        packed=packed,
        quantize=quantize,
        guessed=tried is None,
    )


class _Attention(torch.autograd.Function):
    """What attention that forms no matrix keeps for its backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        raise NotImplementedError  # nobody goes back


class _Unreal(TorchFunctionMode):
    """On the meta device: attention as it is on a real one, and no look at a value."""

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if call is nn.functional.scaled_dot_product_attention:
            return cast(Any, _Attention).apply(*args[:3])
        if call is Tensor.__bool__ and args[0].is_meta:
            return True
        return call(*args, **(kwargs or {}))


@contextmanager
def _pretending(model: PreTrainedModel) -> Iterator[None]:
    with _Unreal() if model.device.type == "meta" else nullcontext():
        yield


def _probe(model: PreTrainedModel, *, use_cache: bool) -> Any:
    ids = torch.zeros(1, PROBED, dtype=torch.long, device=model.device)
    return decoder_of(model)(input_ids=ids, use_cache=use_cache)


def _saved(model: PreTrainedModel) -> float | None:
    """Bytes of a token that the backward pass of the decoder keeps; None if no forward pass can tell."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    found: dict[int, tuple[Any, int]] = {}

    def look(value: Tensor) -> None:
        """Nothing is kept: a graph that holds its own outputs is never freed, nor the weights that it multiplies."""
        storage = value.untyped_storage()
        if storage._cdata not in own and value.numel() >= PROBED:
            found[storage._cdata] = storage, storage.nbytes()

    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(look, _never), _pretending(model):
            _probe(model, use_cache=False)
    except (*UNFIT, NotImplementedError):
        return None
    return sum(size for _, size in found.values()) / PROBED


def _never(_: object) -> Tensor:
    raise AssertionError("nothing goes back")


def _cached(model: PreTrainedModel, config: Any) -> tuple[float, float]:
    """Bytes of a token in a KV cache: of layers that keep every token, and of those that slide."""
    try:
        with torch.no_grad(), _pretending(model):
            output = _probe(model, use_cache=True)
            cache = next((found for name in CACHES[:2] if (found := output.get(name)) is not None), None)
        if cache is None:
            return 0.0, 0.0  # a state of fixed size
        whole = sliding = 0.0
        for layer in cache.layers:
            if not isinstance(keys := getattr(layer, "keys", None), Tensor):
                continue  # a state of fixed size
            each = (keys.nbytes + layer.values.nbytes) / keys.shape[-2]
            if getattr(layer, "is_sliding", False):
                sliding += each
            else:
                whole += each
        return whole, sliding
    except (*UNFIT, NotImplementedError):
        heads = getattr(config, "num_attention_heads", None) or 1
        share = (getattr(config, "num_key_value_heads", None) or heads) / heads
        return Cost.of(model).pair * share * model.dtype.itemsize, 0.0


def prompt_lengths(
    name: str,
    items: Sequence[PromptItem],
    *,
    adapter: str = "auto",
    raw_prompts: bool,
    chat_template_kwargs: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> list[int]:
    """Tokens of each prompt, as the model would read it.

    Raises:
        UserError: there is no tokenizer, or it refuses a prompt.
    """
    source = resolve_model(name)
    if (base := base_of(Path(source), adapter)) is not None and not (Path(source) / "tokenizer_config.json").is_file():
        source = resolve_model(base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(
            f"cannot read the tokenizer of model {name}: {first_line(error)}; give a model with one, or --num-prompts "
            "and --prompt-length instead of prompts"
        ) from error
    encode = Encoder(
        *(tokenizer, name),
        raw_prompts=raw_prompts,
        eos=frozenset(),
        vocabulary=len(tokenizer) + 2**20,  # whether it fits the model is seen when it is loaded
        template_kwargs=chat_template_kwargs,
    )
    return [len(encode(item)) for item in items]
