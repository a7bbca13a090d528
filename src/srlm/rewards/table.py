"""Names -> self-rewards. A reward is one file of this folder and one entry here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor

from srlm.errors import UserError
from srlm.imports import user_function
from srlm.rewards.certain_majority import certain_majority
from srlm.rewards.check import check
from srlm.rewards.hard_majority import hard_majority
from srlm.rewards.implicit import implicit
from srlm.rewards.inverted import inverted
from srlm.rewards.judge import judge
from srlm.rewards.judge_pairwise import judge_pairwise
from srlm.rewards.judging import USUALLY, Judging, Note, refuse_unwritten, silent
from srlm.rewards.log_likelihood import log_likelihood
from srlm.rewards.log_majority import log_majority
from srlm.rewards.majority import majority
from srlm.rewards.mean_log_likelihood import mean_log_likelihood
from srlm.rewards.meta_judge import FEWEST, meta_judge
from srlm.rewards.negative_entropy import negative_entropy
from srlm.rewards.oracle import oracle
from srlm.rewards.random import random
from srlm.rewards.self_certainty import self_certainty
from srlm.types import Reward, Rollouts

Teacher: TypeAlias = Callable[[Any, int], AbstractContextManager[None]]
"""(policy, round): for a while the policy is its teacher of that round."""


def nobody(policy: Any, round: int) -> AbstractContextManager[None]:
    """The live policy teaches itself."""
    return nullcontext()


REWARDS: dict[str, Callable[..., Tensor]] = {
    "log_likelihood": log_likelihood,
    "mean_log_likelihood": mean_log_likelihood,
    "self_certainty": self_certainty,
    "negative_entropy": negative_entropy,
    "majority": majority,
    "log_majority": log_majority,
    "hard_majority": hard_majority,
    "certain_majority": certain_majority,
    "implicit": implicit,
    "judge": judge,
    "judge_pairwise": judge_pairwise,
    "meta_judge": meta_judge,
    "random": random,
    "inverted": inverted,
    "oracle": oracle,
}
"""Name -> function of (policy, rollouts); the first line of its module describes it. Three of them take keywords that
`reward_function` binds: `classes` (majority), `right` (oracle), `note` and `judging` (the judges)."""

LABELLED = "oracle"
"""The one reward that looks at answers."""
CHECK = "check:"
"""Before module:function of (response, columns)."""
_VOTES = {"majority", "log_majority", "hard_majority", "certain_majority"}
_FREE = {"log_likelihood", "mean_log_likelihood", "negative_entropy", *_VOTES, "random", "inverted", LABELLED}
_KINDS = {"judge": (False,), "judge_pairwise": (True,), "meta_judge": (False, True)}  # of rubrics: of pairs?
_JUDGES = set(_KINDS)
_TERM = re.compile(
    r"\s*(?P<sign>[+-]?(?:\s*[+-])?)\s*"
    r"(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*\*\s*)?"
    r"(?P<name>(?:check:(?=[^\W\d][\w.]*:))?[^\W\d][\w.]*(?::\w+)?)\s*"
)


def reward_function(
    spec: str,
    *,
    classes: Callable[[Any], Hashable | None] | None = None,
    right: Callable[[int, str], bool] | None = None,
    columns: Callable[[int], Mapping[str, Any]] | None = None,
    note: Note = silent,
    teacher: Teacher = nobody,
    judging: Judging = USUALLY,
) -> Reward:
    """The reward that `spec` names: an entry of REWARDS, a function `module:function` of (policy, rollouts), a check
    `check:module:function` of (response, columns), or a sum
    such as "0.5*judge+0.5*mean_log_likelihood", whose weights may be negative or left out (1).

    classes: response -> answer class, for `majority`. right: (number of the prompt, text) -> is it right?, for
    `oracle`, which is no part of a sum. columns: number of the prompt -> what a check may see of its row. note: takes
    the numbers that a reward has for the records. teacher: makes the policy another for a while, who judges.
    judging: how.

    Raises:
        UserError: no such reward, a function that cannot be imported, or one of the above is needed and missing.
    """
    terms = _terms(spec)
    if spec != LABELLED and any(name == LABELLED for _, name in terms):
        raise UserError(
            f"the reward {spec!r} would hide {LABELLED}, which uses labels: ask for it by exactly that name, or not"
        )
    rewards = [(weight, _reward(name, classes, right, columns, note, teacher, judging)) for weight, name in terms]
    if len(terms) == 1 and terms[0][0] == 1:
        return rewards[0][1]

    def mixture(policy: Any, rollouts: Rollouts) -> Tensor:
        total = 0 * rollouts.log_prob
        for weight, reward in rewards:
            total = total + weight * reward(policy, rollouts)
        return total

    return mixture


def asks_model(spec: str) -> bool:
    """Does the reward take more than the rollouts already hold, so that it costs time?"""
    return any(name not in _FREE for _, name in _terms(spec))


def implicit_weight(spec: str) -> float:
    """Of the implicit reward in the sum; 0 where it is no part of it."""
    return sum(weight for weight, name in _terms(spec) if name == "implicit")


def of_itself(spec: str) -> bool:
    """Is it the model that says how good its responses are, and nobody else?"""
    return all(name in REWARDS and name not in (LABELLED, "random") for _, name in _terms(spec))


def votes(spec: str) -> bool:
    """Does a vote among the responses enter?"""
    return any(name in _VOTES for _, name in _terms(spec))


def weighs_votes(spec: str) -> bool:
    """Does a vote count as much as the policy is sure of it?"""
    return any(name == "certain_majority" for _, name in _terms(spec))


def checks(spec: str) -> bool:
    """Does a user's function see the columns of the prompts?"""
    return any(_is_check(name) for _, name in _terms(spec))


