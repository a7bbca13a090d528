"""Functions that a program hands over instead of naming them: known by a name made of their own and of their code."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

from srlm.errors import UserError

HANDED = "python"
"""In place of a module, before the name of what was handed over."""

_functions: dict[str, Callable[..., Any]] = {}
_PLAIN = (str, int, float, complex, bool, bytes, type(None))


def named(function: Callable[..., Any]) -> str:
    """The name `python:FUNCTION_DIGEST` of a function of yours, which then stands wherever module:function does: as
    a reward, in a sum of them, behind check:, as a match rule or as answer classes.

        SelfRewardConfig(reward=f"check:{srlm.named(right)}")

    The digest is of its code, defaults and plain values that it closes over, as this version of Python compiles them,
    so that a run goes on only with a function that is the same; what its code calls, and objects that it closes over,
    are not looked into: of two that differ in these alone the later takes the name, unless a plain value that they
    close over, or `functools.partial`, tells them apart. Only this process knows the function.

    Raises:
        UserError: not a function written in Python.
    """
    try:
        digest = hashlib.sha256("\n".join(_facts(function)).encode()).hexdigest()[:12]
    except TypeError as error:
        raise UserError(
            f"{function!r} was handed over as a function, expected one written in Python (def or lambda), by whose "
            "code a run could know it again: wrap it in one"
        ) from error
    own = re.sub(r"\W", "", getattr(_inner(function), "__name__", "")) or "function"
    name = f"{own}_{digest}"
    _functions[name] = function
    return f"{HANDED}:{name}"


def handed_over(name: str, what: str) -> Callable[..., Any]:
    """
    Raises:
        UserError: this process was not handed that function.
    """
    if name not in _functions:
        raise UserError(
            f"the {what} {HANDED}:{name} is a function that a Python program handed over, expected one that can be "
            "imported: go on from that program (SelfRewardTrainer(..., resume=True)), or name module:function"
        )
    return _functions[name]


def _inner(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__func__", function)


def _facts(function: Any) -> Iterator[str]:
    """What makes two functions the same.

    Raises:
        TypeError: it has no code.
    """
    if isinstance(function, functools.partial):
        yield from ("partial", *map(_plain, function.args), _plain(function.keywords))
        yield from _facts(function.func)
        return
    plain = getattr(function, "__func__", function)
    code = getattr(plain, "__code__", None)
    if not isinstance(code, CodeType):
        raise TypeError(f"{function!r} has no code")
    yield from _of_code(code)
    yield from (_plain(plain.__defaults__), _plain(plain.__kwdefaults__))
    for cell in plain.__closure__ or ():
        try:
            yield _plain(cell.cell_contents)
        except ValueError:  # empty as yet
            yield "empty"


def _of_code(code: CodeType) -> Iterator[str]:
    yield from (code.co_code.hex(), repr(code.co_names), repr(code.co_varnames), repr(code.co_freevars))
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _of_code(value)
        else:
            yield _plain(value)


def _plain(value: Any) -> str:
    """A value that says the same in every process; of other objects their kind alone."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}({', '.join(map(_plain, value))})"
    if isinstance(value, set | frozenset):
        return f"set({', '.join(sorted(map(_plain, value)))})"
    if isinstance(value, dict):
        return f"dict({', '.join(sorted(f'{_plain(k)}: {_plain(v)}' for k, v in value.items()))})"
    if callable(value) and isinstance(getattr(value, "__code__", None), CodeType):
        return hashlib.sha256("\n".join(_of_code(value.__code__)).encode()).hexdigest()
    return type(value).__qualname__
