from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence

import pytest
import torch
from conftest import make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ROWS, TREES, VOCABULARY, alone, build, next_logits
from torch import Tensor
from transformers import PreTrainedModel

from srlm.errors import UserError
from srlm.policies.transformer import log_prob as module
from srlm.policies.transformer.layout.group import Group
from srlm.policies.transformer.layout.pack import pack
from srlm.policies.transformer.layout.tree import build_tree
from srlm.policies.transformer.log_prob import (
    Head,
    entropy,
    reads_trees,
    response_log_prob,
    self_certainty,
    token_log_prob,
    token_log_prob_and,
)

Words = tuple[list[int], list[list[int]]]
LLAMA = make_model(vocab=VOCABULARY)


def score(model: PreTrainedModel, groups: Sequence[Words], shared: bool, **options) -> tuple[Tensor, Tensor | None]:
    made = [Group.of(*group) for group in groups]
    pieces = [
        (group, members)
        for group in made
        for members in ([range(len(group))] if shared else [[i] for i in range(len(group))])
    ]
    packed = pack([build_tree(group, members) for group, members in pieces], masked=shared)
    return response_log_prob(model, packed, **options)


def hard_groups() -> list[Words]:
    """Of unequal size: a shared opening, a duplicate, a prefix of another, single tokens, 14 tokens > any window."""
    draw = random.Random(1)

    def some(n: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(n)]

    groups = []
    for size in (3, 11):
        long = some(14)
        groups.append((some(size), [long, long[:5] + some(6), some(1), long, long[:7], some(9), long[:1]]))
    return groups


def differences(model: PreTrainedModel, groups: Sequence[Words], shared: bool) -> Tensor:
    expected = torch.tensor([alone(model, prompt, y) for prompt, ys in groups for y in ys])
    assert expected.std() > 1, "a test on a nearly uniform model sees nothing"
    with torch.no_grad():
        return (score(model, groups, shared)[0] - expected).abs()


@pytest.mark.parametrize("name", TREES)
def test_trees_and_rows_give_the_models_own_log_probs(name: str) -> None:
    model = build(name)
    assert reads_trees(model)
    for shared in (True, False):
        assert differences(model, hard_groups(), shared).max() <= 1e-4


@pytest.mark.parametrize("name", ROWS)
def test_models_that_cannot_read_trees_are_scored_in_rows(name: str) -> None:
    model = build(name)
    assert not reads_trees(model)
    assert differences(model, hard_groups(), shared=False).max() <= 1e-4


def test_a_soft_cap_by_another_name() -> None:
    model = build("recurrent_gemma", logits_soft_cap=0.5)
    assert not reads_trees(model)
    assert differences(model, hard_groups(), shared=False).max() <= 1e-4


def test_a_bf16_model_is_recognised_too() -> None:
    assert reads_trees(make_model(vocab=VOCABULARY).bfloat16())
    assert not reads_trees(build("qwen3_next").bfloat16())
    assert not reads_trees(build("mpt").bfloat16())  # nothing but its log-probs tells


words = st.integers(3, 8)  # few, so that prefixes are shared
some_groups = st.integers(1, 5).flatmap(
    lambda k: st.lists(
        st.tuples(
            st.lists(words, min_size=1, max_size=9),
            st.lists(st.lists(words, min_size=1, max_size=12), min_size=k, max_size=k),
        ),
        min_size=1,
        max_size=3,
    )
)


@settings(max_examples=40, deadline=None)
@given(some_groups)
def test_any_batch_of_groups_scores_as_each_response_alone(groups: list[Words]) -> None:
    expected = torch.tensor([alone(LLAMA, prompt, y) for prompt, ys in groups for y in ys])
    with torch.no_grad():
        for shared in (True, False):
            assert (score(LLAMA, groups, shared)[0] - expected).abs().max() <= 1e-4


