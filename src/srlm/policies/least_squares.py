"""Minimum-norm and ball-constrained least squares for many replicas at once."""

from __future__ import annotations

import torch
from torch import Tensor

# Eigenvalues below are rounding errors of directions that were not observed: relative to the largest, and absolute for
# averages of outer products of vectors no longer than 2, as all ours are.
RELATIVE, ABSOLUTE = 1e-10, 1e-13
BISECTIONS = 100


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [..., D] with those that are rounding errors set to 0, and eigenvectors [..., D, D], of A >= 0."""
    values, vectors = torch.linalg.eigh(matrix)
    floor = (RELATIVE * values[..., -1:]).clamp_min(ABSOLUTE)
    return torch.where(values > floor, values, 0.0), vectors


def minimum_norm(matrix: Tensor, vector: Tensor, ridge: float = 0.0) -> Tensor:
    """argmin_z z'Az - 2z'b + ridge |z|^2 for A [..., D, D] >= 0, b [..., D]; with ridge 0 the one of least norm."""
    values, vectors = eigen(matrix)
    inverse = torch.where(values + ridge > 0, 1 / (values + ridge), 0.0)
    return _from(vectors, inverse * _into(vectors, vector))


def on_ball(matrix: Tensor, vector: Tensor, start: Tensor, radius: float, ridge: float = 0.0) -> Tensor:
    """argmin_z z'Az - 2z'b + ridge |z|^2 subject to |start + z| <= radius; of several the one nearest to z = 0.

    Let w = start + z. In directions that were not observed (A and ridge 0) w keeps what it has of `start`, shrunk
    until it fits. In the others w(mu) = (A + ridge + mu)^-1 (b + (A + ridge) start) falls in norm as mu >= 0 grows; mu
    is 0 if that fits the ball, and else bisected until it does.
    """
    values, vectors = eigen(matrix)
    values = values + ridge
    inside = _into(vectors, start)
    # A ridge holds on to z = 0, not to w = 0: (A + ridge) w = b + (A + ridge) start.
    target = torch.where(values > 0, _into(vectors, vector) + values * inside, 0.0)
    seen = values > 0

    def solution(mu: Tensor) -> Tensor:
        return torch.where(seen, target / torch.where(seen, values + mu, 1.0), 0.0)

    low = torch.zeros_like(start[..., :1])
    outside = solution(low).norm(dim=-1, keepdim=True) > radius
    high = torch.where(outside, target.norm(dim=-1, keepdim=True) / radius, 0.0)
    for _ in range(BISECTIONS if bool(outside.any()) else 0):
        middle = (low + high) / 2
        too_long = solution(middle).norm(dim=-1, keepdim=True) > radius
        low, high = torch.where(too_long, middle, low), torch.where(too_long, high, middle)
    found = solution(high)
    rest = torch.where(seen, 0.0, inside)
    room = (radius**2 - found.square().sum(-1, keepdim=True)).clamp_min(0).sqrt()
    share = (room / rest.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(rest.dtype).tiny)).clamp_max(1.0)
    return _from(vectors, found + share * rest - inside)


def _into(vectors: Tensor, x: Tensor) -> Tensor:
    return (vectors.mT @ x[..., None])[..., 0]


def _from(vectors: Tensor, x: Tensor) -> Tensor:
    return (vectors @ x[..., None])[..., 0]
