"""What a robot feels of its own motion: inertial measurements, joint angles, contact forces."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradpath import geometry, relax
from gradpath.bodies import WORLD
from gradpath.contract import Contract
from gradpath.errors import InputError
from gradpath.relax_core import Temperature
from gradpath.sim.model import JointKind, Model
from gradpath.sim.quadrotor_functions import GRAVITY
from gradpath.stage import Stage

_MEMORY = {"twist": "B 6", "bias": "B 6"}


class Imu(Stage):
    """An accelerometer and a gyroscope, mounted on a body.

    The accelerometer measures the acceleration of its own place less that of gravity, in its own axes: at rest, +g
    upwards. The acceleration of the body is the mean over the sampling interval, from the twists at its two ends,
    unless it is given. Each of the six numbers has a bias that wanders, and white noise.

    Args:
        dt: Sampling interval [s].
        mount: Pose of the sensor in the frame of the body, shape (7,); at its origin by default.
        gravity: Acceleration of free fall in the world [m/s^2].
        accelerometer_noise: Density of the white noise [m/s^2/sqrt(Hz)].
        gyroscope_noise: The same [rad/s/sqrt(Hz)].
        accelerometer_walk: Density of the noise that the bias sums up [m/s^3/sqrt(Hz)].
        gyroscope_walk: The same [rad/s^2/sqrt(Hz)].

    Inputs: `pose` of the body in the world (B, 7); `twist`: linear velocity of its origin [m/s], then angular velocity
    [rad/s], in world axes (B, 6), as `forward_kinematics` gives it; `memory` from the step before, or `first_memory`;
    optional `acceleration`, the rate of `twist` (B, 6); optional `generator`, without which there is no noise and the
    bias stays.
    Outputs: `accelerometer` [m/s^2] (B, 3), `gyroscope` [rad/s] (B, 3), `memory`.
    Gradients: exact in pose, twist, memory and acceleration.
    References: Woodman 2007, An introduction to inertial navigation.

    Raises:
        InputError: dt that is not positive, a mount that is no pose, or noise that is negative.
    """

    contract = Contract(
        inputs={
            "pose": "B 7", "twist": "B 6", "memory": _MEMORY, "acceleration": "B 6", "generator": "generator",
        },
        outputs={"accelerometer": "B 3", "gyroscope": "B 3", "memory": _MEMORY},
    )  # fmt: skip
    mount: Tensor
    gravity: Tensor

    def __init__(
        self,
        dt: float,
        mount: Tensor | None = None,
        *,
        gravity: Sequence[float] = (0.0, 0.0, -GRAVITY),
        accelerometer_noise: float = 0.0,
        gyroscope_noise: float = 0.0,
        accelerometer_walk: float = 0.0,
        gyroscope_walk: float = 0.0,
    ):
        super().__init__()
        if not 0 < dt < math.inf:
            raise InputError(f"imu: dt is a positive time in seconds, got {dt}")
        place = geometry.pose_identity() if mount is None else mount
        geometry.check_poses(place.reshape(1, -1), "imu: mount")
        densities = accelerometer_noise, gyroscope_noise, accelerometer_walk, gyroscope_walk
        if not all(0 <= density < math.inf for density in densities):
            raise InputError(f"imu: noise is zero or more, got {densities}")
        self.dt = dt
        white, walk = densities[:2], densities[2:]
        self.register_buffer("mount", place.clone())
        self.register_buffer("gravity", torch.tensor(gravity, dtype=torch.float64))
        # A density becomes a deviation of samples by the rate, and one of what is summed up by the interval.
        self.white = [density / math.sqrt(dt) for density in white for _ in range(3)]
        self.walk = [density * math.sqrt(dt) for density in walk for _ in range(3)]

    def first_memory(self, twist: Tensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Return what `memory` is before the first sample: the twist (B, 6) then, and the bias (B, 6), or zero."""
        return {"twist": twist, "bias": torch.zeros_like(twist) if bias is None else bias}

    def forward(
        self,
        pose: Tensor,
        twist: Tensor,
        memory: Mapping[str, Tensor],
        acceleration: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """Take one sample."""
        geometry.check_poses(pose, "imu")
        rate = (twist - memory["twist"]) / self.dt if acceleration is None else acceleration
        mount, spin = self.mount.to(pose), twist[:, 3:]
        arm = geometry.quat_rotate(pose[:, 3:], mount[:3].expand(len(pose), 3))
        force = (
            rate[:, :3] + _cross(rate[:, 3:], arm) + _cross(spin, _cross(spin, arm)) - self.gravity.to(pose)
        )
        back = geometry.quat_conjugate(geometry.quat_multiply(pose[:, 3:], mount[3:].expand(len(pose), 4)))
        bias = memory["bias"]
        measured = torch.cat([geometry.quat_rotate(back, force), geometry.quat_rotate(back, spin)], -1) + bias
        if generator is not None:
            measured = measured + _noise(measured, self.white, generator)
            bias = bias + _noise(bias, self.walk, generator)
        return {
            "accelerometer": measured[:, :3],
            "gyroscope": measured[:, 3:],
            "memory": {"twist": twist, "bias": bias},
        }


class JointEncoders(Stage):
    """Encoders of the hinges and slides of a robot: joint positions in whole counts, with noise before counting.

    Args:
        model: The robot.
        resolution: Size of a count [rad or m]; positions are not rounded when zero.
        noise: Standard deviation of the noise [rad or m].
        tau: Temperature of the rounding, in counts, in soft mode; see `gradpath.relax.quantize`.

    Inputs: `q`, the coordinates of the robot (B, nq); optional `generator`, without which there is no noise.
    Outputs: `position` (B, E), in the order of `names`.
    Gradients: exact, or that of the relaxed rounding where there is one; in mode `straight_through` positions are whole
        counts with the gradient of the relaxed ones.

    Raises:
        InputError: a robot without such joints, a negative resolution, or negative noise.
    """

    def __init__(self, model: Model, resolution: float = 0.0, noise: float = 0.0, tau: Temperature = 0.5):
        super().__init__()
        lines = JointKind.HINGE, JointKind.SLIDE
        joints = [joint for joint in model.joints if joint.kind in lines and joint.mimics is None]
        if not joints:
            raise InputError(f"joint encoders: model {model.name!r} has no hinge or slide to measure")
        if not (0 <= resolution < math.inf and 0 <= noise < math.inf):
            raise InputError(
                f"joint encoders: resolution and noise are zero or more, got {resolution} and {noise}"
            )
        self.names = tuple(joint.name for joint in joints)
        self.places = [joint.q_start for joint in joints]
        self.resolution, self.noise, self.tau = resolution, noise, tau
        self.contract = Contract(
            inputs={"q": f"B {model.nq}", "generator": "generator"},
            outputs={"position": f"B {len(joints)}"},
            gradient="relaxed" if resolution else "exact",
        )

    def forward(self, q: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Measure once."""
        position = q[:, self.places]
        if generator is not None:
            position = position + _noise(position, [self.noise] * len(self.places), generator)
        if self.resolution == 0.0:
            return position
        return relax.quantize(position, self.resolution, tau=self.tau)


class ContactForces(Stage):
    """Force and torque that contacts exert on some bodies, in their own axes, as feet and fingertips measure them.

    Args:
        bodies: Indices of the bodies that have a sensor, such as `model.body_names.index("foot")`.
        force_noise: Standard deviation of the noise of forces [N].
        torque_noise: The same of torques [N m].

    Inputs: `wrench` of all contacts on each body (B, N, 6), as `Contact.wrenches` gives it: force, then torque about
    the origin of the body, in world axes; `pose` of the bodies in the world (B, N, 7); optional `generator`, without
    which there is no noise.
    Outputs: `force` [N] and `torque` about the origin of the body [N m], both (B, K, 3), in the axes of the bodies.
    Gradients: exact.

    Raises:
        InputError: no bodies, the world among them, or negative noise; when called, a body that is not there.
    """

    contract = Contract(
        inputs={"wrench": "B N 6", "pose": "B N 7", "generator": "generator"},
        outputs={"force": "B K 3", "torque": "B K 3"},
    )

    def __init__(self, bodies: Sequence[int], force_noise: float = 0.0, torque_noise: float = 0.0):
        super().__init__()
        self.bodies = list(bodies)
        if not self.bodies or min(self.bodies) <= WORLD:
            raise InputError(f"contact forces: expected indices of bodies, from 0, got {self.bodies}")
        if not (0 <= force_noise < math.inf and 0 <= torque_noise < math.inf):
            raise InputError(f"contact forces: noise is zero or more, got {force_noise} and {torque_noise}")
        self.deviations = [force_noise] * 3 + [torque_noise] * 3

    def forward(
        self, wrench: Tensor, pose: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Measure once."""
        if max(self.bodies) >= wrench.shape[1]:
            raise InputError(
                f"contact forces: body {max(self.bodies)} is not among the {wrench.shape[1]} that wrenches act on"
            )
        geometry.check_poses(pose, "contact forces")
        own, back = wrench[:, self.bodies], geometry.quat_conjugate(pose[:, self.bodies, 3:])
        force, torque = geometry.quat_rotate(back, own[..., :3]), geometry.quat_rotate(back, own[..., 3:])
        if generator is not None:
            noise = _noise(own, self.deviations, generator)
            force, torque = force + noise[..., :3], torque + noise[..., 3:]
        return force, torque


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.cross(a, b)


def _noise(like: Tensor, deviations: Sequence[float], generator: torch.Generator) -> Tensor:
    """Normal numbers of the shape of a tensor, with a deviation for each entry of its last axis."""
    drawn = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    return drawn * like.new_tensor(deviations)
