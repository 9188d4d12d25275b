"""Flight planners: where to fly, and the inner loop from a wanted acceleration to thrust and body rates."""

import torch
from torch import Tensor

from gradpath.contract import Contract
from gradpath.geometry import heading, quat_conjugate, quat_rotate
from gradpath.stage import Stage


class FlyTowards(Stage):
    """The velocity of a vehicle that flies at constant speed towards a goal and levels off at its height.

    Args:
        speed: Horizontal speed [m/s].
        climb_gain: Vertical speed per metre of height error [1/s].
        max_climb: Bound of the vertical speed [m/s], approached smoothly.

    Inputs: `pose` (B, 7), `goal` (B, 3) [m]. Outputs: `target_velocity` (B, 3) [m/s], in the world.
    Gradients: exact; finite at the goal too.
    """

    contract = Contract(inputs={"pose": "B 7", "goal": "B 3"}, outputs={"target_velocity": "B 3"})

    def __init__(self, speed: float = 3.0, climb_gain: float = 1.0, max_climb: float = 1.0):
        super().__init__()
        self.speed, self.climb_gain, self.max_climb = speed, climb_gain, max_climb

    def forward(self, pose: Tensor, goal: Tensor) -> Tensor:
        """Return the wanted velocity of each world."""
        way = goal - pose[:, :3]
        distance = (way[:, :2].square().sum(-1, keepdim=True) + 1e-6).sqrt()
        climb = self.max_climb * torch.tanh(way[:, 2:] * (self.climb_gain / self.max_climb))
        return torch.cat([self.speed * way[:, :2] / distance, climb], dim=-1)


class HoldVelocity(Stage):
    """The acceleration that takes a vehicle to its wanted velocity, and a planner's correction on top.

    Args:
        gain: Acceleration per velocity error [1/s].
        speed: The scale of the velocities in `motion` [m/s].

    Inputs: `motion` (B, 9), whose first three numbers are the velocity error over `speed`, in the heading frame;
        `correction` (B, 3), acceleration in the heading frame [m/s^2].
    Outputs: `acceleration` (B, 3) in the heading frame [m/s^2]. Gradients: exact.
    """

    contract = Contract(inputs={"motion": "B 9", "correction": "B 3"}, outputs={"acceleration": "B 3"})

    def __init__(self, gain: float = 1.5, speed: float = 3.0):
        super().__init__()
        self.gain, self.speed = gain, speed

    def forward(self, motion: Tensor, correction: Tensor) -> Tensor:
        """Return the acceleration of each world."""
        return correction - self.gain * self.speed * motion[:, :3]


class AttitudeController(Stage):
    """The inner loop of a multirotor: from a wanted acceleration to collective thrust and body rates.

    Thrust points along the body's z axis, so the body is turned towards the wanted thrust, at a rate proportional to
    the sine of the angle between them, and about its own axis towards a wanted heading (Mellinger and Kumar 2011,
    reduced to rates). The thrust is the wanted one projected on the axis as it is now.

    Args:
        mass: Mass that the controller assumes [kg].
        tilt_gain: Body rate per sine of the tilt error [1/s].
        heading_gain: Yaw rate per sine of the heading error [1/s].
        max_rate: Bound of each body rate [rad/s], approached smoothly.
        gravity: Gravitational acceleration [m/s^2].

    Inputs: `acceleration` (B, 3) [m/s^2] in the heading frame (x ahead, y left, z up); `pose` (B, 7);
        `target_velocity` (B, 3), whose direction is the wanted heading.
    Outputs: `control` (B, 4): collective thrust [N] and body rates [rad/s].
    Gradients: exact; finite at level flight and at zero wanted velocity. An input that is NaN gives a command that is.
    """

    contract = Contract(
        inputs={"acceleration": "B 3", "pose": "B 7", "target_velocity": "B 3"}, outputs={"control": "B 4"}
    )

    def __init__(
        self,
        mass: float = 1.0,
        tilt_gain: float = 8.0,
        heading_gain: float = 2.0,
        max_rate: float = 6.0,
        gravity: float = 9.81,
    ):
        super().__init__()
        self.mass, self.gravity, self.max_rate = mass, gravity, max_rate
        self.tilt_gain, self.heading_gain = tilt_gain, heading_gain

    def forward(self, acceleration: Tensor, pose: Tensor, target_velocity: Tensor) -> Tensor:
        """Command each world's vehicle."""
        rotation = pose[:, 3:]
        cosine, sine = heading(rotation)
        x, y, z = acceleration.unbind(-1)
        wanted = torch.stack([cosine * x - sine * y, sine * x + cosine * y, z + self.gravity], dim=-1)
        thrust = quat_rotate(quat_conjugate(rotation), wanted)
        direction = thrust / (thrust.square().sum(-1, keepdim=True) + 1e-9).sqrt()
        course = (
            target_velocity[:, :2] / (target_velocity[:, :2].square().sum(-1, keepdim=True) + 1e-9).sqrt()
        )
        turn = cosine * course[:, 1] - sine * course[:, 0]
        rates = torch.stack(
            [-self.tilt_gain * direction[:, 1], self.tilt_gain * direction[:, 0], self.heading_gain * turn],
            dim=-1,
        )
        rates = self.max_rate * torch.tanh(rates / self.max_rate)
        return torch.cat([self.mass * thrust[:, 2:], rates], dim=-1)
