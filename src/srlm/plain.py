"""Text of others on its way to a terminal or a page."""

from __future__ import annotations

import re

# Control characters (but tab and line feed), what turns or hides text (bidi marks, zero-width, tags), half surrogates.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)


def visible(text: str) -> str:
    """What cannot be seen, or moves what can, as its code."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    return visible(" ".join(text.split("\n")))
