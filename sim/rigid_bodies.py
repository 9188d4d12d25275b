"""Free rigid bodies in maximal coordinates, which collide with each other and with the ground."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradpath import geometry, kernels
from gradpath.contract import Contract
from gradpath.errors import InputError, ShapeError
from gradpath.sim.contact import Contact, law_by_shape
from gradpath.sim.contact_impact import (
    REST_SPEED,
    angular_velocity,
    bodies_from,
    bounce,
    give,
    start_motion,
)
from gradpath.sim.contact_ops import settle
from gradpath.sim.rigid_kernels import make_begin_bodies, make_finish_bodies
from gradpath.sim.shapes import ShapeKind
from gradpath.stage import Stage

STATE = {"pose": "B N 7", "velocity": "B N 6"}


def _samples(batch: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(batch, 2, *shape, dtype=torch.float64, generator=generator)

    spread = random(3, 3)
    inertia = spread @ spread.mT + torch.eye(3, dtype=torch.float64)
    return {
        "pose": geometry.pose(random(3), geometry.quat_normalize(random(4))),
        "linear": random(3),
        "angular": 3 * random(3),
        "force": random(3),
        "torque": random(3),
        "mass": 1 + 0.1 * random(),
        "inertia": inertia,
        "inverse_inertia": torch.linalg.inv(inertia),
        "dt": 0.05,
    }


def _finish_samples(batch: int) -> dict[str, Any]:
    values = _samples(batch)
    values["middle"] = values["pose"]
    return {key: values[key] for key in ("middle", "linear", "angular", "inertia", "inverse_inertia", "dt")}


begin_bodies = kernels.Op(
    "begin_bodies",
    make_begin_bodies,
    inputs={
        "pose": "B N transform",
        "linear": "B N vec3",
        "angular": "B N vec3",
        "force": "B N vec3",
        "torque": "B N vec3",
        "mass": "B N scalar",
        "inertia": "B N mat33",
        "inverse_inertia": "B N mat33",
    },
    constants={"dt": "scalar"},
    outputs={"middle": "B N transform", "linear_free": "B N vec3", "angular_free": "B N vec3"},
    launch="B N",
    samples=_samples,
)

finish_bodies = kernels.Op(
    "finish_bodies",
    make_finish_bodies,
    inputs={
        "middle": "B N transform",
        "linear": "B N vec3",
        "angular": "B N vec3",
        "inertia": "B N mat33",
        "inverse_inertia": "B N mat33",
    },
    constants={"dt": "scalar"},
    outputs={"pose_out": "B N transform", "angular_out": "B N vec3"},
    launch="B N",
    samples=_finish_samples,
)


def solid_inertia(kind: ShapeKind, size: Tensor, mass: Tensor) -> Tensor:
    """Return the inertia of homogeneous solids about their middles.

    Args:
        kind: Sphere, box, cylinder or capsule.
        size: What `ShapeKind` says [m], shape (..., 3), differentiable.
        mass: [kg], shape (...), differentiable.
    Returns:
        [kg m^2], shape (..., 3, 3), in the axes of the shape.
    Raises:
        InputError: another kind.
    """
    x, y, z = size.unbind(-1)
    if kind == ShapeKind.SPHERE:
        about = 0.4 * x * x
        moments = torch.stack([about, about, about], -1)
    elif kind == ShapeKind.BOX:
        moments = torch.stack([y * y + z * z, x * x + z * z, x * x + y * y], -1) / 3
    elif kind == ShapeKind.CYLINDER:
        across = x * x / 4 + y * y / 3
        moments = torch.stack([across, across, x * x / 2], -1)
    elif kind == ShapeKind.CAPSULE:
        tube = 2 * y / (2 * y + 4 / 3 * x)  # its share of the mass; the rest is in the two ends
        ends = 0.4 * x * x + y * y + 0.75 * x * y
        across = tube * (x * x / 4 + y * y / 3) + (1 - tube) * ends
        moments = torch.stack([across, across, tube * x * x / 2 + (1 - tube) * 0.4 * x * x], -1)
    else:
        raise InputError(f"solid_inertia: no solid is known for {kind!r}; give its inertia yourself")
    return torch.diag_embed(mass[..., None] * moments)


class RigidBodies(Stage):
    """Free rigid bodies, N in each world, in contact with each other and with what stands still.

    The frame of a body is at its centre of mass. A step is symplectic Euler: velocities first, then positions with
    the new ones, and rotations by the exponential of the rate at half the turn, which keeps angular momentum exactly.

    Inputs: `state` with `pose` (B, N, 7) and `velocity` (B, N, 6), linear [m/s], then angular [rad/s], in world axes;
    optional `wrench` from outside, force [N], then torque about the centre of mass [N m], in world axes, (B, N, 6).
    Output: `state`.

    Args:
        contact: What touches and how it pushes, whose shapes are fixed to bodies 0 to N-1.
        mass: [kg], shape (N,) or (B, N).
        inertia: About the centre of mass, in the axes of the body [kg m^2], shape (N, 3, 3) or (B, N, 3, 3).
        dt: Duration of a step [s].
        substeps: Integration steps in it.
        restitution: None: shapes push each other by the smooth forces of `contact`. A number, or one of each shape,
            (G,) or (B, G), differentiable: they bounce at the time of impact, with the friction of `contact`; what
            closes slower than 0.1 m/s rests on the smooth forces.
        gravity: [m/s^2].
        learnable: Makes mass, inertia and gravity `nn.Parameter`s; otherwise they are buffers.

    Raises:
        InputError: a mass or inertia that is not positive, a step that is not; when called, a pose that is none.
        ShapeError: parameters of other shapes, or contact with a body that does not exist.
    Gradients: exact in state, wrench, masses, inertias, gravity, and in everything of the contact.
    """

    contract = Contract(inputs={"state": STATE, "wrench": "B N 6"}, outputs={"state": STATE})

    mass: Tensor
    inertia: Tensor
    gravity: Tensor

    def __init__(
        self,
        contact: Contact,
        mass: Tensor,
        inertia: Tensor,
        dt: float,
        substeps: int = 1,
        *,
        restitution: float | Tensor | None = None,
        gravity: Sequence[float] | Tensor = (0.0, 0.0, -9.81),
        learnable: bool = False,
    ):
        super().__init__()
        if not dt > 0 or substeps < 1:
            raise InputError(f"rigid bodies: dt and substeps are positive, got {dt} and {substeps}")
        self.contact, self.dt, self.substeps = contact, dt, substeps
        gravity = torch.as_tensor(gravity, dtype=mass.dtype)
        _check(contact, mass, inertia, gravity)
        self.restitution = (
            None if restitution is None else law_by_shape(contact.shapes, "restitution", restitution)
        )
        for name, value in (("mass", mass), ("inertia", inertia), ("gravity", gravity)):
            if learnable:
                self.register_parameter(name, nn.Parameter(value.detach().clone()))
            else:
                self.register_buffer(name, value)

    def forward(self, state: Mapping[str, Tensor], wrench: Tensor | None = None) -> dict[str, Tensor]:
        """Advance by one step of `dt`."""
        pose, velocity = state["pose"], state["velocity"]
        step = self.dt / self.substeps
        bodies = self._bodies(pose)
        for _ in range(self.substeps):
            pose, velocity = self._substep(pose, velocity, wrench, bodies, step)
        return {"pose": pose, "velocity": velocity}

    def _bodies(self, pose: Tensor) -> dict[str, Tensor]:
        """Masses and inertias of each world."""
        worlds = pose.shape[0]
        mass = self.mass.to(pose).expand(worlds, -1)
        inertia = self.inertia.to(pose).expand(worlds, -1, -1, -1)
        return {"mass": mass, "inertia": inertia, "inverse_inertia": torch.linalg.inv(inertia)}

    def _substep(
        self, pose: Tensor, velocity: Tensor, wrench: Tensor | None, bodies: Mapping[str, Tensor], step: float
    ) -> tuple[Tensor, Tensor]:
        if self.restitution is not None:
            return self._bounce(pose, velocity, wrench, bodies, step)
        mass, inertia, inverse = bodies["mass"], bodies["inertia"], bodies["inverse_inertia"]
        force = mass[..., None] * self.gravity.to(pose)
        torque = torch.zeros_like(force)
        if wrench is not None:
            force, torque = force + wrench[..., :3], wrench[..., 3:]
        middle, linear, angular = begin_bodies(
            pose, velocity[..., :3], velocity[..., 3:], force, torque, mass, inertia, inverse, dt=step
        )
        free = torch.cat([linear, angular], -1)
        velocity = settle(self.contact, middle, velocity, free, mass, inertia, step)
        linear = velocity[..., :3]
        pose, angular = finish_bodies(middle, linear, velocity[..., 3:], inertia, inverse, dt=step)
        return pose, torch.cat([linear, angular], -1)

    def _bounce(
        self, pose: Tensor, velocity: Tensor, wrench: Tensor | None, bodies: Mapping[str, Tensor], step: float
    ) -> tuple[Tensor, Tensor]:
        assert self.restitution is not None
        acceleration = self.gravity.to(pose).expand(*pose.shape[:2], 3)
        torque = torch.zeros_like(acceleration)
        if wrench is not None:
            acceleration = acceleration + wrench[..., :3] / bodies["mass"][..., None]
            torque = wrench[..., 3:]
        moving = bodies_from(bodies)
        motion = start_motion(pose, velocity, moving, torque, step)
        # What closes slowly rests on the smooth forces, which hold against what the others do within the step.
        free = torch.cat([motion.linear + step * acceleration, angular_velocity(motion, moving)], -1)
        rested = settle(
            self.contact, pose, velocity, free, bodies["mass"], bodies["inertia"], step, slow=REST_SPEED
        )
        motion = give(motion, moving, rested - free, acceleration)
        motion = bounce(self.contact, motion, moving, self.restitution, step)
        return motion.pose, torch.cat([motion.linear, angular_velocity(motion, moving)], -1)


def _check(contact: Contact, mass: Tensor, inertia: Tensor, gravity: Tensor) -> None:
    count = mass.shape[-1] if mass.ndim else 0
    if mass.ndim not in (1, 2) or inertia.ndim not in (3, 4) or inertia.shape[-3:] != (count, 3, 3):
        raise ShapeError(
            f"rigid bodies: expected mass (N,) or (B, N) and inertia (N, 3, 3) or (B, N, 3, 3), got "
            f"{tuple(mass.shape)} and {tuple(inertia.shape)}"
        )
    if gravity.shape != (3,):
        raise ShapeError(f"rigid bodies: expected gravity (3,), got {tuple(gravity.shape)}")
    highest = max(contact.shapes.body, default=-1)
    if highest >= count:
        raise ShapeError(f"rigid bodies: a shape is fixed to body {highest}, but there are {count}")
    if not bool(((mass > 0) & torch.isfinite(mass)).all()):
        raise InputError(f"rigid bodies: masses are positive and finite, got {mass.tolist()}")
    moments = torch.linalg.eigvalsh(inertia.detach())
    if not bool((moments > 0).all()):
        raise InputError(
            "rigid bodies: an inertia is not positive definite, so that a torque would turn the body infinitely fast; "
            f"its moments are {moments[(moments <= 0).any(-1)][0].tolist()}"
        )
