"""Implicit gradients: through the solution of an optimization or a fixed point, not through the solver.

At a minimum, g(u, a) = df/du = 0, so du/da = -H^-1 dg/da with H = dg/du: one linear solve, however many iterations
the minimum took. H is the exact Hessian, by products with vectors; what is cheaper and not exact has a name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError
from gradpath.implicit_report import Report, publish, record, relative_difference
from gradpath.linear_solve import (
    Operator,
    conjugate_gradient,
    descent_series,
    largest_eigenvalue,
    matrix,
)
from gradpath.newton import iterate, minimize, norm, transposed_product
from gradpath.second_derivative import has_second_derivative

__all__ = ["Report", "argmin", "fixed_point", "record"]

DIRECT_SIZE = 32  # up to this many unknowns, a dense matrix is quicker than conjugate gradients

Gradient = Literal["implicit", "gauss_newton", "unroll"]
Linear = Literal["auto", "direct", "cg"]
Function = Callable[..., Tensor]


def argmin(
    objective: Function,
    init: Tensor,
    *parameters: Tensor,
    gradient: Gradient = "implicit",
    residuals: Function | None = None,
    linear: Linear = "auto",
    damping: float = 0.0,
    unroll: int = 10,
    iterations: int = 100,
    tolerance: float | None = None,
) -> Tensor:
    """Minimize an objective for each sample, and differentiate the minimizer with respect to what it depends on.

    ```python
    u = gp.implicit.argmin(lambda u, a: 0.5 * ((u.sin() - a) ** 2 + u**2).sum(-1), torch.zeros(8, 1), a)
    ```

    Minimizes by Newton's method with a line search; a direction of negative curvature is followed downhill.

    Args:
        objective: `objective(u, *parameters)` gives one number per sample, (B,), twice differentiable; sample i may
            depend on u[i] only. Tensors that it captures, such as the weights of a network, get gradients too.
        init: Where to start, (B, ...). Has no gradient: a minimizer does not depend on the start.
        parameters: What the objective depends on; any shapes.
        gradient: `"implicit"`, exact. `"gauss_newton"`: J'J of `residuals` in place of the Hessian, without the
            curvature of the residuals. `"unroll"`: what backward through `unroll` steps of gradient descent at the
            minimum would give, without their memory; the exact gradient is its limit for many steps.
        residuals: `residuals(u, *parameters)`, (B, m), whose half sum of squares the objective is. For Gauss-Newton.
        linear: How the linear systems are solved: `"direct"` with dense matrices, `"cg"` by conjugate gradients,
            `"auto"`: direct up to 32 unknowns.
        damping: Added to the diagonal of the matrix that the gradient is solved with; biases it towards zero.
        unroll: Steps of `"unroll"`.
        iterations: The most Newton steps.
        tolerance: A sample has converged where the Newton step is shorter than this times 1 + |u|; None: 1e-9 in
            float64, 1e-5 in float32.
    Returns:
        The minimizers, of the shape of `init`. Samples that did not converge, or have no strict minimum there, are
        returned as they are; a warning says how many, and their gradient is zero.
    Raises:
        ShapeError: the objective is not one number per sample.
        InputError: an option is out of range, `residuals` is missing or not needed, or u passes through something in
            the objective that can be differentiated once only, such as a Warp kernel.
    Gradients: parameters and captured tensors as chosen, once differentiable; `init` none.
    References: Blondel et al. 2022, Efficient and Modular Implicit Differentiation; Shaban et al. 2019, Truncated
        Back-propagation for Bilevel Optimization.
    """
    _check_options(
        init, gradient, ("implicit", "gauss_newton", "unroll"), linear, damping, unroll, iterations
    )
    if (gradient == "gauss_newton") != (residuals is not None):
        raise InputError(
            "implicit.argmin: gauss_newton needs residuals=, the function whose half sum of squares the objective "
            "is, and no other choice takes it; pass both or neither"
        )
    name, shape = _name(objective), init.shape
    direct = linear == "direct" or (linear == "auto" and init[:1].numel() <= DIRECT_SIZE)

    def slope(u: Tensor) -> tuple[Tensor, Tensor]:
        value = _per_sample(objective(u.view(shape), *parameters), len(init), name)
        if not value.requires_grad:
            return value, torch.zeros_like(u, requires_grad=True)
        (g,) = torch.autograd.grad(value.sum(), u, create_graph=True, materialize_grads=True)
        return value, g

    start = _flat(init.detach())
    _check_twice(slope, start, name)
    tolerance = _tolerance(tolerance, init)
    u, converged, count = minimize(slope, start, direct, tolerance, iterations)
    with torch.enable_grad():
        leaf = u.clone().requires_grad_()
        g = slope(leaf)[1]
        hessian = transposed_product(g, leaf)
        report = Report(name, gradient, converged, norm(g.detach()), count)
        recorded = publish(report)
        _warn(report)
        used = hessian
        if residuals is not None:
            used = _gauss_newton(residuals(leaf.view(shape), *parameters).flatten(1), leaf)

        def solve(w: Tensor) -> Tensor:
            if gradient == "unroll":
                given = descent_series(hessian, w, _descent_rate(hessian, w), unroll)
            else:
                given = _solve_symmetric(used, w, direct, damping)
            if recorded and (gradient != "implicit" or damping):
                exact = _solve_symmetric(hessian, w, direct, 0.0)
                report.difference = relative_difference(given, exact, converged)
            return -given

    return _Solution.apply(u, g, solve, converged).view(shape)


def fixed_point(
    function: Function,
    init: Tensor,
    *parameters: Tensor,
    gradient: Literal["implicit", "unroll"] = "implicit",
    linear: Linear = "auto",
    damping: float = 0.0,
    unroll: int = 10,
    relaxation: float = 1.0,
    iterations: int = 1000,
    tolerance: float | None = None,
) -> Tensor:
    """Iterate `u = function(u, *parameters)` until it stands still, and differentiate where it stands.

    Args:
        function: `function(u, *parameters)` gives a tensor of the shape of u; sample i may depend on u[i] only, and
            the iteration must contract. Tensors that it captures get gradients too.
        init: Where to start, (B, ...). Has no gradient.
        parameters: What the function depends on; any shapes.
        gradient: `"implicit"`, exact: (I - J') w = v is solved. `"unroll"`: what backward through
            the last `unroll` steps would give, without their memory.
        linear: `"direct"` with dense matrices, `"cg"` by conjugate gradients on the normal equations, `"auto"`:
            direct up to 32 unknowns.
        damping: The system is solved in the least-squares sense with this on the diagonal of its normal equations.
        unroll: Steps of `"unroll"`.
        relaxation: Share of each step that is taken, in (0, 1].
        iterations: The most steps.
        tolerance: A sample has converged where |u - function(u)| is below this times 1 + |u|; None: 1e-9 in float64,
            1e-5 in float32.
    Returns:
        The fixed points, of the shape of `init`. Samples that did not converge are returned as they are; a warning
        says how many, and their gradient is zero.
    Raises:
        ShapeError: the function returns another shape.
        InputError: an option is out of range.
    Gradients: parameters and captured tensors as chosen, once differentiable; `init` none.
    References: Bai, Kolter, Koltun 2019, Deep Equilibrium Models.
    """
    _check_options(init, gradient, ("implicit", "unroll"), linear, damping, unroll, iterations)
    if not 0.0 < relaxation <= 1.0:
        raise InputError(f"implicit.fixed_point: relaxation is a share in (0, 1], got {relaxation}")
    name, shape = _name(function), init.shape
    direct = linear == "direct" or (linear == "auto" and init[:1].numel() <= DIRECT_SIZE)

    def step(u: Tensor) -> Tensor:
        value = function(u.view(shape), *parameters)
        if value.shape != shape:
            raise ShapeError(f"implicit: {name} returned {tuple(value.shape)} for u of shape {tuple(shape)}")
        return _flat(value)

    tolerance = _tolerance(tolerance, init)
    u, converged, residual, count = iterate(step, _flat(init.detach()), relaxation, tolerance, iterations)
    with torch.enable_grad():
        report = Report(name, gradient, converged, residual, count)
        recorded = publish(report)
        _warn(report)
        leaf = u.clone().requires_grad_()
        gap = leaf - step(leaf)
        backward = transposed_product(gap, leaf)
        forward = _product(gap, leaf)

        def normal(v: Tensor) -> Tensor:
            return backward(forward(v))

        def solve_exactly(w: Tensor) -> Tensor:
            if direct:
                return _solve_dense(matrix(backward, w), w)
            return forward(_solve_symmetric(normal, w, direct, 0.0))

        def solve(w: Tensor) -> Tensor:
            if gradient == "unroll":
                given = descent_series(backward, w, relaxation, unroll)
            elif damping:
                given = forward(_solve_symmetric(normal, w, direct, damping))
            else:
                return -solve_exactly(w)
            if recorded:
                report.difference = relative_difference(given, solve_exactly(w), converged)
            return -given

    return _Solution.apply(u, gap, solve, converged).view(shape)


class _Solution(torch.autograd.Function):
    """The solution forward; backward, the cotangent of the equation that it solves, zero where not converged."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, equation: Tensor, solve: Operator, converged: Tensor) -> Tensor:
        ctx.solve, ctx.converged = solve, converged
        return u.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, w: Tensor) -> Any:
        kept = torch.where(ctx.converged[:, None], w, 0.0)
        return None, torch.where(ctx.converged[:, None], ctx.solve(kept), 0.0), None, None


