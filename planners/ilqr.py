"""Trajectory optimization by differential dynamic programming with bounded controls, differentiable at the optimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError
from gradpath.planners import riccati
from gradpath.planners.adjoint import Condition, attach
from gradpath.planners.augmented import Augmented
from gradpath.planners.problem import Derivatives, Function, Problem

Gradient = Literal["implicit", "gauss_newton", "unroll"]
Hessian = Literal["exact", "gauss_newton"]

STEP_LENGTHS = 10  # 1, 1/2, ..., tried at once
LEAST_DAMPING, MOST_DAMPING = 1e-6, 1e10


@dataclass
class Plan:
    """What a trajectory optimizer finds.

    Attributes:
        states: (B, T + 1, n), differentiable.
        controls: (B, T, m), within their bounds, differentiable.
        cost: (B,), without gradient.
        converged: Which samples are at a minimum, (B,) bool; the gradient of the others is zero.
        violation: How far the state constraints are exceeded at most, (B,); zero without constraints.
        iterations: Iterations taken.
    """

    states: Tensor
    controls: Tensor
    cost: Tensor
    converged: Tensor
    violation: Tensor
    iterations: int


@dataclass
class _Iterate:
    """The trajectories so far, time first, and what the solver knows of each sample."""

    states: Tensor
    controls: Tensor
    cost: Tensor
    damping: Tensor
    converged: Tensor


def ilqr(
    dynamics: Function,
    cost: Function,
    final: Function,
    x0: Tensor,
    controls: Tensor,
    *,
    low: Tensor | float | None = None,
    high: Tensor | float | None = None,
    constraint: Function | None = None,
    gradient: Gradient = "implicit",
    hessian: Hessian = "exact",
    unroll: int = 10,
    iterations: int = 100,
    tolerance: float | None = None,
) -> Plan:
    """Find the controls of least cost within bounds, and differentiate them with respect to what they depend on.

    Minimizes the sum of cost(x_t, u_t) over the steps and final(x_T), where x_{t+1} = dynamics(x_t, u_t) and
    low <= u_t <= high. Each iteration is Newton's for the whole horizon, solved backwards in time; controls at a bound
    that the cost pushes against are held; a line search follows the step with feedback, cut off at the bounds.

    Functions are called with any axes before the batch: time steps, candidates, directions. Index the last axis,
    `x[..., 0]`. What they capture may be (B, ...), or (T, B, ...) in the cost, and gets gradients.

    Args:
        dynamics: x (..., B, n), u (..., B, m) to the next x; a function, or a `StageDynamics`.
        cost: x (..., T, B, n), u (..., T, B, m) to (..., T, B).
        final: x (..., B, n) to (..., B).
        x0: First state, (B, n), differentiable.
        controls: Where to start, (B, T, m): zeros, or the last plan. No gradient.
        low: Least control, a number, (m,), (B, m) or (B, T, m). No gradient; None: no bound.
        high: Largest control, likewise.
        constraint: x (..., B, n) to (..., B, k), at most zero in every state after the first, by an augmented
            Lagrangian.
        gradient: `"implicit"`: exact, of the optimum, with the curvature of the dynamics. `"gauss_newton"`: without
            second derivatives of the dynamics. `"unroll"`: what backward through `unroll` steps of gradient descent
            at the optimum would give, without their memory.
        hessian: What the solver uses: the exact one, or that of the costs alone (iLQR), which needs first derivatives
            of the dynamics only and converges more slowly.
        unroll: Steps of `"unroll"`.
        iterations: The most iterations; with a constraint, of each round of its multipliers.
        tolerance: A sample has converged where the Newton step is shorter than this times 1 + |u|; None: 1e-9 in
            float64, 1e-4 in float32.
    Returns:
        A `Plan`. Samples that did not converge are returned as they are; a warning says how many, and their gradient
        is zero. `gp.implicit.record()` collects the reports.
    Raises:
        InputError: an empty box, a start that is not finite, an unknown choice.
        ShapeError: shapes that do not fit, or a function that returns another one.
        ContractError: second derivatives of dynamics that has none; says the choices.
    Gradients: x0 and captured tensors as chosen, once differentiable; `controls`, `low` and `high` none.
    References: Tassa, Mansard, Todorov 2014, Control-Limited Differential Dynamic Programming; Bertsekas 1982,
        Projected Newton Methods; Amos et al. 2018, Differentiable MPC; Howell et al. 2019, ALTRO.
    """
    _check(x0, controls, gradient, hessian, unroll, iterations)
    start, first = x0.detach(), controls.detach().transpose(0, 1)
    box = _bound("low", low, first, -torch.inf), _bound("high", high, first, torch.inf)
    _check_box(*box)
    problem = Problem(dynamics, cost, final)
    exact = hessian == "exact"
    curved = exact or gradient != "gauss_newton"
    problem.check(start, first, curved)
    if tolerance is None:
        tolerance = 1e-9 if x0.dtype == torch.float64 else 1e-4
    augmented = None if constraint is None else Augmented(problem, constraint, start, first)
    solver = _Solver(problem if augmented is None else augmented, box, exact, tolerance)
    found, count = solver.run(start, first, iterations)
    violation = torch.zeros_like(found.cost)
    if augmented is not None:
        for _ in range(augmented.most_rounds):
            if augmented.update(found.states):
                break
            found, used = solver.run(start, found.controls, iterations)
            count += used
        violation = augmented.violation(found.states)
        found.converged &= augmented.settled
    condition = Condition(problem, augmented, box, gradient, unroll, curved)
    states, u = attach(condition, x0, found.states, found.controls, found.converged, count)
    return Plan(
        states.transpose(0, 1),
        u.transpose(0, 1),
        problem.total(found.states, found.controls),
        found.converged,
        violation,
        count,
    )


class _Solver:
    """Projected Newton over the horizon, sample by sample, without gradients."""

    def __init__(self, problem: Any, box: tuple[Tensor, Tensor], exact: bool, tolerance: float):
        self.problem, self.exact, self.tolerance = problem, exact, tolerance
        self.low, self.high = box

    def run(self, start: Tensor, controls: Tensor, iterations: int) -> tuple[_Iterate, int]:
        """Iterate from controls (T, B, m) until all samples have converged."""
        u = torch.minimum(torch.maximum(controls, self.low), self.high)
        x = self.problem.rollout(start, u)
        batch = x.shape[1]
        cost = self.problem.total(x, u)
        now = _Iterate(
            x,
            u,
            torch.where(x.isfinite().all(-1).all(0), cost, torch.inf),
            x.new_zeros(batch),
            torch.zeros(batch, dtype=torch.bool, device=x.device),
        )
        count = 0
        for count in range(iterations + 1):
            # A model may refuse what is not finite: where the motion diverges, it is looked at as if it stood still.
            sound = now.states.isfinite().all(-1).all(0)
            now.states = torch.where(sound[:, None], now.states, start)
            found = self.problem.derivatives(now.states, now.controls, self.exact)
            held = held_controls(now.controls, found.slope, self.low, self.high)
            factors, newton = self._factorize(found, held, now)
            step = riccati.solve(factors, found.linear, found.final_linear, torch.zeros_like(start))
            length, size = _length(step.controls), _length(now.controls)
            # A damped step is short because it is damped, not because the minimum is near.
            short = length <= self.tolerance * (1.0 + size)
            now.converged = newton & (now.damping == 0) & short & now.cost.isfinite()
            stuck = now.damping > MOST_DAMPING
            if (now.converged | stuck | ~now.cost.isfinite()).all() or count == iterations:
                self._finish(now, step, factors, start)
                break
            self._search(now, step, factors, found.slope, start)
        return now, count

    def _factorize(self, found: Derivatives, held: Tensor, now: _Iterate) -> tuple[riccati.Factors, Tensor]:
        """Factors of each sample, with the exact Hessian where that has a minimum, else with that of the costs.

        Returns them and where the Hessian is the one that was asked for.
        """
        hessian = found.gauss_newton if found.hessian is None else found.hessian
        newton = torch.ones_like(now.converged)
        for _ in range(20):
            factors = riccati.factorize(hessian, found.transition, found.final_hessian, held, now.damping)
            bad = ~factors.positive.all(0)
            if not bad.any():
                break
            falls = bad & newton if found.hessian is not None else torch.zeros_like(bad)
            hessian = torch.where(falls[:, None, None], found.gauss_newton, hessian)
            newton = newton & ~bad
            raised = (10.0 * now.damping).clamp_min(LEAST_DAMPING)
            now.damping = torch.where(bad & ~falls, raised, now.damping)
        return factors, newton

    def _search(
        self,
        now: _Iterate,
        step: riccati.Trajectories,
        factors: riccati.Factors,
        slope: Tensor,
        start: Tensor,
    ) -> None:
        """Take the longest of some steps that lowers the cost enough; damp the samples that find none."""
        lengths = 0.5 ** torch.arange(STEP_LENGTHS, dtype=start.dtype, device=start.device)
        x, u = self._follow(now, step, factors, start, lengths)
        cost = self.problem.total(x.movedim(1, 0), u.movedim(1, 0))
        moved = (slope[:, None] * (u - now.controls[:, None])).sum((0, -1))
        slack = 10 * torch.finfo(start.dtype).eps * (1.0 + now.cost.abs())  # rounding decides nothing
        good = (cost <= now.cost + 1e-4 * moved.clamp_max(0.0) + slack) & cost.isfinite()
        any_good = good.any(0)
        pick = good.to(torch.uint8).argmax(0)
        sample = torch.arange(len(pick), device=start.device)
        accepted = any_good & ~now.converged
        now.states = torch.where(accepted[:, None], x[:, pick, sample], now.states)
        now.controls = torch.where(accepted[:, None], u[:, pick, sample], now.controls)
        now.cost = torch.where(accepted, cost[pick, sample], now.cost)
        raised = (10.0 * now.damping).clamp_min(LEAST_DAMPING)
        lowered = torch.where(now.damping > 10 * LEAST_DAMPING, now.damping / 10, 0.0)
        now.damping = torch.where(now.converged | any_good, lowered, raised)

    def _finish(
        self, now: _Iterate, step: riccati.Trajectories, factors: riccati.Factors, start: Tensor
    ) -> None:
        """Take the last full step of the converged samples, which squares the error that is left."""
        x, u = self._follow(now, step, factors, start, torch.ones_like(start[:1, 0]))
        cost = self.problem.total(x[:, 0], u[:, 0])
        slack = 10 * torch.finfo(start.dtype).eps * (1.0 + now.cost.abs())
        better = now.converged & (cost <= now.cost + slack)
        now.states = torch.where(better[:, None], x[:, 0], now.states)
        now.controls = torch.where(better[:, None], u[:, 0], now.controls)
        now.cost = torch.where(better, cost, now.cost)

    @torch.no_grad()
    def _follow(
        self,
        now: _Iterate,
        step: riccati.Trajectories,
        factors: riccati.Factors,
        start: Tensor,
        lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Trajectories (T + 1, K, B, n), (T, K, B, m) of the feedback around the current one, K step lengths."""
        share = lengths[:, None, None]
        x = start.expand(len(lengths), *start.shape)
        lost = torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)[..., None]
        states, controls = [x], []
        for t in range(len(now.controls)):
            ahead = share * step.controls[t]
            ahead = ahead + riccati.apply(factors.gains[t], x - now.states[t] - share * step.states[t])
            u = torch.minimum(torch.maximum(now.controls[t] + ahead, self.low[t]), self.high[t])
            lost = lost | ~u.isfinite().all(-1, keepdim=True)
            u = torch.where(lost, now.controls[t], u)  # a model may refuse what is not finite
            x = self.problem.dynamics(x, u)
            lost = lost | ~x.isfinite().all(-1, keepdim=True)
            x = torch.where(lost, now.states[t + 1], x)
            states.append(torch.where(lost, torch.nan, x))
            controls.append(u)
        return torch.stack(states), torch.stack(controls)


