"""A policy -> files that other programs open: a pure LoRA adapter, merged weights of another dtype, GGUF."""
