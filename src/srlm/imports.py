"""Functions of the user's, by name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from srlm.errors import UserError
from srlm.handed import HANDED, handed_over


def user_function(module: str, function: str, what: str, arguments: str) -> Callable[..., Any]:
    """`module:function`, of a module in the working folder or an installed one, or one that was handed over
    (`srlm.handed`).

    Raises:
        UserError: it cannot be imported, or is not a function.
    """
    if module == HANDED:
        return handed_over(function, what)
    name = f"{module}:{function}"
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        chosen = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise UserError(
            f"the {what} {name} cannot be imported ({type(error).__name__}: {error}), expected a function of "
            f"{arguments} in a module here or installed; check its name"
        ) from error
    if not callable(chosen):
        raise UserError(f"the {what} {name} is not a function; name a function of {arguments}")
    return chosen  # type: ignore[no-any-return]
