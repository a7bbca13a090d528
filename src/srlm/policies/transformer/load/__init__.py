"""Names -> models: from the Hub, a folder, a GGUF file or a package, and nothing but what is in them."""

from srlm.policies.transformer.load.hub import load_model

__all__ = ["load_model"]
