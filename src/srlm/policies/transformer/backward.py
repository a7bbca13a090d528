"""The gradient of what groups lose, a micro-batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from srlm.policies.transformer.layout.batches import Piece, Share
from srlm.policies.transformer.layout.cost import SLACK
from srlm.policies.transformer.layout.group import Group
from srlm.policies.transformer.log_prob import by_response
from srlm.policies.transformer.recompute import recomputing
from srlm.policies.transformer.score import Scorer
from srlm.types import Level, Objective


@dataclass(frozen=True, eq=False)
class Learning:
    """What a round learns from. share: [P] of each prompt, 1 for uniform prompts; reward, weight, length: [P, K];
    reference: log pi_t [P, K], of single tokens [P, K, T] if that is the objective's level. added: to the objective, of
    log-ratios by token, whatever its level."""

    scorer: Scorer
    groups: Sequence[Group]
    objective: Objective
    level: Level
    share: Tensor
    reference: Tensor
    reward: Tensor
    weight: Tensor
    length: Tensor
    added: Objective | None = None

    def backward(self, parts: Sequence[Share], size: int, last: Callable[[], object] | None = None) -> Tensor:
        """Add to the gradients those of what the groups of `parts` lose, as part of a step of `size` prompts; `last` is
        called before the last backward pass, if there is one.

        A group in several micro-batches: its objective L needs all of its log-ratios at once, the backward pass does
        not. With c_k = dL / d log pi(y_k|x), taken from a pass without gradients, the gradient of L is that of
        sum_k c_k log pi(y_k|x), which is added up micro-batch by micro-batch; so it is with one c for each token.

        Returns:
            The loss [scalar], detached, on the CPU.
        """
        total = torch.zeros(())
        whole: dict[int, Tensor] = {}

        def look(number: int, batch: Sequence[Piece]) -> None:
            with torch.no_grad():
                found = self._log_prob(parts[number], batch)
            whole[number] = whole[number] + found if number in whole else found

        def learn(part: Share) -> None:
            nonlocal total
            loss = self._loss(part, self._log_prob(part, part.batches[0]), size)
            torch.autograd.backward(loss)
            total = total + loss.detach().cpu()

        def pull(part: Share, batch: Sequence[Piece], coefficient: Tensor) -> None:
            torch.autograd.backward((coefficient * self._log_prob(part, batch)).sum())

        cut = {number: part for number, part in enumerate(parts) if len(part.batches) > 1}
        self.scorer.even([partial(look, number, batch) for number, part in cut.items() for batch in part.batches])
        passes = [partial(learn, part) for part in parts if len(part.batches) == 1]
        for number, part in cut.items():
            loss = self._loss(part, whole[number].requires_grad_(), size)
            (coefficient,) = torch.autograd.grad(loss, whole[number])
            total = total + loss.detach().cpu()
            for batch in part.batches:
                own = self._place(part, batch).to(coefficient.device)
                if bool((coefficient[own] != 0).any()):
                    passes.append(partial(pull, part, batch, coefficient))
        if passes and last is not None:
            passes[-1] = partial(_after, last, passes[-1])
        self.scorer.even(passes, learning=True)
        return total

    def _loss(self, part: Share, log_prob: Tensor, size: int) -> Tensor:
        reference, reward, weight, length = (
            values[part.groups].to(log_prob.device)
            for values in (self.reference, self.reward, self.weight, self.length)
        )
        log_ratio, own = log_prob.view(reference.shape) - reference, weight
        by_token = (log_ratio.sum(-1) if self.level == "token" else log_ratio) / length
        if self.level == "mean":
            log_ratio = by_token
        elif self.level == "token":
            token = torch.arange(reference.shape[-1], device=length.device)
            own = weight[..., None] * (token < length[..., None])
        each = self.objective(log_ratio, reward, own)
        if self.added is not None:
            each = each + self.added(by_token, reward, weight)
        return (each * self.share[part.groups].to(each)).sum() / size

    def _log_prob(self, part: Share, batch: Sequence[Piece]) -> Tensor:
        """[G K], or [G K, T], of the groups of `part`; 0 for responses that are in another micro-batch."""
        packed = self.scorer.pack(self.groups, batch, masked=part.masked)
        large = packed.input_ids.numel() > SLACK * self.scorer.room.tokens
        with recomputing(self.scorer.model) if large else nullcontext():
            each: list[Tensor] | None = [] if self.level == "token" else None
            values, _ = self.scorer.log_prob(packed, each=each)
        if each is not None:
            values = by_response(each[0], packed, self.reference.shape[-1])
        whole = values.new_zeros(len(part.groups) * self.reward.shape[-1], *values.shape[1:])
        return whole.index_copy(0, self._place(part, batch).to(values.device), values)

    def _place(self, part: Share, batch: Sequence[Piece]) -> Tensor:
        k, row = self.reward.shape[-1], {number: i for i, number in enumerate(part.groups)}
        return torch.tensor([row[number] * k + member for number, members in batch for member in members])


def _after(first: Callable[[], object], then: Callable[[], object]) -> None:
    first()
    then()
