"""The gain of the final norm: the one direction of parameter space in which every prompt is sharpened alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from srlm.policies.transformer.log_prob import decoder_of


@dataclass(frozen=True)
class Gain:
    """Scaling by e^g what the final norm puts out makes logits e^g times as large: every next-token distribution p
    becomes p^(e^g) / Z, the token-level counterpart of one exact update, pi^(1 + 1/beta) / Z.

    name: of the norm module. parameters: its weight and, if it has one, its bias.
    offset: the norm multiplies by offset + weight (1 in the Gemma family, else 0).
    """

    name: str
    parameters: tuple[Tensor, ...]
    offset: float

    @classmethod
    def of(cls, model: PreTrainedModel) -> Gain | None:
        """None where hidden states do not leave the decoder through a norm whose gain can be scaled."""
        outputs: list[tuple[str, Any, Tensor]] = []
        hooks = [
            module.register_forward_hook(lambda m, _, out, name=name: outputs.append((name, m, out)))
            for name, module in model.named_modules()
            if isinstance(getattr(module, "weight", None), nn.Parameter)
        ]
        decoder = decoder_of(model)
        ids = torch.zeros(1, 4, dtype=torch.long, device=model.device)
        try:
            with torch.no_grad():
                last = decoder(input_ids=ids, use_cache=False).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        found = [
            (name, module)
            for name, module, out in outputs
            if isinstance(out, Tensor) and out.data_ptr() == last.data_ptr() and module.weight.shape == last.shape[-1:]
        ]
        if not found:
            return None
        name, norm = found[-1]
        own = tuple(p for p in (norm.weight, getattr(norm, "bias", None)) if p is not None)
        for offset in (0.0, 1.0):
            gain = cls(name, own, offset)
            if gain._scales(norm):
                return gain
        return None

    def _scales(self, norm: nn.Module) -> bool:
        weight = self.parameters[0]
        probe = torch.linspace(-1, 1, weight.numel(), device=weight.device, dtype=weight.dtype)[None]
        with torch.no_grad():
            before = norm(probe).float()
            with self.scaled(torch.tensor(1.0)):
                after = norm(probe).float()
        return torch.allclose(after, before * torch.e, rtol=0.05, atol=0.01 * float(before.abs().max()))

    @property
    def _offsets(self) -> tuple[float, ...]:
        return (self.offset, *(0.0 for _ in self.parameters[1:]))

    def size(self) -> float:
        """Norm of what the final norm multiplies by; e^log_gain times as large after `put`."""
        weight = self.parameters[0].detach().float()
        return float((weight + self.offset).norm())

    def grown(self, start: Sequence[Tensor], log_gain: Tensor) -> list[Tensor]:
        """Those of `start` (fp32) times e^log_gain."""
        return [
            (value + offset) * log_gain.to(value.device).exp() - offset
            for value, offset in zip(start, self._offsets, strict=True)
        ]

    def put(self, start: Sequence[Tensor], log_gain: Tensor) -> None:
        """Parameters <- `grown`."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.grown(start, log_gain), strict=True):
                parameter.copy_(value)

    @contextmanager
    def scaled(self, log_gain: Tensor) -> Iterator[None]:
        """Parameters times e^log_gain for a while; then bit for bit what they were."""
        kept = [value.detach().clone() for value in self.parameters]
        self.put([value.float() for value in kept], log_gain)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, kept, strict=True):
                    parameter.copy_(value)

    def gradient(self, gradients: Mapping[Tensor, Tensor]) -> Tensor:
        """d loss / d log_gain [scalar, fp32] from the gradients of the parameters, as far as they have any."""
        pulls = [
            (gradients[p] * (p.detach().float() + offset)).sum()
            for p, offset in zip(self.parameters, self._offsets, strict=True)
            if p in gradients
        ]
        return torch.stack(pulls).sum() if pulls else torch.zeros((), device=self.parameters[0].device)
