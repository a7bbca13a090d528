from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from conftest import make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm.policies.transformer.layout import cost as module
from srlm.policies.transformer.layout.batches import Plan, micro_batches, shares
from srlm.policies.transformer.layout.cost import Cost, cheapest, sizes
from srlm.policies.transformer.layout.group import Group
from srlm.policies.transformer.layout.pack import pack
from srlm.policies.transformer.layout.tree import Tree, build_tree

Words = tuple[list[int], list[list[int]]]
words = st.integers(0, 3)  # few, so that openings are shared and responses repeat
prompts = st.lists(words, min_size=1, max_size=5)
groups = st.tuples(prompts, st.lists(st.lists(words, min_size=1, max_size=6), min_size=1, max_size=6))
EVEN = Cost(token=100.0, pair=1.0, head=10.0)


def parents(tree: Tree) -> list[int]:
    found = list(range(-1, len(tree) - 1))
    for first, last, parent in tree.branch.tolist():
        if last > first:
            found[first] = parent
    return found


def history(tree: Tree, node: int) -> list[int]:
    before = parents(tree)
    found: list[int] = []
    while node >= 0:
        found.append(int(tree.token[node]))
        node = before[node]
    return found[::-1]


def paths(tree: Tree) -> list[list[int]]:
    ends = np.cumsum(tree.length)
    return [tree.edge[end - n : end].tolist() for end, n in zip(ends, tree.length, strict=True)]


def distinct_prefixes(responses: list[list[int]], proper: bool) -> int:
    return len({tuple(y[:n]) for y in responses for n in range(1, len(y) + (not proper))})


@given(groups)
def test_every_edge_predicts_its_token_from_exactly_its_own_history(group: Words) -> None:
    prompt, responses = group
    tree = build_tree(Group.of(*group))
    for response, edges in zip(responses, paths(tree), strict=True):
        assert [tree.target[e] for e in edges] == response
        for t, edge in enumerate(edges):
            assert history(tree, int(tree.source[edge])) == prompt + response[:t]
    for node, parent in enumerate(parents(tree)):
        assert parent < node
        assert tree.depth[node] == len(history(tree, node)) - 1


@given(groups)
def test_no_history_is_computed_and_no_token_scored_twice(group: Words) -> None:
    prompt, responses = group
    made = Group.of(*group)
    tree = build_tree(made)
    assert len(tree) == len(prompt) + distinct_prefixes(responses, proper=True) == sizes(made, [(0, len(made))])[0]
    assert len(tree.source) == len(tree.target) == distinct_prefixes(responses, proper=False)


@given(groups, st.data())
def test_sizes_are_known_before_a_tree_is_built(group: Words, data: st.DataObject) -> None:
    made = Group.of(*group)
    places = sorted(data.draw(st.lists(st.integers(0, len(made)), min_size=2, max_size=2, unique=True)))
    members = made.prefixes.members((places[0], places[1]))
    assert sizes(made, [(places[0], places[1])]) == [len(build_tree(made, members))]


@given(groups)
def test_chains_are_plain_rows_and_as_few_as_can_be(group: Words) -> None:
    responses = group[1]
    made = Group.of(*group)
    cut = made.prefixes.chains()
    assert sorted(i for places in cut for i in made.prefixes.members(places)) == list(range(len(made)))
    for places in cut:
        tree = build_tree(made, made.prefixes.members(places))
        assert parents(tree) == list(range(-1, len(tree) - 1))
    fed = {tuple(y[:-1]) for y in responses}
    leaves = [y for y in fed if not any(other[: len(y)] == y and other != y for other in fed)]
    assert len(cut) == len(leaves)  # every row ends in a history that no other one goes on from


@given(prompts, st.lists(st.lists(words, min_size=2, max_size=6), min_size=1, max_size=6), st.integers(1, 2))
def test_the_last_tokens_alone_can_be_scored(prompt: list[int], responses: list[list[int]], last: int) -> None:
    tree = build_tree(Group.of(prompt, responses, last))
    spelled = [[int(tree.target[e]) for e in edges] for edges in paths(tree)]
    assert spelled == [y[-last:] for y in responses]
    assert len(tree.source) == len({tuple(y[:n]) for y in responses for n in range(len(y) - last + 1, len(y) + 1)})


