"""What a vehicle knows of its own motion, seen from where it is heading."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gradpath.contract import Contract
from gradpath.geometry import heading, quat_rotate
from gradpath.stage import Stage


def to_heading(vector: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn world vectors (B, 3) by minus the yaw: x ahead, y left, z up."""
    x, y, z = vector.unbind(-1)
    return torch.stack([cosine * x + sine * y, cosine * y - sine * x, z], dim=-1)


class MotionEstimate(Stage):
    """Velocity error, wanted velocity and tilt in the heading frame: what a flight controller hands to a policy.

    Args:
        speed: Velocities are divided by it [m/s], so that the outputs are of order one.

    Inputs: `state` with `pose` (B, 7) and `velocity` (B, 3) [m/s] in the world, `target_velocity` (B, 3) [m/s].
    Outputs: `motion` (B, 9): velocity error, wanted velocity, and the body's up axis.
    Gradients: exact.
    """

    contract = Contract(
        inputs={"state": {"pose": "B 7", "velocity": "B 3"}, "target_velocity": "B 3"},
        outputs={"motion": "B 9"},
    )

    def __init__(self, speed: float = 3.0):
        super().__init__()
        self.speed = speed

    def forward(self, state: Mapping[str, Tensor], target_velocity: Tensor) -> Tensor:
        """Estimate the motion of each world's vehicle."""
        rotation = state["pose"][:, 3:]
        cosine, sine = heading(rotation)
        error = to_heading(state["velocity"] - target_velocity, cosine, sine)
        wanted = to_heading(target_velocity, cosine, sine)
        up = torch.zeros_like(error)
        up[:, 2] = 1.0
        tilt = to_heading(quat_rotate(rotation, up), cosine, sine)
        return torch.cat([error / self.speed, wanted / self.speed, tilt], dim=-1)
