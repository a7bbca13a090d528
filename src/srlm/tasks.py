"""Procedural tasks of reasoning-gym, named like a file: questions without end, and answers that a program checks.

    reasoning-gym:basic_arithmetic?size=500&seed=1&max_digits=2

After the task's name stand its own parameters and these, their values as JSON or plain text (%26 is &, %0A a new line):

    size         how many questions (500).
    seed         0 (the default) to 4000. reasoning-gym seeds item i with seed + i, so that neighbouring seeds would
                 share all items but one; here item i of seed s is its item of seed s * 1,000,000 + i.
    instruction  what is added to each question. By default "Answer with one number.", or "Answer with the solution
                 alone." where the answers are not numbers, on a line of its own.
    answer       how the answer is taken from a response, one of srlm.answers.answer_classes. By default `number`, the
                 last number; where the answers are not numbers, what follows the last "answer:" or "answer is", or
                 else the whole response.

A response is right if the task's own verifier gives its answer, with or without a full stop at its end, full marks.
Verifiers that would run an answer as code are refused: the model would be its author.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

from srlm.errors import UserError
from srlm.patience import at_most

PREFIX = "reasoning-gym:"
SPACING = 1_000_000  # from one seed's first item to the next one's
ITEM_SECONDS = 10.0  # of one question: one of 1e19 terms is never written
_MOST_SEEDS = 4000  # some tasks hand their seeds to numpy, which takes 32 bits
_PROBES = 20  # items by which a task's answers are told to be numbers or not, the same for every size and seed
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]?\d+)?")
_AFTER_MARKER = r"regex:(?is)\A(?:.*\banswer\*{0,2}(?: is|:))?[\s:*`]*(.*?)[\s*`.]*\Z"
_RUNS_ANSWERS = re.compile(r"\b(eval|exec|parse_expr|sympify)\(answer")
_REFUSED = dict.fromkeys(
    ("codeio", "isomorphic_strings", "knight_swap", "list_functions", "ransom_note", "word_ladder"),
    "its questions differ from one process to the next",
) | {"composite": "its parameters are tasks again"}


@dataclass(frozen=True)
class _Task:
    dataset: Any
    entries: tuple[Any, ...]
    instruction: str
    answer: str


_read: dict[str, _Task] = {}  # by source


def is_task(source: str) -> bool:
    return source.startswith(PREFIX)


def runs_code(source: str) -> bool:
    """Are the answers of a task read by somebody's own function?"""
    said = [unquote(part) for part in source.partition("?")[2].split("&") if part.startswith("answer=")]
    return is_task(source) and any(":" in one and not one.removeprefix("answer=").startswith("regex:") for one in said)