@given(st.lists(groups, min_size=1, max_size=4))
def test_packed_nodes_see_their_ancestors_only(batch: list[Words]) -> None:
    trees = [build_tree(Group.of(*group)) for group in batch]
    packed = pack(trees, masked=True)
    rows, length = packed.input_ids.shape
    assert (rows, length) == (len(trees), max(map(len, trees)))
    expected = np.zeros((rows, length, length), dtype=bool)
    for row, tree in enumerate(trees):
        before = parents(tree)
        for query in range(length):
            expected[row, query, query] = True
            node = query if query < len(tree) else -1
            while node >= 0:
                expected[row, query, node] = True
                node = before[node]
    assert packed.visible is not None and np.array_equal(packed.visible.numpy(), expected)
    for row, tree in enumerate(trees):
        assert packed.input_ids[row, : len(tree)].tolist() == tree.token.tolist()
        assert packed.position_ids[row, : len(tree)].tolist() == tree.depth.tolist()


@given(st.lists(groups, min_size=1, max_size=4), st.booleans())
def test_owners_edges_and_sources_survive_packing(batch: list[Words], masked: bool) -> None:
    made = [Group.of(*group) for group in batch]
    pieces = [[range(len(group))] if masked else [[i] for i in range(len(group))] for group in made]
    trees = [build_tree(group, members) for group, cut in zip(made, pieces, strict=True) for members in cut]
    packed = pack(trees, masked=masked)
    responses = [(prompt, y) for prompt, ys in batch for y in ys]
    assert packed.num_responses == len(responses)
    spelled: list[list[int]] = [[] for _ in responses]
    before: list[list[int]] = [[] for _ in responses]
    for edge, owner in zip(packed.edge.tolist(), packed.owner.tolist(), strict=True):
        spelled[owner].append(int(packed.target[edge]))
        before[owner].append(int(packed.input_ids.flatten()[packed.source[edge]]))
    assert spelled == [y for _, y in responses]
    assert before == [[prompt[-1], *y[:-1]] for prompt, y in responses]
    assert (packed.visible is None) == (not masked)
    assert packed.to(torch.device("cpu")).num_responses == len(responses)


# Which layout


def of_length(size: int, k: int, tokens: int) -> Group:
    draw = random.Random(0)
    prompt, *responses = [[draw.randrange(9999) for _ in range(n)] for n in (size, *[tokens] * k)]
    return Group.of(prompt, responses)


def test_short_responses_share_their_prompt_and_long_ones_do_not() -> None:
    cost = Cost(token=106e6, pair=35e3, head=28e6)  # SmolLM2-135M
    assert cheapest(of_length(110, 8, 12), cost, budget=10**6) == ([(0, 8)], True)
    assert cheapest(of_length(110, 8, 2000), cost, budget=10**6) == ([(i, i + 1) for i in range(8)], False)
    between = [len(cheapest(of_length(110, 8, t), cost, budget=10**6)[0]) for t in (12, 64, 128, 256, 512, 2000)]
    assert between == sorted(between)
    assert cheapest(of_length(3, 1, 5), cost, budget=10**6) == ([(0, 1)], False)  # nothing to mask


def test_no_layout_costs_more_than_trees_or_rows() -> None:
    for tokens in (4, 60, 200, 700):
        group = of_length(50, 8, tokens)
        cut, masked = cheapest(group, EVEN, budget=10**6)
        work = module._work(group, EVEN, cut, 10**6, masked=masked)
        assert work <= module._work(group, EVEN, [(0, 8)], 10**6, masked=True)
        assert work <= module._work(group, EVEN, group.prefixes.chains(), 10**6, masked=False)


def test_masks_stay_below_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_MASK", 100**2)
    free = Cost(token=1.0, pair=0.0, head=0.0)  # trees are always best
    for tokens in (5, 30, 80, 200):
        group = of_length(20, 8, tokens)
        cut, masked = cheapest(group, free, budget=10**6)
        assert not masked or max(sizes(group, cut)) <= 100
    assert not cheapest(of_length(20, 8, 200), free, budget=10**6)[1]


def test_cost_counts_what_a_model_multiplies() -> None:
    model = make_model(vocab=50)
    config = model.config
    cost = Cost.of(model)
    assert cost.head == 50 * config.hidden_size
    heads = config.num_attention_heads * config.head_dim
    assert cost.pair == 2 * config.num_hidden_layers * heads
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert cost.token == linear - (0 if model.config.tie_word_embeddings else cost.head) - (
        cost.head if model.config.tie_word_embeddings else 0
    )


