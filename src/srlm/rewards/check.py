"""A user's check of single responses, such as of their form or by a verifier: it sees the prompt's other columns."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from srlm.errors import UserError
from srlm.rewards._needs import attribute, each_text
from srlm.types import Rollouts


def check(
    policy: Any,
    rollouts: Rollouts,
    *,
    name: str,
    function: Callable[[str, Mapping[str, Any]], float],
    columns: Callable[[int], Mapping[str, Any]],
) -> Tensor:
    """[P, K]: what `function` makes of the text of each response and the columns of its prompt's row, in its own unit.

    columns: number of the prompt -> its row without the prompt and, unless the run is one with labels, the answer.

    Raises:
        UserError: it fails, or returns no finite number.
    """
    attribute(policy, "texts", name, "responses with a text")

    def value(text: str, row: Mapping[str, Any]) -> float:
        try:
            found = float(function(text, row))
        except Exception as error:
            raise UserError(
                f"the reward {name} failed on {text[:80]!r} ({type(error).__name__}: {error}), expected a number from "
                f"a response and its columns ({', '.join(row) or 'there are none'}): correct it"
            ) from error
        if not abs(found) < float("inf"):
            raise UserError(f"the reward {name} returned {found}, expected a finite number: return one")
        return found

    texts = each_text(policy, rollouts.responses)
    values = [[value(text, columns(rollouts.row(n))) for text in row] for n, row in enumerate(texts)]
    return torch.tensor(values).to(rollouts.log_prob)
