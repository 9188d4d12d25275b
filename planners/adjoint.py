"""The gradient of an optimal trajectory, from the conditions that it satisfies. Used by `ilqr`.

With the costates as multipliers, the optimum solves R(x, u, costates; a) = 0, whose Jacobian is the matrix of a
linear-quadratic problem. The cotangents of R are therefore the solution of one more such problem, whose linear terms
are the gradient that comes in; autograd carries them from R on to everything that R depends on.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradpath.implicit_report import Report, publish, relative_difference
from gradpath.linear_solve import descent_series, largest_eigenvalue
from gradpath.planners import riccati
from gradpath.planners.augmented import Augmented
from gradpath.planners.problem import Problem

MULTIPLIER_ROUNDS = 100


@dataclass
class Condition:
    """What makes a trajectory optimal, and how its gradient is to be found.

    Attributes:
        problem: Without penalties.
        augmented: Its state constraints, or None.
        box: Bounds of the controls, (T, B, m) each.
        gradient: `"implicit"`, `"gauss_newton"` or `"unroll"`.
        unroll: Steps of `"unroll"`.
        curved: Whether the dynamics has second derivatives.
    """

    problem: Problem
    augmented: Augmented | None
    box: tuple[Tensor, Tensor]
    gradient: str
    unroll: int
    curved: bool


def attach(
    condition: Condition, x0: Tensor, states: Tensor, controls: Tensor, converged: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Return states (T + 1, B, n) and controls (T, B, m) with the gradient of the optimum; report and warn."""
    # A model may refuse what is not finite: where a sample has diverged, it is looked at as if it stood still.
    sound = states.isfinite().all(-1).all(0)[:, None]
    safe = torch.where(sound, states, states[:1]), controls.nan_to_num(0.0, 0.0, 0.0)
    wanted = torch.is_grad_enabled() and _depends(condition, x0, *safe)
    adjoint = _Adjoint(condition, *safe, converged) if wanted else None
    report = Report("ilqr", condition.gradient, converged, _residual(condition, *safe, adjoint), iterations)
    recorded = publish(report)
    if not converged.all():
        failed = (~converged).nonzero().flatten().tolist()
        some = ", ".join(map(str, failed[:5])) + (", ..." if len(failed) > 5 else "")
        warnings.warn(
            f"ilqr: {len(failed)} of {converged.numel()} samples did not converge in {iterations} iterations "
            f"(samples {some}); their gradient is zero. Start closer, allow more iterations, or look for "
            "constraints that cannot be kept",
            RuntimeWarning,
            stacklevel=4,
        )
    if adjoint is None:
        return states, controls
    adjoint.report = report if recorded else None
    return _Optimum.apply(adjoint, states, controls, x0, *adjoint.equations(x0))


def _depends(condition: Condition, x0: Tensor, states: Tensor, controls: Tensor) -> bool:
    """Whether anything that the optimum depends on requires a gradient."""
    problem, augmented = condition.problem, condition.augmented
    x = states[:-1]
    values = [x0, problem.dynamics(x, controls), problem.cost(x, controls), problem.final(states[-1])]
    if augmented is not None:
        values.append(augmented.constraint(states))
    return any(value.requires_grad for value in values)


def _residual(condition: Condition, states: Tensor, controls: Tensor, adjoint: _Adjoint | None) -> Tensor:
    """Norm of the slope of the controls that are free, (B,)."""
    if adjoint is not None and condition.augmented is None and adjoint.converged.all():
        slope = adjoint.found.slope  # at the same trajectory
    else:
        slope = (condition.augmented or condition.problem).derivatives(states, controls, False).slope
    low, high = condition.box
    moved = torch.minimum(torch.maximum(controls - slope, low), high) - controls
    return torch.linalg.vector_norm(moved, dim=(0, -1))


