"""One round's regression: AdamW on the packed groups, fp32 masters, resumable at every step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from srlm.errors import UserError
from srlm.policies.transformer.backward import Learning
from srlm.policies.transformer.gain import Gain
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.processes import Progress, gather, silent
from srlm.types import Level, Objective, Rollouts, UpdateInfo


class Diverged(UserError):
    """Something was not finite; the policy has been put back to pi_t."""


class Checkpoint(Protocol):
    """Where an unfinished update keeps its state; `load` is None when there is none."""

    def load(self) -> dict[str, Tensor] | None: ...
    def save(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Optimisation:
    """learning_rate falls linearly to zero within the round, after `warmup` (share of the round's steps); so does
    gain_learning_rate, the step size of the logarithm of the final norm's gain."""

    learning_rate: float
    epochs: int
    gain_learning_rate: float = 0.1
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    checkpoint_steps: int = 10

    def schedule(self, step: int, total: int) -> float:
        """Share of the peak step size."""
        rise = min(math.ceil(self.warmup * total), total - 1)
        return min((step + 1) / (rise + 1), (total - step) / (total - rise))


class MasterAdamW:
    """AdamW without decay on fp32 copies of the parameters, so that a bf16 model loses no small step.

    The final norm is trained through one scalar, the logarithm of its gain; it is the last of the masters.
    """

    def __init__(self, parameters: list[Tensor], gain: Gain | None, how: Optimisation) -> None:
        self.gain = gain
        scaled = {id(p) for p in self._scaled()}
        self.parameters = [p for p in parameters if id(p) not in scaled]
        self.masters = [p.detach().float().clone() for p in self.parameters]
        groups = [{"params": list(self.masters), "peak": how.learning_rate}]
        if gain is not None:
            self.gain_start = [p.detach().float().clone() for p in gain.parameters]
            log_gain = torch.zeros((), device=gain.parameters[0].device)
            self.masters.append(log_gain)
            groups.append({"params": [log_gain], "peak": how.gain_learning_rate})
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)
        self.sums: dict[Tensor, Tensor] = {}  # of the gradients of a step's micro-batches

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Meanwhile gradients are added up here, from nothing, in fp32: a bf16 model would round each sum."""
        self.sums = {}
        for parameter in (*self.parameters, *self._scaled()):
            parameter.grad = None

        def add(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient, parameter.grad = parameter.grad.float(), None
            self.sums[parameter] = self.sums[parameter].add_(gradient) if parameter in self.sums else gradient

        hooks = [cast(Any, p).register_post_accumulate_grad_hook(add) for p in (*self.parameters, *self._scaled())]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def gradients(self) -> list[Tensor]:
        """One fp32 gradient per master; the next step begins without any."""
        found = [self.sums.get(p, torch.zeros_like(p, dtype=torch.float32)) for p in self.parameters]
        if self.gain is not None:
            found.append(self.gain.gradient(self.sums))
        self.sums = {}
        return found

    def _scaled(self) -> tuple[Tensor, ...]:
        return () if self.gain is None else self.gain.parameters

    def step(self, gradients: list[Tensor], share: float) -> None:
        """One step at `share` of the peak step sizes."""
        for group in self.optimiser.param_groups:
            group["lr"] = share * group["peak"]
        for master, gradient in zip(self.masters, gradients, strict=True):
            master.grad = gradient
        self.optimiser.step()
        self._publish()

    def _publish(self) -> None:
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.masters, strict=False):
                parameter.copy_(master)
        if self.gain is not None:
            self.gain.put(self.gain_start, self.masters[-1])

    def state(self) -> dict[str, Tensor]:
        state = {f"master.{i}": m for i, m in enumerate(self.masters)}
        for i, values in self.optimiser.state_dict()["state"].items():
            state |= {f"{name}.{i}": value for name, value in values.items()}
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        whole = self.optimiser.state_dict()
        names = ("step", "exp_avg", "exp_avg_sq")
        whole["state"] = {i: {n: state[f"{n}.{i}"] for n in names} for i in range(len(self.masters))}
        self.optimiser.load_state_dict(whole)
        with torch.no_grad():
            for i, master in enumerate(self.masters):
                master.copy_(state[f"master.{i}"])
        self._publish()


def fit(
    policy: TransformerPolicy,
    rollouts: Rollouts,
    reward: Tensor,
    *,
    objective: Objective,
    level: Level = "sum",
    optimisation: Optimisation,
    seed: int,
    checkpoint: Checkpoint | None = None,
    main: bool = True,
    progress: Progress = silent,
) -> tuple[TransformerPolicy, UpdateInfo]:
    """pi_t -> pi_{t+1}, in place: consumes `policy`.

    Epoch 0 visits prompts in the order, and the micro-batches, in which they were scored, so its first log-ratio is 0;
    later epochs are shuffled by (seed, round, epoch). Gradients are summed over processes once per step.

    level: of the log-ratios that `objective` takes; for single tokens `rollouts` holds their log-probs.

    Raises:
        Diverged: non-finite loss, gradient or result; `policy` is pi_t again.
    """
    policy.weights.keep_initial()
    scorer = policy.scorer
    count = len(reward)
    groups = policy.groups(rollouts.prompts, rollouts.responses)
    orders = [list(range(count))]
    for epoch in range(1, optimisation.epochs):
        orders.append(np.random.default_rng([seed, rollouts.round, epoch]).permutation(count).tolist())
    steps = [step for order in orders for step in scorer.steps(order)]
    reference = rollouts.token_log_prob if level == "token" else rollouts.log_prob
    assert reference is not None
    learning = Learning(
        scorer,
        groups,
        objective,
        level,
        share=rollouts.prompts.weight * count,
        reference=reference,
        reward=reward,
        weight=rollouts.weight,
        length=rollouts.responses.length,
    )
    parameters = list(policy.trainable().values())
    optimiser = MasterAdamW(parameters, policy.gain, optimisation)
    start = [p.detach().to("cpu", copy=True) for p in parameters]
    losses = torch.zeros(len(steps), dtype=torch.float64)
    first = 0
    if checkpoint is not None and (state := checkpoint.load()) is not None:
        optimiser.load(state)
        first, losses = int(state["done"]), state["losses"]
    device = policy.model.device

    def diverged(what: str) -> Diverged:
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
        advice = "expected finite numbers: lower --learning-rate or use --dtype fp32"
        return Diverged(f"round {rollouts.round}, {what}, {advice}")

    def learn(step: Sequence[int]) -> Tensor:
        """The loss of a step; its gradients are in the optimiser."""
        loss = torch.zeros(())
        with optimiser.listening():
            for part in scorer.shares(groups, step):
                loss = loss + learning.backward(part, len(step)).cpu()
        return loss

    for number in range(first, len(steps)):
        loss = scorer.room.within(partial(learn, steps[number]))
        gradients = optimiser.gradients()
        whole = gather(policy.processes, torch.cat([loss.view(1).to(device), *(g.flatten() for g in gradients)]))
        losses[number] = whole[0].item()
        norm = whole[1:].norm()
        if not (math.isfinite(losses[number]) and bool(torch.isfinite(norm))):
            raise diverged(
                f"step {number + 1} of {len(steps)}: the loss is {losses[number]:g} and the gradient norm {norm:g}"
            )
        scale = torch.clamp(optimisation.max_grad_norm / (norm + 1e-12), max=1.0)
        pieces = torch.split(whole[1:] * scale, [g.numel() for g in gradients])
        optimiser.step(
            [piece.view_as(g) for piece, g in zip(pieces, gradients, strict=True)],
            optimisation.schedule(number, len(steps)),
        )
        if (
            checkpoint is not None
            and main
            and ((number + 1) % optimisation.checkpoint_steps == 0 or number + 1 == len(steps))
        ):
            checkpoint.save(optimiser.state() | {"done": torch.tensor(number + 1), "losses": losses})
        progress(number + 1, len(steps))
    after = policy.log_prob(rollouts.prompts, rollouts.responses)
    if not torch.isfinite(after).all():  # the last step has no loss after it
        raise diverged("after its last step: the log-probs are not finite")
    return policy, UpdateInfo(rollouts, reward, after - rollouts.log_prob, losses)