def held_controls(controls: Tensor, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Where a control is at a bound and the cost would fall beyond it, (T, B, m) bool."""
    return ((controls <= low) & (slope > 0)) | ((controls >= high) & (slope < 0)) | (low == high)


def _length(x: Tensor) -> Tensor:
    """Norm of each sample over time and components, (B,)."""
    return torch.linalg.vector_norm(x, dim=(0, -1))


def _bound(name: str, given: Tensor | float | None, like: Tensor, missing: float) -> Tensor:
    if given is None:
        return torch.full_like(like, missing)
    value = torch.as_tensor(given, dtype=like.dtype, device=like.device).detach()
    if value.ndim == 3:
        value = value.transpose(0, 1)
    try:
        return value.expand_as(like)
    except RuntimeError:
        length, batch, m = like.shape
        raise ShapeError(
            f"ilqr: {name} has shape {tuple(torch.as_tensor(given).shape)}; it is a number, ({m},), ({batch}, {m}) or "
            f"({batch}, {length}, {m})"
        ) from None


def _check_box(low: Tensor, high: Tensor) -> None:
    empty = ~(low <= high)
    if empty.any():
        t, sample, which = (int(i) for i in empty.nonzero()[0])
        raise InputError(
            f"ilqr: control {which} of sample {sample} has the bounds {float(low[t, sample, which])} and "
            f"{float(high[t, sample, which])} at step {t}, between which there is nothing; low is at most high"
        )


def _check(x0: Tensor, controls: Tensor, gradient: str, hessian: str, unroll: int, iterations: int) -> None:
    for name, value, known in (
        ("gradient", gradient, ("implicit", "gauss_newton", "unroll")),
        ("hessian", hessian, ("exact", "gauss_newton")),
    ):
        if value not in known:
            raise InputError(f'ilqr: {name} "{value}" is not known; it is one of {", ".join(known)}')
    if unroll < 1 or iterations < 1:
        raise InputError(f"ilqr: unroll and iterations are at least 1, got {unroll} and {iterations}")
    if x0.ndim != 2 or controls.ndim != 3 or len(x0) != len(controls) or not controls.numel():
        raise ShapeError(
            f"ilqr: expected x0 (B, n) and controls (B, T, m) with at least one step, got {tuple(x0.shape)} and "
            f"{tuple(controls.shape)}"
        )
    for name, tensor in (("x0", x0), ("controls", controls)):
        bad = ~tensor.isfinite().flatten(1).all(-1)
        if bad.any():
            raise InputError(
                f"ilqr: {name} of sample {int(bad.nonzero()[0])} is NaN or infinite, so there is no plan from "
                "there; find the step or the sensor that spoiled it"
            )
