"""Best-first search for the most probable responses: exact, or with a certified interval for what is not known yet.

The probability of a prefix bounds that of every response that begins with it. So once no open prefix is as probable as
the n-th best complete response known, the n best are certain, and a search that is stopped earlier still leaves an
interval: no response that was not seen is more probable than the best open prefix. The space of responses is that of
sampling: sequences that end by themselves (EOS, stop strings) and sequences cut at the maximal length.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Tokens: TypeAlias = tuple[int, ...]
Progress: TypeAlias = Callable[[int, int], None]  # (done, total)


class PrefixTrees(Protocol):
    """Next-token distributions of prefixes of the responses to several prompts, one growing tree per prompt."""

    def grow(self, new: Mapping[int, Sequence[tuple[int, int]]]) -> Iterator[tuple[int, Tensor]]:
        """Add (parent node, token) nodes to trees, parents first, and yield (prompt, log-probs [N, V] of the next
        token after each, in order). A tree numbers its nodes as they come; node 0, the empty prefix, is there from the
        start and leads the first answer. A prompt that `new` leaves out is done for good."""
        ...


@dataclass(frozen=True)
class Found:
    """What is known of the most probable responses to one prompt, in nats.

    responses, log_prob: complete responses, most probable first.
    open_log_prob: no response that is missing above is more probable than this; -inf if there is none.
    prefixes: distributions computed, one token forwarded for each (the search's cost).
    broken: the model's log-probs were not numbers; nothing else here means anything then.
    """

    responses: list[Tokens]
    log_prob: list[float]
    open_log_prob: float
    prefixes: int
    broken: bool = False

    @property
    def num_certified(self) -> int:
        """How many of the first responses are certainly the most probable of all, in order."""
        return 0 if self.broken else sum(value >= self.open_log_prob for value in self.log_prob)

    @property
    def mode_log_prob(self) -> tuple[float, float]:
        """Interval of max_y log pi(y|x); of no width when the mode is certified."""
        best = self.log_prob[0] if self.log_prob else -math.inf
        return best, max(best, self.open_log_prob)

    @property
    def margin(self) -> tuple[float, float]:
        """Interval of log pi(y*|x) - max_{y != y*} log pi(y|x) (Def. 5.2)."""
        if self.num_certified == 0 or len(self.log_prob) == 1:
            return 0.0, math.inf
        first, second = self.log_prob[:2]
        return first - max(second, self.open_log_prob), first - second


def most_probable(
    trees: PrefixTrees,
    starts: Sequence[Sequence[Sequence[int]]],
    *,
    ended: Callable[[Tokens], bool],
    eos: Sequence[int],
    max_tokens: int,
    num_best: int = 2,
    budget: int = 1024,
    width: int = 16,
    progress: Progress = lambda done, total: None,
) -> list[Found]:
    """Search the responses to P prompts together.

    starts: complete responses to begin with, per prompt (the greedy one, samples): good ones make the search short,
        and none changes what it finds.
    ended: does a response end with its last token? Must hold for tokens in `eos`.
    num_best: how many of the most probable responses to certify (2: mode and runner-up).
    budget: most prefixes to evaluate per prompt; a prompt whose search needs more is left with an interval.
    width: most prefixes of one prompt per forward pass.
    """
    if budget < 1 or num_best < 1 or width < 1:
        raise ValueError(f"budget, num_best and width must be at least 1, got {budget}, {num_best} and {width}")
    rows = [_Row(prompt, ended, tuple(eos), max_tokens, num_best, budget) for prompt in starts]
    pending = {number: row.first() for number, row in enumerate(rows)}
    while pending:
        for number, log_prob in trees.grow(pending):
            rows[number].read(log_prob)
        pending = {number: new for number in pending if (new := rows[number].following(width))}
        progress(len(rows) - len(pending), len(rows))
    return [row.found() for row in rows]


class _Row:
    """The search for one prompt. Nodes are evaluated prefixes; open prefixes wait in a heap, best first."""

    def __init__(
        self,
        starts: Sequence[Sequence[int]],
        ended: Callable[[Tokens], bool],
        eos: Tokens,
        max_tokens: int,
        num_best: int,
        budget: int,
    ) -> None:
        self.starts = [tuple(start) for start in starts if start]
        self.ended, self.eos, self.max_tokens = ended, eos, max_tokens
        self.num_best, self.budget = num_best, budget
        self.node: dict[Tokens, int] = {(): 0}
        self.log_prob: list[float] = [0.0]
        self.unread: list[Tokens] = [()]
        self.open: list[tuple[float, Tokens]] = []
        self.complete: dict[Tokens, float] = {}
        self.broken = False

    def first(self) -> list[tuple[int, int]]:
        """All proper prefixes of the starts, as far as the budget goes."""
        prefixes = dict.fromkeys(start[:n] for start in self.starts for n in range(1, len(start)))
        return self._add([(prefix, math.nan) for prefix in list(prefixes)[: self.budget - 1]])

    def following(self, width: int) -> list[tuple[int, int]]:
        """The best open prefixes; none when the search is over."""
        chosen: list[tuple[Tokens, float]] = []
        bound, room = self._bound(), min(width, self.budget - len(self.node))
        while not self.broken and len(chosen) < room and self.open and -self.open[0][0] > bound:
            value, prefix = heapq.heappop(self.open)
            chosen.append((prefix, -value))
        return self._add(chosen)

    def _add(self, prefixes: Sequence[tuple[Tokens, float]]) -> list[tuple[int, int]]:
        new = []
        for prefix, value in prefixes:
            new.append((self.node[prefix[:-1]], prefix[-1]))
            self.node[prefix] = len(self.node)
            self.log_prob.append(value)
            self.unread.append(prefix)
        return new

    def read(self, log_prob: Tensor) -> None:
        """Next-token log-probs [N, V] of the prefixes added last."""
        prefixes, self.unread = self.unread, []
        place = {prefix: i for i, prefix in enumerate(prefixes)}
        for prefix in prefixes:
            number = self.node[prefix]
            if math.isnan(self.log_prob[number]):  # a start's: its parent's distribution has only just come
                self.log_prob[number] = self.log_prob[self.node[prefix[:-1]]] + float(
                    log_prob[place[prefix[:-1]], prefix[-1]]
                )
        values = [self.log_prob[self.node[prefix]] for prefix in prefixes]
        base = torch.tensor(values, dtype=log_prob.dtype, device=log_prob.device)
        total = log_prob + base[:, None]
        if bool(total.isnan().any()):
            self.broken = True
            return
        self._complete_some(prefixes, place, total)
        keep = (total > self._bound()).nonzero()
        for (i, token), value in zip(keep.tolist(), total[keep[:, 0], keep[:, 1]].tolist(), strict=True):
            response = (*prefixes[i], token)
            if len(response) == self.max_tokens or self.ended(response):
                self.complete[response] = value
            elif response not in self.node:
                heapq.heappush(self.open, (-value, response))

    def _complete_some(self, prefixes: Sequence[Tokens], place: Mapping[Tokens, int], total: Tensor) -> None:
        """Responses that surely end here, so that the bound is good before all children are compared with it."""
        ends = [(place[s[:-1]], s[-1]) for s in self.starts if s[:-1] in place]
        ends += [(i, token) for i in range(len(prefixes)) for token in self.eos]
        last = [i for i, prefix in enumerate(prefixes) if len(prefix) + 1 == self.max_tokens]
        best = total[last].topk(min(self.num_best, total.shape[1])).indices.tolist() if last else []
        ends += [(i, token) for i, tokens in zip(last, best, strict=True) for token in tokens]
        if not ends:
            return
        ends = list(dict.fromkeys(ends))
        index = torch.tensor(ends, device=total.device)
        values = total[index[:, 0], index[:, 1]]
        for j in values.topk(min(self.num_best, len(ends))).indices.tolist():
            (i, token), value = ends[j], float(values[j])
            if value > -math.inf:
                self.complete[*prefixes[i], token] = value

    def _bound(self) -> float:
        """What is not more probable than this is of no interest: the num_best-th best complete response."""
        if len(self.complete) < self.num_best:
            return -math.inf
        return heapq.nlargest(self.num_best, self.complete.values())[-1]

    def found(self) -> Found:
        ranked = sorted(self.complete.items(), key=lambda item: (-item[1], item[0]))
        bound = max(self._bound(), -self.open[0][0] if self.open else -math.inf)
        return Found([r for r, _ in ranked], [v for _, v in ranked], bound, len(self.node), self.broken)
