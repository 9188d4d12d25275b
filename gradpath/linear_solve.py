"""Linear systems of many samples at once, given by their action on a vector. Used by `gradpath.implicit`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each sample, (B,); a and b are (B, n)."""
    return (a * b).sum(-1)


def matrix(operator: Operator, like: Tensor) -> Tensor:
    """Return the matrices (B, n, n) of an operator on (B, n), by one product per column."""
    columns = []
    for i in range(like.shape[1]):
        unit = torch.zeros_like(like)
        unit[:, i] = 1.0
        columns.append(operator(unit))
    return torch.stack(columns, dim=-1) if columns else like.new_zeros(like.shape[0], 0, 0)


def conjugate_gradient(
    operator: Operator, right: Tensor, *, tolerance: float, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve `operator(x) = right` for each sample, where the operator is symmetric and positive definite.

    Args:
        operator: Takes and gives (B, n); sample by sample.
        right: The right-hand sides, (B, n).
        tolerance: Relative norm of the residual at which a sample is done.
        iterations: The most products with the operator.
    Returns:
        x (B, n), whether the residual is small enough (B,), and whether every direction that was met has positive
        curvature (B,). A sample stops where the curvature is not positive, with what it has by then; with the
        right-hand side itself, a direction of descent, where it has nothing.
    """
    x, residual, direction = torch.zeros_like(right), right, right
    norm = dot(residual, residual)
    enough = tolerance**2 * norm
    positive = torch.ones_like(norm, dtype=torch.bool)
    for turn in range(iterations):
        active = positive & (norm > enough)
        if not active.any():
            break
        product = operator(direction)
        curvature = dot(direction, product)
        bent = active & ~(curvature > 0)
        positive = positive & ~bent
        if turn == 0:
            x = torch.where(bent[:, None], right, x)
        active = active & ~bent
        length = torch.where(active, norm / torch.where(active, curvature, 1.0), 0.0)
        x = x + length[:, None] * direction
        residual = residual - length[:, None] * product
        following = torch.where(active, dot(residual, residual), norm)
        ratio = torch.where(active, following / torch.where(norm > 0, norm, 1.0), 0.0)
        direction = torch.where(active[:, None], residual + ratio[:, None] * direction, direction)
        norm = following
    return x, norm <= enough, positive


def largest_eigenvalue(operator: Operator, like: Tensor, iterations: int = 30) -> Tensor:
    """Estimate the largest absolute eigenvalue of a symmetric operator for each sample, (B,), by power iteration."""
    n = like.shape[1]
    # A fixed vector with all components different: repeatable, and orthogonal to no eigenvector by symmetry.
    vector = (1.0 + 0.1 * torch.sin(torch.arange(1, n + 1, dtype=like.dtype, device=like.device))).expand_as(
        like
    )
    size = torch.ones_like(like[:, 0])
    for _ in range(iterations):
        vector = vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True).clamp_min(1e-30)
        vector = operator(vector)
        size = torch.linalg.vector_norm(vector, dim=-1)
    return size


def descent_series(operator: Operator, w: Tensor, rate: Tensor | float, steps: int) -> Tensor:
    """Return what backward through descent steps u - rate g(u), all at one solution, makes of a cotangent w (B, n).

    `operator` is the product with the transposed derivative of g; the limit of many steps is its inverse times w.
    """
    total, term = torch.zeros_like(w), rate * w
    for _ in range(steps):
        total = total + term
        term = term - rate * operator(term)
    return total