def rows(source: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Where an item stands, and its prompt and answer; the answer is a name that `verifier` knows.

    Raises:
        UserError: reasoning-gym is missing, or knows no such task or parameter.
    """
    task = _read[source] if source in _read else _read.setdefault(source, _task(source))
    for number, entry in enumerate(task.entries):
        row = {"prompt": entry["question"] + task.instruction, "answer": f"{source}#{number}"}
        yield f"item {number} of {source}", row


def answer_classes(source: str) -> str:
    """How the answer is taken from a response, one of srlm.answers.answer_classes."""
    same = [task for known, task in _read.items() if _without_instruction(known) == _without_instruction(source)]
    task = same[0] if same else _read.setdefault(source, _task(source))
    return task.answer


def _without_instruction(source: str) -> str:
    name, _, given = source.partition("?")
    return f"{name}?{'&'.join(part for part in given.split('&') if not part.startswith('instruction='))}"


def with_instruction(source: str, instruction: str) -> str:
    """The task with this instruction, on a line of its own, in the place of its default.

    Raises:
        UserError: it names another.
    """
    said = f"instruction={quote(json.dumps(f'{chr(10)}{instruction}' if instruction else ''))}"
    given = [part for part in source.partition("?")[2].split("&") if part.startswith("instruction=")]
    if given and given[0] != said:
        raise UserError(
            f"{source} has an instruction, and --instruction is {instruction!r}, expected one of them; leave one out"
        )
    return source if given else f"{source}{'&' if '?' in source else '?'}{said}"


def verifier(answer: str) -> tuple[str, Callable[[str], bool]] | None:
    """How to take the answer from a response (one of srlm.answers.answer_classes), and: is it right?

    None if the answer is not one of `rows`. A file that merely says so is not believed: `answer` may name a function.
    """
    source, _, number = answer.rpartition("#")
    if source not in _read:
        return None
    task = _read[source]
    return task.answer, partial(_right, task.dataset, task.entries[int(number)])


def _right(dataset: Any, entry: Any, answer: str) -> bool:
    try:
        return any(dataset.score_answer(form, entry) >= 1 for form in (answer, f"{answer}.", answer.removesuffix(".")))
    except Exception:  # some verifiers stumble over what is no number, grid or list
        return False


def _task(source: str) -> _Task:
    name, _, query = source.removeprefix(PREFIX).partition("?")
    given = dict(_parameter(source, part) for part in query.split("&") if part)
    size, seed = given.pop("size", 500), given.pop("seed", 0)
    _expect(source, "size", size, 1, SPACING)
    _expect(source, "seed", seed, 0, _MOST_SEEDS)
    instruction, answer = given.pop("instruction", None), given.pop("answer", None)
    dataset, entries = _generated(source, name, size=size, seed=seed * SPACING, **given)
    _, probes = _generated(source, name, size=_PROBES, seed=0, **given)
    numbers = all(_NUMBER.fullmatch(str(entry["answer"])) for entry in probes)
    default = f"\nAnswer with {'one number' if numbers else 'the solution alone'}."
    return _Task(
        dataset,
        entries,
        default if instruction is None else str(instruction),
        ("number" if numbers else _AFTER_MARKER) if answer is None else str(answer),
    )


def _parameter(source: str, part: str) -> tuple[str, Any]:
    name, equals, value = part.partition("=")
    if not name or not equals:
        raise UserError(f"{source} has the parameter {part!r}, expected name=value; correct it")
    text = unquote(value)
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text


def _expect(source: str, name: str, value: Any, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise UserError(f"{source} has {name} {value!r}, expected a whole number from {least} to {most}; correct it")


def _generated(source: str, name: str, **parameters: Any) -> tuple[Any, tuple[Any, ...]]:
    datasets, create = _library()
    if name not in datasets:
        close = difflib.get_close_matches(name, datasets, n=3, cutoff=0.3) or sorted(datasets)[:3]
        raise UserError(f"reasoning-gym has no task {name!r}, expected one such as {', '.join(close)}; choose another")
    kind, config = datasets[name]
    if name in _REFUSED or _RUNS_ANSWERS.search(inspect.getsource(kind.score_answer)):
        why = _REFUSED.get(name, "its verifier would run a response as code")
        raise UserError(f"the task {name!r} cannot be used ({why}); choose another")
    known = [field.name for field in fields(config)]
    if unknown := [parameter for parameter in parameters if parameter not in known]:
        raise UserError(
            f"{source} has the parameter {unknown[0]!r}, expected instruction, answer, {', '.join(known)}; correct it"
        )
    try:
        dataset = create(name, **parameters)
        entries = []
        for number in range(parameters["size"]):
            with at_most(ITEM_SECONDS):
                entries.append(dataset[number])
        return dataset, tuple(entries)
    except Exception as error:  # an assertion, a TypeError or whatever an odd value leads to
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(f"{source} cannot be generated ({reason}); correct its parameters") from error


def _library() -> tuple[dict[str, tuple[Any, Any]], Callable[..., Any]]:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError("a task needs the package reasoning-gym: run `pip install 'srlm[tasks]'`") from error
    return DATASETS, reasoning_gym.create_dataset