def _is_check(name: str) -> bool:
    """check:module:function; somebody's own module may be called check."""
    return name.startswith(CHECK) and name.count(":") == 2


def judges(spec: str) -> bool:
    """Is the model asked to grade its responses, which costs several times what sampling them did?"""
    return any(name in _JUDGES for _, name in _terms(spec))


def _terms(spec: str) -> list[tuple[float, str]]:
    terms: list[tuple[float, str]] = []
    at = 0
    while at < len(spec) or not terms:
        found = _TERM.match(spec, at)
        if found is None or (terms and not found["sign"]):
            raise _unknown(spec)
        weight = float(found["number"] or 1) * (-1) ** found["sign"].count("-")
        if not math.isfinite(weight):
            raise _unknown(spec)
        terms.append((weight, found["name"]))
        at = found.end()
    return terms


def _reward(
    name: str,
    classes: Callable[[Any], Hashable | None] | None,
    right: Callable[[int, str], bool] | None,
    columns: Callable[[int], Mapping[str, Any]] | None,
    note: Note,
    teacher: Teacher,
    judging: Judging,
) -> Reward:
    if _is_check(name):
        if columns is None:
            raise UserError(f"the reward {name} needs prompts with columns, none were given: choose another reward")
        module, function = name.removeprefix(CHECK).split(":")
        chosen = user_function(module, function, "reward", "(response, columns)")
        return partial(check, name=name, function=chosen, columns=columns)
    if ":" in name:
        return _own_reward(*name.split(":"))
    if name not in REWARDS:
        raise _unknown(name)
    if name in _VOTES:
        if classes is None:
            raise UserError(f"the reward {name} needs answer classes, none were given: name them with --answers")
        return partial(REWARDS[name], classes=classes)
    if name == LABELLED:
        if right is None:
            raise UserError(f"the reward {name} needs prompts with answers, none were given: add an `answer` column")
        return partial(oracle, right=right)
    if name in _JUDGES:
        _refuse_judging(name, judging)
        return partial(_taught, reward=partial(REWARDS[name], note=note, judging=judging), teacher=teacher)
    return REWARDS[name]


def _refuse_judging(name: str, judging: Judging) -> None:
    """Before any work.

    Raises:
        UserError: a rubric that cannot be read, or needs judgements that are not to be written.
    """
    if name == "meta_judge" and judging.samples < FEWEST:
        raise UserError(
            f"--judge-samples is {judging.samples}, but --reward meta_judge compares judgements of one response, "
            f"expected at least {FEWEST}: raise it"
        )
    for kind in _KINDS[name]:
        chosen = judging.of(("additive",) if not kind else ("pairwise",), pairs=kind)
        if name == "meta_judge" and len(chosen) > 1:
            raise UserError(
                f"--rubric names {len(chosen)} rubrics of {'pairs' if kind else 'points'}, but --reward meta_judge "
                "takes one of each kind: leave the others out"
            )
        for rubric in chosen:
            if not judging.samples or (kind and name == "meta_judge"):
                refuse_unwritten(rubric)


def judged_by(spec: str) -> set[bool]:
    """Kinds of rubrics that a reward takes: True of pairs, False of points."""
    return {kind for _, name in _terms(spec) for kind in _KINDS.get(name, ())}


def _taught(policy: Any, rollouts: Rollouts, *, reward: Reward, teacher: Teacher) -> Tensor:
    with teacher(policy, rollouts.round):
        return reward(policy, rollouts)


def _unknown(given: str) -> UserError:
    return UserError(
        f"there is no reward {given!r}, expected one of {', '.join(REWARDS)}, module:function, or a sum such as "
        "0.5*judge+0.5*mean_log_likelihood: choose one"
    )


def _own_reward(module: str, function: str) -> Reward:
    chosen = user_function(module, function, "reward", "(policy, rollouts)")

    def reward(policy: Any, rollouts: Rollouts) -> Tensor:
        values = chosen(policy, rollouts)
        shape = list(rollouts.log_prob.shape)
        if not isinstance(values, Tensor) or list(values.shape) != shape or not bool(values.isfinite().all()):
            found = f"a tensor {list(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
            raise UserError(
                f"the reward {module}:{function} returned {found}, expected a tensor {shape} of finite numbers: "
                "return one for every response"
            )
        return values.to(rollouts.log_prob)

    return reward