def test_entropy_is_the_mean_along_the_response() -> None:
    groups = hard_groups()
    expected = []
    for prompt, ys in groups:
        for y in ys:
            log_p = torch.log_softmax(next_logits(LLAMA, prompt, y).double(), -1)
            expected.append(-(log_p.exp() * log_p).sum(-1).mean())
    for shared in (True, False):
        with torch.no_grad():
            _, mean = score(LLAMA, groups, shared, statistic=entropy)
        assert mean is not None
        assert (mean - torch.stack(expected)).abs().max() <= 1e-4
    assert score(LLAMA, groups, True)[1] is None


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_self_certainty_is_the_mean_divergence_of_the_uniform_distribution(name: str) -> None:
    model, groups, expected = build(name), hard_groups(), []
    uniform = torch.full((VOCABULARY,), 1 / VOCABULARY, dtype=torch.float64)
    for prompt, ys in groups:
        for y in ys:
            log_p = torch.log_softmax(next_logits(model, prompt, y).double(), -1)
            each = torch.distributions.kl_divergence(
                torch.distributions.Categorical(uniform.expand_as(log_p)), torch.distributions.Categorical(logits=log_p)
            )
            expected.append(each.mean())
    for shared in (True, False):
        with torch.no_grad():
            _, mean = score(model, groups, shared, statistic=self_certainty)
        assert mean is not None and mean.min() > 0
        assert (mean - torch.stack(expected)).abs().max() <= 1e-4


def test_statistics_of_known_distributions() -> None:
    for words in (2, 7):
        even = torch.full((1, words), -math.log(words))
        masked = torch.cat([even, torch.full((1, 3), -torch.inf)], -1)
        assert entropy(masked) == entropy(even)  # words that cannot be said
        assert entropy(even) == pytest.approx(math.log(words)) and self_certainty(even) == pytest.approx(0, abs=1e-6)
    assert self_certainty(torch.tensor([[0.9, 0.1]]).log()) == pytest.approx(-math.log(4 * 0.9 * 0.1) / 2)


