"""One round's update: AdamW on the packed groups, fp32 masters, resumable at every step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from srlm.errors import UserError
from srlm.policies.transformer.backward import Learning
from srlm.policies.transformer.devices.parts import Parts
from srlm.policies.transformer.gain import Gain
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.processes import Progress, gather, silent
from srlm.policies.transformer.sums import Sums
from srlm.types import Level, Objective, Rollouts, UpdateInfo


class Diverged(UserError):
    """Something was not finite; the policy has been put back to pi_t."""


class Checkpoint(Protocol):
    """Where an unfinished update keeps its state; `load` is None when there is none. `carried` is the state that the
    update before ended with, None where each begins anew."""

    def load(self) -> dict[str, Tensor] | None: ...
    def carried(self) -> dict[str, Tensor] | None: ...
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
    """AdamW without decay on fp32 copies of the parameters, so that a bf16 model loses no small step of a round; what
    its dtype does not tell apart at the end is gone (`rounding.py`).

    The final norm is trained through one scalar, the logarithm of its gain; it is the last of the masters. parts: of
    each parameter this process has one, and masters and moments are of that shape. together: whose gradients are one.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        gain: Gain | None,
        how: Optimisation,
        parts: Parts | None = None,
        together: PartialState | None = None,
    ) -> None:
        self.gain, self.parts = gain, parts or Parts()
        scaled = () if gain is None else gain.parameters
        self.parameters = [p for p in parameters if all(p is not own for own in scaled)]
        self.sums = Sums([*self.parameters, *scaled], self.parts, together)
        self.masters = [self.parts.local(p).detach().float().clone() for p in self.parameters]
        groups = [{"params": list(self.masters), "peak": how.learning_rate}]
        if gain is not None:
            self.gain_start = [p.detach().float().clone() for p in gain.parameters]
            log_gain = torch.zeros((), device=gain.parameters[0].device)
            self.masters.append(log_gain)
            groups.append({"params": [log_gain], "peak": how.gain_learning_rate})
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)

    def gradients(self) -> list[Tensor]:
        """One fp32 gradient per master, over all processes; the next step begins without any."""
        sums = self.sums.collect()
        found = [sums[p] if p in sums else torch.zeros_like(m) for p, m in self._pairs()]
        if self.gain is not None:
            found.append(self.gain.gradient(sums))
        return found

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.parameters, self.masters, strict=False)  # that of the gain comes last

    def step(self, gradients: list[Tensor], share: float) -> None:
        """One step at `share` of the peak step sizes."""
        for group in self.optimiser.param_groups:
            group["lr"] = share * group["peak"]
        for master, gradient in zip(self.masters, gradients, strict=True):
            master.grad = gradient
        self.optimiser.step()
        self.optimiser.zero_grad()  # held until the next step they would take as much as its own
        self._publish()

    def _publish(self) -> None:
        with torch.no_grad():
            for parameter, master in self._pairs():
                self.parts.local(parameter).copy_(master)
        if self.gain is not None:
            self.gain.put(self.gain_start, self.masters[-1])

    def state(self) -> dict[str, Tensor]:
        """In wholes, for the main process to write; all ask for it at once."""
        state = {f"master.{i}": self._whole(i, m) for i, m in enumerate(self.masters)}
        if self.gain is not None:
            state |= {f"gain_start.{i}": value for i, value in enumerate(self.gain_start)}
        for i, values in self.optimiser.state_dict()["state"].items():
            state |= {
                f"{name}.{i}": value if name == "step" else self._whole(i, value) for name, value in values.items()
            }
        return state

    def _whole(self, number: int, value: Tensor) -> Tensor:
        return self.parts.whole(value, self.parameters[number]) if number < len(self.parameters) else value

    def _part(self, number: int, value: Tensor) -> Tensor:
        return self.parts.part(value, self.parameters[number]) if number < len(self.parameters) else value

    def carry(self, state: Mapping[str, Tensor]) -> None:
        """Begin with what an update ended with; its gain is in the norm already, whose fp32 values are gone on from."""
        begun = dict(state)
        if self.gain is not None:
            last = f"master.{len(self.masters) - 1}"
            start = [state[f"gain_start.{i}"] for i in range(len(self.gain_start))]
            begun |= {f"gain_start.{i}": value for i, value in enumerate(self.gain.grown(start, state[last]))}
            begun[last] = torch.zeros_like(state[last])
        self.load(begun)

    def load(self, state: Mapping[str, Tensor]) -> None:
        whole = self.optimiser.state_dict()
        whole["state"] = {
            i: {"step": state[f"step.{i}"]}
            | {name: self._part(i, state[f"{name}.{i}"]) for name in ("exp_avg", "exp_avg_sq")}
            for i in range(len(self.masters))
        }
        self.optimiser.load_state_dict(whole)
        if self.gain is not None and "gain_start.0" in state:  # not in what earlier versions kept
            self.gain_start = [
                state[f"gain_start.{i}"].to(own.device, copy=True) for i, own in enumerate(self.gain_start)
            ]
        with torch.no_grad():
            for i, master in enumerate(self.masters):
                master.copy_(self._part(i, state[f"master.{i}"]))
        self._publish()


