"""What a text says, without how it is written."""

from __future__ import annotations

import re
import unicodedata

# Combining classes of accents and points (Latin, Greek, Cyrillic, Hebrew, Arabic). Other marks, such as Indic vowel
# signs and Japanese voicing, tell words apart as letters do, and stay.
_ACCENTS = frozenset((1, *range(10, 37), *range(200, 256)))
_NEGATES = "\u0338"  # as in ≠, once that is taken apart
# Scripts without spaces between words (Thai to Khmer, kana, Han): every character is a word.
WITHOUT_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
BEFORE_A_SIGN = "是为為于於得到は"  # words of theirs behind which - is a sign, as "is" is one: 答案是-5
_UNSPACED = re.compile(f"([{WITHOUT_SPACES}])")
_ALONE = frozenset("<>=≤≥±√∞^%")  # signs that say something by themselves
_DASHES = dict.fromkeys(map(ord, "\u2212\u2013\u2012\ufe63\uff0d"), "-")
_FRACTION = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")  # 1½ is not 11/2


def normalise(text: str) -> str:
    """Words without case, accents or punctuation, one space apart. What is between words stays where it says
    something: the sign of -5, the point of 3.5, C++, C#, x < 5, 50 %."""
    whole = unicodedata.normalize("NFKD", _FRACTION.sub(" ", text).translate(_DASHES)).casefold()
    signs = unicodedata.normalize("NFKD", whole).translate(_DASHES).replace("\u2044", "/")
    kept: list[str] = []
    for c in signs:
        category = unicodedata.category(c)
        if c == _NEGATES and kept and kept[-1][-1:] in _ALONE:
            kept.append(c)
        elif unicodedata.combining(c) in _ACCENTS or category == "Cf" or "\ufe00" <= c <= "\ufe0f":
            continue
        else:
            kept.append(c if c.isalnum() or category in ("Mn", "Mc") or c in "+-#.,/" or c in _ALONE else " ")
    spaced = _SIGN.sub(lambda found: _sign(found), "".join(kept))
    return " ".join(_UNSPACED.sub(r" \1 ", unicodedata.normalize("NFC", spaced)).split())


# A sign that may say something, with what stands around it.
_SIGN = re.compile(r"[<>=≤≥±√∞^%]\u0338?|[-+#.,/]+")


def _sign(found: re.Match[str]) -> str:
    sign, text = found[0], found.string
    before, after = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
    if sign[0] in _ALONE:
        return f" {sign} "
    if before.isdigit() and after.isdigit() and len(sign) == 1 and sign != "#":
        return "" if sign == "," and _thousands(text, found.end()) else sign
    if sign == "-" and after.isdigit() and (not before.isalnum() or before in BEFORE_A_SIGN):
        return " -"
    if before.isalpha() and not after.isalnum() and set(sign.rstrip(".,")) in ({"+"}, {"#"}):
        return sign.rstrip(".,")
    return " "


def _thousands(text: str, at: int) -> bool:
    """Does a comma before `at` part thousands?"""
    return text[at : at + 3].isdigit() and len(text[at : at + 3]) == 3 and not text[at + 3 : at + 4].isdigit()
