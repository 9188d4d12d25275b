"""The linear-quadratic regulator with a finite horizon, differentiable in all that defines it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError
from gradpath.planners import riccati


@dataclass(frozen=True)
class LqrSolution:
    """What `lqr` finds.

    Attributes:
        states: (B, T + 1, n), the first is the given one.
        controls: (B, T, m).
        costates: Half the slope of the cost that is left to pay, by each state, (B, T + 1, n); no gradient.
        gains: K of the feedback u = K x + k, (B, T, m, n); no gradient.
    """

    states: Tensor
    controls: Tensor
    costates: Tensor
    gains: Tensor


def lqr(
    A: Tensor,
    B: Tensor,
    Q: Tensor,
    R: Tensor,
    x0: Tensor,
    horizon: int,
    *,
    final: Tensor | None = None,
    q: Tensor | None = None,
    r: Tensor | None = None,
    offset: Tensor | None = None,
) -> LqrSolution:
    """Find the controls of least cost for a linear system, and differentiate them.

    Minimizes the sum of x'Qx + q'x + u'Ru + r'u over the steps, and x'Px + q'x at the end, where
    x_{t+1} = A x_t + B u_t + offset. With T = `horizon`, each matrix is one for all, (n, n) say; one per sample,
    (B, n, n); or one per sample and time step, (B, T, n, n) and (1, T, n, n). Vectors likewise: (n,), (B, n) or
    (B, T, n).

    Args:
        A: State to next state, (n, n).
        B: Control to next state, (n, m).
        Q: Cost of the states, (n, n); its symmetric part counts.
        R: Cost of the controls, (m, m); its symmetric part counts.
        x0: First state, (B, n) or (n,).
        horizon: Number of steps T, at least 1.
        final: P, the cost of the last state, (n, n) or (B, n, n); that of the last step, Q, by default.
        q: Linear cost of the states, (n,); zero by default. One per time step does not reach the last state.
        r: Linear cost of the controls, (m,); zero by default.
        offset: Drift of the states, (n,); zero by default.
    Returns:
        States, controls, costates and gains, batch first.
    Raises:
        ShapeError: shapes that do not fit together.
        InputError: a value that is not finite; a cost that no controls minimize, or more than one set of them: names
            sample and step.
    Gradients: exact in every tensor, once differentiable, from the conditions of optimality: one more recursion with
        the same factors, whatever the horizon.
    References: Amos et al. 2018, Differentiable MPC for End-to-end Planning and Control.
    """
    if horizon < 1:
        raise InputError(f"lqr: horizon is at least 1, got {horizon}")
    if x0.ndim == 1:
        x0 = x0[None]
    n, m = x0.shape[-1], R.shape[-1]
    batch = max(_batch(x, axes) for x, axes in _with_axes(A, B, Q, R, x0, final, q, r, offset))
    spread = _Spread(batch, horizon)
    dynamics = torch.cat([spread("A", A, n, n), spread("B", B, n, m)], -1)
    state_cost, control_cost = spread("Q", Q, n, n), spread("R", R, m, m)
    hessian = torch.cat(
        [
            torch.cat([state_cost + state_cost.mT, x0.new_zeros(horizon, batch, n, m)], -1),
            torch.cat([x0.new_zeros(horizon, batch, m, n), control_cost + control_cost.mT], -1),
        ],
        -2,
    )
    end = state_cost[-1] if final is None else _Spread(batch, 1)("final", final, n, n)[0]
    x_linear = x0.new_zeros(horizon, batch, n) if q is None else spread("q", q, n)
    u_linear = x0.new_zeros(horizon, batch, m) if r is None else spread("r", r, m)
    end_linear = x0.new_zeros(batch, n) if q is None or q.ndim == 3 else x_linear[-1]
    drift = x0.new_zeros(horizon, batch, n) if offset is None else spread("offset", offset, n)
    start = _Spread(batch, 1)("x0", x0, n)[0]
    parts = (hessian, dynamics, end + end.mT, torch.cat([x_linear, u_linear], -1), end_linear, start, drift)
    if not all(bool(part.isfinite().all()) for part in parts):
        raise InputError(
            "lqr: a matrix or a vector is NaN or infinite, so no plan has a cost; find where it comes from"
        )
    states, controls, costates, gains = _Lqr.apply(*parts)
    return LqrSolution(
        states.transpose(0, 1), controls.transpose(0, 1), costates.transpose(0, 1) / 2, gains.transpose(0, 1)
    )


class _Spread:
    """Brings a matrix or a vector to one per time step and sample, (T, B, ...)."""

    def __init__(self, batch: int, horizon: int):
        self.batch, self.horizon = batch, horizon

    def __call__(self, name: str, given: Tensor, *shape: int) -> Tensor:
        extra = given.ndim - len(shape)
        whole = given[(None,) * max(0, 1 - extra)]
        if extra == 2:
            whole = whole.transpose(0, 1)
        try:
            return whole.expand(self.horizon, self.batch, *shape)
        except RuntimeError:
            ending = ", ".join(map(str, shape))
            raise ShapeError(
                f"lqr: {name} has shape {tuple(given.shape)}; for {self.batch} samples and a horizon of "
                f"{self.horizon} it is ({ending}), ({self.batch}, {ending}) or ({self.batch}, {self.horizon}, {ending})"
            ) from None


def _with_axes(*tensors: Tensor | None) -> list[tuple[Tensor, int]]:
    axes = (2, 2, 2, 2, 1, 2, 1, 1, 1)
    return [(x, count) for x, count in zip(tensors, axes, strict=True) if x is not None]


def _batch(tensor: Tensor, axes: int) -> int:
    return tensor.shape[0] if tensor.ndim > axes else 1


class _Lqr(torch.autograd.Function):
    """The solution of the conditions of optimality; its adjoint is the solution of the same system."""

    @staticmethod
    def forward(
        ctx: Any,
        hessian: Tensor,
        transition: Tensor,
        end: Tensor,
        linear: Tensor,
        end_linear: Tensor,
        start: Tensor,
        offset: Tensor,
    ) -> Any:
        factors = riccati.factorize(hessian, transition, end)
        if not factors.positive.all():
            t = int((~factors.positive).any(1).nonzero()[-1])  # the first in the order of the recursion
            sample = int((~factors.positive[t]).nonzero()[0])
            raise InputError(
                f"lqr: the cost of sample {sample} does not rise with every control at step {t}, so no controls "
                "or many are best: R + B'VB is not positive definite there. Make R positive definite and Q at "
                "least zero"
            )
        found = riccati.solve(factors, linear, end_linear, start, offset)
        ctx.factors = factors
        ctx.save_for_backward(found.states, found.controls, found.costates)
        ctx.mark_non_differentiable(found.costates, factors.gains)
        ctx.set_materialize_grads(False)
        return found.states, found.controls, found.costates, factors.gains

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_states: Tensor | None, by_controls: Tensor | None, *_: Any) -> Any:
        states, controls, costates = ctx.saved_tensors
        by_states = torch.zeros_like(states) if by_states is None else by_states
        by_controls = torch.zeros_like(controls) if by_controls is None else by_controls
        # With linear terms w, the solution is -K^-1 w: what the equations are to be multiplied with.
        adjoint = riccati.solve(
            ctx.factors,
            torch.cat([by_states[:-1], by_controls], -1),
            by_states[-1],
            torch.zeros_like(states[0]),
        )
        z = torch.cat([states[:-1], controls], -1)
        dz = torch.cat([adjoint.states[:-1], adjoint.controls], -1)
        ahead, d_ahead = costates[1:], adjoint.costates[1:]
        return (
            _symmetric(dz, z),
            d_ahead[..., :, None] * z[..., None, :] + ahead[..., :, None] * dz[..., None, :],
            _symmetric(adjoint.states[-1], states[-1]),
            dz,
            adjoint.states[-1],
            adjoint.costates[0],
            d_ahead,
        )


def _symmetric(a: Tensor, b: Tensor) -> Tensor:
    """Half of a b' + b a'."""
    result = a[..., :, None] * b[..., None, :]
    return (result + result.mT) / 2
