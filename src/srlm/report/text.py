"""Hostile text made visible, and hostile values made JSON that can stand inside a page."""

from __future__ import annotations

import json
import math
from typing import Any

from srlm.plain import visible

MOST_CHARACTERS = 4000  # of one prompt or response


def shortened(text: str) -> str:
    """`visible`, cut at MOST_CHARACTERS with a note."""
    if len(text) <= MOST_CHARACTERS:
        return visible(text)
    return f"{visible(text[:MOST_CHARACTERS])} … [cut: {len(text):,} characters in all]"


def script_json(value: Any) -> str:
    """JSON for a <script type="application/json">: nothing in it can end the element or the line."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def finite(value: Any) -> Any:
    """Numbers that are not finite become None, whatever holds them; strings become `visible`."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {visible(str(key)): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value


def number(value: Any) -> float | None:
    """A finite number, or None for whatever else a file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def listed(value: Any) -> list[Any]:
    """A list, or an empty one for whatever else a file may hold."""
    return value if isinstance(value, list) else []
