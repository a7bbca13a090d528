"""The most probable responses of a causal LM: `srlm.search` on its prefixes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from srlm import search
from srlm.policies.transformer.layout.batches import micro_batches
from srlm.policies.transformer.prefix_trees import CachedTrees, PlainPrefixes
from srlm.policies.transformer.processes import Progress
from srlm.search import Found

TYPICAL_SEARCH = 256  # prefixes of a prompt that find its mode, as a rule


def most_probable(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    starts: Sequence[Sequence[Sequence[int]]],
    *,
    shared: bool,
    ended: Callable[[Sequence[int]], bool],
    eos: Sequence[int],
    max_tokens: int,
    num_best: int,
    budget: int,
    width: int,
    cache_tokens: int,
    row_tokens: int,
    progress: Progress,
) -> list[Found]:
    """As many prompts at a time as `cache_tokens` hold. row_tokens: of a batch of plain rows, for models that read no
    trees. For the rest see `srlm.search.most_probable`."""
    batches = micro_batches([len(ids) + min(budget, TYPICAL_SEARCH) for ids in prompts], cache_tokens)
    results: dict[int, Found] = {}

    def report(done: int, _: int) -> None:
        progress(len(results) + done, len(prompts))

    for batch in batches:
        ids = [prompts[i] for i in batch]
        found = search.most_probable(
            CachedTrees(model, ids) if shared else PlainPrefixes(model, ids, row_tokens),
            [starts[i] for i in batch],
            ended=ended,
            eos=eos,
            max_tokens=max_tokens,
            num_best=num_best,
            budget=budget,
            width=width,
            progress=report,
        )
        results |= zip(batch, found, strict=True)
    return [results[i] for i in range(len(prompts))]
