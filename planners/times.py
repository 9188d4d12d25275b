"""How long the pieces of a curve should take."""

from __future__ import annotations

import torch
from torch import Tensor

from gradpath import implicit
from gradpath.errors import InputError, ShapeError
from gradpath.planners.curves import minimum_snap


def trapezoidal_times(waypoints: Tensor, speed: float, acceleration: float) -> Tensor:
    """Return how long it takes from each waypoint to the next, from rest to rest within limits, in a straight line.

    Args:
        waypoints: [m], (B, S + 1, D), differentiable.
        speed: Largest speed [m/s].
        acceleration: Largest acceleration [m/s^2].
    Returns:
        Durations [s], (B, S).
    Raises:
        InputError: a limit that is not positive, or two waypoints in a row at the same place, whose duration has no
            derivative.
    Gradients: exact, and continuous where a piece becomes long enough to reach the speed.
    """
    if not (speed > 0 and acceleration > 0):
        raise InputError(f"trapezoidal_times: limits are positive, got {speed} m/s and {acceleration} m/s^2")
    distance = torch.linalg.vector_norm(waypoints.diff(dim=1), dim=-1)
    if not bool((distance > 0).all()):
        sample, piece = (int(i) for i in (~(distance > 0)).nonzero()[0])
        raise InputError(
            f"trapezoidal_times: waypoints {piece} and {piece + 1} of curve {sample} are "
            f"{float(distance[sample, piece])} m apart; drop one of them"
        )
    cruises = distance >= speed**2 / acceleration
    short = torch.where(cruises, 1.0, distance)  # keeps the root's slope out of the other branch
    return torch.where(cruises, distance / speed + speed / acceleration, 2.0 * (short / acceleration).sqrt())


def optimal_times(waypoints: Tensor, weight: Tensor, init: Tensor, *, order: int = 4) -> Tensor:
    """Return the durations that trade the energy of the minimum-snap curve against the time it takes.

    Minimizes `minimum_snap(...).energy(order) + weight * duration`, over the logarithms of the durations.

    Args:
        waypoints: [m], (B, S + 1, D), differentiable.
        weight: Cost of a second, (B,), differentiable.
        init: Where to start [s], (B, S), such as `trapezoidal_times`.
        order: As in `minimum_snap`.
    Returns:
        Durations [s], (B, S). Curves whose minimum was not found are named in a warning, and have no gradient.
    Raises:
        InputError: a weight that is not positive.
    Gradients: exact, of the minimum (`gradpath.implicit.argmin`).
    References: Richter, Bry, Roy 2013, Polynomial Trajectory Planning for Aggressive Quadrotor Flight.
    """
    if weight.shape != init.shape[:1]:
        raise ShapeError(f"optimal_times: expected weight {tuple(init.shape[:1])}, got {tuple(weight.shape)}")
    if not bool((weight > 0).all()):
        raise InputError("optimal_times: weight is positive; without it, slower is always better")

    def energy_and_time(logarithm: Tensor, waypoints: Tensor, weight: Tensor) -> Tensor:
        durations = logarithm.exp()
        return minimum_snap(waypoints, durations, order=order).energy(order) + weight * durations.sum(-1)

    return implicit.argmin(energy_and_time, init.log(), waypoints, weight).exp()
