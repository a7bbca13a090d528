"""What is trained of a model: merged for a while, put back, kept and saved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from srlm.errors import UserError
from srlm.policies.transformer.bits import quantised
from srlm.policies.transformer.devices.parts import Parts
from srlm.policies.transformer.fold import folded
from srlm.policies.transformer.load.checks import refuse_misfit
from srlm.policies.transformer.load.hub import portable


class Weights:
    """Of `model`, into which the LoRA layers of `peft_model`, if there is one, are injected.

    name: what the model was loaded from. begun: its LoRA layers are part of pi_0, since they were trained before.
    """

    def __init__(self, model: PreTrainedModel, peft_model: PeftModel | None, name: str, *, begun: bool = False) -> None:
        self.model, self.peft_model, self.name, self.begun = model, peft_model, name, begun
        self.parts = Parts()
        self._initial: dict[str, Tensor] | None = None
        self._back = (-1, -1)  # writes so far when the own values were put back, and their version

    @property
    def packed(self) -> bool:
        """Does LoRA lie on weights of few bits? Merged into them it would be rounded away."""
        return quantised(self.model) != "none"

    def trainable(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def held(self) -> dict[str, Tensor]:
        """What this process has of it: all, unless the model is in shards."""
        return {name: self.parts.local(value) for name, value in self.trainable().items()}

    def collect(self, *, model: bool = False) -> None:
        """Before the main process saves: all take part. model: in one whole, the adapter merged."""

    def forget(self) -> None:
        """What was collected of the whole model has been saved, and is not to be checked."""

    def version(self) -> int:
        """Another number whenever what is trained has changed: torch counts what is written, whoever writes. Values
        that were put aside and back are those that they were."""
        written = self._written()
        return self._back[1] if written == self._back[0] else written

    def _written(self) -> int:
        return sum(value._version for value in self.held().values())

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Fold LoRA into the weights while decoding, then put the original weights back bit for bit: a copy of them
        waits on the host, so that an accelerator never holds both. Over packed weights LoRA stays beside them."""
        if self.peft_model is None or self.packed:
            yield
            return
        with folded([m for m in self.model.modules() if isinstance(m, LoraLayer)]):
            yield

    def keep_initial(self) -> None:
        """Before weights change for the first time: what is trained is kept on the host as it was, for J_0 and for
        `reset`."""
        if self._initial is None:
            self._initial = self._on_host()

    def _on_host(self) -> dict[str, Tensor]:
        """A copy of what is trained."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self.held().items()}

    @contextmanager
    def initial(self) -> Iterator[None]:
        """pi_0 in place of pi_t: the adapter switched off, or the kept weights put in."""
        if self.peft_model is not None and not self.begun:
            with self.peft_model.disable_adapter():
                yield
            return
        if self._initial is None:  # nothing has changed yet
            yield
            return
        with self.in_place(self._initial):
            yield

    def at_first(self) -> Mapping[str, Tensor]:
        """What is trained, as it was in pi_0."""
        return self._initial if self._initial is not None else self.held()

    @contextmanager
    def in_place(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Other values in place of what is trained, for a while; then the own ones bit for bit."""
        with self.kept():
            self.put(values)
            yield

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever is written to what is trained meanwhile, it is afterwards what it was, bit for bit."""
        now, version = self._on_host(), self.version()
        try:
            yield
        finally:
            self.put(now)
            self._back = (self._written(), version)

    def reset(self) -> None:
        """Become pi_0 for good."""
        if self._initial is not None:
            self.put(self._initial)

    def put(self, values: Mapping[str, Tensor]) -> None:
        """For good."""
        with torch.no_grad():
            for name, parameter in self.held().items():
                parameter.copy_(values[name])

    def save(self, folder: Path, tokenizer: Any) -> None:
        """The trained weights alone: a peft adapter folder, or a whole model folder."""
        if self.peft_model is not None:
            self._save_adapter(folder, None)
        else:
            self.save_model(folder, tokenizer)

    def _save_adapter(self, folder: Path, state: dict[str, Tensor] | None) -> None:
        assert self.peft_model is not None
        self.peft_model.peft_config["default"].base_model_name_or_path = self.name
        # False: or peft asks the Hub whether the vocabulary has grown.
        self.peft_model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card

    def save_on_base(self, folder: Path, tokenizer: Any) -> None:
        """An adapter folder that names its base as others can load it, with the tokenizer; read again.

        Raises:
            UserError: what was written is not what was meant.
        """
        self.save(folder, tokenizer)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": portable(self.name), "task_type": "CAUSAL_LM"}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
        tokenizer.save_pretrained(folder)
        saved = safetensors.torch.load_file(folder / "adapter_model.safetensors")
        for name, value in get_peft_model_state_dict(self.peft_model, save_embedding_layers=False).items():
            if name not in saved or not torch.equal(saved[name], value.detach().cpu()):
                raise UserError(
                    f"the weight {name} in {folder} is not what was written there: look after the disk, and go on with "
                    "--resume; what the rounds made is kept in their folders"
                )

    def load(self, folder: Path) -> None:
        """Become the policy that `save` left in `folder`."""
        self.keep_initial()
        if self.peft_model is not None:
            saved = safetensors.torch.load_file(folder / "adapter_model.safetensors")
            # Not set_peft_model_state_dict: it renames keys as if they came from an old checkpoint of the model.
            mine = get_peft_model_state_dict(self.peft_model, save_embedding_layers=False)
            with torch.no_grad():
                for key, value in mine.items():
                    self.parts.local(value).copy_(self.parts.part(saved[key], value))
            return
        model = type(self.model).from_pretrained(folder, dtype=self.model.dtype, use_safetensors=True)
        saved, mine = dict(model.named_parameters()), self.trainable()
        self.put({name: self.parts.part(saved[name], parameter) for name, parameter in mine.items()})

    @torch.no_grad()
    def check_saved(self, folder: Path, rows: Sequence[Sequence[int]]) -> None:
        """Read what `save_model` wrote, and hold its next-token log-probs along some token ids against the model's own;
        or, where the device has no room for a second model, its weights.

        Raises:
            UserError: they differ by more than rounding does.
        """
        kind: Any = type(self.model)  # not by the config's name: a model that brought its code has it here
        saved, report = kind.from_pretrained(
            folder, dtype=self.model.dtype, use_safetensors=True, output_loading_info=True
        )
        refuse_misfit(str(folder), saved, report["missing_keys"], report["unexpected_keys"])
        with self.merged():
            try:
                saved = saved.eval().to(self.model.device)
                far = max(_apart(self.model, saved, ids) for ids in rows)
            except torch.OutOfMemoryError:
                saved = saved.to("cpu")
                mine = self.plain_state()
                far = max(float((mine[key].cpu() - v).abs().max()) for key, v in saved.named_parameters())
        if not far <= (1e-4 if self.model.dtype == torch.float32 else 0.05):
            raise UserError(
                f"the model that was written to {folder} differs from the one that was trained by {far:.3g} when it is "
                "read again, expected 0: report this with the name of the model; what the rounds made is kept in their "
                "folders"
            )

    def plain_state(self) -> dict[str, Tensor]:
        """Weights by the names of a model without adapter, as they are now: merged or not."""
        return plain_names(self.model.state_dict())

    def save_model(self, folder: Path, tokenizer: Any, *, dtype: torch.dtype | None = None, base: bool = False) -> None:
        """A folder for `AutoModelForCausalLM.from_pretrained`: merged weights (bit for bit those that sample here),
        tokenizer, chat template. dtype: of the weights, if another one than the model's. base: without the LoRA layers.

        Raises:
            UserError: a weight is too large for the dtype, or weights are packed.
        """
        if self.packed:
            raise UserError(
                f"the base {self.name} is packed into {quantised(self.model)}, which LoRA is not merged into: export "
                "the run with --merged, which merges it into the base as it was"
            )
        with nullcontext() if base else self.merged():
            state = self.plain_state()
            self._write(folder, tokenizer, state if dtype is None else _cast(state, dtype), dtype)

    def _write(self, folder: Path, tokenizer: Any, state: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
        model, generation = cast(Any, self.model), self.model.generation_config
        model.generation_config = GenerationConfig()  # transformers refuses to save some flags that it has loaded
        try:
            model.save_pretrained(folder, state_dict=state)
        finally:
            model.generation_config = generation
        if dtype is not None:
            _say_dtype(folder / "config.json", dtype)
        if generation is not None:
            generation.to_json_file(folder / "generation_config.json")
        tokenizer.save_pretrained(folder)


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of a model without adapter."""
    return {
        key.replace("base_layer.", "").replace("modules_to_save.default.", ""): value
        for key, value in state.items()
        if ".lora_" not in key and ".original_module." not in key
    }


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights that were one tensor stay one.

    Raises:
        UserError: one is too large.
    """
    made: dict[tuple[int, torch.Size], Tensor] = {}
    for name, value in state.items():
        key = (value.data_ptr(), value.shape)
        if key not in made:
            made[key] = value.detach().to(dtype) if value.is_floating_point() else value
            if not bool(made[key].isfinite().all()):
                raise UserError(
                    f"the weight {name} goes up to {float(value.abs().max()):.3g}, more than {str(dtype)[6:]} holds: "
                    "choose bf16 or fp32"
                )
    return {name: made[value.data_ptr(), value.shape] for name, value in state.items()}


def _say_dtype(file: Path, dtype: torch.dtype) -> None:
    """transformers writes the dtype of the model that it was handed."""
    config = json.loads(file.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = str(dtype)[6:]
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _apart(one: PreTrainedModel, other: PreTrainedModel, ids: Sequence[int]) -> float:
    """Most that next-token log-probs of two models on one device differ by along some token ids, in nats."""
    row = torch.tensor([list(ids)], device=one.device)
    mine, theirs = (
        torch.log_softmax(cast(Any, model)(input_ids=row, use_cache=False).logits.float(), -1) for model in (one, other)
    )
    return float((mine - theirs).abs().max())