def _descent_rate(hessian: Operator, like: Tensor) -> Tensor:
    largest = largest_eigenvalue(hessian, like)
    return torch.where(largest > 0, 1.0 / (1.05 * largest), 0.0)[:, None]


def _product(value: Tensor, at: Tensor) -> Operator:
    """v -> Jv, where J = d value / d at: the derivative of J'w, which is linear in w, by w."""
    seed = torch.zeros_like(value, requires_grad=True)
    (linear,) = torch.autograd.grad(value, at, seed, create_graph=True, materialize_grads=True)

    def product(v: Tensor) -> Tensor:
        return torch.autograd.grad(linear, seed, v, retain_graph=True, materialize_grads=True)[0]

    return product


def _gauss_newton(residual: Tensor, at: Tensor) -> Operator:
    forward, backward = _product(residual, at), transposed_product(residual, at)
    return lambda v: backward(forward(v))


def _solve_symmetric(product: Operator, w: Tensor, direct: bool, damping: float) -> Tensor:
    if direct:
        dense = matrix(product, w)
        return _solve_dense(dense + damping * torch.eye(w.shape[1]).to(dense), w)
    options = {"tolerance": 10 * torch.finfo(w.dtype).eps, "iterations": 10 * w.shape[1] + 20}
    x, done, positive = conjugate_gradient(lambda v: product(v) + damping * v, w, **options)  # type: ignore[arg-type]
    # The last digits may be out of reach; what matters is a residual far below the gradient's own use.
    poor = ~positive | (norm(product(x) + damping * x - w) > torch.finfo(w.dtype).eps ** 0.5 * norm(w))
    return _without(x, poor & ~done, w)


