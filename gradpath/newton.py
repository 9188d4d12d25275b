"""Where an objective is least and where an iteration stands still, sample by sample, without gradients.

Used by `gradpath.implicit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradpath.linear_solve import Operator, conjugate_gradient, dot, matrix

Slope = Callable[[Tensor], tuple[Tensor, Tensor]]
"""u (B, n), which requires a gradient, to the objective (B,) and its gradient (B, n) with its graph."""


def minimize(
    slope: Slope, u: Tensor, direct: bool, tolerance: float, iterations: int
) -> tuple[Tensor, Tensor, int]:
    """Newton's method with a line search; returns u (B, n), which samples converged (B,), and the iterations."""
    converged = torch.zeros(len(u), dtype=torch.bool, device=u.device)
    for count in range(iterations + 1):
        with torch.enable_grad():
            leaf = u.detach().requires_grad_()
            value, graph = slope(leaf)
            product = transposed_product(graph, leaf)
            step, convex = _newton_step(product, graph.detach(), direct)
        small = norm(step) <= tolerance * (1.0 + norm(u))
        converged = small & convex & u.isfinite().all(-1)
        if small.all() or count == iterations:
            u = torch.where(
                converged[:, None], u + step, u
            )  # a last full step squares the error that is left
            break
        u = _line_search(slope, u, value.detach(), graph.detach(), torch.where(converged[:, None], 0.0, step))
    return u, converged, count


def _newton_step(product: Operator, g: Tensor, direct: bool) -> tuple[Tensor, Tensor]:
    """A direction of descent (B, n), Newton's where the Hessian is positive definite, and where it is (B,)."""
    if not direct:
        step, _, positive = conjugate_gradient(product, -g, tolerance=1e-3, iterations=4 * g.shape[1] + 10)
        return step, positive
    hessian = matrix(product, g)
    finite = hessian.isfinite().flatten(1).all(-1) & g.isfinite().all(-1)
    safe = torch.where(finite[:, None, None], (hessian + hessian.mT) / 2, torch.eye(g.shape[1]).to(hessian))
    values, vectors = torch.linalg.eigh(safe)
    floor = 10 * torch.finfo(g.dtype).eps * values.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    scaled = (vectors.mT @ g[..., None])[..., 0] / values.abs().maximum(floor)
    step = -(vectors @ scaled[..., None])[..., 0]
    return step.nan_to_num(0.0, 0.0, 0.0), finite & (values > floor).all(-1)


def _line_search(slope: Slope, u: Tensor, value: Tensor, g: Tensor, step: Tensor) -> Tensor:
    """Halve the step of each sample until the objective falls as much as its slope promises."""
    length = torch.ones_like(value)
    slack = 10 * torch.finfo(u.dtype).eps * (1.0 + value.abs())  # rounding decides nothing
    for _ in range(30):
        with torch.enable_grad():
            trial = slope((u + length[:, None] * step).requires_grad_())[0].detach()
        good = trial <= value + 1e-4 * length * dot(g, step) + slack
        if good.all():
            break
        length = torch.where(good, length, length / 2)
    return torch.where(good[:, None], u + length[:, None] * step, u)


def iterate(
    step: Operator, u: Tensor, relaxation: float, tolerance: float, iterations: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Repeat `step` until nothing moves; returns u, which samples converged, the residual, and the iterations."""
    with torch.no_grad():
        for count in range(iterations + 1):
            gap = step(u) - u
            residual = norm(gap)
            converged = residual <= tolerance * (1.0 + norm(u))
            if converged.all() or count == iterations:
                break
            u = torch.where(converged[:, None], u, u + relaxation * gap)
    return u, converged, residual, count


def transposed_product(value: Tensor, at: Tensor) -> Operator:
    """Return w -> J'w, where J = d value / d at; for a gradient, the product with the Hessian."""

    def product(w: Tensor) -> Tensor:
        if not value.requires_grad:
            return torch.zeros_like(w)
        options: dict[str, Any] = {"retain_graph": True, "materialize_grads": True}
        return torch.autograd.grad(value, at, w, **options)[0]

    return product


def norm(x: Tensor) -> Tensor:
    """Return the length of each sample's vector, (B,)."""
    return torch.linalg.vector_norm(x, dim=-1)
