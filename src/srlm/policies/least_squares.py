"""Minimum-norm and ball-constrained least squares for many replicas at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Eigenvalues below are rounding errors of directions that were not observed: relative to the largest, and absolute for
# averages of outer products of vectors no longer than 2, as all ours are.
RELATIVE, ABSOLUTE = 1e-10, 1e-13
# How sharply Cholesky must tell the two kinds of directions apart to be believed.
CLEAR = 1e-4
BISECTIONS = 100


def minimum_norm(matrix: Tensor, vector: Tensor, ridge: float = 0.0) -> Tensor:
    """argmin_z z'Az - 2z'b + ridge |z|^2 for A [..., D, D] >= 0, b [..., D]; with ridge 0 the one of least norm."""
    return on_ball(matrix, vector, torch.zeros_like(vector), math.inf, ridge)


def on_ball(matrix: Tensor, vector: Tensor, start: Tensor, radius: float, ridge: float = 0.0) -> Tensor:
    """argmin_z z'Az - 2z'b + ridge |z|^2 subject to |start + z| <= radius; of several the one nearest to z = 0."""
    if ridge:
        matrix = matrix + ridge * torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    step, clear = by_cholesky(matrix, vector)
    hard = ~clear | ((start + step).norm(dim=-1) > radius)
    if bool(hard.any()):
        step[hard] = by_eigenvectors(matrix[hard], vector[hard], start[hard], radius)
    return step


def by_cholesky(matrix: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """The z of least norm among argmin_z z'Az - 2z'b, and whether it can be trusted [...]. Faster than eigenvectors.

    M = (A / shift + 1)^-1 has eigenvalues m = shift / (lambda + shift): nearly 1 in directions that were not observed,
    nearly 0 in the others. If sum m (1 - m) <= CLEAR, no lambda lies between CLEAR and 1 / CLEAR times the shift. What
    eigenvectors take for 0 ends in between (for D up to 1000), so which are 0 is beyond doubt. Then z is a series in M:
    m (1 - m)^3 (1 + 4m + 10m^2) / shift vanishes for those, and is 1 / lambda for the others but for 20m^3 of it.
    """
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    shift = 10 * (RELATIVE * trace).clamp_min(ABSOLUTE)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    half = torch.linalg.solve_triangular(torch.linalg.cholesky_ex(matrix / shift + eye)[0], eye, upper=False)
    unseen = half.mT @ half
    doubt = unseen.diagonal(dim1=-2, dim2=-1).sum(-1) - unseen.norm(dim=(-2, -1)).square()
    b = vector[..., None, :]
    # Not @ unseen: its rounding errors, small beside 1, are not small beside m of a direction that was observed.
    step = (b + (4 * b + 10 * b @ unseen) @ unseen) @ half.mT @ half / shift
    for _ in range(3):
        step = step - step @ unseen
    return step[..., 0, :], doubt <= CLEAR


def by_eigenvectors(matrix: Tensor, vector: Tensor, start: Tensor, radius: float) -> Tensor:
    """`on_ball` without a ridge, whatever the matrix.

    Let w = start + z. In directions that were not observed w keeps what it has of `start`, shrunk until it fits. In the
    others w(mu) = (A + mu)^-1 (b + A start) falls in norm as mu >= 0 grows; mu is 0 if that fits the ball, and else
    bisected until it does.
    """
    values, vectors = torch.linalg.eigh(matrix)
    seen = values > (RELATIVE * values[..., -1:]).clamp_min(ABSOLUTE)
    inside = _into(vectors, start)
    target = torch.where(seen, _into(vectors, vector) + values * inside, 0.0)

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
