"""Is what a round learns more than the model's dtype tells apart? Masters and moments of fp32 begin anew each round,
unless they are carried on."""

from __future__ import annotations

import torch

from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.update import Optimisation

LOOKED_AT = 2**16  # weights of each parameter
MOST_LOST = 0.5


def lost_to_rounding(policy: TransformerPolicy, how: Optimisation, steps: int) -> str | None:
    """A sentence if half of the trained weights or more would be what they were after a round of `steps`, however
    coherent: half a unit in their last place is more than the sum of the step sizes."""
    most = how.learning_rate * sum(how.schedule(n, steps) for n in range(steps))
    held = [value.detach() for value in policy.weights.held().values()]
    some = [value.flatten()[:LOOKED_AT].abs().float().cpu() for value in held if value.ndim > 1]
    if not some or held[0].dtype == torch.float32:
        return None
    weights = torch.cat(some)
    half = torch.exp2(torch.floor(torch.log2(weights))) * torch.finfo(held[0].dtype).eps / 2  # 0 of a weight of 0
    lost = float((half > most).double().mean())
    if lost < MOST_LOST:
        return None
    return (
        f"a round of {steps} steps at --learning-rate {how.learning_rate:g} moves a weight by {most:.2g} at most, and "
        f"{lost:.0%} of the weights round that away in {str(held[0].dtype)[6:]}: give --carry-optimizer or "
        "--dtype fp32, or more steps a round"
    )
