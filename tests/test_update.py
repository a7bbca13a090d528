from __future__ import annotations

import math
import string
import weakref
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from reference import alone, build
from torch import Tensor

from srlm.objectives.imitation import best_of_k, nll
from srlm.objectives.policy_gradient import dapo, grpo, gspo
from srlm.objectives.preferences import dpo
from srlm.objectives.regression import regression
from srlm.policies.transformer import update
from srlm.policies.transformer.backward import Learning
from srlm.policies.transformer.gain import Gain
from srlm.policies.transformer.layout import batches, cost
from srlm.policies.transformer.layout.batches import Share
from srlm.policies.transformer.layout.group import Group, Places
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.rounding import lost_to_rounding
from srlm.policies.transformer.update import Diverged, MasterAdamW, Optimisation, fit
from srlm.types import Level, Objective, Prompts, Rollouts, UpdateInfo

ITEMS = ["Say abc", "n", "Say something rather long", "op op", "x", "yz"]
K = 4
LEAST_SQUARES = partial(regression, beta=1.0, anchor=1.0)


class Recorder:
    """A checkpoint in memory, and what was saved when."""

    def __init__(self, state: dict[str, Tensor] | None = None, before: dict[str, Tensor] | None = None) -> None:
        self.state, self.before, self.done = state, before, []

    def load(self) -> dict[str, Tensor] | None:
        return self.state

    def carried(self) -> dict[str, Tensor] | None:
        return self.before

    def save(self, state: Mapping[str, Tensor]) -> None:
        self.state = {name: value.clone() for name, value in state.items()}
        self.done.append(int(state["done"]))


class Killed(Exception):
    pass


def load(folder: Path, *, lora_rank: int = 4, dtype: str = "fp32", moved: bool = True, **options) -> TransformerPolicy:
    """pi_t of some round t: an adapter that has already moved."""
    options = {"max_new_tokens": 8, "prompts_per_step": 2, **options}
    policy = TransformerPolicy.load(str(folder), lora_rank=lora_rank, dtype=dtype, **options)
    if moved:
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return policy


def rollouts_of(policy: TransformerPolicy, weight: Tensor | None = None, round: int = 2) -> Rollouts:
    uniform = Prompts.uniform(ITEMS)
    prompts = uniform if weight is None else Prompts(uniform.items, weight)
    responses = policy.sample(prompts, K, torch.Generator().manual_seed(0))
    each = torch.zeros(responses.tokens.shape)
    log_prob, _ = policy.score(prompts, responses, token_log_prob=each)
    return Rollouts(round, prompts, responses, log_prob, torch.full_like(log_prob, 1 / K), token_log_prob=each)


def clipped(rollouts: Rollouts) -> Tensor:
    return torch.maximum(rollouts.log_prob, rollouts.log_prob.amax(-1, keepdim=True) - 8)


def run(
    policy: TransformerPolicy,
    rollouts: Rollouts,
    *,
    rate: float = 1e-3,
    epochs: int = 2,
    objective=LEAST_SQUARES,
    **more,
) -> UpdateInfo:
    settings = {name: more.pop(name) for name in ("warmup", "max_grad_norm", "checkpoint_steps") if name in more}
    after, info = fit(
        policy,
        rollouts,
        clipped(rollouts),
        objective=objective,
        optimisation=Optimisation(rate, epochs, 100 * rate, **settings),
        **{"seed": 0, **more},
    )
    assert after is policy
    return info


def weights(policy: TransformerPolicy) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in policy.trainable().items()}


def assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# The rate and the optimiser


def test_the_step_size_rises_to_its_peak_and_falls_towards_zero() -> None:
    for total in (1, 2, 3, 10, 57):
        for warmup in (0.0, 0.1, 0.5, 1.0):
            rates = [Optimisation(3.0, 1, warmup=warmup).schedule(step, total) for step in range(total)]
            peak = rates.index(max(rates))
            assert max(rates) == pytest.approx(1.0)
            assert peak == min(math.ceil(warmup * total), total - 1)
            assert all(r > 0 for r in rates)
            rise, fall = np.diff(rates[: peak + 1]), np.diff([*rates[peak:], 0.0])
            assert (rise > 0).all() and (fall < 0).all()
            assert np.allclose(np.diff(rise), 0) and np.allclose(np.diff(fall), 0)  # linear, and 0 right after the end
    assert [Optimisation(3.0, 1, warmup=0.0).schedule(s, 4) for s in range(4)] == pytest.approx([1, 0.75, 0.5, 0.25])


