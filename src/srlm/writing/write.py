"""A policy writes prompts: a list of tasks that examples begin and the model goes on with (Self-Instruct, Wang et al.
2022, arXiv 2212.10560; the first half of Self-Rewarding Language Models, Yuan et al. 2024, arXiv 2401.10020, Sec. 2.2).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srlm.errors import UserError
from srlm.types import PromptItem
from srlm.writing.filters import FILTERS, Filters
from srlm.writing.settings import ATTEMPTS, WritingSettings, at_once

INSTRUCTION = "Come up with a list of {number} different tasks that a user might give to an assistant.\n\n"
HEADING = "Task {number}:\n"
_HEADED = re.compile(r"\s*Task \d+:")  # the next one at once: this one is empty
STOP, PARAGRAPH = "\nTask ", "\n\n"
_STREAM = 4  # so that no draw here is one of others of the same seed

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class WrittenPrompt:
    """examples: numbers of the prompts, in the pool's set, that it was written from. draw: which of those that were
    written it is. log_prob: of its text behind those, in nats at temperature 1."""

    prompt: str
    examples: tuple[int, ...]
    draw: int
    log_prob: float


@dataclass(frozen=True)
class Harvest:
    """prompts: those that were kept. drawn: how many were written. dropped: how many each filter took."""

    prompts: tuple[WrittenPrompt, ...]
    drawn: int
    dropped: dict[str, int]

    def losses(self) -> str:
        """In words."""
        return ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in self.dropped.items() if n) or "none"


class Pool:
    """What examples are drawn from: those prompts of a set that are one turn of text, without what each ends with.

    Raises:
        UserError: there are fewer than a prompt is written from.
    """

    def __init__(self, items: Sequence[PromptItem], number: int, source: str, instruction: str | None = None) -> None:
        self.instruction, ending = instruction, f"\n{instruction}" if instruction else ""
        texts = {i: text for i, item in enumerate(items) if (text := asked(item, ending)) and STOP not in text}
        self.numbers, self.texts = list(texts), list(texts.values())
        paragraphs = any(PARAGRAPH in text for text in self.texts)
        self.stop = (STOP,) if paragraphs else (STOP, PARAGRAPH)  # what comes behind it is talk about the list
        if len(set(self.texts)) < number:
            raise UserError(
                f"{source} has {len(set(self.texts))} different prompts of one turn, expected at least the {number} of "
                "--written-examples from which a prompt is written: add some, or lower it"
            )

    def draw(self, number: int, seed: int, round: int, draw: int) -> list[int]:
        """Places of different texts in the pool; a function of its arguments alone."""
        order = np.random.default_rng([seed, _STREAM, round, draw]).permutation(len(self.texts))
        places: dict[str, int] = {}
        for place in order:
            places.setdefault(self.texts[place], int(place))
            if len(places) == number:
                break
        return list(places.values())


def asked(item: PromptItem, ending: str = "") -> str | None:
    """The text of a prompt of one user turn, system turns aside."""
    turns = [{"role": "user", "content": item}] if isinstance(item, str) else [t for t in item if t["role"] != "system"]
    return turns[0]["content"].removesuffix(ending).strip() if len(turns) == 1 else None


def write(
    policy: Any,
    pool: Pool,
    number: int,
    filters: Filters,
    settings: WritingSettings,
    *,
    seed: int,
    round: int = 0,
    progress: Progress = lambda done, total: None,
) -> Harvest:
    """Up to `number` prompts that pass the filters, of at most ATTEMPTS times as many that are written; a function of
    policy, pool, seed and round.

    policy: has `written` and `fits`, as `TransformerPolicy`.

    Raises:
        UserError: the context has no room for the examples.
    """
    kept: list[WrittenPrompt] = []
    drawn, most = 0, ATTEMPTS * number
    while len(kept) < number and drawn < most:
        draws = range(drawn, min(most, drawn + at_once(number - len(kept))))
        chosen = [pool.draw(settings.written_examples, seed, round, draw) for draw in draws]
        item, openings = asking([[pool.texts[place] for place in places] for places in chosen])
        if any(not policy.fits(item + opening, settings.written_tokens, drawn=True) for opening in openings):
            raise UserError(
                f"the context of the model has no room for {settings.written_examples} examples of up to "
                f"{max(map(len, openings))} characters in all and {settings.written_tokens} new tokens: lower "
                "--written-examples or --written-tokens, or give shorter prompts"
            )
        made = policy.written(
            [item] * len(draws),
            openings,
            1,
            [_seed(seed, round, draw) for draw in draws],
            max_new_tokens=settings.written_tokens,
            stop=pool.stop,
            temperature=settings.written_temperature,
            top_p=settings.written_top_p,
        )
        for draw, places, (text,), (over,), (log_prob,) in zip(
            draws, chosen, made.texts, made.finished.tolist(), made.log_prob.tolist(), strict=True
        ):
            text = "" if _HEADED.match(text) else text.strip()
            if len(kept) < number and filters.keep(text, over):
                kept.append(WrittenPrompt(text, tuple(pool.numbers[p] for p in places), draw, log_prob))
                drawn = draw + 1
        drawn = drawn if len(kept) == number else draws.stop
        progress(len(kept), number)
    return Harvest(tuple(kept), drawn, {name: filters.dropped[name] for name in FILTERS})


def asking(examples: Sequence[Sequence[str]]) -> tuple[str, list[str]]:
    """What is asked, and how each answer begins."""
    openings, number = [], 0
    for some in examples:
        tasks = [f"{HEADING.format(number=n)}{text}\n\n" for n, text in enumerate(some, 1)]
        number = len(tasks) + 1
        openings.append("".join(tasks) + HEADING.format(number=number))
    return INSTRUCTION.format(number=number), openings


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence([_STREAM, *parts]).generate_state(1, np.uint64)[0] >> 2)
