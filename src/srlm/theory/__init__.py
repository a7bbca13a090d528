"""Floor 0: floats and arrays in, floats out. Never imports torch."""

from srlm.theory.condition import log_condition_number

__all__ = ["log_condition_number"]
