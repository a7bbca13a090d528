"""Is what was read what the file holds, and all that the model has?"""

from __future__ import annotations

from collections.abc import Collection

from transformers import PreTrainedModel

from srlm.errors import UserError


def refuse_missing(name: str, model: PreTrainedModel, missing: Collection[str]) -> None:
    """
    Raises:
        UserError: weights that the file does not have; transformers would go on with random numbers in their place.
    """
    if missing:
        raise UserError(
            f"model {name} lacks {len(missing)} of the weights of a {type(model).__name__} ({min(missing)}, ...): give "
            "a complete causal LM"
        )


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300].rstrip(".")
