"""The policy as one whole model, in a dtype of one's choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from srlm.errors import UserError
from srlm.policies.transformer.load.checks import refuse_misfit
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
    kind: Any = type(policy.model)
    saved, report = kind.from_pretrained(folder, dtype=DTYPES[dtype], use_safetensors=True, output_loading_info=True)
    refuse_misfit(str(folder), saved, report["missing_keys"], report["unexpected_keys"])
    with policy.weights.merged():
        mine = policy.weights.plain_state()
        for name, value in saved.named_parameters():
            if not torch.equal(value, mine[name].detach().cpu().to(value.dtype)):
                raise UserError(f"the weight {name} in {folder} is not what was written there: export it again")
    return str(DTYPES[dtype])[6:]
