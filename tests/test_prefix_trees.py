from __future__ import annotations

import itertools
import math

import pytest
import torch
from conftest import make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ROWS, TREES, alone, build

from srlm.policies.transformer.log_prob import reads_trees
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.prefix_trees import CachedTrees, PlainPrefixes
from srlm.search import most_probable
from srlm.types import Prompts

PROMPTS = [[5, 6, 7], [20, 21, 22, 23, 24, 25, 26, 27, 28], [40]]
# (parent, token) by call and prompt: branches of several depths, an empty list, prompts that leave.
CALLS = [
    {0: [(0, 3), (1, 4), (0, 9)], 1: [], 2: [(0, 8)]},
    {0: [(2, 5), (3, 6), (2, 7), (3, 3)], 1: [(0, 4), (1, 4), (2, 4), (3, 4), (4, 5), (5, 6)]},
    {1: [(6, 7), (1, 9)]},
]


@torch.no_grad()
def distribution(model, ids):
    return torch.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float(), -1)


@pytest.mark.parametrize("name", [*TREES, *ROWS])
def test_every_node_has_the_distribution_of_its_own_row(name):
    model = build(name)
    shared = reads_trees(model)
    assert shared == (name in TREES)
    trees = CachedTrees(model, PROMPTS) if shared else PlainPrefixes(model, PROMPTS, token_budget=40)
    paths = [[list(prompt)] for prompt in PROMPTS]
    answered = [0] * len(PROMPTS)
    for new in CALLS:
        answers = dict(trees.grow(new))
        assert answers.keys() == new.keys()
        for number, nodes in new.items():
            for parent, token in nodes:
                paths[number].append([*paths[number][parent], token])
            fresh = paths[number][answered[number] :]
            answered[number] = len(paths[number])
            expected = torch.stack([distribution(model, ids) for ids in fresh])
            torch.testing.assert_close(answers[number], expected, atol=2e-4, rtol=1e-4)


EOS, OTHER = 2, 5
LENGTH, WORDS = 4, 9


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.floats(2, 8), st.integers(1, 12), st.sampled_from([1, 2, 5]))
def test_search_of_a_transformer_equals_brute_force(seed, scale, width, num_best):
    model = make_model(seed=seed, vocab=WORDS, scale=scale)
    prompts = [[3, 4, 5], [6]]
    found = most_probable(
        CachedTrees(model, prompts),
        [[(3, EOS)], []],
        ended=lambda response: response[-1] in (EOS, OTHER),
        eos=[EOS, OTHER],
        max_tokens=LENGTH,
        num_best=num_best,
        budget=10**6,
        width=width,
    )
    inner = [w for w in range(WORDS) if w not in (EOS, OTHER)]
    space = [
        (*middle, end) for n in range(LENGTH) for middle in itertools.product(inner, repeat=n) for end in (EOS, OTHER)
    ] + list(itertools.product(inner, repeat=LENGTH))
    for prompt, one in zip(prompts, found, strict=True):
        log_prob = _every(model, prompt, space)
        assert math.fsum(math.exp(v) for v in log_prob.values()) == pytest.approx(1, abs=1e-4)
        ranked = sorted(log_prob.values(), reverse=True)
        assert one.num_certified >= num_best
        assert one.log_prob[:num_best] == pytest.approx(ranked[:num_best], abs=2e-4)
        for y, value in zip(one.responses, one.log_prob, strict=True):
            assert value == pytest.approx(log_prob[y], abs=2e-4)


@torch.no_grad()
def _every(model, prompt, space):
    """log pi(y|x) of all responses, by the chain rule over the model's own rows."""
    conditional = {}
    inner = {y[:n] for y in space for n in range(len(y))}
    for size in range(LENGTH):
        prefixes = sorted(p for p in inner if len(p) == size)
        logits = model(input_ids=torch.tensor([[*prompt, *p] for p in prefixes]), use_cache=False).logits[:, -1]
        conditional |= zip(prefixes, torch.log_softmax(logits.double(), -1).tolist(), strict=True)
    return {y: sum(conditional[y[:n]][word] for n, word in enumerate(y)) for y in space}


@pytest.fixture(scope="module")
def policy(tiny):
    return TransformerPolicy.load(str(tiny), lora_rank=0, gain=False, dtype="fp32", max_new_tokens=3)


def test_the_policy_searches_in_batches_and_agrees_with_its_scores(policy):
    prompts = Prompts.uniform(["Say abc", "Say a longer thing", "x", "yy"])
    greedy = policy.greedy(prompts)
    starts = [greedy.ids(i) for i in range(4)]
    seen = []
    whole = policy.most_probable(prompts, starts, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4)
    small = policy.room.tokens
    try:
        policy.room.tokens = 1  # every prompt alone
        apart = policy.most_probable(prompts, starts)
    finally:
        policy.room.tokens = small
    for i, (one, other) in enumerate(zip(whole, apart, strict=True)):
        sure = min(one.num_certified, other.num_certified, 2)
        assert sure >= 1
        assert one.responses[:sure] == other.responses[:sure]
        assert one.log_prob[:sure] == pytest.approx(other.log_prob[:sure], abs=1e-4)
        own = [alone(policy.model, policy.encode(prompts.items[i]), y) for y in one.responses[:3]]
        assert one.log_prob[:3] == pytest.approx(own, abs=1e-3)


def test_a_policy_with_an_adapter_is_searched_as_it_samples(tiny):
    policy = TransformerPolicy.load(str(tiny), lora_rank=4, dtype="fp32", max_new_tokens=4)
    with torch.no_grad():
        for name, value in policy.trainable().items():
            if "lora_B" in name:
                value.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    prompts = Prompts.uniform(["Say abc", "x"])
    found = policy.most_probable(prompts, [policy.greedy(prompts).ids(i) for i in range(2)])
    for item, one in zip(prompts.items, found, strict=True):
        assert one.log_prob[0] == pytest.approx(alone(policy.model, policy.encode(item), one.responses[0]), abs=1e-3)
