"""The child process that reads mathematics (srlm.answers.math): a JSON line in, one out. It may hang or die at any
time, so nothing else is imported here, and nothing else runs here."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import resource
import signal
import sys
from collections.abc import Sequence
from decimal import Context, Decimal
from typing import Any

MEMORY = 4 << 30  # bytes of address space: 10^10^10 would take all there is
PLACES = 12  # significant digits by which numbers that are not whole are told apart
TINY, RESIDUAL = 10**-12, 10**-60  # evalf, which goes on to 100 digits, leaves less than the latter of a zero
LONGEST = 200  # characters of a word that is kept as it is
POINTS = 3  # at which two expressions are held against each other
_MATHS = re.compile(r"(?<!\\)\$|\\\(|\\\[|\\boxed")
_COMMAND = re.compile(r"\\(?:text|mathrm|operatorname|mbox|textbf|mathbf|begin|end)\s?\{[^{}]*\}|\\[A-Za-z]+")
_LETTERS = re.compile(r"[A-Za-z]{2,}")
_THOUSANDS = re.compile(r"(?<=\d),\\!(?=\d{3})")
_DOLLARS = re.compile(r"\\\$\s?(?=[\d.])")


def main() -> None:
    limit = float(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    answer(["class", "1"])  # imports and tables take longer than any answer
    print("ready", flush=True)
    for line in sys.stdin:
        # Nobody may be left to kill this process; SIGALRM does, in compiled code too.
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            said = answer(json.loads(line))
        except Exception:  # parsers of a language without a grammar fail in every way
            said = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(said), flush=True)


def answer(asked: Sequence[str]) -> Any:
    """["same", response, answer] -> are they the same? ["class", response] -> a word for what it says, or None."""
    kind, response, *others = asked
    if kind == "class":
        return word(read(response))
    return same(read(others[0]), read(response))


def read(text: str) -> list[Any]:
    """What math-verify finds in a text: an expression, and the string that it read; bare LaTeX is put in $ first."""
    from math_verify import parse

    text = _DOLLARS.sub("", _THOUSANDS.sub(",", text))
    bare = not _MATHS.search(text) and not _is_prose(text)
    return list(parse(f"${text}$" if bare else text, parsing_timeout=0))


def _is_prose(text: str) -> bool:
    """Words, rather than symbols and a unit."""
    words = _LETTERS.findall(_COMMAND.sub(" ", text))
    return len(words) > 1 or any(len(one) > 2 for one in words)


def same(gold: list[Any], found: list[Any]) -> bool:
    from math_verify import verify

    # An inequality is the interval it describes, which math-verify denies.
    meant = word(gold)
    return meant is not None and (bool(verify(gold, found, timeout_seconds=0)) or meant == word(found))


def word(found: Sequence[Any]) -> str | None:
    """One word for all ways of writing an expression."""
    import sympy

    if not found:
        return None
    first = found[0]
    if isinstance(first, sympy.Basic | sympy.MatrixBase):
        try:
            made = _word(first)
        except Exception:  # what cannot be evaluated is what it is written as
            made = sympy.srepr(first)
        if made in ("nan", "zoo"):  # of 3:00, and of whatever divides by 0
            return None
        return made if len(made) <= LONGEST else hashlib.sha256(made.encode()).hexdigest()
    return " ".join(str(first).split())


def _word(one: Any) -> str:
    import sympy
    from latex2sympy2_extended.logic import And
    from math_verify.grader import take_last_relation
    from sympy.core.relational import Relational

    if isinstance(one, And):
        if all(isinstance(part, sympy.Eq) for part in one.args):
            return _word(take_last_relation(one))
        return _word(one.as_set()) if len(one.free_symbols) == 1 else "and " + " ".join(sorted(map(_word, one.args)))
    if isinstance(one, sympy.Eq):  # x = 5 says 5, an equation of more says itself
        if one.lhs.is_Symbol or isinstance(one.lhs, sympy.core.function.AppliedUndef):
            return _word(one.rhs)
        if one.rhs.is_Symbol:
            return _word(one.lhs)
        if one.lhs.is_number and one.rhs.is_number:  # 2 + 3 = 5
            return _word(one.rhs)
        return f"equation {_up_to_scale(one.lhs - one.rhs)}"
    if isinstance(one, Relational):
        if len(one.free_symbols) == 1:
            return _word(one.as_set())
        flipped = one.reversed if isinstance(one, sympy.Gt | sympy.Ge) else one
        return f"{type(flipped).__name__} {_word(flipped.lhs - flipped.rhs)}"
    if isinstance(one, sympy.Interval):
        if one.left_open and one.right_open:  # which nobody can tell from a pair
            return f"({_word(one.start)} {_word(one.end)})"
        ends = f"{'(' if one.left_open else '['}{_word(one.start)} {_word(one.end)}{')' if one.right_open else ']'}"
        return f"interval {ends}"
    if isinstance(one, sympy.Union | sympy.Complement | sympy.Intersection):
        parts = list(map(_word, one.args))
        ordered = parts if isinstance(one, sympy.Complement) else sorted(parts)
        return f"{type(one).__name__} {' '.join(ordered)}"
    if isinstance(one, sympy.FiniteSet) or type(one).__name__ == "FiniteSet":
        parts = sorted(set(map(_word, one.args)))
        return parts[0] if len(parts) == 1 else f"set {{{' '.join(parts)}}}"
    if isinstance(one, sympy.Tuple | tuple):
        return f"({' '.join(map(_word, one))})"
    if isinstance(one, sympy.MatrixBase) or getattr(one, "is_Matrix", False):
        matrix = sympy.Matrix(one)
        return f"matrix {matrix.shape} {' '.join(map(_word, matrix))}"
    return _value(one)


def _value(one: Any) -> str:
    """By its value: that of an expression with unknowns at fixed points, where two different ones agree with
    probability 0."""
    one = _without_percent(one)
    if one.is_number:
        return _rounded(one)
    unknown = sorted(one.free_symbols, key=str)
    if not unknown or one.is_Symbol:
        return str(one)
    values = [_rounded(one.subs({s: _point(str(s), n) for s in unknown}).doit()) for n in range(POINTS)]
    return values[0] if len(set(values)) == 1 else f"of {','.join(map(str, unknown))}: {' '.join(values)}"


def _without_percent(one: Any) -> Any:
    """50% is 50, as for `number`: a percentage is a number with a unit."""
    import sympy

    if isinstance(one, sympy.Mul):
        hundredths = [part for part in one.args if isinstance(part, sympy.UnevaluatedExpr)]
        if hundredths and all(part.args[0] == sympy.Rational(1, 100) for part in hundredths):
            return sympy.Mul(*(part for part in one.args if part not in hundredths))
    if isinstance(one, sympy.UnevaluatedExpr):
        return _without_percent(one.args[0])
    return one.doit() if isinstance(one, sympy.Expr) else one


def _rounded(number: Any) -> str:
    if number.is_Rational:
        return number_word(number.p, number.q)
    value = number.evalf(PLACES + 18)
    parts = value.as_real_imag()
    least = 0
    if all(part.is_finite for part in parts):  # evalf leaves a little where nothing should be
        least = max(*(abs(part) * TINY for part in parts), RESIDUAL)
    real, imaginary = ("0" if least and abs(part) < least else _digits(part) for part in parts)
    return real if imaginary == "0" else f"{real}+{imaginary}i"


def _digits(value: Any) -> str:
    import sympy

    return number_word(*sympy.Rational(str(value)).as_numer_denom()) if value.is_finite else str(value)


def number_word(numerator: Any, denominator: Any) -> str:
    """The whole number, or PLACES significant digits."""
    if denominator == 1:
        return str(Decimal(int(numerator)))  # str(int) refuses thousands of digits
    value = Context(PLACES).divide(Decimal(int(numerator)), Decimal(int(denominator)))
    whole = value.to_integral_value()
    return f"{whole if value == whole else value.normalize():f}"


def _up_to_scale(expression: Any) -> str:
    import sympy

    expanded = sympy.expand(expression)
    lead = sympy.Poly(expanded, *sorted(expanded.free_symbols, key=str)).coeffs()[0]
    return _value(sympy.expand(expanded / lead))


def _point(symbol: str, number: int) -> Any:
    import sympy

    digest = hashlib.sha256(f"{symbol} {number}".encode()).digest()
    return sympy.Rational(int.from_bytes(digest[:4], "big") + 1, 2**31) + 1


if __name__ == "__main__":
    main()
