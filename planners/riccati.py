"""Linear-quadratic problems with a horizon, by Riccati recursion: the inner solve of `lqr`, `ilqr` and `MPC`.

Minimize the sum over t of z'H z / 2 + h'z, z = (x, u), and x'P x / 2 + p'x at the end, where
x_{t+1} = F_t z_t + f_t. Time is the first axis, the batch the second. No gradients here; the callers have their own.

References: Rawlings, Mayne, Diehl 2017, Model Predictive Control, section 1.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Factors:
    """What the matrices of a problem make: all that is needed to solve it for any linear terms.

    Attributes:
        transition: F, (T, B, n, n + m).
        gains: K in u = K x + k, (T, B, m, n).
        cross: Q_xu, (T, B, n, m); zero where a control is held.
        inverse: Inverse of Q_uu, (T, B, m, m); zero where a control is held.
        value: V, (T + 1, B, n, n).
        positive: Whether Q_uu is positive definite, (T, B).
    """

    transition: Tensor
    gains: Tensor
    cross: Tensor
    inverse: Tensor
    value: Tensor
    positive: Tensor

    @property
    def states(self) -> int:
        """n."""
        return self.transition.shape[-2]


@dataclass
class Trajectories:
    """A solution.

    Attributes:
        states: x, (T + 1, B, n).
        controls: u, (T, B, m).
        costates: The multiplier of x_t = ..., the slope of what is left to pay by x_t, (T + 1, B, n).
    """

    states: Tensor
    controls: Tensor
    costates: Tensor


def factorize(
    hessian: Tensor,
    transition: Tensor,
    final: Tensor,
    held: Tensor | None = None,
    damping: Tensor | None = None,
) -> Factors:
    """Run the Riccati recursion backwards.

    Args:
        hessian: H, symmetric, (T, B, n + m, n + m).
        transition: F, (T, B, n, n + m).
        final: P, symmetric, (B, n, n).
        held: Controls that must be zero, (T, B, m) bool; none by default.
        damping: Added to the diagonal of Q_uu, (B,).
    """
    n = transition.shape[-2]
    m = transition.shape[-1] - n
    identity = torch.eye(m, dtype=final.dtype, device=final.device)
    value = final
    values = [final]
    gains: list[Tensor] = []
    crosses: list[Tensor] = []
    inverses: list[Tensor] = []
    positives: list[Tensor] = []
    for t in reversed(range(len(transition))):
        quadratic = hessian[t] + transition[t].mT @ value @ transition[t]
        cross, curvature = quadratic[..., :n, n:], quadratic[..., n:, n:]
        if damping is not None:
            curvature = curvature + damping[:, None, None] * identity
        if held is not None:
            free = (~held[t]).to(curvature.dtype)
            curvature = curvature * free[:, :, None] * free[:, None, :] + torch.diag_embed(1.0 - free)
            cross = cross * free[:, None, :]
        factor, failed = torch.linalg.cholesky_ex((curvature + curvature.mT) / 2)
        positive = (failed == 0) & factor.isfinite().flatten(1).all(-1)
        factor = torch.where(positive[:, None, None], factor, identity)
        inverse = torch.cholesky_inverse(factor)
        if held is not None:
            inverse = inverse * free[:, :, None]
        gain = -inverse @ cross.mT
        value = quadratic[..., :n, :n] + cross @ gain
        value = (value + value.mT) / 2
        for into, item in zip(
            (values, gains, crosses, inverses, positives),
            (value, gain, cross, inverse, positive),
            strict=True,
        ):
            into.append(item)
    stacked = [torch.stack(items[::-1]) for items in (gains, crosses, inverses, values, positives)]
    return Factors(transition, *stacked)


def solve(
    factors: Factors, linear: Tensor, final: Tensor, start: Tensor, offset: Tensor | None = None
) -> Trajectories:
    """Solve a factorized problem for its linear terms.

    Args:
        factors: From `factorize`.
        linear: h, (T, B, n + m).
        final: p, (B, n).
        start: x_0, (B, n).
        offset: f, (T, B, n); zero by default.
    """
    n, length = factors.states, len(factors.transition)
    slope = final
    slopes, steps = [final], []
    for t in reversed(range(length)):
        ahead = slope if offset is None else slope + apply(factors.value[t + 1], offset[t])
        q = linear[t] + apply(factors.transition[t].mT, ahead)
        step = -apply(factors.inverse[t], q[..., n:])
        slope = q[..., :n] + apply(factors.cross[t], step)
        slopes.append(slope)
        steps.append(step)
    slopes, steps = slopes[::-1], steps[::-1]
    states, controls = [start], []
    for t in range(length):
        controls.append(apply(factors.gains[t], states[-1]) + steps[t])
        following = apply(factors.transition[t], torch.cat([states[-1], controls[-1]], -1))
        states.append(following if offset is None else following + offset[t])
    x = torch.stack(states)
    return Trajectories(x, torch.stack(controls), apply(factors.value, x) + torch.stack(slopes))


def costates(hessian: Tensor, transition: Tensor, final: Tensor) -> Tensor:
    """Return the slope of the cost by each state along a trajectory, (T + 1, B, n).

    Args:
        hessian: Slope of the running cost by (x, u), (T, B, n + m).
        transition: F, (T, B, n, n + m).
        final: Slope of the final cost by the last state, (B, n).
    """
    n = transition.shape[-2]
    result = [final]
    for t in reversed(range(len(transition))):
        result.append(hessian[t, ..., :n] + apply(transition[t, ..., :n].mT, result[-1]))
    return torch.stack(result[::-1])


def product(hessian: Tensor, transition: Tensor, final: Tensor, direction: Tensor) -> Tensor:
    """Return the Hessian of the cost by the controls alone, times a direction (T, B, m), of the same shape."""
    n = transition.shape[-2]
    state = torch.zeros_like(final[..., 0])
    moves = []
    for t in range(len(transition)):
        moves.append(torch.cat([state, direction[t]], -1))
        state = apply(transition[t], moves[-1])
    bent = apply(hessian, torch.stack(moves))
    slope = costates(bent, transition, apply(final, state))
    return bent[..., n:] + apply(transition[..., n:].mT, slope[1:])


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return matrix times vector over any leading axes."""
    return (matrix @ vector[..., None])[..., 0]