def _solve_dense(dense: Tensor, w: Tensor) -> Tensor:
    x, info = torch.linalg.solve_ex(dense, w)
    return _without(x, (info != 0) | ~x.isfinite().all(-1), w)


def _without(x: Tensor, bad: Tensor, w: Tensor) -> Tensor:
    bad = bad & (w != 0).any(-1)
    if bad.any():
        _say(f"the linear system of {int(bad.sum())} of {len(x)} samples is singular or indefinite")
    return torch.where(bad[:, None], 0.0, x)


def _warn(report: Report) -> None:
    if not report.converged.all():
        failed = (~report.converged).nonzero().flatten().tolist()
        some = ", ".join(map(str, failed[:5])) + (", ..." if len(failed) > 5 else "")
        _say(
            f"{report.name}: {len(failed)} of {report.converged.numel()} samples did not converge in "
            f"{report.iterations} iterations (samples {some})"
        )


def _say(text: str) -> None:
    warnings.warn(
        f"implicit: {text}; their gradient is zero. Start closer, allow more iterations, or add damping",
        RuntimeWarning,
        stacklevel=4,
    )


def _check_options(
    init: Tensor,
    gradient: str,
    known: tuple[str, ...],
    linear: str,
    damping: float,
    unroll: int,
    iterations: int,
) -> None:
    if gradient not in known:
        raise InputError(f'implicit: gradient "{gradient}" is not known; it is one of {", ".join(known)}')
    if linear not in ("auto", "direct", "cg"):
        raise InputError(f'implicit: linear "{linear}" is not known; it is one of auto, direct, cg')
    if damping < 0 or unroll < 1 or iterations < 1:
        got = f"damping={damping}, unroll={unroll}, iterations={iterations}"
        raise InputError(f"implicit: damping is at least 0, unroll and iterations at least 1; got {got}")
    if init.ndim < 1 or not init.is_floating_point():
        got = f"{init.dtype} of shape {tuple(init.shape)}"
        raise ShapeError(
            f"implicit: init is a floating tensor (B, ...) whose first axis is the batch, got {got}"
        )


def _check_twice(slope: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, name: str) -> None:
    """Refuse an objective whose Hessian would be wrong without an error: curvature that is zero where it is not."""
    with torch.enable_grad():
        leaf = start.clone().requires_grad_()
        if not has_second_derivative(slope(leaf)[0], (leaf,)):
            raise InputError(
                f"implicit.argmin: {name} passes u through a function that can be differentiated once only, such as a "
                "Warp kernel, so its curvature would count as zero; write that part in torch, or keep u out of it and "
                "pass its result as a parameter"
            )


def _per_sample(value: Tensor, batch: int, name: str) -> Tensor:
    if value.shape != (batch,):
        raise ShapeError(
            f"implicit: {name} returned {tuple(value.shape)}; expected one number per sample, ({batch},): sum over "
            "the other axes"
        )
    return value


def _tolerance(given: float | None, init: Tensor) -> float:
    return given if given is not None else 1e-9 if init.dtype == torch.float64 else 1e-5


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__).rpartition(".")[2]


def _flat(value: Tensor) -> Tensor:
    return value[:, None] if value.ndim == 1 else value.flatten(1)