def test_master_adamw_is_torch_adamw_in_fp32() -> None:
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=draw), torch.randn(5, generator=draw)]
    mine, theirs = [p.clone() for p in start], [p.clone() for p in start]
    optimiser = MasterAdamW(mine, None, Optimisation(0.1, 1))
    reference = torch.optim.AdamW(theirs, lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(7):
        gradients = [torch.randn(p.shape, generator=draw) for p in start]
        optimiser.step([g.clone() for g in gradients], 1 / (step + 1))
        reference.param_groups[0]["lr"] = 0.1 / (step + 1)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient
        reference.step()
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_a_bf16_model_loses_no_small_step() -> None:
    weight = torch.ones(4, dtype=torch.bfloat16)
    optimiser = MasterAdamW([weight], None, Optimisation(2**-7, 1))
    for _ in range(100):  # each step is a tenth of what bf16 resolves near 1
        optimiser.step([torch.full((4,), -1.0)], 0.1)
    assert optimiser.masters[0].tolist() == pytest.approx([1 + 100 * 2**-7 / 10] * 4, rel=1e-4)
    assert torch.equal(weight, optimiser.masters[0].bfloat16()) and weight[0] > 1


@pytest.mark.parametrize(
    ("dtype", "rank", "rate", "steps", "lost"),
    [
        ("bf16", 0, 3e-6, 1, True),  # as `--method intuitor` in bf16
        ("fp32", 0, 3e-6, 1, False),
        ("bf16", 0, 1e-5, 2000, False),
        ("bf16", 16, 1.5e-4, 36, False),  # the defaults
    ],
)
def test_a_round_that_bf16_rounds_away_is_told_of(tiny, dtype, rank, rate, steps, lost) -> None:
    policy = TransformerPolicy.load(str(tiny), dtype=dtype, lora_rank=rank, max_new_tokens=4)
    said = lost_to_rounding(policy, Optimisation(rate, 1), steps)
    assert (said is not None) is lost
    if lost:
        held = [value for value in policy.weights.held().values() if value.ndim > 1]
        moved = torch.cat([(value.float() + rate).bfloat16().flatten() for value in held])
        same = float((moved == torch.cat([value.flatten() for value in held])).double().mean())
        assert f"moves a weight by {rate:g} at most, and {same:.0%} of the weights round that away in bfloat16" in said


def test_an_optimiser_goes_on_from_its_state() -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = ((3,), (2, 2), ())
    gradients = [[torch.randn(shape, generator=draw) for shape in shapes] for _ in range(6)]

    def fresh() -> MasterAdamW:
        norm = torch.full((4,), 2.0)
        gain = Gain("norm", (norm,), 0.0)
        return MasterAdamW([torch.ones(3), norm, torch.ones(2, 2)], gain, Optimisation(0.1, 1))

    whole, first = fresh(), fresh()
    for g in gradients:
        whole.step(g, 0.5)
    for g in gradients[:3]:
        first.step(g, 0.5)
    second = fresh()
    second.load({name: value.clone() for name, value in first.state().items()})
    assert all(torch.equal(a, b) for a, b in zip(second.parameters, first.parameters, strict=True))
    for g in gradients[3:]:
        second.step(g, 0.5)
    assert_equal(whole.state(), second.state())
    assert torch.equal(whole.gain.parameters[0], second.gain.parameters[0])
    assert torch.allclose(whole.gain.parameters[0], 2 * whole.masters[-1].exp())
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, second.parameters, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimiser_that_is_carried_on_takes_the_steps_of_one(dtype: torch.dtype) -> None:
    """Each a hundredth of what bf16 resolves near 1: of rounds of one step, masters that begin anew keep none."""
    draw = torch.Generator().manual_seed(0)
    gradients = [[torch.rand(shape, generator=draw) for shape in ((3,), (2, 2))] for _ in range(200)]
    how = Optimisation(2**-14, 1)

    def fresh(values=None) -> MasterAdamW:
        start = [torch.ones(3), torch.ones(2, 2)] if values is None else values
        return MasterAdamW([value.to(dtype, copy=True) for value in start], None, how)

    one, carried, anew = fresh(), fresh(), fresh()
    for g in gradients:
        one.step([v.clone() for v in g], 1.0)
        for optimiser in (carried, anew):
            optimiser.step([v.clone() for v in g], 1.0)
        state = {name: value.clone() for name, value in carried.state().items()}
        carried, anew = fresh(carried.parameters), fresh(anew.parameters)
        carried.carry(state)
    assert_equal(one.state(), carried.state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters, carried.parameters, strict=True))
    moved = [float((optimiser.parameters[0] - 1).abs().max()) for optimiser in (carried, anew)]
    assert moved[0] > 2**-8 and (moved[1] == 0) is (dtype == torch.bfloat16)


