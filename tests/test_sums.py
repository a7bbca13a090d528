"""Gradients of a step, over micro-batches and processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from srlm.policies.transformer import sums
from srlm.policies.transformer.devices.parts import Parts
from srlm.policies.transformer.sums import Sums

BATCHES = [torch.arange(8.0).view(2, 4) / 8, torch.ones(1, 4), -torch.ones(3, 4) / 4]


class Two:
    num_processes = 2


class Net(nn.Module):
    """Three layers of 20 elements, and one that is used by nobody."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.unused = nn.Linear(4, 4)

    def forward(self, value: Tensor) -> Tensor:
        for layer in self.layers:
            value = torch.tanh(layer(value))
        return value.square().sum()


@pytest.fixture
def sent(monkeypatch) -> list[str]:
    """What happened, in order: sums of two processes that both have the same."""
    happened: list[str] = []

    class Way:
        def __init__(self, flat: Tensor) -> None:
            self.flat = flat

        def wait(self) -> None:
            self.flat.mul_(2)
            happened.append(f"arrived {self.flat.numel()}")

    def all_reduce(flat: Tensor, async_op: bool) -> Way:
        assert async_op
        happened.append(f"left {flat.numel()}")
        return Way(flat)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(sums, "BUCKET", 20)
    return happened


def plain(net: Net) -> dict[Tensor, Tensor]:
    torch.autograd.backward(sum(net(batch) for batch in BATCHES))
    found = {p: p.grad for p in net.parameters() if p.grad is not None}
    for parameter in net.parameters():
        parameter.grad = None
    return found


def learn(net: Net, made: Sums, *, until: int | None = None) -> None:
    """A step; with a number, memory gives out when that many gradients of the last micro-batch are there."""

    def give_out(_: Tensor) -> None:
        nonlocal until
        if until is not None:
            until -= 1
            if until < 0:
                raise torch.OutOfMemoryError

    with made.listening():
        for number, batch in enumerate(BATCHES):
            if number + 1 == len(BATCHES):
                made.last()
                hooks = [p.register_post_accumulate_grad_hook(give_out) for p in net.parameters()]
            try:
                torch.autograd.backward(net(batch))
            finally:
                if number + 1 == len(BATCHES):
                    for hook in hooks:
                        hook.remove()


def assert_doubled(found: dict[Tensor, Tensor], net: Net) -> None:
    expected = plain(net)
    assert found.keys() == set(net.parameters())
    for parameter in net.parameters():
        there = expected.get(parameter, torch.zeros_like(parameter))
        assert torch.allclose(found[parameter], 2 * there, atol=1e-6), parameter.shape


def test_one_process_adds_up_micro_batches(sent) -> None:
    net = Net()
    made = Sums(list(net.parameters()), Parts())
    learn(net, made)
    found = made.collect()
    assert all(torch.allclose(found[p], value, atol=1e-6) for p, value in plain(net).items())
    assert not sent and not made.collect()


def test_buckets_leave_while_the_last_backward_pass_goes_on(sent) -> None:
    net = Net()
    made = Sums(list(reversed(list(net.unused.parameters()))) + list(net.layers.parameters()), Parts(), Two())
    begun = net.layers[0].bias.register_post_accumulate_grad_hook(lambda _: sent.append("first layer"))
    learn(net, made)
    begun.remove()
    # Two micro-batches, then the last: that of the last layer leaves, and the next, before the first layer is reached.
    assert sent[:2] == ["first layer"] * 2
    assert sent[2:5] == ["left 20", "left 20", "arrived 20"]
    assert sent.index("first layer", 2) > 3
    assert_doubled(made.collect(), net)
    assert sent.count("left 20") == 4 and sent.count("arrived 20") == 4


def test_what_nobody_uses_holds_up_those_behind_it_and_leaves_in_the_end(sent) -> None:
    """So does a process without any micro-batch: all send the same, in the same order."""
    net = Net()
    made = Sums(list(net.parameters()), Parts(), Two())  # the unused layer's bucket is the first
    learn(net, made)
    assert not sent
    assert_doubled(made.collect(), net)
    order = list(sent)
    sent.clear()
    with made.listening():
        pass
    assert all(not value.any() for value in made.collect().values())
    assert sent == order


@pytest.mark.parametrize("until", range(6))
def test_a_step_that_is_done_again_comes_to_the_same(sent, until: int) -> None:
    net = Net()
    made = Sums(list(reversed(list(net.unused.parameters()))) + list(net.layers.parameters()), Parts(), Two())
    with pytest.raises(torch.OutOfMemoryError):
        learn(net, made, until=until)
    learn(net, made)
    assert_doubled(made.collect(), net)
    assert sent.count("left 20") == 4  # each once
    learn(net, made)
    assert_doubled(made.collect(), net)  # and of the next step nothing is left


def test_what_is_in_shards_is_summed_elsewhere(sent) -> None:
    net = Net()

    class Half(Parts):
        def divides(self, parameter: Tensor) -> bool:
            return any(parameter is p for p in net.layers[1].parameters())

    made = Sums(list(reversed(list(net.unused.parameters()))) + list(net.layers.parameters()), Half(), Two())
    learn(net, made)
    assert not sent  # processes do unlike numbers of passes, each of which sends something
    found, expected = made.collect(), plain(net)
    times = {p: 1 if Half().divides(p) else 2 for p in expected}
    assert all(torch.allclose(found[p], times[p] * value, atol=1e-6) for p, value in expected.items())
    assert sent.count("left 20") == 3