def own_gradients(model: PreTrainedModel, groups: Sequence[Words], pull: Tensor) -> dict[str, Tensor]:
    """Of sum_k pull_k log pi(y_k|x), by plain autograd through transformers' own forward."""
    model.zero_grad()
    pulls = iter(pull)
    for prompt, ys in groups:
        for y in ys:
            row = torch.tensor([[*prompt, *y]])
            log_p = torch.log_softmax(model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1], -1)
            (next(pulls) * log_p.gather(-1, torch.tensor(y)[:, None]).sum()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys() and len(mine) > 2
    for name, gradient in theirs.items():
        assert gradient.norm() > 0
        assert (mine[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("frozen_head", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "gpt2"])
def test_gradients_are_those_of_plain_autograd(name: str, shared: bool, frozen_head: bool) -> None:
    model = build(name, scale=3.0)  # tied weights: unless frozen, the head's gradient and the embedding's add up
    model.get_output_embeddings().weight.requires_grad_(not frozen_head)
    groups, pull = hard_groups(), torch.linspace(-1, 2, 14)
    theirs = own_gradients(model, groups, pull)
    model.zero_grad()
    (score(model, groups, shared)[0] * pull).sum().backward()
    assert_same_gradients({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, theirs)


def head_inputs(bias: bool, words: int = 37) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    draw = torch.Generator().manual_seed(4)
    hidden, weight = torch.randn(11, 8, generator=draw), torch.randn(words, 8, generator=draw)
    target = torch.randint(words, (11,), generator=draw)
    return hidden, target, weight, torch.randn(words, generator=draw) if bias else None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_head_against_autograd_in_float64(bias: bool, scale: float, softcap: float | None, frozen: bool) -> None:
    hidden, target, weight, offset = head_inputs(bias)
    pull = torch.linspace(-2, 3, len(hidden), dtype=torch.float64)
    exact, exact_weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = scale * (exact @ exact_weight.T + (0 if offset is None else offset.double()))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = torch.log_softmax(logits, -1).gather(-1, target[:, None])[:, 0]
    (expected * pull).sum().backward()

    hidden.requires_grad_()
    weight.requires_grad_(not frozen)
    mine = token_log_prob(hidden, target, Head(weight, offset, scale, softcap))
    assert mine.dtype == torch.float32
    assert (mine - expected).abs().max() <= 1e-5
    (mine * pull.float()).sum().backward()
    assert (hidden.grad - exact.grad).abs().max() <= 1e-5 * exact.grad.abs().max()
    if not frozen:
        assert (weight.grad - exact_weight.grad).abs().max() <= 1e-5 * exact_weight.grad.abs().max()


@pytest.mark.parametrize("frozen", [True, False])
def test_the_head_in_bf16_is_as_good_as_its_rounding(frozen: bool) -> None:
    hidden, target, weight, _ = head_inputs(False)
    hidden, weight = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_(not frozen)
    exact = hidden.detach().double().requires_grad_()
    expected = torch.log_softmax(exact @ weight.detach().double().T, -1).gather(-1, target[:, None])[:, 0]
    expected.sum().backward()
    mine = token_log_prob(hidden, target, Head(weight, None, 1.0, None))
    mine.sum().backward()
    assert mine.dtype == torch.float32 and hidden.grad.dtype == torch.bfloat16
    assert (mine - expected).abs().max() <= 2**-8 * 16  # logits of up to 16, rounded to 8 bits
    assert (hidden.grad - exact.grad).abs().max() <= 2**-6 * exact.grad.abs().max()


@pytest.mark.parametrize("frozen", [True, False])
def test_chunks_change_nothing(frozen: bool, monkeypatch) -> None:
    def run() -> tuple[Tensor, Tensor, Tensor]:
        hidden, target, weight, bias = head_inputs(True)
        hidden.requires_grad_()
        weight.requires_grad_(not frozen)
        head = Head(weight, bias, 0.7, 3.0)
        values = token_log_prob(hidden, target, head)
        values.sum().backward()
        with torch.no_grad():
            alone = token_log_prob(hidden, target, head)
            both = [token_log_prob_and(statistic, hidden, target, head) for statistic in (entropy, self_certainty)]
            assert all(torch.equal(log_prob, alone) for log_prob, _ in both)
            scores = torch.cat([alone, *(values for _, values in both)])
        return values.detach(), hidden.grad, scores

    whole = run()
    for elements in (1, 37 * 3, 37 * 4 + 5):  # one row, three rows, a ragged last chunk
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", elements)
        assert len(module._chunks(torch.zeros(11, 8), torch.zeros(11), Head(torch.zeros(37, 8), None, 1.0, None))) > 2
        for part, expected in zip(run(), whole, strict=True):
            assert (part - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_scoring_and_training_take_the_same_values_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for trained in ("all", "body"):
            model = copy.deepcopy(LLAMA).to(dtype)
            model.get_output_embeddings().weight.requires_grad_(trained == "all")
            training, _ = score(model, hard_groups(), True)
            assert training.requires_grad
            with torch.no_grad():
                scoring, _ = score(model, hard_groups(), True)
            assert torch.equal(training.detach(), scoring)


def test_a_head_of_an_unknown_kind_is_refused() -> None:
    class Doubled(type(LLAMA)):
        def forward(self, **inputs):
            output = super().forward(**inputs)
            output.logits = output.logits * 2
            return output

    model = Doubled(LLAMA.config).eval()
    model.load_state_dict(LLAMA.state_dict())
    with pytest.raises(UserError, match="Doubled computes its logits"):
        reads_trees(model)


def test_more_embeddings_than_words_are_no_matter() -> None:
    model = build("llama", tie_word_embeddings=False)
    model.model.embed_tokens = torch.nn.Embedding(VOCABULARY + 8, 32)  # room for a special token that is never said
    assert reads_trees(model)


def test_a_model_whose_decoder_is_out_of_reach_is_refused() -> None:
    class Closed(type(LLAMA)):
        def get_decoder(self):
            return self.lm_head

    with pytest.raises(UserError, match="Closed computes its logits"):
        reads_trees(Closed(LLAMA.config).eval())
