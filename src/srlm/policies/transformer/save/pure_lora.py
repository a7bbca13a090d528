"""The trained adapter without its norm: LoRA and nothing else, as servers take it, and the gain as a temperature."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from srlm.errors import UserError
from srlm.policies.transformer.load.brought import CONFIG, WEIGHTS, base_of
from srlm.policies.transformer.load.hub import adapter_folder, portable
from srlm.policies.transformer.policy import TransformerPolicy

MOST_APART = 0.02  # nats a token; logits that are rounded to bf16 give a tenth of it
_SAMPLED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # by a generation_config.json
_IN_FRONT = "base_model.model."  # of peft's keys


@dataclass(frozen=True)
class PureLora:
    """What was written.

    gain: e^g, of the final norm of the run against that of the base. temperature: of generation_config.json, that of
    the base over the gain; None where the norm is merged into the base that was written. own: what the base says of how
    it is sampled from. apart: KL in nats a token from the policy to the base with the LoRA layers at temperature
    1/gain, on the run's prompts. rank: of the largest layer. base: what the adapter lies on; ignored: but for the one
    that its folder holds.
    """

    gain: float
    temperature: float | None
    apart: float
    rank: int
    base: str
    own: dict[str, float] = field(default_factory=dict)
    ignored: bool = False


def save_pure_lora(
    policy: TransformerPolicy,
    folder: Path,
    *,
    adapter: str = "merge",
    base_folder: Path | None = None,
    base_name: str | None = None,
) -> PureLora:
    """Write the LoRA layers of a policy in peft's format, without any other weight. adapter: what the run did with one
    that its model brought.

    The gain e^g of the final norm makes logits e^g times as large, so base and LoRA layers sampled at temperature e^-g
    are the policy. `generation_config.json` says what makes of them the whole model as it is sampled from by default:
    the base's own, its temperature (1 if it has none) over the gain. With `base_folder` the base is written there, its
    final norm that of the policy, and nothing is left for a temperature to do; `base_name` is how the adapter calls it.

    Raises:
        UserError: all weights were trained; the adapter holds more than LoRA layers and the gain; or logits of this
            model are not proportional to its final norm, so that no temperature makes up for it.
    """
    peft_model = policy.weights.peft_model
    if peft_model is None:
        raise UserError(
            f"all weights of {policy.name} were trained (--lora-rank 0), expected a LoRA adapter: export the whole "
            "model with --merged or --gguf"
        )
    name = policy.weights.name
    brought = base_folder is None and base_of(adapter_folder(name), "merge") is not None
    if brought and adapter != "ignore" and not policy.weights.begun:
        raise UserError(
            f"the run began with the LoRA adapter of {name} merged into its base, so that what its own lies on is no "
            "model on disk: write that beside it with --gain norm"
        )
    folder.mkdir()
    policy.save_weights(folder)
    state = safetensors.torch.load_file(folder / WEIGHTS)
    lora = {key: value for key, value in state.items() if ".lora_" in key}
    norm = _Norm.of(policy)
    others = sorted(state.keys() - lora.keys() - (norm.keys if norm else frozenset()))
    if others:
        raise UserError(
            f"the adapter of {policy.name} holds more than LoRA layers ({others[0]}), which servers of adapters do not "
            "take: export the whole model with --merged or --gguf"
        )
    safetensors.torch.save_file(lora, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    base = base_name or str(base_folder) if base_folder else portable(policy.weights.name)
    config |= {"modules_to_save": None, "base_model_name_or_path": base, "task_type": "CAUSAL_LM"}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    gain = norm.gain if norm else 1.0
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if base_folder is not None:
        policy.weights.save_model(base_folder, policy.tokenizer, base=True)
        return PureLora(gain, None, 0.0, rank, base)
    if norm:
        norm.refuse_unlike_a_number()
    apart = norm.apart(policy, gain) if norm else 0.0
    if not apart <= MOST_APART:
        raise UserError(
            f"at temperature {1 / gain:.4g} the log-probs of {policy.name} without its gain differ by {apart:.2g} nats "
            "a token from those of the trained model, expected none: keep the gain in the final norm with --gain norm"
        )
    temperature, own = _say_temperature(policy, folder, gain)
    return PureLora(gain, temperature, apart, rank, base, own, ignored=brought and adapter == "ignore")


@dataclass(frozen=True)
class _Norm:
    """The final norm as the base has it, and as it was trained."""

    name: str
    offset: float
    base: nn.Module
    trained: nn.Module

    @classmethod
    def of(cls, policy: TransformerPolicy) -> _Norm | None:
        """None where it was left alone."""
        if policy.gain is None:
            return None
        wrapper: Any = policy.model.get_submodule(policy.gain.name.partition(".modules_to_save")[0])
        name = policy.gain.name.partition(".modules_to_save")[0]
        return cls(name, policy.gain.offset, wrapper.original_module, wrapper.modules_to_save["default"])

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(f"{_IN_FRONT}{self.name}.{name}" for name, _ in self.trained.named_parameters())

    @property
    def gain(self) -> float:
        return float(self._flat(self.trained).norm() / self._flat(self.base).norm())

    def refuse_unlike_a_number(self) -> None:
        """
        Raises:
            UserError: the norm of the policy is not that of the base times a number.
        """
        now, then = self._flat(self.trained), self._flat(self.base)
        if not float((now - self.gain * then).abs().max()) <= 2**-6 * float(now.abs().max()):
            raise UserError(
                f"the final norm ({self.name}) is not that of the base times one number, which no temperature makes up "
                "for: keep it with --gain norm"
            )

    def _flat(self, module: nn.Module) -> Tensor:
        parts = {name: value.detach().float() for name, value in module.named_parameters()}
        return torch.cat([value + (self.offset if name == "weight" else 0.0) for name, value in parts.items()])

    @torch.no_grad()
    def apart(self, policy: TransformerPolicy, gain: float) -> float:
        rows = [torch.tensor([ids], device=policy.model.device) for ids in policy.encode.some(8)]
        trained = [_log_probs(policy.model, ids, 1.0) for ids in rows]
        kept = {name: value.detach().clone() for name, value in self.trained.named_parameters()}
        try:
            self._put(dict(self.base.named_parameters()))
            plain = [_log_probs(policy.model, ids, gain) for ids in rows]
        finally:
            self._put(kept)
        gaps = [(one.exp() * (one - other)).sum(-1).mean() for one, other in zip(trained, plain, strict=True)]
        return max((float(gap) for gap in gaps), default=0.0)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.trained.named_parameters():
            parameter.copy_(values[name])


def _log_probs(model: Any, ids: Tensor, gain: float) -> Tensor:
    return torch.log_softmax(model(input_ids=ids, use_cache=False).logits.float() * gain, -1)


def _say_temperature(policy: TransformerPolicy, folder: Path, gain: float) -> tuple[float, dict[str, float]]:
    """How the base says that it is sampled from stays, of logits that are as large as those of the policy."""
    usual = policy.model.generation_config
    said = {} if usual is None else usual.to_diff_dict()
    own = {name: said[name] for name in _SAMPLED if said.get(name) not in (None, 1.0)}
    temperature = float(said.get("temperature") or 1.0) / gain
    said |= {"do_sample": True, "temperature": temperature}
    GenerationConfig(**said).to_json_file(folder / "generation_config.json")
    return temperature, own
