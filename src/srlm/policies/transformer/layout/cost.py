"""What a layout costs, and the cheapest one of a group.

Counted are multiply-adds: the linear layers on every token that is forwarded, the head on every token that is scored,
attention on every pair of tokens. All layouts are exact; they differ in time and memory alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from srlm.policies.transformer.bits import elements
from srlm.policies.transformer.layout.group import Group, Places

if TYPE_CHECKING:  # counting needs none of it
    from transformers import PreTrainedModel

MASKED = 1.4  # times as long as its multiply-adds in a linear layer a pair takes under a mask, of all L x L pairs
CAUSAL = 0.7  # and in a plain row, where nothing is computed of what lies behind
SLACK = 1.25  # times the budget: what a single piece may have before its activations are recomputed
LARGEST_MASK = 2**24  # elements: 4,096 nodes; a bf16 mask of 32 MB


@dataclass(frozen=True)
class Cost:
    """Of one model, in multiply-adds. token: the linear layers of the decoder for one token. pair: attention between
    two. head: logits of one scored token."""

    token: float
    pair: float
    head: float

    @classmethod
    def of(cls, model: PreTrainedModel) -> Cost:
        config = cast(Any, model.config).get_text_config()
        head = cast(Any, model.get_output_embeddings()).weight
        busy = _busy(config)
        used = {id(p): elements(p) * (busy if p.ndim == 3 else 1) for p in model.parameters() if p.ndim >= 2}
        used.pop(id(head), None)
        for module in model.modules():
            if hasattr(module, "num_embeddings"):  # looked up, not multiplied by
                used.pop(id(module.weight), None)
        linear = sum(used.values())
        width = _size(config, "hidden_size", head.shape[-1])
        heads = _size(config, "num_attention_heads", 1)
        each = _size(config, "head_dim", width // heads)
        layers = _size(config, "num_hidden_layers", 1)
        return cls(float(linear), float(2 * layers * heads * each), float(head.numel()))

    def tree(self, nodes: int, edges: int) -> float:
        return nodes * self.token + nodes**2 * MASKED * self.pair + edges * self.head

    def row(self, nodes: int, edges: int) -> float:
        return nodes * self.token + nodes**2 / 2 * CAUSAL * self.pair + edges * self.head


def _busy(config: Any) -> float:
    """Share of a mixture's experts that a token goes through; their weights are kept as one tensor of three axes."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    experts = next((n for name in names if (n := _size(config, name, 0))), 0)
    each = _size(config, "num_experts_per_tok", 0) or _size(config, "moe_k", 0)
    return min(each / experts, 1.0) if experts and each else 1.0


def _size(config: Any, name: str, default: int) -> int:
    """What a config says; some say a list, or refuse to say where layers differ."""
    try:
        value = getattr(config, name, None)
    except Exception:
        return default
    return value if isinstance(value, int) and value > 0 else default


def cheapest(group: Group, cost: Cost, *, budget: int) -> tuple[list[Places], bool]:
    """How to cut the responses of a group into pieces of their own behind the prompt, and whether these need a mask:
    plain rows do not, trees do.

    budget: padded tokens of a micro-batch; what exceeds it costs another pass.
    """
    rows = group.prefixes.chains()
    best, masked, least = rows, False, _work(group, cost, rows, budget, masked=False)
    parts = 1
    while parts < len(rows):
        cut = _even(len(group), parts)
        if max(sizes(group, cut)) ** 2 <= LARGEST_MASK:
            work = _work(group, cost, cut, budget, masked=True)
            if work < least:
                best, masked, least = cut, True, work
        parts *= 2
    return best, masked


def sizes(group: Group, cut: Sequence[Places]) -> list[int]:
    """Nodes of each piece."""
    return [len(group.prompt) + group.prefixes.nodes(*places) for places in cut]


def _even(count: int, parts: int) -> list[Places]:
    return [(count * i // parts, count * (i + 1) // parts) for i in range(parts)]


def _work(group: Group, cost: Cost, cut: list[Places], budget: int, *, masked: bool) -> float:
    nodes = sizes(group, cut)
    longest = max(nodes)
    of_one = cost.tree if masked else cost.row
    work = sum(of_one(longest, n - len(group.prompt)) for n in nodes)  # padded alike
    # A forward pass is a third of the work: one more for a group in several micro-batches, whose coefficients come
    # first, and one more to recompute the activations of a piece that does not fit.
    padded = longest * len(cut)
    several = len(cut) > 1 and (padded > budget or (masked and padded * longest > LARGEST_MASK))
    more = several + (longest > SLACK * budget)
    return work * (1 + more / 3)