def test_a_gain_of_small_steps_is_not_rounded_away() -> None:
    norm, last = torch.full((4,), 1.5, dtype=torch.bfloat16), None
    for _ in range(100):
        optimiser = MasterAdamW([norm], Gain("norm", (norm,), 0.0), Optimisation(1e-3, 1, 1e-3))
        if last is not None:
            optimiser.carry(last)
        optimiser.step([torch.tensor(-1.0)], 1.0)
        last = {name: value.clone() for name, value in optimiser.state().items()}
    assert norm.float().tolist() == pytest.approx([1.5 * math.exp(0.1)] * 4, rel=2**-8)


def test_what_a_gain_has_put_into_the_norm_is_not_put_there_twice() -> None:
    def fresh(norm: Tensor) -> MasterAdamW:
        return MasterAdamW([norm], Gain("norm", (norm,), 0.0), Optimisation(0.1, 1))

    first = fresh(torch.full((4,), 2.0))
    first.step([torch.tensor(-1.0)], 1.0)
    then, after = first.gain.parameters[0].clone(), fresh(first.gain.parameters[0].clone())
    after.carry(first.state())
    assert torch.equal(after.gain.parameters[0], then) and float(after.masters[-1]) == 0
    second = fresh(torch.full((4,), 2.0))
    for _ in range(2):
        second.step([torch.tensor(-1.0)], 1.0)
    after.step([torch.tensor(-1.0)], 1.0)
    torch.testing.assert_close(after.gain.parameters[0], second.gain.parameters[0])


# What a step sees


class Spy:
    """An objective that notes its arguments."""

    def __init__(self, objective=LEAST_SQUARES) -> None:
        self.objective, self.ratios, self.rewards = objective, [], []

    def __call__(self, log_ratio: Tensor, reward: Tensor, weight: Tensor) -> Tensor:
        self.ratios.append(log_ratio.detach().clone())
        self.rewards.append(reward.clone())
        assert torch.equal(weight, torch.full_like(weight, 1 / K))
        return self.objective(log_ratio, reward, weight)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("lora_rank", [4, 0])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_first_log_ratio_of_a_round_is_exactly_zero(
    tiny: Path, dtype: str, lora_rank: int, recompute: bool
) -> None:
    policy = load(tiny, lora_rank=lora_rank, dtype=dtype, gradient_checkpointing=recompute)
    policy.scorer.prompts_per_step, policy.room.tokens = 3, 150
    rollouts = rollouts_of(policy)
    spy = Spy()
    info = run(policy, rollouts, rate=0.0, epochs=1, objective=spy)
    assert len(info.loss) == 2 and {len(ratio) for ratio in spy.ratios} >= {1, 2}  # micro-batches of several sizes
    assert all(torch.equal(ratio, torch.zeros_like(ratio)) for ratio in spy.ratios)
    assert torch.equal(info.log_ratio, torch.zeros(len(ITEMS), K))
    spy = Spy()
    run(policy, rollouts, rate=1e-3, epochs=1, objective=spy)
    assert torch.equal(spy.ratios[0], torch.zeros_like(spy.ratios[0]))
    assert spy.ratios[-1].abs().max() > 0


def test_a_rows_model_starts_at_zero_too() -> None:
    model = build("mamba", scale=2.0, vocab_size=259)
    policy = TransformerPolicy(model, make_tokenizer(), max_new_tokens=6, prompts_per_step=6)
    spy = Spy()
    info = run(policy, rollouts_of(policy), objective=spy, epochs=10)
    assert torch.equal(spy.ratios[0], torch.zeros_like(spy.ratios[0]))
    assert info.loss[-1] < info.loss[0] / 2


