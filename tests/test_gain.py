"""The gain of the final norm, over model families; how it is saved, switched off and put back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from reference import ROWS, TREES, build
from torch import Tensor
from transformers import AutoModelForCausalLM

from srlm.policies.transformer.gain import Gain
from srlm.policies.transformer.policy import TransformerPolicy

IDS = torch.tensor([[5, 9, 2, 7]])


def logits(model, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(TREES | ROWS))
def test_the_gain_multiplies_the_logits(name: str, dtype: torch.dtype) -> None:
    model = build(name).to(dtype)
    with torch.no_grad():  # away from the ones and zeros that norms begin with
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    before, state = logits(model), {k: v.clone() for k, v in model.state_dict().items()}
    gain = Gain.of(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())  # looking changes nothing
    assert gain is not None
    head = model.get_output_embeddings()
    gain.put([p.detach().float().clone() for p in gain.parameters], torch.tensor(0.5))
    after = logits(model)
    if head.bias is None and getattr(model.config, "final_logit_softcapping", None) is None:
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        assert torch.allclose(after, before * math.exp(0.5), rtol=tolerance, atol=tolerance * float(before.abs().max()))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
def test_the_gradient_of_the_gain(name: str) -> None:
    model = build(name).double()
    gain = Gain.of(model)
    start = [p.detach().clone() for p in gain.parameters]

    def loss() -> Tensor:
        return torch.log_softmax(model(input_ids=IDS, use_cache=False).logits, -1)[0, :, 3].sum()

    loss().backward()
    slope = float(gain.gradient({p: p.grad for p in gain.parameters}))
    values = []
    for step in (-0.01, 0.01):
        gain.put(start, torch.tensor(step, dtype=torch.float64))
        values.append(float(loss().detach()))
    assert slope == pytest.approx((values[1] - values[0]) / 0.02, rel=1e-3)


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_a_gain_is_saved_switched_off_and_loaded(tiny: Path, tmp_path: Path, lora_rank: int) -> None:
    def load() -> TransformerPolicy:
        return TransformerPolicy.load(str(tiny), max_new_tokens=4, lora_rank=lora_rank, dtype="fp32")

    policy = load()
    plain = logits(policy.model)
    policy.weights.keep_initial()
    policy.gain.put([p.detach().clone() for p in policy.gain.parameters], torch.tensor(0.7))
    sharp = logits(policy.model)
    assert policy.sharpness() == pytest.approx(math.exp(0.7), rel=1e-5)
    assert torch.allclose(sharp, plain * math.exp(0.7), rtol=1e-4, atol=1e-4)
    with policy.initial():
        assert torch.equal(logits(policy.model), plain)
    with policy.merged():
        assert torch.equal(logits(policy.model), sharp)
    policy.save_weights(tmp_path / "weights")
    policy.save_model(tmp_path / "model")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), sharp)
    if lora_rank:  # plain peft needs to know nothing of srlm
        again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), tmp_path / "weights")
        assert torch.equal(logits(again), sharp)
    other = load()
    other.load_weights(tmp_path / "weights")
    assert torch.equal(logits(other.model), sharp)


def test_without_a_gain_the_norm_stays(tiny: Path) -> None:
    policy = TransformerPolicy.load(str(tiny), max_new_tokens=4, gain=False)
    assert policy.gain is None and policy.sharpness() == 1
    assert all(".lora_" in name for name in policy.trainable())


def test_a_norm_without_a_weight_has_no_gain() -> None:
    assert Gain.of(build("olmo")) is None
