"""A Hugging Face causal LM as a policy."""

from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.processes import processes
from srlm.policies.transformer.responses import Responses
from srlm.policies.transformer.update import Diverged, Optimisation, fit

__all__ = ["Diverged", "Optimisation", "Responses", "TransformerPolicy", "fit", "processes"]
