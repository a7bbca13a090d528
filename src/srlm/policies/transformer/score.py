"""Log-probs of whole sets of responses, in micro-batches that processes share: those of scoring and of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel

from srlm.policies.transformer.log_prob import Statistic, response_log_prob
from srlm.policies.transformer.packing import Packed, Tree, build_tree, layout, micro_batches, pack
from srlm.policies.transformer.processes import Progress, gather
from srlm.policies.transformer.responses import Responses


@dataclass
class Scorer:
    """A group is the responses to one prompt, as the trees that are forwarded.

    shared: the model reads trees. prompts_per_step, token_budget: prompts per optimiser step; padded tokens per
    micro-batch.
    """

    model: PreTrainedModel
    processes: PartialState
    shared: bool
    prompts_per_step: int
    token_budget: int

    def groups(self, prompts: Sequence[Sequence[int]], responses: Responses) -> list[list[Tree]]:
        return [layout(ids, responses.ids(i), self.shared) for i, ids in enumerate(prompts)]

    def endings(self, prompts: Sequence[list[int]], endings: Sequence[Sequence[int]]) -> list[Tree]:
        """Every ending behind every prompt, as the trees of one group in which the endings alone are scored."""
        first, last = min(prompts), max(prompts)
        common = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
        if self.shared and common:
            tree = build_tree(first[:common], [[*ids[common:], *ending] for ids in prompts for ending in endings])
            sizes = [len(ending) for _ in prompts for ending in endings]
            return [replace(tree, path=[edges[-n:] for edges, n in zip(tree.path, sizes, strict=True)])]
        trees = [build_tree(ids, endings) for ids in prompts]
        if self.shared or all(tree.parent == list(range(-1, len(tree) - 1)) for tree in trees):  # a chain is a row
            return trees
        return [tree for ids in prompts for tree in layout(ids, endings, self.shared)]

    def steps(self, groups: Sequence[Sequence[Tree]], order: Sequence[int]) -> list[list[list[int]]]:
        """This process's micro-batches of each optimiser step, as numbers of groups."""
        return micro_batches(
            [len(trees) * max(map(len, trees)) for trees in groups],
            order,
            prompts_per_step=self.prompts_per_step,
            token_budget=self.token_budget,
            rank=self.processes.process_index,
            world=self.processes.num_processes,
        )

    def pack(self, groups: Sequence[Sequence[Tree]]) -> Packed:
        return pack([tree for trees in groups for tree in trees], self.shared).to(self.model.device)

    def score(
        self,
        groups: Sequence[Sequence[Tree]],
        statistic: Statistic | None,
        progress: Progress,
        token_log_prob: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Per response of each group, all of one size: log-prob, and mean of the statistic (zeros without one).

        token_log_prob: [P, K, T] zeros on the CPU, to be filled as far as each response goes.
        """
        shape = (len(groups), sum(len(tree.path) for tree in groups[0]))
        log_prob, mean = torch.zeros(shape), torch.zeros(shape)
        batches = [batch for step in self.steps(groups, range(len(groups))) for batch in step]
        done, total = 0, sum(map(len, batches))
        with torch.no_grad():
            for batch in batches:
                packed = self.pack([groups[i] for i in batch])
                each: list[Tensor] = []
                values, means = response_log_prob(self.model, packed, statistic=statistic, each=each)
                log_prob[batch] = values.view(len(batch), -1).cpu()
                if means is not None:
                    mean[batch] = means.view(len(batch), -1).cpu()
                if token_log_prob is not None:
                    length = torch.bincount(packed.owner, minlength=packed.num_responses).view(len(batch), -1, 1).cpu()
                    part = torch.zeros(len(batch), *token_log_prob.shape[1:])
                    part[torch.arange(part.shape[-1]) < length] = each[0].cpu()
                    token_log_prob[batch] = part
                done += len(batch)
                progress(done, total)
        if token_log_prob is not None:
            token_log_prob.copy_(gather(self.processes, token_log_prob))
        return gather(self.processes, log_prob), gather(self.processes, mean)