def test_what_a_config_does_not_say_has_a_default() -> None:
    """Gemma 4 raises where layers differ, OpenELM has lists."""

    class Reticent:
        num_attention_heads = (4, 2)
        hidden_size = 32

        @property
        def head_dim(self) -> int:
            raise RuntimeError("it may vary across layers")

    names = ("hidden_size", "num_attention_heads", "head_dim", "num_hidden_layers")
    assert [module._size(Reticent(), name, 7) for name in names] == [32, 7, 7, 7]


# Micro-batches

plans = st.lists(
    st.builds(
        lambda nodes, masked: Plan([[i] for i in range(len(nodes))], nodes, masked),
        st.lists(st.integers(1, 50), min_size=1, max_size=5),
        st.booleans(),
    ),
    min_size=1,
    max_size=20,
)


@given(plans, st.integers(1, 200))
def test_every_piece_is_in_one_micro_batch_of_bounded_size(plans: list[Plan], budget: int) -> None:
    made = shares(dict(enumerate(plans)), range(len(plans)), budget)
    assert sorted(i for share in made for i in share.groups) == list(range(len(plans)))
    seen = []
    for share in made:
        assert len(share.batches) == 1 or len(share.groups) == 1
        for batch in share.batches:
            nodes = [plans[i].nodes[members[0]] for i, members in batch]
            assert len(batch) == 1 or len(batch) * max(nodes) <= budget
            assert all(plans[i].masked == share.masked for i, _ in batch)
            seen += [(i, *members) for i, members in batch]
    assert sorted(seen) == sorted((i, *members) for i, plan in enumerate(plans) for members in plan.pieces)


def test_a_group_is_cut_only_where_it_does_not_fit() -> None:
    plan = Plan([[0], [1], [2]], [10, 30, 20], masked=False)
    (whole,) = shares({0: plan}, [0], 90)
    assert len(whole.batches) == 1
    (cut,) = shares({0: plan}, [0], 60)
    assert cut.batches == [[(0, [0]), (0, [2])], [(0, [1])]]
    (cut,) = shares({0: plan}, [0], 5)
    assert [len(batch) for batch in cut.batches] == [1, 1, 1]


def test_groups_that_others_would_pad_far_go_alone() -> None:
    halves, whole = Plan([[0], [1]], [14, 14], masked=True), Plan([[0, 1]], [26], masked=True)
    some = {0: halves, 1: whole, 2: halves, 3: halves}
    assert [share.groups for share in shares(some, range(4), 10**6)] == [[0, 2, 3], [1]]
    assert [share.groups for share in shares(some | {1: Plan([[0, 1]], [20], masked=True)}, range(4), 10**6)] == [
        [0, 2, 3, 1]
    ]


def test_masks_of_a_micro_batch_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srlm.policies.transformer.layout.batches.LARGEST_MASK", 3 * 10 * 10)
    trees = [Plan([[0, 1]], [10], masked=True)] * 7
    assert [len(share.groups) for share in shares(dict(enumerate(trees)), range(7), 10**6)] == [3, 3, 1]
    two = {0: Plan([[0], [1, 2], [3]], [8, 10, 9], masked=True)}
    assert [len(share.batches) for share in shares(two, [0], 10**6)] == [1]
    four = {0: Plan([[0], [1], [2], [3, 4]], [10, 10, 10, 10], masked=True)}
    assert [len(batch) for share in shares(four, [0], 10**6) for batch in share.batches] == [3, 1]
    rows = [dataclasses.replace(plan, masked=False) for plan in trees]
    assert [len(share.groups) for share in shares(dict(enumerate(rows)), range(7), 10**6)] == [7]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 120), st.integers(1, 4))
@settings(max_examples=50)
def test_sequences_in_batches_of_like_length(lengths: list[int], budget: int, world: int) -> None:
    ranks = [micro_batches(lengths, budget, rank=rank, world=world) for rank in range(world)]
    assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(len(lengths)))
    for batches in ranks:
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    assert micro_batches([4] * 6, 12) == [[0, 1, 2], [3, 4, 5]]
    assert micro_batches([9, 1, 1], 4) == [[1, 2], [0]]
