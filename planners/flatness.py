"""A quadrotor's state and command from the path that it is to fly: differential flatness."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gradpath.errors import InputError
from gradpath.geometry import pose, quat_from_matrix

LEAST_THRUST = 1e-3  # [m/s^2], below which the direction of thrust says nothing


def flat_state(
    path: Mapping[str, Tensor],
    yaw: Tensor,
    yaw_rate: Tensor | None = None,
    *,
    mass: float = 1.0,
    gravity: float = 9.81,
) -> dict[str, Tensor]:
    """Return the attitude, body rates and thrust with which a quadrotor without drag flies along a path.

    Args:
        path: `position`, `velocity`, `acceleration`, `jerk`, (..., 3), in SI units, differentiable: what
            `Curve.sample` gives.
        yaw: Direction of the level vector that lies in the plane of the body's x and z axes, the heading where the
            body is level or tilts along it [rad], (...).
        yaw_rate: Its derivative [rad/s], (...); zero by default.
        mass: [kg].
        gravity: [m/s^2].
    Returns:
        `pose` (..., 7), `velocity` (..., 3), `rates` about the body's axes (..., 3) and `thrust` along its z axis
        (...): a state of `sim.Quadrotor`; `thrust` and `rates` are the command that keeps it.
    Raises:
        InputError: free fall, where no attitude is given by the path, or thrust along the heading.
    Gradients: exact in path, yaw and yaw rate.
    References: Mellinger, Kumar 2011; Faessler, Franchi, Scaramuzza 2018, Differential Flatness of Quadrotor Dynamics.
    """
    upward = path["acceleration"] + path["acceleration"].new_tensor([0.0, 0.0, gravity])
    push = torch.linalg.vector_norm(upward, dim=-1, keepdim=True)
    zero = torch.zeros_like(yaw)
    ahead = torch.stack([torch.cos(yaw), torch.sin(yaw), zero], -1)
    z = upward / push.clamp_min(LEAST_THRUST)
    across = torch.linalg.cross(z, ahead)
    width = torch.linalg.vector_norm(across, dim=-1, keepdim=True)
    if not bool(((push > LEAST_THRUST) & (width > 1e-6)).all()):
        raise InputError(
            "flat_state: at some time the path falls freely, or its thrust is along the heading, and no attitude "
            "follows from it; slow the path down, or turn the heading"
        )
    y = across / width
    x = torch.linalg.cross(y, z)
    # The thrust axis turns with the jerk across it; the body's x axis follows the heading.
    turn = (path["jerk"] - (path["jerk"] * z).sum(-1, keepdim=True) * z) / push
    rate = zero if yaw_rate is None else yaw_rate
    ahead_rate = rate[..., None] * torch.stack([-torch.sin(yaw), torch.cos(yaw), zero], -1)
    across_rate = torch.linalg.cross(turn, ahead) + torch.linalg.cross(z, ahead_rate)
    rates = torch.stack(
        [-(turn * y).sum(-1), (turn * x).sum(-1), -(x * across_rate).sum(-1) / width[..., 0]], -1
    )
    rotation = quat_from_matrix(torch.stack([x, y, z], -1))
    return {
        "pose": pose(path["position"], rotation),
        "velocity": path["velocity"],
        "rates": rates,
        "thrust": mass * push[..., 0],
    }
