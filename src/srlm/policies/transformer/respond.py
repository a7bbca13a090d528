"""K responses to each prompt: prefilled once, decoded together; rows that have ended make room for the next prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel

from srlm.policies.transformer.admission import LOOK_ELSEWHERE, LOOK_EVERY, Unit, fitting, most_rows, units_of
from srlm.policies.transformer.continuation import Continuation
from srlm.policies.transformer.limits import SLICE, decoded_tokens
from srlm.policies.transformer.log_prob import Head
from srlm.policies.transformer.processes import Progress, gather
from srlm.policies.transformer.responses import Responses
from srlm.policies.transformer.room import Room
from srlm.policies.transformer.sample import Decoding, Draws, next_word


class Drawn:
    """tokens [P, K, T] int32, length [P, K], finished [P, K]"""

    def __init__(self, num_prompts: int, num_samples: int, longest: int) -> None:
        self.tokens = torch.zeros(num_prompts, num_samples, longest, dtype=torch.int32)
        self.length = torch.zeros(num_prompts, num_samples, dtype=torch.long)
        self.finished = torch.zeros(num_prompts, num_samples, dtype=torch.bool)


class Batch:
    """Rows that are decoded together. Each is a response of its own, as far on as it is."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        draws: Draws | None,
        how: Decoding,
        drawn: Drawn,
        shared: bool,
    ) -> None:
        self._shared = shared
        self._model, self._prompts, self._draws, self._how = model, prompts, draws, how
        self._num_samples = drawn.length.shape[1]
        self._tokens, self._length = drawn.tokens.flatten(0, 1), drawn.length.view(-1)
        self._finished = drawn.finished.view(-1)
        self._eos = torch.tensor(sorted(how.eos))
        self._said: Continuation | None = None
        self._response = torch.zeros(0, dtype=torch.long)  # [N] number of each row's, of P * K
        self._size = torch.zeros(0, dtype=torch.long)  # [N] tokens of its prompt
        self._step = torch.zeros(0, dtype=torch.long)  # [N] words that it has
        self._uniform: Tensor | None = None  # [N, T]

    def __len__(self) -> int:
        return len(self._response)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt of any row."""
        return int(self._size.max()) if len(self) else 0

    @property
    def joins(self) -> bool:
        """Can prompts be added before all rows have ended?"""
        return self._said is None or self._said.past.joins

    @torch.inference_mode()
    def admit(self, units: Sequence[Unit]) -> None:
        """Begin some responses, as many of each prompt."""
        prompts = [self._prompts[unit.prompt] for unit in units]
        new = Continuation(self._model, prompts, units[0].rows, shared=self._shared)
        response = [unit.prompt * self._num_samples + k for unit in units for k in range(unit.first, unit.last)]
        size = torch.tensor([len(ids) for ids in prompts]).repeat_interleave(units[0].rows)
        if self._draws is not None:
            own = [self._draws([unit.prompt])[0, unit.first : unit.last] for unit in units]
            uniform = torch.cat(own).to(self._model.device)
            self._uniform = uniform if self._uniform is None else torch.cat([self._uniform, uniform])
        if self._said is None:
            self._said = new
        else:
            self._said.join(new)
        number = torch.tensor(response)
        self._tokens[number] = 0  # an earlier try may have got somewhere
        self._length[number] = 0
        self._finished[number] = False
        self._response = torch.cat([self._response, number])
        self._size = torch.cat([self._size, size])
        self._step = torch.cat([self._step, torch.zeros_like(size)])

    @torch.inference_mode()
    def go_on(self) -> None:
        """Some more words of every row; those that end leave."""
        assert self._said is not None
        left = self._how.max_new_tokens - int(self._step.max())
        at_once = min(LOOK_EVERY.get(self._model.device.type, LOOK_ELSEWHERE), left)
        step = self._step.to(self._model.device)
        drawn: list[Tensor] = []
        for number in range(at_once):
            if number:
                self._said.feed(drawn[-1])
            drawn.append(self._words(step + number))
        stay = self._look(torch.stack(drawn).cpu())
        word = drawn[-1]
        if len(stay) < len(self):
            self._leave(stay)
            word = word[stay.to(word.device)]
        if len(self):
            self._said.feed(word)
        else:
            self._said = self._uniform = None

    def _words(self, step: Tensor) -> Tensor:
        """[N]"""
        assert self._said is not None
        uniform = None if self._uniform is None else self._uniform.gather(1, step[:, None])[:, 0]
        return next_words(self._said.raw, self._said.head, uniform, self._how)

    def _look(self, words: Tensor) -> Tensor:
        """Rows that go on after words [S, N]; what they have drawn behind their end is dropped."""
        gone = torch.zeros(len(self), dtype=torch.bool)
        for word in words:
            live = (~gone).nonzero()[:, 0]
            response, step = self._response[live], self._step[live]
            self._tokens[response, step] = word[live].int()
            self._step[live] += 1
            ended = torch.isin(word[live], self._eos)
            if (stopped := self._how.stopped) is not None:
                said = zip(response.tolist(), step.tolist(), strict=True)
                newest = (self._tokens[i, max(0, n + 1 - self._how.window) : n + 1].tolist() for i, n in said)
                ended |= torch.tensor([stopped(row) for row in newest], dtype=torch.bool)
            self._finished[response[ended]] = True
            gone[live] = ended | (step + 1 == self._how.max_new_tokens)
        self._length[self._response[gone]] = self._step[gone]
        return (~gone).nonzero()[:, 0]

    def _leave(self, stay: Tensor) -> None:
        assert self._said is not None
        self._response, self._size, self._step = self._response[stay], self._size[stay], self._step[stay]
        if not len(stay):
            return
        self._said.keep(stay)
        if self._uniform is not None:
            self._uniform = self._uniform[stay.to(self._uniform.device)]


def next_words(raw: Tensor, head: Head, uniform: Tensor | None, how: Decoding) -> Tensor:
    """[N], of what the head makes of N rows [N, V] before it is capped; on a CPU a few rows at a time."""
    rows = max(1, SLICE // raw.shape[1]) if raw.device.type == "cpu" else len(raw)
    slices = torch.split(raw, rows)
    own = [None] * len(slices) if uniform is None else torch.split(uniform, rows)
    return torch.cat([next_word(head.cap(part), u, how) for part, u in zip(slices, own, strict=True)])


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    units: Sequence[Unit],
    draws: Draws | None,
    how: Decoding,
    drawn: Drawn,
    *,
    budget: float,
    refill: bool,
    shared: bool = False,
    done: Callable[[Unit], None] = lambda _: None,
) -> None:
    """Fill in responses. Each depends on its own draws alone, but for rounding, which goes with the size of the batch;
    without draws they are greedy.

    units: in the order in which they are begun. budget: tokens that a batch keeps (`kept_tokens`); a unit that
    exceeds it goes alone. refill: may prompts of unequal length share a batch, and join one that has begun?
    shared: do the responses to a prompt read one copy of it (`Branches`)? done: is told of each unit that is complete.
    """
    batch = Batch(model, prompts, draws, how, drawn, shared)
    sizes = [len(ids) for ids in prompts]
    most = most_rows(Head.of(model).weight.shape[0], shared=shared)
    begun: list[Unit] = []
    number = 0
    while number < len(units) or len(batch):
        if not len(batch) or (refill and batch.joins):
            admitted = fitting(
                units,
                number,
                sizes,
                rows=len(batch),
                begun=len(begun),
                size=batch.longest,
                longest=how.max_new_tokens,
                budget=budget,
                shared=shared,
                most=most,
            )
            if admitted:
                batch.admit(admitted)
            begun += admitted
            number += len(admitted)
        before = len(batch)
        batch.go_on()
        if len(batch) < before:
            complete = [unit for unit in begun if bool(drawn.length[unit.prompt, unit.first : unit.last].all())]
            begun = [unit for unit in begun if unit not in complete]
            for unit in complete:
                done(unit)


def respond(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    num_samples: int,
    draws: Draws | None,
    how: Decoding,
    *,
    padding: bool,
    shared: bool,
    room: Room,
    together: PartialState,
    progress: Progress,
) -> Responses:
    """K responses to each prompt, which processes share; greedy ones without `draws`. The responses to a prompt are
    begun one part after the other where there is no room for all.

    padding: may prompts of unequal length share a batch? shared: as in `decode`.
    """
    drawn = Drawn(len(prompts), num_samples, how.max_new_tokens)
    sizes = [len(ids) for ids in prompts]
    alike = [range(len(prompts))] if padding else [_places(sizes, size) for size in sorted({*sizes})]
    shares = [sorted(some[together.process_index :: together.num_processes], key=sizes.__getitem__) for some in alike]
    total = sum(map(len, shares))
    most = most_rows(Head.of(model).weight.shape[0], shared=shared)

    def complete(prompt: int) -> bool:
        return bool(drawn.length[prompt].all())

    def done(unit: Unit) -> None:
        if complete(unit.prompt):
            progress(int(drawn.length.all(-1).sum()), total)

    def go_on(share: Sequence[int]) -> None:
        """What an earlier try completed stays."""
        budget = decoded_tokens(room.tokens, cpu=model.device.type == "cpu")
        units: list[Unit] = []
        for i in share:
            if not complete(i):
                units += units_of(i, sizes[i], num_samples, how.max_new_tokens, budget, shared=shared, most=most)
        decode(model, prompts, units, draws, how, drawn, budget=budget, refill=padding, shared=shared, done=done)

    for share in shares:
        room.within(partial(go_on, share))
    return Responses(
        gather(together, drawn.tokens),
        gather(together, drawn.length),
        gather(together, drawn.finished.long()).bool(),
    )


def _places(sizes: Sequence[int], size: int) -> list[int]:
    return [place for place, own in enumerate(sizes) if own == size]
