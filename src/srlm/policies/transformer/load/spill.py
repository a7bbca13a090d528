"""GGUF tensors -> safetensors files, one tensor after the other, so that no more than a part of a model is held."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, modeling_gguf_pytorch_utils

from srlm.policies.transformer.load.positions import SCALES

PLAIN = ("llama", "qwen2", "qwen3")  # architectures whose tensors are converted each by itself
SHARD = 1 << 29  # bytes of a file; a larger tensor has one of its own
INDEX = "model.safetensors.index.json"


def spill(path: Path, architecture: str, config: Any, folder: Path) -> bool:
    """Write the weights of a GGUF file as fp32 into `folder`, as from_pretrained and save_pretrained would.

    False, with nothing left there, if they have to be converted together, or are not those that the model has.
    """
    if architecture not in PLAIN:
        return False
    from gguf import GGUFReader, dequantize

    gguf_utils: Any = modeling_gguf_pytorch_utils
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    kind = gguf_utils.TENSOR_PROCESSORS.get(architecture, gguf_utils.TensorProcessor)
    parsed = gguf_utils.load_gguf_checkpoint(str(path), return_tensors=False)
    processor = kind(config=parsed["config"])
    names = gguf_utils.get_gguf_hf_weights_map(model, processor)
    shards = _Shards(folder)
    for tensor in GGUFReader(path).tensors:
        weights = dequantize(tensor.data, tensor.tensor_type)
        made = processor.process(
            weights=weights, name=tensor.name, tensor_key_mapping=names, parsed_parameters={"tensors": {}}
        )
        if made.name in names:
            shards.add(names[made.name], torch.from_numpy(made.weights.copy()).float())
        elif tensor.name != SCALES:  # which the configuration says; nothing is dropped in silence
            shards.remove()
            return False
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    expected = {key: value.shape for key, value in model.state_dict().items() if key not in tied}
    if {key: shape for key, shape in shards.shapes.items() if key not in tied} != expected:
        shards.remove()
        return False
    shards.close(leave_out=tied)
    return True


class _Shards:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, torch.Tensor] = {}
        self._files: list[list[str]] = []
        self.shapes: dict[str, torch.Size] = {}
        self._bytes = 0

    def add(self, name: str, value: torch.Tensor) -> None:
        if self._held and sum(one.nbytes for one in self._held.values()) + value.nbytes > SHARD:
            self._write()
        self._held[name] = value
        self.shapes[name] = value.shape
        self._bytes += value.nbytes

    def _write(self) -> None:
        safetensors.torch.save_file(self._held, self._file(len(self._files)), metadata={"format": "pt"})
        self._files.append(list(self._held))
        self._held = {}

    def _file(self, number: int) -> Path:
        return self._folder / f".part-{number}.safetensors"

    def remove(self) -> None:
        for number in range(len(self._files)):
            self._file(number).unlink()

    def close(self, leave_out: set[str]) -> None:
        for name in leave_out & self._held.keys():
            del self._held[name]
        if self._held:
            self._write()
        total = len(self._files)
        if total == 1:
            self._file(0).rename(self._folder / "model.safetensors")
            return
        where: dict[str, str] = {}
        for number, names in enumerate(self._files):
            file = f"model-{number + 1:05d}-of-{total:05d}.safetensors"
            self._file(number).rename(self._folder / file)
            where |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._bytes}, "weight_map": where}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