def fit(
    policy: TransformerPolicy,
    rollouts: Rollouts,
    reward: Tensor,
    *,
    objective: Objective,
    level: Level = "sum",
    added: Objective | None = None,
    optimisation: Optimisation,
    seed: int,
    checkpoint: Checkpoint | None = None,
    main: bool = True,
    progress: Progress = silent,
) -> tuple[TransformerPolicy, UpdateInfo]:
    """pi_t -> pi_{t+1}, in place: consumes `policy`.

    Epoch 0 visits prompts in the order, and the micro-batches, in which they were scored, so its first log-ratio is 0;
    later epochs are shuffled by (seed, round, epoch). Gradients are summed over processes once per step; of a model in
    shards with every micro-batch, where they arise, and what a process steps on are its parts.

    level: of the log-ratios that `objective` takes; for single tokens `rollouts` holds their log-probs. added: to it,
    of log-ratios divided by length.

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
        added=added,
    )
    own = list(policy.trainable().values())
    optimiser = MasterAdamW(own, policy.gain, optimisation, policy.weights.parts, policy.processes)
    start = {name: value.detach().to("cpu", copy=True) for name, value in policy.weights.held().items()}
    losses = torch.zeros(len(steps), dtype=torch.float64)
    first = 0
    if checkpoint is not None:
        if (state := checkpoint.load()) is not None:
            optimiser.load(state)
            first, losses = int(state["done"]), state["losses"]
        elif (state := checkpoint.carried()) is not None:
            optimiser.carry(state)
        del state

    def diverged(what: str) -> Diverged:
        policy.weights.put(start)
        advice = "expected finite numbers: lower --learning-rate or use --dtype fp32"
        return Diverged(f"round {rollouts.round}, {what}, {advice}")

    def learn(step: Sequence[int]) -> Tensor:
        """The loss of a step; its gradients are in the optimiser."""
        with optimiser.sums.listening(), scorer.working():
            return learning.backward(scorer.shares(groups, step), len(step), optimiser.sums.last)

    for number in range(first, len(steps)):
        loss = scorer.room.within(partial(learn, steps[number]))
        gradients = optimiser.gradients()
        norm = optimiser.parts.norm(gradients, optimiser.parameters, policy.processes)
        losses[number] = gather(policy.processes, loss).item()
        if not (math.isfinite(losses[number]) and bool(torch.isfinite(norm))):
            raise diverged(
                f"step {number + 1} of {len(steps)}: the loss is {losses[number]:g} and the gradient norm {norm:g}"
            )
        scale = torch.clamp(optimisation.max_grad_norm / (norm + 1e-12), max=1.0)
        optimiser.step([g.mul_(scale) for g in gradients], optimisation.schedule(number, len(steps)))
        del gradients
        if checkpoint is not None and ((number + 1) % optimisation.checkpoint_steps == 0 or number + 1 == len(steps)):
            state = optimiser.state()
            if main:
                checkpoint.save(state | {"done": torch.tensor(number + 1), "losses": losses})
            del state
        progress(number + 1, len(steps))
    after = policy.log_prob(rollouts.prompts, rollouts.responses)
    if not torch.isfinite(after).all():  # the last step has no loss after it
        raise diverged("after its last step: the log-probs are not finite")
    return policy, UpdateInfo(rollouts, reward, after - rollouts.log_prob, losses)
