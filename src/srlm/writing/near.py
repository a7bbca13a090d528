"""Texts that are nearly the same, and texts that hold a piece of others."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from srlm.answers.text import WITHOUT_SPACES

SHINGLE = 5  # characters
PERMUTATIONS = 128
MARGIN = 0.25  # below the threshold asked for: what the index proposes is compared exactly
WORDS_IN_A_ROW = 8
SHORTEST = 4  # characters of a prompt without spaces: of fewer a word
_LEFT, _RIGHT = (f"(?{ahead}[^\\W{WITHOUT_SPACES}])" for ahead in ("<!", "!"))  # no more of a number or a word
_UNSPACED = re.compile(f"[{WITHOUT_SPACES}]")  # there a word of `words` is a clause


class Near:
    """An index of texts by their five-character pieces: MinHash (Broder 1997) and locality-sensitive hashing propose
    neighbours (datasketch), whose Jaccard similarity is then computed exactly. A pair at the threshold is overlooked
    with a probability of under a thousandth.

    threshold: similarity in (0, 1] from which two texts are near.
    """

    def __init__(self, threshold: float, texts: Iterable[str] = ()) -> None:
        from datasketch import MinHashLSH

        self._threshold = threshold
        self._index = MinHashLSH(threshold=max(0.1, threshold - MARGIN), num_perm=PERMUTATIONS, weights=(0.1, 0.9))
        self._pieces: list[frozenset[str]] = []
        for text in texts:
            self.add(text)

    def __contains__(self, text: str) -> bool:
        own = pieces(text)
        return any(similarity(own, self._pieces[i]) >= self._threshold for i in self._index.query(_hashed(own)))

    def add(self, text: str) -> None:
        own = pieces(text)
        self._index.insert(len(self._pieces), _hashed(own))
        self._pieces.append(own)


def pieces(text: str) -> frozenset[str]:
    """Five-character pieces of a text, all in lower case and with one space between words; of a shorter one itself."""
    plain = " ".join(words(text))
    return frozenset(plain[i : i + SHINGLE] for i in range(max(1, len(plain) - SHINGLE + 1)))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """|A and B| / |A or B| (Jaccard)"""
    return len(one & other) / len(one | other)


def words(text: str) -> list[str]:
    """In lower case, compatible forms made one (NFKC), without what is neither letter nor number."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())


class Quoted:
    """Does a text hold one of others whole, or WORDS_IN_A_ROW of its words in a row? Rows of words that `common` texts
    have do not count: they are the form that all share."""

    def __init__(self, texts: Iterable[str], common: Iterable[str] = ()) -> None:
        self._whole, self._rows = set[tuple[str, ...]](), set[tuple[str, ...]]()
        self._unspaced: list[re.Pattern[str]] = []
        for text in texts:
            own = words(text)
            if _UNSPACED.search(text) and len(joined := "".join(own)) >= SHORTEST:
                left, right = (mark * _spaced(end) for mark, end in ((_LEFT, joined[0]), (_RIGHT, joined[-1])))
                self._unspaced.append(re.compile(f"{left}{re.escape(joined)}{right}"))
            if len(own) < WORDS_IN_A_ROW:
                self._whole.add(tuple(own))
            self._rows |= rows(own, WORDS_IN_A_ROW)
        self._sizes = sorted({len(one) for one in self._whole if one})
        for text in common:
            self._rows -= rows(words(text), WORDS_IN_A_ROW)

    def by(self, text: str) -> bool:
        own = words(text)
        if self._rows and self._rows & rows(own, WORDS_IN_A_ROW):
            return True
        if any(self._whole & rows(own, size) for size in self._sizes):
            return True
        joined = "".join(own)
        return any(one.search(joined) for one in self._unspaced)


def _spaced(character: str) -> bool:
    return not _UNSPACED.match(character)


def rows(own: list[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(own[i : i + size]) for i in range(len(own) - size + 1)}


def _hashed(own: frozenset[str]) -> object:
    from datasketch import MinHash

    made = MinHash(num_perm=PERMUTATIONS, seed=1)
    made.update_batch([piece.encode() for piece in sorted(own)])
    return made
