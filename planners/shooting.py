"""Single shooting: controls as the only unknowns, states by simulation, minimized by general optimizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradpath.errors import InputError, NonFiniteError, ShapeError
from gradpath.planners.problem import Function

Method = Literal["adam", "lbfgs"]
MOST_DAMPING = 1e12


class Shooting:
    """The cost of controls, by simulating what they do: what `shoot`, `mppi` and `cem` minimize.

    Args:
        dynamics: x (..., B, n), u (..., B, m) to the next x; a function or a `StageDynamics`.
        cost: x (..., T, B, n), u (..., T, B, m) to (..., T, B).
        final: x (..., B, n) to (..., B).
        x0: First state, (B, n).

    Calling it with controls (..., B, T, m) gives their costs, (..., B). Gradients: exact, in the controls and in all
    that is captured, where the dynamics has them.
    """

    def __init__(self, dynamics: Function, cost: Function, final: Function, x0: Tensor):
        self.dynamics, self.cost, self.final, self.x0 = dynamics, cost, final, x0

    def states(self, controls: Tensor) -> Tensor:
        """Simulate: controls (..., B, T, m) to states (..., B, T + 1, n)."""
        return self._simulate(controls.movedim(-2, 0)).movedim(0, -2)

    def __call__(self, controls: Tensor) -> Tensor:
        """Return the cost of controls (..., B, T, m), (..., B)."""
        by_time = controls.movedim(-2, 0)
        states = self._simulate(by_time)
        running = self.cost(states[:-1].movedim(0, -3), by_time.movedim(0, -3))
        return running.sum(-2) + self.final(states[-1])

    def _simulate(self, by_time: Tensor) -> Tensor:
        states = [self.x0.expand(*by_time.shape[1:-1], self.x0.shape[-1])]
        for u in by_time:
            states.append(self.dynamics(states[-1], u))
        return torch.stack(states)


@dataclass
class Shot:
    """What a shooting method finds.

    Attributes:
        controls: (B, T, m), within their bounds; no gradient.
        cost: (B,).
        converged: Whether the slope, of the controls that are free, is below the tolerance, (B,) bool.
        iterations: Iterations taken.
    """

    controls: Tensor
    cost: Tensor
    converged: Tensor
    iterations: int


def shoot(
    objective: Callable[[Tensor], Tensor],
    controls: Tensor,
    *,
    method: Method = "lbfgs",
    low: float = -torch.inf,
    high: float = torch.inf,
    iterations: int = 200,
    learning_rate: float = 0.05,
    tolerance: float = 1e-5,
) -> Shot:
    """Minimize over controls by Adam or L-BFGS, with gradients through the simulation.

    Bounds are kept by minimizing over v in u = middle + half tanh(v), which reaches them in the limit only. For exact
    bounds, fast convergence and a gradient of the result, see `ilqr`.

    Args:
        objective: Controls (B, T, m) to (B,), such as a `Shooting`; sample by sample.
        controls: Where to start, (B, T, m), between the bounds.
        method: `"adam"`: robust where the objective is rough. `"lbfgs"`: quick where it is smooth; all samples share
            its steps.
        low: Least control.
        high: Largest control.
        iterations: The most steps of Adam, or iterations of L-BFGS.
        learning_rate: Of Adam.
        tolerance: On the largest slope of a sample by the unknowns.
    Returns:
        The best that was found for each sample.
    Raises:
        InputError: an unknown method, a box that is empty or bounded on one side only, a start outside of it.
        NonFiniteError: the cost of the start is NaN or infinite; names the sample.
    """
    if method not in ("adam", "lbfgs"):
        raise InputError(f'shoot: method "{method}" is not known; it is one of adam, lbfgs')
    bounded = _check_box("shoot", low, high, controls)
    middle, half = (0.5 * (low + high), 0.5 * (high - low)) if bounded else (0.0, 1.0)

    def actual(v: Tensor) -> Tensor:
        return middle + half * torch.tanh(v) if bounded else v

    begin = controls.detach().clone()
    if bounded:
        begin = torch.atanh(((begin - middle) / half).clamp(-0.999, 0.999))
    v = begin.requires_grad_()
    best = _Best(objective(controls.detach()), actual(v.detach()), "shoot")
    optimizer: torch.optim.Optimizer
    if method == "adam":
        optimizer = torch.optim.Adam([v], lr=learning_rate)
    else:
        optimizer = torch.optim.LBFGS([v], max_iter=20, line_search_fn="strong_wolfe", tolerance_grad=0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            cost = objective(actual(v))
            cost.sum().backward(inputs=[v])
        assert v.grad is not None
        best.offer(cost.detach(), actual(v.detach()), v.grad, tolerance)
        return cost.sum()

    count = 0
    for _ in range(iterations if method == "adam" else -(-iterations // 20)):
        optimizer.step(closure)
        count += 1
        if best.converged.all():
            break
    return Shot(best.controls, best.cost, best.converged, count if method == "adam" else 20 * count)


class _Best:
    """The best controls of each sample so far."""

    def __init__(self, cost: Tensor, controls: Tensor, name: str):
        bad = ~cost.isfinite()
        if cost.shape != (len(controls),):
            raise ShapeError(
                f"{name}: the objective gave {tuple(cost.shape)}; it is one number per sample, ({len(controls)},)"
            )
        if bad.any():
            raise NonFiniteError(
                f"{name}: the cost of the start of sample {int(bad.nonzero()[0])} is NaN or infinite, so no direction "
                "leads down from there; start from other controls"
            )
        self.cost, self.controls = cost.detach(), controls
        self.converged = torch.zeros_like(bad)

    def offer(self, cost: Tensor, controls: Tensor, slope: Tensor, tolerance: float) -> None:
        better = cost <= self.cost
        self.cost = torch.where(better, cost, self.cost)
        self.controls = torch.where(better[:, None, None], controls, self.controls)
        flat = slope.abs().flatten(1).amax(-1) <= tolerance
        self.converged = torch.where(better, flat, self.converged)


def levenberg_marquardt(
    residuals: Callable[[Tensor], Tensor],
    controls: Tensor,
    *,
    low: float = -torch.inf,
    high: float = torch.inf,
    iterations: int = 50,
    tolerance: float | None = None,
) -> Shot:
    """Minimize half the sum of squares of residuals over controls, sample by sample, within bounds.

    Args:
        residuals: Controls (..., B, T, m) to (..., B, k), with any axes before the batch: the Jacobian comes from one
            backward pass over k copies.
        controls: Where to start, (B, T, m).
        low: Least control.
        high: Largest control.
        iterations: The most steps that are tried.
        tolerance: A sample has converged where its step is shorter than this times 1 + |u|; None: 1e-8 in float64,
            1e-4 in float32.
    Returns:
        Controls, and half the sum of squares as the cost.
    Raises:
        InputError: an empty box, or a start outside of it.
        NonFiniteError: residuals of the start that are not finite.
    References: Nocedal, Wright 2006, Numerical Optimization, section 10.3; Kanzow, Yamashita, Fukushima 2004.
    """
    _check_box("levenberg_marquardt", low, high, controls, one_side=True)
    if tolerance is None:
        tolerance = 1e-8 if controls.dtype == torch.float64 else 1e-4
    u = controls.detach().clone()
    shape = u.shape
    value, jacobian = _linearize(residuals, u)
    best = _Best(0.5 * value.square().sum(-1), u, "levenberg_marquardt")
    cost = best.cost
    damping = torch.full_like(cost, 1e-3)
    converged = torch.zeros_like(cost, dtype=torch.bool)
    identity = torch.eye(jacobian.shape[-1], dtype=u.dtype, device=u.device)
    count = 0
    for _ in range(iterations):
        count += 1
        flat = u.flatten(1)
        slope = (jacobian.mT @ value[..., None])[..., 0]
        held = ((flat <= low) & (slope > 0)) | ((flat >= high) & (slope < 0))
        free = (~held).to(u.dtype)
        normal = jacobian.mT @ jacobian
        scale = damping[:, None, None] * (
            normal.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None] * identity
        )
        matrix = normal * free[:, :, None] * free[:, None, :] + scale + torch.diag_embed(1.0 - free)
        step, failed = torch.linalg.solve_ex(matrix, -(free * slope)[..., None])
        step = torch.where((failed == 0)[:, None], step[..., 0], 0.0)
        trial = (flat + step).clamp(low, high)
        length = torch.linalg.vector_norm(trial - flat, dim=-1)
        small = length <= tolerance * (1.0 + torch.linalg.vector_norm(flat, dim=-1))
        converged = small & (damping < 1.0) & (failed == 0)
        if (converged | (damping > MOST_DAMPING)).all():
            break
        new_value, new_jacobian = _linearize(residuals, trial.view(shape))
        new_cost = 0.5 * new_value.square().sum(-1)
        better = (new_cost < cost) & ~converged
        u = torch.where(better[:, None], trial, flat).view(shape)
        cost = torch.where(better, new_cost, cost)
        value = torch.where(better[:, None], new_value, value)
        jacobian = torch.where(better[:, None, None], new_jacobian, jacobian)
        damping = torch.where(better, (damping / 5.0).clamp_min(1e-12), 5.0 * damping)
    return Shot(u, cost, converged, count)


def _linearize(residuals: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals (B, k) and their Jacobian (B, k, T m)."""
    with torch.no_grad():
        value = residuals(u)
    if value.ndim != 2 or len(value) != len(u):
        raise ShapeError(
            f"levenberg_marquardt: residuals gave {tuple(value.shape)} for controls {tuple(u.shape)}; expected (B, k)"
        )
    k = value.shape[1]
    with torch.enable_grad():
        copies = u.expand(k, *u.shape).detach().requires_grad_()
        unit = torch.eye(k, dtype=u.dtype, device=u.device)[:, None].expand(k, len(u), k)
        (rows,) = torch.autograd.grad(residuals(copies), copies, unit)
    return value, rows.flatten(2).transpose(0, 1)


def _check_box(name: str, low: float, high: float, controls: Tensor, one_side: bool = False) -> bool:
    """Refuse a box that is none; return whether it is bounded."""
    if controls.ndim != 3:
        raise ShapeError(f"{name}: expected controls (B, T, m), got {tuple(controls.shape)}")
    bounded = low > -torch.inf or high < torch.inf
    if not low < high or not bool(((controls >= low) & (controls <= high)).all()):
        raise InputError(
            f"{name}: low < high and a start between them, got {low} to {high} and controls from "
            f"{float(controls.min())} to {float(controls.max())}"
        )
    if bounded and not one_side and not (low > -torch.inf and high < torch.inf):
        raise InputError(f"{name}: give both bounds or none, got {low} and {high}")
    return bounded
