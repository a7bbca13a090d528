from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from srlm.policies.transformer.packing import Tree, build_tree, layout, micro_batches, pack

words = st.integers(0, 3)  # few, so that openings are shared and responses repeat
prompts = st.lists(words, min_size=1, max_size=5)
groups = st.tuples(prompts, st.lists(st.lists(words, min_size=1, max_size=6), min_size=1, max_size=6))


def history(tree: Tree, node: int) -> list[int]:
    return [] if node < 0 else [*history(tree, tree.parent[node]), tree.token[node]]


def distinct_prefixes(responses: list[list[int]], proper: bool) -> int:
    return len({tuple(y[:n]) for y in responses for n in range(1, len(y) + (not proper))})


@given(groups)
def test_every_edge_predicts_its_token_from_exactly_its_own_history(group: tuple[list[int], list[list[int]]]) -> None:
    prompt, responses = group
    tree = build_tree(prompt, responses)
    assert len(tree.path) == len(responses)
    for response, edges in zip(responses, tree.path, strict=True):
        assert [tree.target[e] for e in edges] == response
        for t, edge in enumerate(edges):
            assert history(tree, tree.source[edge]) == prompt + response[:t]
    for node, parent in enumerate(tree.parent):
        assert parent < node
        assert tree.depth[node] == len(history(tree, node)) - 1


@given(groups)
def test_no_history_is_computed_and_no_token_scored_twice(group: tuple[list[int], list[list[int]]]) -> None:
    prompt, responses = group
    tree = build_tree(prompt, responses)
    assert len(tree) == len(prompt) + distinct_prefixes(responses, proper=True)
    assert len(tree.source) == len(tree.target) == distinct_prefixes(responses, proper=False)


@given(groups)
def test_a_tree_never_has_more_nodes_than_separate_rows(group: tuple[list[int], list[list[int]]]) -> None:
    shared, separate = (layout(*group, shared=shared) for shared in (True, False))
    assert len(shared) == 1 and len(separate) == len(group[1])
    assert len(shared[0]) <= sum(map(len, separate))
    assert [len(tree) for tree in separate] == [len(group[0]) + len(y) - 1 for y in group[1]]


@given(st.lists(groups, min_size=1, max_size=4))
def test_packed_nodes_see_their_ancestors_only(batch: list[tuple[list[int], list[list[int]]]]) -> None:
    trees = [build_tree(*group) for group in batch]
    packed = pack(trees)
    rows, length = packed.input_ids.shape
    assert (rows, length) == (len(trees), max(map(len, trees)))
    expected = np.zeros((rows, length, length), dtype=bool)
    for row, tree in enumerate(trees):
        for query in range(length):
            expected[row, query, query] = True
            node = query if query < len(tree) else -1
            while node >= 0:
                expected[row, query, node] = True
                node = tree.parent[node]
    assert np.array_equal(packed.visible.numpy(), expected)
    ids, positions = packed.input_ids.flatten(), packed.position_ids.flatten()
    for row, tree in enumerate(trees):
        assert ids[row * length :][: len(tree)].tolist() == tree.token
        assert positions[row * length :][: len(tree)].tolist() == tree.depth


@given(st.lists(groups, min_size=1, max_size=4), st.booleans())
def test_owners_edges_and_sources_survive_packing(batch: list[tuple[list[int], list[list[int]]]], shared: bool) -> None:
    trees = [tree for group in batch for tree in layout(*group, shared)]
    packed = pack(trees, shared)
    responses = [(prompt, y) for prompt, ys in batch for y in ys]
    assert packed.num_responses == len(responses)
    spelled: list[list[int]] = [[] for _ in responses]
    before: list[list[int]] = [[] for _ in responses]
    for edge, owner in zip(packed.edge.tolist(), packed.owner.tolist(), strict=True):
        spelled[owner].append(int(packed.target[edge]))
        before[owner].append(int(packed.input_ids.flatten()[packed.source[edge]]))
    assert spelled == [y for _, y in responses]
    assert before == [[prompt[-1], *y[:-1]] for prompt, y in responses]
    if not shared:
        assert packed.visible.sum(-1).tolist() == [len(tree) for tree in trees]
        assert bool((packed.visible[:, 1:] <= packed.visible[:, :-1]).all())  # padding on the right
    assert packed.to(torch.device("cpu")).num_responses == len(responses)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30),
    st.integers(1, 7),
    st.integers(1, 120),
    st.integers(1, 4),
    st.randoms(),
)
def test_micro_batches_cut_steps_and_never_mix_them(
    lengths: list[int], prompts_per_step: int, token_budget: int, world: int, random
) -> None:
    order = random.sample(range(len(lengths)), len(lengths))
    ranks = [
        micro_batches(
            lengths, order, prompts_per_step=prompts_per_step, token_budget=token_budget, rank=rank, world=world
        )
        for rank in range(world)
    ]
    number = -(-len(order) // prompts_per_step)
    assert [len(steps) for steps in ranks] == [number] * world
    for step in range(number):
        wanted = order[step * prompts_per_step : (step + 1) * prompts_per_step]
        assert sorted(i for steps in ranks for batch in steps[step] for i in batch) == sorted(wanted)
        for steps in ranks:
            for batch in steps[step]:
                assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= token_budget


def test_micro_batches_fill_the_budget() -> None:
    assert micro_batches([4] * 6, range(6), prompts_per_step=6, token_budget=12) == [[[0, 1, 2], [3, 4, 5]]]
    assert micro_batches([9, 1, 1], range(3), prompts_per_step=3, token_budget=4) == [[[1, 2], [0]]]