def test_prompts_per_step_and_the_order_of_epochs(tiny: Path) -> None:
    def visits(size: int, seed: int, round: int = 2) -> tuple[list[list[int]], UpdateInfo]:
        policy = load(tiny, prompts_per_step=size, token_budget=1)  # one micro-batch per prompt
        rollouts = rollouts_of(policy, round=round)
        spy = Spy()
        info = run(policy, rollouts, epochs=3, objective=spy, seed=seed)
        assert info.loss.shape == (3 * -(-6 // size),)
        known = [row.tolist() for row in clipped(rollouts)]
        flat = [known.index(r[0].tolist()) for r in spy.rewards]
        return [flat[i * 6 : (i + 1) * 6] for i in range(3)], info

    epochs, _ = visits(4, seed=0)
    assert [sorted(epoch) for epoch in epochs] == [list(range(6))] * 3
    assert sorted(epochs[0][:4]) == [0, 1, 2, 3]  # a step's micro-batches go from short to long
    assert visits(1, seed=0)[0][0] == list(range(6))
    assert epochs[1] != epochs[2]
    assert visits(4, seed=0)[0] == epochs
    assert visits(4, seed=1)[0] != epochs
    assert visits(4, seed=0, round=3)[0] != epochs


def test_gradients_of_a_step_are_gone_before_the_next_one() -> None:
    """Kept, they would be there beside those of the next step: 4 bytes a trained weight."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = MasterAdamW([weight], None, Optimisation(0.1, 1))
    gone = weakref.ref(gradient := torch.ones(3))
    optimiser.step([gradient], 1.0)
    del gradient
    assert gone() is None


class Still(MasterAdamW):
    """Notes the gradients and does not move."""

    seen: list[tuple[list[Tensor], float]]

    def step(self, gradients: list[Tensor], rate: float) -> None:
        type(self).seen.append(([g.clone() for g in gradients], rate))


@pytest.fixture
def seen(monkeypatch) -> list[tuple[list[Tensor], float]]:
    Still.seen = []
    monkeypatch.setattr(update, "MasterAdamW", Still)
    return Still.seen


def expected_gradient(policy: TransformerPolicy, rollouts: Rollouts, rows: list[int], share: Tensor) -> list[Tensor]:
    """Of sum_x share_x loss_x, one response at a time through transformers' own forward."""
    total = torch.zeros(())
    for p in rows:
        prompt = policy.encode(ITEMS[p])
        scores = []
        for ids in rollouts.responses.ids(p):
            row = torch.tensor([[*prompt, *ids]])
            log_p = torch.log_softmax(policy.model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1], -1)
            scores.append(log_p.gather(-1, torch.tensor(ids)[:, None]).sum())
        difference = torch.stack(scores) - rollouts.log_prob[p] - clipped(rollouts)[p]
        log_z = torch.logsumexp(clipped(rollouts)[p], 0) - math.log(K)
        loss = 2 * difference.var() + (difference.mean() + log_z) ** 2
        total = total + share[p] * loss
    trained, scaled = list(policy.trainable().values()), {id(p) for p in policy.gain.parameters}
    pulls = torch.autograd.grad(total, trained)
    log_gain = sum((g * p).sum() for g, p in zip(pulls, trained, strict=True) if id(p) in scaled)
    return [*(g for g, p in zip(pulls, trained, strict=True) if id(p) not in scaled), log_gain]


def relative(one: list[Tensor], other: list[Tensor]) -> float:
    flat, wanted = (torch.cat([g.flatten() for g in gradients]) for gradients in (one, other))
    return float((flat - wanted).norm() / wanted.norm())


def lay_out(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """As rows, one tree, or two trees, whatever is cheapest."""
    cuts = {"tree": 1, "two trees": 2}

    def forced(group: Group, *_: object, **__: object) -> tuple[list[Places], bool]:
        return (cost._even(len(group), cuts[how]), True) if how in cuts else (group.prefixes.chains(), False)

    monkeypatch.setattr(batches, "cheapest", forced)


@pytest.mark.parametrize("layout", ["rows", "tree", "two trees"])
@pytest.mark.parametrize("lora_rank", [4, 0])
def test_the_gradient_of_a_step_whatever_layout_and_budget(tiny: Path, seen, monkeypatch, lora_rank, layout) -> None:
    policy = load(tiny, lora_rank=lora_rank, prompts_per_step=4)
    lay_out(monkeypatch, layout)
    rollouts = rollouts_of(policy)
    share = torch.full((6,), 1 / 4)  # the mean over the 4 prompts of a step
    first = expected_gradient(policy, rollouts, [0, 1, 2, 3], share)
    second = expected_gradient(policy, rollouts, [4, 5], 2 * share)
    for budget in (1, 100, 10_000):
        seen.clear()
        policy.room.tokens = budget
        groups = policy.groups(rollouts.prompts, rollouts.responses)
        cut = [len(part.batches) for part in policy.scorer.shares(groups, range(6))]
        assert (max(cut) > 1) == (budget < 10_000 and layout != "tree"), "a group is cut where it does not fit"
        run(policy, rollouts, epochs=1, max_grad_norm=math.inf, warmup=0.0)
        assert [share for _, share in seen] == [1.0, 0.5]
        assert relative(seen[0][0], first) <= 1e-4
        assert relative(seen[1][0], second) <= 1e-4


def test_what_is_learned_does_not_depend_on_layout_or_budget(tiny: Path, monkeypatch) -> None:
    weights = []
    for layout, budget in (("tree", 10_000), ("rows", 10_000), ("rows", 1), ("two trees", 40)):
        policy = load(tiny, prompts_per_step=4)
        lay_out(monkeypatch, layout)
        policy.room.tokens = budget
        run(policy, rollouts_of(policy), epochs=2)
        weights.append(torch.cat([p.detach().flatten() for p in policy.trainable().values()]))
    for other in weights[1:]:
        assert 0 < (other - weights[0]).abs().max() <= 1e-5  # by other ways to the same place


# Objectives of means and of single tokens: their log-ratios, by the model's own forward


STOPS = tuple(string.ascii_letters)  # so that random responses differ in length
OTHER_LEVELS: dict[str, tuple[Level, Objective]] = {
    "dpo by length": ("mean", partial(dpo, beta=5.0)),
    "gspo": ("mean", partial(gspo, ratio_clip=(0.1, 0.1))),
    "grpo": ("token", grpo),
    "dapo": ("token", dapo),
}


def further_on(rollouts: Rollouts) -> Rollouts:
    """As if the policy had moved since it was scored: by about .3 nats a token, so that clips act."""
    assert rollouts.token_log_prob is not None
    draw = torch.Generator().manual_seed(5)
    moved = 0.3 * torch.randn(rollouts.token_log_prob.shape, generator=draw) * (rollouts.token_log_prob != 0)
    return replace(rollouts, log_prob=rollouts.log_prob + moved.sum(-1), token_log_prob=rollouts.token_log_prob + moved)


def expected_at(policy: TransformerPolicy, rollouts: Rollouts, rows: list[int], how: str) -> list[Tensor]:
    """Gradient of the mean loss over the prompts `rows`, one response at a time through transformers' own forward."""
    level, objective = OTHER_LEVELS[how]
    total = torch.zeros(())
    for p in rows:
        prompt, width, ratios = policy.encode(ITEMS[p]), rollouts.responses.tokens.shape[-1], []
        for k, ids in enumerate(rollouts.responses.ids(p)):
            row = torch.tensor([[*prompt, *ids]])
            log_p = torch.log_softmax(policy.model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1], -1)
            token = log_p.gather(-1, torch.tensor(ids)[:, None])[:, 0] - rollouts.token_log_prob[p, k, : len(ids)]
            ratios.append(torch.cat([token, torch.zeros(width - len(ids))]) if level == "token" else token.mean()[None])
        ratio, reward, weight = torch.stack(ratios), clipped(rollouts)[p][None], rollouts.weight[p]
        if level == "token":
            inside = torch.tensor([[1.0] * n + [0.0] * (width - n) for n in rollouts.responses.length[p].tolist()])
            loss = objective(ratio[None], reward, (weight[:, None] * inside)[None])
        else:
            loss = objective(ratio[:, 0][None], reward, weight[None])
        total = total + loss[0] / len(rows)
    trained, scaled = list(policy.trainable().values()), {id(p) for p in policy.gain.parameters}
    pulls = torch.autograd.grad(total, trained)
    log_gain = sum((g * p).sum() for g, p in zip(pulls, trained, strict=True) if id(p) in scaled)
    return [*(g for g, p in zip(pulls, trained, strict=True) if id(p) not in scaled), log_gain]


@pytest.mark.parametrize("layout", ["rows", "tree", "two trees"])
@pytest.mark.parametrize("how", OTHER_LEVELS)
def test_the_gradient_of_means_and_tokens_whatever_layout_and_budget(
    tiny: Path, seen, monkeypatch, how: str, layout: str
) -> None:
    level, objective = OTHER_LEVELS[how]
    policy = load(tiny, prompts_per_step=4, stop=STOPS)
    lay_out(monkeypatch, layout)
    rollouts = further_on(rollouts_of(policy))
    assert len(set(rollouts.responses.length.flatten().tolist())) > 1
    wanted = [expected_at(policy, rollouts, rows, how) for rows in ([0, 1, 2, 3], [4, 5])]
    for budget in (1, 100, 10_000):
        seen.clear()
        policy.scorer.token_budget = budget
        run(policy, rollouts, epochs=1, max_grad_norm=math.inf, objective=objective, level=level)
        assert [relative(found, step) <= 1e-4 for (found, _), step in zip(seen, wanted, strict=True)] == [True, True]


@pytest.mark.parametrize(("level", "objective"), [("sum", dpo), *OTHER_LEVELS.values()])
def test_what_is_added_does_not_grow_with_the_length_of_a_response(level: Level, objective: Objective) -> None:
    """-log pi(y|x) / |y| of each group's best response, its second."""
    length, by_token = torch.tensor([[3, 2, 1], [6, 4, 2]]), torch.tensor([0.2, -0.5, 0.1])
    token = by_token[:, None] * (torch.arange(8) < length[..., None])
    log_prob = token if level == "token" else token.sum(-1)
    reward, weight, nothing = torch.tensor([[1.0, 3.0, 2.0]] * 2), torch.full((2, 3), 1 / 3), torch.zeros_like(log_prob)

    def losses(added: Objective | None) -> Tensor:
        learning = Learning(None, [], objective, level, torch.ones(2), nothing, reward, weight, length, added)
        return torch.stack([learning._loss(Share([row], [], masked=False), log_prob[row], 1) for row in (0, 1)])

    torch.testing.assert_close(losses(nll) - losses(None), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("lora_rank", [4, 0])
def test_the_first_log_ratio_of_every_token_is_exactly_zero(tiny: Path, dtype: str, lora_rank: int) -> None:
    policy = load(tiny, lora_rank=lora_rank, dtype=dtype, prompts_per_step=3, token_budget=150, stop=STOPS)
    rollouts, tokens, counted = rollouts_of(policy), [], []

    def objective(log_ratio: Tensor, reward: Tensor, weight: Tensor) -> Tensor:
        tokens.append(log_ratio.detach().clone())
        counted.append((weight > 0).sum(-1))
        return grpo(log_ratio, reward, weight)

    run(policy, rollouts, rate=0.0, epochs=1, objective=objective, level="token")
    assert all(torch.equal(ratio, torch.zeros_like(ratio)) for ratio in tokens)
    lengths = sorted(torch.cat(counted).flatten().tolist())
    assert lengths == sorted(rollouts.responses.length.flatten().tolist())


def test_an_update_by_tokens_is_resumed_bit_for_bit(tiny: Path) -> None:
    policy, whole = load(tiny), Recorder()
    rollouts = rollouts_of(policy)
    options = {"epochs": 2, "rate": 1e-2, "objective": grpo, "level": "token"}
    info = run(policy, rollouts, checkpoint=whole, checkpoint_steps=1, **options)
    checkpoint = Recorder()

    def progress(done: int, total: int) -> None:
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        run(load(tiny), rollouts, checkpoint=checkpoint, checkpoint_steps=2, progress=progress, **options)
    again = load(tiny)
    resumed = run(again, rollouts, checkpoint=checkpoint, **options)
    assert_equal(weights(again), weights(policy))
    assert torch.equal(resumed.loss, info.loss) and torch.equal(resumed.log_ratio, info.log_ratio)


def test_responses_that_count_for_nothing_are_not_computed_again(tiny: Path, monkeypatch) -> None:
    """Where a group is learned from in pieces, imitation of the best goes through the best alone."""
    policy = load(tiny, prompts_per_step=4)
    lay_out(monkeypatch, "rows")
    policy.room.tokens = 1
    rollouts = rollouts_of(policy)
    passes = [0]
    policy.model.model.layers[0].register_forward_pre_hook(
        lambda *_: passes.__setitem__(0, passes[0] + torch.is_grad_enabled())
    )
    run(policy, rollouts, epochs=1, objective=best_of_k)
    plans = [policy.scorer.plan(group) for group in policy.groups(rollouts.prompts, rollouts.responses)]
    assert passes[0] == len(plans) < sum(len(plan.pieces) for plan in plans)


def test_prompt_weights_weigh_the_loss(tiny: Path, seen) -> None:
    policy = load(tiny, prompts_per_step=6)
    weight = torch.tensor([0.4, 0.1, 0.05, 0.25, 0.2, 0.0], dtype=torch.float64)
    rollouts = rollouts_of(policy, weight)
    info = run(policy, rollouts, epochs=1, max_grad_norm=math.inf)
    assert relative(seen[0][0], expected_gradient(policy, rollouts, list(range(6)), weight)) <= 1e-4
    difference = -clipped(rollouts).double()
    log_z = torch.logsumexp(clipped(rollouts).double(), -1) - math.log(K)
    loss = 2 * difference.var(-1) + (difference.mean(-1) + log_z) ** 2
    assert float(info.loss[0]) == pytest.approx(float((weight * loss).sum()), rel=1e-5)


def test_long_gradients_are_cut_to_the_maximal_norm(tiny: Path, seen) -> None:
    policy = load(tiny, prompts_per_step=6)
    rollouts = rollouts_of(policy)
    run(policy, rollouts, epochs=1, max_grad_norm=math.inf)
    run(policy, rollouts, epochs=1, max_grad_norm=0.25)
    run(policy, rollouts, epochs=1, max_grad_norm=1e9)
    free, cut, wide = (torch.cat([g.flatten() for g in gradients]) for gradients, _ in seen)
    assert free.norm() > 1
    assert float(cut.norm()) == pytest.approx(0.25, rel=1e-5)
    assert (cut / 0.25 - free / free.norm()).abs().max() <= 1e-6
    assert torch.equal(wide, free)


# What an update does


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_an_update_fits_the_target(tiny: Path, lora_rank: int) -> None:
    """On its own rollouts the log-ratio tends to (r - log Z), the anchored objective's minimiser."""
    policy = load(tiny, lora_rank=lora_rank, prompts_per_step=3)
    rollouts = rollouts_of(policy)
    seen: list[tuple[int, int]] = []
    info = run(policy, rollouts, rate=1e-2, epochs=40, progress=lambda done, total: seen.append((done, total)))
    assert info.rollouts is rollouts and torch.equal(info.reward, clipped(rollouts))
    assert seen == [(i, 80) for i in range(1, 81)] and len(info.loss) == 80
    assert info.loss[-4:].mean() < info.loss[:4].mean() / 20
    wanted = clipped(rollouts) - torch.logsumexp(clipped(rollouts) - math.log(K), -1, keepdim=True)
    assert (info.log_ratio - wanted).square().mean() < wanted.square().mean() / 20
    for p in range(2):  # the log-ratio is what the model now says
        for k, ids in enumerate(rollouts.responses.ids(p)):
            now = alone(policy.model, policy.encode(ITEMS[p]), ids)
            assert float(info.log_ratio[p, k]) == pytest.approx(now - float(rollouts.log_prob[p, k]), abs=2e-4)


def test_full_fine_tuning_keeps_tied_weights_tied(tiny: Path) -> None:
    policy = load(tiny, lora_rank=0)
    run(policy, rollouts_of(policy))
    assert policy.model.lm_head.weight is policy.model.model.embed_tokens.weight
    assert not any("lm_head" in name for name in policy.trainable())


def test_an_update_is_reproducible(tiny: Path) -> None:
    results = []
    for _ in range(2):
        policy = load(tiny)
        info = run(policy, rollouts_of(policy))
        results.append(weights(policy) | {"loss": info.loss, "ratio": info.log_ratio})
    assert_equal(*results)


# Resuming


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("lora_rank", [4, 0])
def test_resumed_is_uninterrupted_bit_for_bit(tiny: Path, lora_rank: int, dtype: str) -> None:
    options = {"epochs": 3, "rate": 1e-2, "checkpoint_steps": 2}
    policy = load(tiny, lora_rank=lora_rank, dtype=dtype)
    rollouts = rollouts_of(policy)
    whole = Recorder()
    info = run(policy, rollouts, checkpoint=whole, **options)
    assert whole.done == [2, 4, 6, 8, 9]
    expected = weights(policy)
    for killed_at in (1, 2, 5, 8):
        checkpoint = Recorder()

        def progress(done: int, total: int, at: int = killed_at) -> None:
            if done == at:
                raise Killed

        with pytest.raises(Killed):
            run(
                load(tiny, lora_rank=lora_rank, dtype=dtype),
                rollouts,
                checkpoint=checkpoint,
                progress=progress,
                **options,
            )
        assert checkpoint.done == list(range(2, killed_at + 1, 2))
        again = load(tiny, lora_rank=lora_rank, dtype=dtype)
        seen: list[int] = []
        resumed = run(
            again, rollouts, checkpoint=checkpoint, progress=lambda done, _, seen=seen: seen.append(done), **options
        )
        assert seen == list(range(killed_at // 2 * 2 + 1, 10))
        assert_equal(weights(again), expected)
        assert torch.equal(resumed.loss, info.loss)
        assert torch.equal(resumed.log_ratio, info.log_ratio)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_update_begins_with_what_the_last_one_ended_with(tiny: Path, dtype: str) -> None:
    """And its first log-ratio is 0 all the same."""
    policy, first = load(tiny, lora_rank=0, dtype=dtype), Recorder()
    run(policy, rollouts_of(policy), checkpoint=first, epochs=1)
    rollouts, ratios, moved = rollouts_of(policy, round=3), [], []

    def objective(log_ratio: Tensor, reward: Tensor, weight: Tensor) -> Tensor:
        ratios.append(log_ratio.detach().clone())
        return LEAST_SQUARES(log_ratio, reward, weight)

    for before in (first.state, None):
        again, second = load(tiny, lora_rank=0, dtype=dtype), Recorder(before=before)
        for name, value in weights(policy).items():
            again.trainable()[name].data.copy_(value)
        run(again, rollouts, checkpoint=second, epochs=1, objective=objective)
        moved.append(weights(again))
        assert int(second.state["step.0"]) == (6 if before else 3)
    assert all(ratios[step].abs().max() == 0 for step in (0, 3))
    assert any(not torch.equal(value, moved[1][name]) for name, value in moved[0].items())


def test_a_finished_checkpoint_has_nothing_left_to_do(tiny: Path) -> None:
    policy = load(tiny)
    rollouts, checkpoint = rollouts_of(policy), Recorder()
    info = run(policy, rollouts, checkpoint=checkpoint)
    again = load(tiny)
    resumed = run(again, rollouts, checkpoint=Recorder(checkpoint.state), objective=lambda *_: pytest.fail("a step"))
    assert_equal(weights(again), weights(policy))
    assert torch.equal(resumed.loss, info.loss)


def test_only_the_main_process_saves(tiny: Path) -> None:
    policy, checkpoint = load(tiny), Recorder()
    run(policy, rollouts_of(policy), checkpoint=checkpoint, checkpoint_steps=1, main=False)
    assert checkpoint.done == []


# Divergence


class Breaks:
    """Least squares until its call number `at`, then something not finite."""

    def __init__(self, at: int, kind: str) -> None:
        self.calls, self.at, self.kind = 0, at, kind

    def __call__(self, log_ratio: Tensor, reward: Tensor, weight: Tensor) -> Tensor:
        self.calls += 1
        loss = LEAST_SQUARES(log_ratio, reward, weight)
        if self.calls < self.at:
            return loss
        if self.kind == "gradient":  # a finite loss of 0 with an infinite slope
            return torch.sqrt((log_ratio - log_ratio.detach()).square().sum(-1))
        return loss * float(self.kind)


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("lora_rank", [4, 0])
@pytest.mark.parametrize("at", [1, 5])
def test_divergence_puts_pi_t_back(tiny: Path, kind: str, lora_rank: int, at: int) -> None:
    policy = load(tiny, lora_rank=lora_rank, prompts_per_step=2, token_budget=10_000)
    rollouts = rollouts_of(policy)
    before = weights(policy)
    with pytest.raises(Diverged, match=f"round 2, step {at} of 6: .*--learning-rate"):
        run(policy, rollouts, rate=1e-2, objective=Breaks(at, kind))
    assert_equal(weights(policy), before)
    assert all(p.grad is None for p in policy.trainable().values())
    assert torch.equal(policy.log_prob(rollouts.prompts, rollouts.responses), rollouts.log_prob)
    assert torch.isfinite(run(policy, rollouts).loss).all()


class Bursts(MasterAdamW):
    """Leaves weights behind that are not finite."""

    def step(self, gradients: list[Tensor], rate: float) -> None:
        super().step(gradients, rate)
        self.parameters[-1].data[0] = torch.nan


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_divergence_in_the_last_step_is_noticed(tiny: Path, lora_rank: int, monkeypatch) -> None:
    policy = load(tiny, lora_rank=lora_rank, prompts_per_step=6)
    rollouts, before = rollouts_of(policy), weights(policy)
    monkeypatch.setattr(update, "MasterAdamW", Bursts)
    with pytest.raises(Diverged, match=r"round 2, after its last step: .*--learning-rate"):
        run(policy, rollouts, epochs=1)
    assert_equal(weights(policy), before)


def test_divergence_after_a_resume_goes_back_to_pi_t_not_to_the_checkpoint(tiny: Path) -> None:
    policy, checkpoint = load(tiny), Recorder()
    rollouts, before = rollouts_of(policy), weights(policy)
    with pytest.raises(Diverged):
        run(policy, rollouts, rate=1e-2, checkpoint=checkpoint, checkpoint_steps=1, objective=Breaks(4, "nan"))
    assert checkpoint.done == [1, 2, 3]
    again = load(tiny)
    with pytest.raises(Diverged, match="step 4 of 6"):
        run(again, rollouts, rate=1e-2, checkpoint=checkpoint, objective=Breaks(1, "nan"))
    assert_equal(weights(again), before)