class _Adjoint:
    """The conditions of optimality as a graph, and the solution of their adjoint."""

    report: Report | None = None

    def __init__(self, condition: Condition, states: Tensor, controls: Tensor, converged: Tensor):
        self.condition, self.converged = condition, converged
        problem, augmented = condition.problem, condition.augmented
        self.exact = condition.gradient != "gauss_newton"
        # Where there is no optimum, any finite point serves: its cotangents are zero, but zero times NaN is not.
        good = converged[:, None]
        self.states = torch.where(good, states, states[:1])
        self.controls = controls
        self.multipliers = None if augmented is None else augmented.multipliers
        if augmented is not None:
            multipliers, value = augmented.multipliers, augmented.constraint
            problem = Problem(
                problem.dynamics,
                lambda x, u: condition.problem.cost(x, u) + (multipliers[:-1] * value(x)).sum(-1),
                lambda x: condition.problem.final(x) + (multipliers[-1] * value(x)).sum(-1),
            )
        self.problem = problem
        self.found = problem.derivatives(self.states, self.controls, self.exact or condition.curved)
        low, high = condition.box
        slope = self.found.slope
        # At an optimum every slope that is not zero belongs to a control at its bound.
        at_bound = (self.controls <= low) | (self.controls >= high)
        scale = 1e-7 * (1.0 + slope.abs().amax((0, -1)))[:, None]
        self.held = at_bound & (slope.abs() > scale) | (low == high)

    def equations(self, x0: Tensor) -> tuple[Tensor, ...]:
        """R as a graph on all that is captured: by states, controls, the last state; steps, constraints."""
        problem = self.problem
        ahead = torch.where(self.converged[:, None], self.found.costates[1:], 0.0)
        with torch.enable_grad():
            x = self.states[:-1].detach().requires_grad_()
            u = self.controls.detach().requires_grad_()
            last = self.states[-1].detach().requires_grad_()
            steps = problem.dynamics(x, u)
            value = problem.cost(x, u)
            if self.exact:
                value = value + (ahead * steps).sum(-1)
            by_x, by_u = _slope(value, (x, u))
            (by_last,) = _slope(problem.final(last), (last,))
            if self.multipliers is None:
                return by_x, by_u, by_last, steps
            every = self.states.detach()
            return by_x, by_u, by_last, steps, self.condition.augmented.constraint(every)  # type: ignore[union-attr]

    def cotangents(self, by_states: Tensor, by_controls: Tensor) -> tuple[Tensor, ...]:
        """What R is to be multiplied with, for the gradient by states and controls; and that of x0 first."""
        known = self.converged[:, None]
        by_states, by_controls = torch.where(known, by_states, 0.0), torch.where(known, by_controls, 0.0)
        found = self.found
        hessian = found.hessian if self.exact else found.gauss_newton
        assert hessian is not None
        if self.condition.gradient == "unroll":
            move, pressed = self._unrolled(hessian, by_states, by_controls), None
        else:
            move, pressed = self._solved(hessian, by_states, by_controls)
        if self.report is not None and self.condition.gradient != "implicit" and found.hessian is not None:
            best, _ = self._solved(found.hessian, by_states, by_controls)
            flat = [m.transpose(0, 1).flatten(1) for m in (move, best)]
            self.report.difference = relative_difference(flat[0], flat[1], self.converged)
        x = _respond(found.transition, move)
        bent = riccati.apply(hessian, torch.cat([x[:-1], move], -1))
        end = riccati.apply(found.final_hessian, x[-1]) + by_states[-1]
        push = torch.cat([by_states[:-1], by_controls], -1) + bent
        if pressed is not None:
            slope = self._constraint_slope()
            by_pressure = riccati.apply(slope.mT, pressed)
            n = x.shape[-1]
            push = torch.cat([push[..., :n] + by_pressure[:-1], push[..., n:]], -1)
            end = end + by_pressure[-1]
        d_costates = riccati.costates(push, found.transition, end)
        result: tuple[Tensor, ...] = (d_costates[0], x[:-1], move, x[-1], d_costates[1:])
        if self.multipliers is not None:
            result += (torch.zeros_like(self.multipliers) if pressed is None else pressed,)
        known = self.converged[:, None]  # the solve may have found some that are no minimum
        return tuple(torch.where(known, r, 0.0) for r in result)

    def _solved(
        self, hessian: Tensor, by_states: Tensor, by_controls: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """-H^-1 w in the space of the controls, and the cotangents of the constraints that hold with equality."""
        found, n = self.found, self.states.shape[-1]
        if self.multipliers is None or not (active := self.condition.augmented.active()).any():  # type: ignore[union-attr]
            return self._regulate(hessian, found.final_hessian, by_states, by_controls)[1], None
        slope = self._constraint_slope() * active[..., None]
        weight = 100.0 * self.condition.augmented.penalty[..., None]  # type: ignore[union-attr]
        stiff = weight * (slope.mT @ slope)
        hessian = hessian.clone()
        hessian[..., :n, :n] += stiff[:-1]
        pressed = torch.zeros_like(self.multipliers)
        for _ in range(MULTIPLIER_ROUNDS):
            pushed = by_states + riccati.apply(slope.mT, pressed)
            x, move = self._regulate(hessian, found.final_hessian + stiff[-1], pushed, by_controls)
            gap = riccati.apply(slope, x)
            pressed = pressed + weight[..., 0] * gap
            if float(gap.abs().max()) <= 1e-12 * (1.0 + float(x.abs().max())):
                break
        return move, pressed

    def _regulate(
        self, hessian: Tensor, final: Tensor, by_states: Tensor, by_controls: Tensor
    ) -> tuple[Tensor, Tensor]:
        factors = riccati.factorize(hessian, self.found.transition, final, self.held)
        flat = self.converged & ~factors.positive.all(0)
        if flat.any():
            self.converged = self.converged & ~flat
            warnings.warn(
                f"ilqr: {int(flat.sum())} of {len(flat)} samples stand still where the cost has no strict minimum "
                f"(sample {int(flat.nonzero()[0])}, perhaps a saddle); their gradient is zero. Start elsewhere, or "
                "make the cost of the controls larger",
                RuntimeWarning,
                stacklevel=2,
            )
        linear = torch.cat([by_states[:-1], by_controls], -1)
        solved = riccati.solve(factors, linear, by_states[-1], torch.zeros_like(self.states[0]))
        return solved.states, solved.controls

    def _unrolled(self, hessian: Tensor, by_states: Tensor, by_controls: Tensor) -> Tensor:
        """What backward through descent steps at the optimum would give, of the controls that are not held."""
        found, shape = self.found, self.controls.shape
        free = (~self.held).to(by_controls.dtype)

        def product(flat: Tensor) -> Tensor:
            direction = free * flat.unflatten(-1, (shape[0], shape[2])).transpose(0, 1)
            bent = riccati.product(hessian, found.transition, found.final_hessian, direction)
            return (free * bent).transpose(0, 1).flatten(1)

        push = riccati.costates(torch.cat([by_states[:-1], by_controls], -1), found.transition, by_states[-1])
        n = push.shape[-1]
        whole = free * (by_controls + riccati.apply(found.transition[..., n:].mT, push[1:]))
        flat = whole.transpose(0, 1).flatten(1)
        largest = largest_eigenvalue(product, flat)
        rate = torch.where(largest > 0, 1.0 / (1.05 * largest), 0.0)[:, None]
        found_move = -descent_series(product, flat, rate, self.condition.unroll)
        return found_move.unflatten(-1, (shape[0], shape[2])).transpose(0, 1)

    def _constraint_slope(self) -> Tensor:
        """Jacobian of the constraints by the states, (T + 1, B, k, n), of those that hold with equality."""
        constraint = self.condition.augmented.constraint  # type: ignore[union-attr]
        k = self.multipliers.shape[-1]  # type: ignore[union-attr]
        with torch.enable_grad():
            x = self.states.expand(k, *self.states.shape).detach().requires_grad_()
            value = constraint(x)
            unit = torch.eye(k, dtype=x.dtype, device=x.device)[:, None, None, :]
            (rows,) = torch.autograd.grad(value, x, unit.expand_as(value))
        return rows.movedim(0, -2) * self.condition.augmented.active()[..., None]  # type: ignore[union-attr]


class _Optimum(torch.autograd.Function):
    """The trajectory forward; the cotangents of its conditions backward."""

    @staticmethod
    def forward(ctx: Any, adjoint: _Adjoint, states: Tensor, controls: Tensor, *equations: Tensor) -> Any:
        ctx.adjoint = adjoint
        return states.clone(), controls.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_states: Tensor, by_controls: Tensor) -> Any:
        return None, None, None, *ctx.adjoint.cotangents(by_states, by_controls)


def _slope(value: Tensor, by: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The gradients of the sum of a value, with their graph."""
    if not value.requires_grad:
        return tuple(map(torch.zeros_like, by))
    return torch.autograd.grad(value.sum(), by, create_graph=True, materialize_grads=True)


def _respond(transition: Tensor, move: Tensor) -> Tensor:
    """How the states answer to a change of the controls, (T + 1, B, n)."""
    states = [transition.new_zeros(transition.shape[1:-1])]
    for t in range(len(move)):
        states.append(riccati.apply(transition[t], torch.cat([states[-1], move[t]], -1)))
    return torch.stack(states)
