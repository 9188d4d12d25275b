"""A control problem over a horizon, and its derivatives at a trajectory. Used by `ilqr` and what is built on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradpath.errors import ContractError, ShapeError
from gradpath.planners import riccati
from gradpath.second_derivative import has_second_derivative

Function = Callable[..., Tensor]


@dataclass
class Derivatives:
    """What the problem looks like near a trajectory, time first.

    Attributes:
        transition: Jacobian of the step by (x, u), (T, B, n, n + m).
        linear: Slope of the running cost by (x, u), (T, B, n + m).
        final_linear: Slope of the final cost, (B, n).
        gauss_newton: Second derivative of the running cost alone, (T, B, n + m, n + m).
        hessian: The same of the Lagrangian, with the curvature of the step; None where it was not asked for.
        final_hessian: Second derivative of the final cost, (B, n, n).
        costates: Slope of the cost that is left to pay, (T + 1, B, n).
    """

    transition: Tensor
    linear: Tensor
    final_linear: Tensor
    gauss_newton: Tensor
    hessian: Tensor | None
    final_hessian: Tensor
    costates: Tensor

    @property
    def slope(self) -> Tensor:
        """Gradient of the whole cost by the controls, (T, B, m)."""
        n = self.transition.shape[-2]
        return self.linear[..., n:] + riccati.apply(self.transition[..., n:].mT, self.costates[1:])


class Problem:
    """Minimize the sum of `cost(x_t, u_t)` and `final(x_T)` where x_{t+1} = dynamics(x_t, u_t).

    Every function takes any axes before (B, n); for the cost, time is the last of them.

    Args:
        dynamics: x (..., B, n), u (..., B, m) to (..., B, n).
        cost: x (..., T, B, n), u (..., T, B, m) to (..., T, B).
        final: x (..., B, n) to (..., B).
    """

    def __init__(self, dynamics: Function, cost: Function, final: Function):
        self.dynamics, self.cost, self.final = dynamics, cost, final

    def check(self, start: Tensor, controls: Tensor, curved: bool) -> None:
        """Call every function once; `start` is (B, n), `controls` (T, B, m).

        Args:
            start: First states.
            controls: Controls.
            curved: Whether second derivatives of the dynamics will be needed; those of the costs always are.
        Raises:
            ShapeError: a function gives another shape than it should.
            ContractError: one whose gradient cannot be differentiated, though it must be.
        """
        length, batch, _ = controls.shape
        with torch.enable_grad():
            stay = start.expand(length, *start.shape).detach().requires_grad_()
            controls = controls.detach().requires_grad_()
            for name, value, shape in (
                ("dynamics", self.dynamics(stay, controls), stay.shape),
                ("cost", self.cost(stay, controls), (length, batch)),
                ("final", self.final(stay[0]), (batch,)),
            ):
                if (curved or name != "dynamics") and not has_second_derivative(value, (stay, controls)):
                    raise _no_second_derivative(name, getattr(self, name))
                if value.shape != shape:
                    raise ShapeError(
                        f"ilqr: {name} gave {tuple(value.shape)} for x {tuple(stay.shape)} and u "
                        f"{tuple(controls.shape)}; expected {tuple(shape)}. Index the last axis, as x[..., 0], "
                        "and keep all axes before it"
                    )

    @torch.no_grad()
    def total(self, states: Tensor, controls: Tensor) -> Tensor:
        """Cost of trajectories, states (..., T + 1, B, n) and controls (..., T, B, m) to (..., B)."""
        running = self.cost(states[..., :-1, :, :], controls)
        return running.sum(-2) + self.final(states[..., -1, :, :])

    @torch.no_grad()
    def rollout(self, start: Tensor, controls: Tensor) -> Tensor:
        """States (T + 1, B, n) under controls (T, B, m); NaN from where a sample is no longer finite."""
        states, x = [start], start
        lost = torch.zeros_like(start[:, :1], dtype=torch.bool)
        for u in controls:
            x = self.dynamics(x, u)
            lost = lost | ~x.isfinite().all(-1, keepdim=True)
            x = torch.where(lost, start, x)  # a model may refuse what is not finite
            states.append(torch.where(lost, torch.nan, x))
        return torch.stack(states)

    def derivatives(self, states: Tensor, controls: Tensor, exact: bool) -> Derivatives:
        """Differentiate at a trajectory, (T + 1, B, n) and (T, B, m), in a few calls over all time steps at once."""
        x, u = states[:-1], controls
        n = x.shape[-1]
        transition = self._jacobian(x, u)
        linear, gauss_newton = _second_order(
            lambda z: self.cost(z[..., :n], z[..., n:]), torch.cat([x, u], -1)
        )
        final_linear, final_hessian = _second_order(self.final, states[-1])
        costates = riccati.costates(linear, transition, final_linear)
        hessian = None
        if exact:
            _, bent = _second_order(
                lambda z: (costates[1:] * self.dynamics(z[..., :n], z[..., n:])).sum(-1),
                torch.cat([x, u], -1),
            )
            hessian = gauss_newton + bent
        return Derivatives(transition, linear, final_linear, gauss_newton, hessian, final_hessian, costates)

    def _jacobian(self, x: Tensor, u: Tensor) -> Tensor:
        n = x.shape[-1]
        with torch.enable_grad():
            z = torch.cat([x, u], -1).expand(n, *x.shape[:-1], -1).detach().requires_grad_()
            value = self.dynamics(z[..., :n], z[..., n:])
            unit = torch.eye(n, dtype=x.dtype, device=x.device).reshape(n, *(1 for _ in x.shape[:-1]), n)
            (rows,) = torch.autograd.grad(value, z, unit.expand_as(value))
        return rows.movedim(0, -2)


def _second_order(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """Slope (..., k) and symmetric second derivative (..., k, k) of a function of (..., k) to (...), row by row."""
    k = at.shape[-1]
    with torch.enable_grad():
        z = at.expand(k, *at.shape).detach().requires_grad_()
        value = function(z)
        if not value.requires_grad:
            return torch.zeros_like(at), at.new_zeros(*at.shape, k)
        (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True, materialize_grads=True)
        if not slope.requires_grad:
            return slope[0], at.new_zeros(*at.shape, k)
        unit = torch.eye(k, dtype=at.dtype, device=at.device).reshape(k, *(1 for _ in at.shape[:-1]), k)
        (rows,) = torch.autograd.grad(slope, z, unit.expand_as(slope), materialize_grads=True)
    hessian = rows.movedim(0, -2)
    return slope[0].detach(), (hessian + hessian.mT) / 2


def _no_second_derivative(role: str, function: Function) -> ContractError:
    """The error for a function that has first derivatives only."""
    name = type(getattr(function, "stage", function)).__name__
    if role == "dynamics":
        return ContractError(
            f"ilqr: the dynamics ({name}) has no second derivatives, which the exact gradient of a plan and the exact "
            "Hessian need; give the stage a method hvp(inputs, cotangent, direction), make it a StageDynamics with "
            'second="differences" (float64), or choose gradient="gauss_newton" and hessian="gauss_newton", which do '
            "without and are not exact"
        )
    return ContractError(
        f"ilqr: {role} has no second derivatives, and would be taken for a plane; build it from torch operations, "
        "or from what can be differentiated twice, such as a distance field"
    )
