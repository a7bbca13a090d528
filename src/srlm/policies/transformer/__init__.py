"""A Hugging Face causal LM as a policy. The only importer of transformers, peft and accelerate is this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from srlm.lazy import exports

if TYPE_CHECKING:
    from srlm.policies.transformer.policy import TransformerPolicy

__getattr__ = exports(__name__, {"TransformerPolicy": "srlm.policies.transformer.policy"})
__all__ = ["TransformerPolicy"]
