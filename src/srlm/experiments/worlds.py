"""Random worlds that several experiments live in."""

from __future__ import annotations

import torch
from torch import Tensor

from srlm.policies.linear_softmax import LinearSoftmaxPolicy


def linear_world(
    replicas: int,
    prompts: int,
    responses: int,
    dimension: int,
    *,
    seed: int,
    spread: float = 1.5,
    spectrum: Tensor | None = None,
    shared: float = 0.0,
) -> LinearSoftmaxPolicy:
    """Random linear softmax policies [R]: Gaussian features with covariance eigenvalues proportional to `spectrum` [D]
    (all equal when None), scaled so that the longest has norm 1; theta random, scaled so that logits have standard
    deviation `spread` over responses.

    shared: in [0, 1), share of each feature's variance that is a function of the response alone, common to all prompts.
    """
    generator = torch.Generator().manual_seed(seed)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    phi = (1 - shared) ** 0.5 * gaussian(replicas, prompts, responses, dimension)
    phi = phi + shared**0.5 * gaussian(replicas, 1, responses, dimension)
    if spectrum is not None:
        phi = phi * spectrum.double().sqrt()
    phi = phi / phi.norm(dim=-1).amax((-2, -1))[:, None, None, None]
    theta = gaussian(replicas, dimension)
    logits = (phi @ theta[:, None, :, None])[..., 0]
    scale = spread / (logits - logits.mean(-1, keepdim=True)).square().mean((-2, -1)).sqrt()
    return LinearSoftmaxPolicy(theta * scale[:, None], phi)


def attractor_world(
    replicas: int, prompts: int, responses: int, dimension: int, *, pull: float, depth: float, seed: int
) -> LinearSoftmaxPolicy:
    """A linear world with one more response to each prompt, which pi_0 gives `depth` nats less than its mode.

    In the directions that other responses show, its logit is `pull` nats above the mode's; a further direction, in
    which all others are 0 and which no pair of them shows, takes pull + depth nats off it. An update that scales only
    what it saw raises it by `pull` against the mode, where the exact one lowers it by `depth`.
    """
    base = linear_world(replicas, prompts, responses - 1, dimension, seed=seed)
    best = (base.features @ base.theta[:, None, :, None])[..., 0].amax(-1)
    size = base.theta.norm(dim=-1)
    toward = (base.theta / size[:, None])[:, None] * ((best + pull) / size[:, None])[..., None]
    ordinary = torch.cat([base.features, toward[..., None, :]], -2)
    hidden = torch.zeros(*ordinary.shape[:-1], 1, dtype=torch.float64)
    hidden[..., -1, :] = -1.0
    phi = torch.cat([ordinary, hidden], -1)
    theta = torch.cat([base.theta, torch.full((replicas, 1), pull + depth, dtype=torch.float64)], -1)
    scale = phi.norm(dim=-1).amax((-2, -1))
    return LinearSoftmaxPolicy(theta * scale[:, None], phi / scale[:, None, None, None])
