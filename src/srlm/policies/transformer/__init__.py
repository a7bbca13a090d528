"""A Hugging Face causal LM as a policy."""

from srlm.policies.transformer.policy import Responses, TransformerPolicy, processes
from srlm.policies.transformer.update import Diverged, Optimisation, fit

__all__ = ["Diverged", "Optimisation", "Responses", "TransformerPolicy", "fit", "processes"]
