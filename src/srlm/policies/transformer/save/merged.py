"""The policy as one whole model, in a dtype of one's choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from srlm.errors import UserError
from srlm.policies.transformer.policy import TransformerPolicy

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def save_merged(policy: TransformerPolicy, folder: Path, dtype: str | None = None) -> str:
    """Like `TransformerPolicy.save_model`; with `dtype` (fp32, bf16 or fp16) the weights, merged in the model's own
    dtype, are rounded to it, and what was written is read again to see that it is those.

    Returns:
        The dtype, in words.

    Raises:
        UserError: a weight is too large for the dtype, or what was written is not what was meant.
    """
    if dtype is None:
        policy.save_model(folder)
        return str(policy.model.dtype)[6:]
    policy.weights.save_model(folder, policy.tokenizer, dtype=DTYPES[dtype])
    saved: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        saved |= safetensors.torch.load_file(file)
    with policy.weights.merged():
        mine = policy.weights.plain_state()
        for name, value in saved.items():
            if not torch.equal(value, mine[name].detach().cpu().to(value.dtype)):
                raise UserError(f"the weight {name} in {folder} is not what was written there: export it again")
    return str(DTYPES[dtype])[6:]
