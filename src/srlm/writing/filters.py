"""Which written prompts are kept. Every filter has a name, under which what it drops is counted."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

import regex

from srlm.prompts.columns import blank
from srlm.writing.near import Near, Quoted
from srlm.writing.settings import WritingSettings

FILTERS = ("unfinished", "length", "script", "refusal", "near_example", "near_written", "held_out", "overlong")
"""In the order in which they are asked."""
_LEAST_OF_EXAMPLES = 0.01  # of their letters, for a script to be one of theirs
_LEAST_OF_PROMPT = 0.9  # of its letters, in scripts of the examples
# How an assistant begins that refuses, or answers instead of asking. English only: others pass.
_REFUSAL = re.compile(
    r"\W*(?:(?:i[’']?m|i am) (?:very |really |so )?sorry\b|sorry[,.]|(?:i )?apologi[sz]e|my apologies|"
    r"i(?: (?:can(?:[’']t|not| not)|won[’']t|will not|am (?:not able|unable))|[’']m (?:not able|unable))\b|"
    r"as an? (?:ai|artificial|large language|language model)|i[’']?m (?:just )?an? (?:ai|language model)|"
    r"(?:sure|certainly|of course|absolutely)[,!.:]|here (?:is|are) (?:a|an|the|some|another|\d+|\w+) [^.?!]*:)",
    re.IGNORECASE,
)
# Scripts of Unicode that many people write; others count as one.
_SCRIPTS = (
    *("Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Bengali", "Tamil", "Telugu", "Thai", "Georgian"),
    *("Armenian", "Ethiopic", "Khmer", "Lao", "Myanmar", "Sinhala", "Gujarati", "Gurmukhi", "Kannada", "Malayalam"),
    *("Han", "Hiragana", "Katakana", "Hangul"),
)


class Filters:
    """examples: the pool. held_out: what is measured on. written: prompts written before, in earlier rounds, say.
    overlong: does a prompt leave no room in the context?"""

    def __init__(
        self,
        settings: WritingSettings,
        examples: Sequence[str],
        *,
        held_out: Iterable[str] = (),
        written: Iterable[str] = (),
        overlong: Callable[[str], bool] = lambda text: False,
    ) -> None:
        held_out = list(held_out)
        self._length = settings.written_length or spread(examples)
        self._scripts = {name for name, share in scripts(examples).items() if share >= _LEAST_OF_EXAMPLES}
        self._examples = Near(settings.written_near, examples)
        self._written = Near(settings.written_near, written)
        self._held_out, self._quoted = Near(settings.written_near, held_out), Quoted(held_out, examples)
        self._overlong = overlong
        self.dropped: Counter[str] = Counter(dict.fromkeys(FILTERS, 0))

    def keep(self, text: str, finished: bool) -> bool:
        """Is a prompt good? If so the next ones are to differ from it; if not, what is wrong is counted."""
        wrong = self.wrong(text, finished)
        if wrong is None:
            self._written.add(text)
        else:
            self.dropped[wrong] += 1
        return wrong is None

    def wrong(self, text: str, finished: bool) -> str | None:
        """The first filter that drops a prompt."""
        low, high = self._length
        found = scripts([text])
        checks: Mapping[str, Callable[[], bool]] = {
            "unfinished": lambda: not finished,
            "length": lambda: blank(text) or not low <= len(text) <= high,
            "script": lambda: bool(found) and sum(found.get(one, 0) for one in self._scripts) < _LEAST_OF_PROMPT,
            "refusal": lambda: _REFUSAL.match(text) is not None,
            "near_example": lambda: text in self._examples,
            "near_written": lambda: text in self._written,
            "held_out": lambda: text in self._held_out or self._quoted.by(text),
            "overlong": lambda: self._overlong(text),
        }
        return next((name for name in FILTERS if checks[name]()), None)


def spread(examples: Sequence[str]) -> tuple[int, int]:
    """Fewest and most characters of a prompt like these."""
    sizes = [len(text) for text in examples]
    return max(1, min(sizes) // 2), 2 * max(sizes)


def scripts(texts: Iterable[str]) -> dict[str, float]:
    """Shares of the scripts of Unicode among all letters; empty without letters. A script is no language: English and
    Turkish have the same."""
    letters: Counter[str] = Counter()
    for one, number in Counter(itertools.chain.from_iterable(texts)).items():
        if one.isalpha():
            letters[_script(one)] += number
    total = letters.total()
    return {name: number / total for name, number in letters.items()}


@lru_cache(4096)
def _script(letter: str) -> str:
    return next((name for name in _SCRIPTS if regex.match(rf"\p{{Script={name}}}", letter)), "other")
