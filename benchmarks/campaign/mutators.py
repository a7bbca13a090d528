"""Good bytes, text and JSON -> odd ones. Everything is a function of the dice, so that a seed tells it all."""

from __future__ import annotations

import copy
import json
import math
from random import Random
from typing import Any

ODD_TEXTS = (
    *("", " ", "\n", "\t", "\x00", "a\x00b", "\ufeff", "\u200b", "\u2028", "\x85", "\x1b[31m", "\u202eabc", "\ud800"),
    *("None", "null", "true", "NaN", "inf", "-inf", "-0", "1e400", "1e-400", "0x10", "1_000", "٣", "½", "²"),
    *(
        "{",
        "}",
        "[",
        "]",
        '"',
        "'",
        "\\",
        "\\u",
        "%",
        "%s",
        "{{ x }}",
        "{% if %}",
        "<script>",
        "#",
        "--",
        "-",
        "=",
        ":",
    ),
    *("(a+)+$", "(?P<x>", "[z-a]", "a{99999999}", "(" * 300, "x" * 20_000, "ﬀ", "İ", "ß", "e\u0301" * 50, "👩\u200d👧"),
    *("../x", "/", "~", ".", "..", "a/b", "module:function", "os:system", "a:", ":b", "regex:", "regex:(", "*", "~x"),
    *("\\boxed{" * 200, "#### ", "answer is", "(B)", "1/0", "0/0", "1e999999999", "9" * 6000, "10^9999999", "2^-9999"),
)
ODD_NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, -(2**31), 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400),
    *(0.0, -0.0, 0.5, -0.5, 1e-320, 1e-12, 1e308, 1e19, math.nan, math.inf, -math.inf, 0.1 + 0.2),
)
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "cp1252", "cp037", "shift_jis", "utf-7")


def odd_value(dice: Random, depth: int = 0) -> Any:
    """What a JSON or YAML file may hold in any place."""
    pick = dice.randrange(8 if depth < 3 else 5)
    if pick <= 1:
        return dice.choice(ODD_TEXTS)
    if pick <= 3:
        return dice.choice(ODD_NUMBERS)
    if pick == 4:
        return dice.choice([None, True, False])
    if pick == 5:
        return [odd_value(dice, depth + 1) for _ in range(dice.randrange(3))]
    if pick == 6:
        return {dice.choice(ODD_TEXTS): odd_value(dice, depth + 1) for _ in range(dice.randrange(3))}
    return nested(dice.choice([5, 100, 300]))  # deeper ones, which Python cannot copy, `odd_bytes` writes


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def odd_bytes(content: bytes, dice: Random) -> bytes:
    """One mutation of a file that need not know what it holds."""
    size = len(content)
    at, end = sorted((dice.randint(0, size), dice.randint(0, size)))
    match dice.randrange(9):
        case 0 if size:
            changed = bytearray(content)
            for _ in range(dice.choice([1, 1, 1, 8, 64])):
                changed[dice.randrange(size)] ^= 1 << dice.randrange(8)
            return bytes(changed)
        case 1:
            return content[:at]
        case 2:
            return content[at:]
        case 3:
            return content[:at] + content[end:]
        case 4:
            return content[:end] + content[at:]
        case 5:
            return content * 2
        case 6:
            odd = dice.choice([*ODD_TEXTS, "[" * 50_000, '{"a":' * 50_000]).encode(errors="surrogatepass")
            return content[:at] + odd + content[at:]
        case 7:
            return (
                content[:at] + dice.randbytes(dice.choice([1, 4, 100])) + content[end if dice.random() < 0.5 else at :]
            )
        case _:
            try:
                return content.decode().encode(dice.choice(ENCODINGS), errors="replace")
            except UnicodeDecodeError:
                return content[::-1]


def odd_lines(text: str, dice: Random) -> str:
    """One mutation of a text file by its lines."""
    lines = text.split("\n")
    at = dice.randrange(len(lines))
    match dice.randrange(7):
        case 0:
            lines[at:at] = [dice.choice(ODD_TEXTS)]
        case 1:
            del lines[at]
        case 2:
            lines.insert(at, lines[dice.randrange(len(lines))])
        case 3:
            return "\r\n".join(lines)
        case 4:
            return "\r".join(lines)
        case 5:
            lines[at] = lines[at].replace(dice.choice(['"', ":", ",", " ", "{", "a"]), dice.choice(ODD_TEXTS), 1)
        case _:
            dice.shuffle(lines)
    return "\n".join(lines)


def odd_json(value: Any, dice: Random) -> Any:
    """A copy with one place changed, dropped, renamed or added; deep places are as likely as others."""
    try:
        value = copy.deepcopy(value)
    except RecursionError:  # a mutation before this one nested it as deeply as that
        return value
    places = list(_places(value))
    if not places:
        return odd_value(dice)
    holder, key = dice.choice(places)
    match dice.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[dice.choice(ODD_TEXTS)] = holder.pop(key)
        case 2 if isinstance(holder[key], (int, float)):
            holder[key] = dice.choice(ODD_NUMBERS)
        case 3:
            holder[key] = [holder[key]] if dice.random() < 0.5 else str(holder[key])
        case _:
            holder[key] = odd_value(dice)
    return value


def dumped(value: Any) -> str:
    """JSON, as far as there is any; what is nested too deeply for that is written by hand."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (RecursionError, ValueError):
        return "[" * 3000 + "]" * 3000


def _places(value: Any) -> Any:
    stack = [value]
    while stack:
        holder = stack.pop()
        if isinstance(holder, (dict, list)):
            for key in holder if isinstance(holder, dict) else range(len(holder)):
                yield holder, key
                stack.append(holder[key])
