"""Articulated models: a tree of bodies, one joint each, with every physical parameter a tensor."""

import enum
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from gradpath.bodies import Frame, Visual
from gradpath.errors import InputError, ShapeError
from gradpath.sim.shapes import Shapes, no_shapes


class JointKind(enum.IntEnum):
    """How a body moves in its parent; the comment says its coordinates and its velocities."""

    FIXED = 0  # none
    HINGE = 1  # angle about the axis [rad]; its rate
    SLIDE = 2  # displacement along the axis [m]; its rate
    BALL = 3  # quaternion xyzw; angular velocity in the frame of the body [rad/s]
    FREE = (
        4  # position [m], quaternion xyzw; linear [m/s], then angular velocity, both in the frame of the body
    )

    @property
    def coordinates(self) -> int:
        """Numbers in q."""
        return (0, 1, 1, 4, 7)[self]

    @property
    def freedoms(self) -> int:
        """Numbers in qd."""
        return (0, 1, 1, 3, 6)[self]


@dataclass(frozen=True)
class Joint:
    """What joins a body to its parent.

    Attributes:
        name: Name in the file.
        kind: How it moves.
        parent: Index of the parent body, smaller than the body's own; -1 (`WORLD`) for a root.
        q_start: Its first coordinate in q.
        v_start: Its first velocity in qd.
        mimics: Name of the joint whose coordinate it follows, or None. It has none of its own then: its position is
            `ratio * q + offset` of the other, and both `q_start` and `v_start` are those of the other.
    """

    name: str
    kind: JointKind
    parent: int
    q_start: int
    v_start: int
    mimics: str | None = None


@dataclass(frozen=True)
class Actuator:
    """What one number of the control acts on.

    Attributes:
        name: Name in the file.
        joint: Name of its joint.
        dof: Its place in qd.
    """

    name: str
    joint: str
    dof: int


# Axes of each parameter after the optional one of the worlds: N bodies, V velocities, A actuators, and numbers.
BODY_PARAMETERS: dict[str, tuple[str | int, ...]] = {
    "placement": ("N", 7),
    "axis": ("N", 3),
    "anchor": ("N", 3),
    "mass": ("N",),
    "com": ("N", 3),
    "inertia": ("N", 3, 3),
    "ratio": ("N",),
    "offset": ("N",),
}
JOINT_PARAMETERS: dict[str, tuple[str | int, ...]] = {
    "armature": ("V",),
    "damping": ("V",),
    "dry_friction": ("V",),
    "stiffness": ("V",),
    "rest": ("V",),
    "lower": ("V",),
    "upper": ("V",),
    "limit_stiffness": ("V",),
    "limit_dissipation": ("V",),
    "limit_width": ("V",),
}
ACTUATOR_PARAMETERS: dict[str, tuple[str | int, ...]] = {
    "gear": ("A",),
    "gain": ("A",),
    "bias": ("A", 3),
    "control_range": ("A", 2),
    "force_range": ("A", 2),
}
PARAMETERS = {**BODY_PARAMETERS, **JOINT_PARAMETERS, **ACTUATOR_PARAMETERS, "gravity": (3,)}


@dataclass(frozen=True, eq=False)
class Model:
    """A robot, or several: a tree of N bodies, each behind one joint, with nq coordinates and nv velocities.

    Body i is moved by joint i; a parent comes before its children. The frame of a body is that of its link in the
    file. Parameters are float64 and are cast to the dtype of a call. Each may require a gradient, and each may have
    one row per world, with an axis B in front: `model.replace(mass=...)`.

    Attributes:
        name: Name of the robot.
        body_names: Names of the bodies, N of them.
        joints: Joint of each body.
        actuators: What the control acts on, A of them.
        frames: Named frames fixed in bodies: links behind fixed joints, sites.
        shapes: Collision shapes.
        visuals: What a renderer draws.
        home: Coordinates at rest, shape (nq,); quaternions have norm one.
        placement: Pose of the joint frame in the parent body, shape (N, 7).
        axis: Axis of a hinge or slide in the joint frame, by its direction alone, shape (N, 3).
        anchor: Point of the body that a hinge or ball turns about, in the frame of the body [m], shape (N, 3).
        mass: [kg], shape (N,).
        com: Centre of mass in the frame of the body [m], shape (N, 3).
        inertia: Rotational inertia about the centre of mass, in the axes of the body [kg m^2], shape (N, 3, 3).
        ratio, offset: Position of the joint is `ratio * q + offset`, shape (N,). One and zero except for joints
            that mimic another, and where a file counts a joint from another zero.
        armature: Inertia of the motor, seen from the joint [kg m^2 or kg], shape (nv,).
        damping: Viscous [N m s/rad or N s/m], shape (nv,).
        dry_friction: Largest torque of friction [N m or N], shape (nv,).
        stiffness, rest: Of a spring in a hinge or slide [N m/rad or N/m], and where it rests, shape (nv,).
        lower, upper: Limits of a hinge or slide; infinite where there are none, shape (nv,).
        limit_stiffness: Of the stops at the limits [N m/rad or N/m], shape (nv,).
        limit_dissipation: Of the stops, relative to their force [s/rad or s/m], shape (nv,).
        limit_width: Half the range in which a stop takes hold [rad or m], shape (nv,).
        gear: Of an actuator: the torque on the joint per force, shape (A,).
        gain: Force per control, shape (A,).
        bias: Force without control, per joint position and per joint velocity (both times gear), shape (A, 3).
        control_range, force_range: Limits of control and force, shape (A, 2); infinite where there are none.
        gravity: Acceleration [m/s^2], shape (3,).
    """

    name: str
    body_names: tuple[str, ...]
    joints: tuple[Joint, ...]
    actuators: tuple[Actuator, ...]
    frames: Mapping[str, Frame]
    visuals: tuple[Visual, ...]
    home: Tensor
    placement: Tensor
    axis: Tensor
    anchor: Tensor
    mass: Tensor
    com: Tensor
    inertia: Tensor
    ratio: Tensor
    offset: Tensor
    armature: Tensor
    damping: Tensor
    dry_friction: Tensor
    stiffness: Tensor
    rest: Tensor
    lower: Tensor
    upper: Tensor
    limit_stiffness: Tensor
    limit_dissipation: Tensor
    limit_width: Tensor
    gear: Tensor
    gain: Tensor
    bias: Tensor
    control_range: Tensor
    force_range: Tensor
    gravity: Tensor
    shapes: Shapes = field(default_factory=no_shapes)

    def __post_init__(self) -> None:
        sizes = {"N": len(self.joints), "V": self.nv, "A": len(self.actuators)}
        for name, axes in PARAMETERS.items():
            value = torch.as_tensor(getattr(self, name))
            expected = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in axes)
            if value.shape != expected and (value.ndim != len(axes) + 1 or value.shape[1:] != expected):
                raise ShapeError(
                    f"model {self.name!r}: {name}: expected shape {expected}, or that with one row per world in front, "
                    f"got {tuple(value.shape)}"
                )
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {len(self.joints)} bodies, nq={self.nq}, nv={self.nv}, nu={self.nu})"

    @functools.cached_property
    def nq(self) -> int:
        """Number of coordinates."""
        return sum(joint.kind.coordinates for joint in self.joints if joint.mimics is None)

    @functools.cached_property
    def nv(self) -> int:
        """Number of velocities."""
        return sum(joint.kind.freedoms for joint in self.joints if joint.mimics is None)

    @property
    def nu(self) -> int:
        """Number of controls."""
        return len(self.actuators)

    @functools.cached_property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the joints that have coordinates of their own, in the order of q and qd."""
        own = [joint for joint in self.joints if joint.mimics is None and joint.kind != JointKind.FIXED]
        return tuple(joint.name for joint in own)

    def joint(self, name: str) -> Joint:
        """Return the joint of a name.

        Raises:
            InputError: there is none.
        """
        for joint in self.joints:
            if joint.name == name:
                return joint
        raise InputError(
            f"model {self.name!r} has no joint {name!r}; it has {', '.join(j.name for j in self.joints)}"
        )

    def frame(self, name: str) -> Frame:
        """Return the frame of a name: that of a body, or one fixed in a body.

        Raises:
            InputError: there is none.
        """
        if name in self.body_names:
            unit = self.placement.new_tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
            return Frame(self.body_names.index(name), unit)
        if name in self.frames:
            return self.frames[name]
        known = ", ".join([*self.body_names, *self.frames])
        raise InputError(f"model {self.name!r} has no body or frame {name!r}; it has {known}")

    def parameters(self) -> dict[str, Tensor]:
        """Return every physical parameter by name, without those of the collision shapes."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def replace(self, **changes: Any) -> "Model":
        """Return the model with some attributes replaced, such as `mass=` by one that requires a gradient.

        Raises:
            InputError: no such attribute.
            ShapeError: a parameter of another shape.
        """
        known = {f.name for f in fields(self)}
        for name in changes:
            if name not in known:
                raise InputError(f"model {self.name!r} has no {name!r} to replace; it has {', '.join(known)}")
        return replace(self, **changes)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Model":
        """Apply a function to every parameter and shape tensor, such as one that moves them to a device."""
        changed: dict[str, Any] = {name: function(value) for name, value in self.parameters().items()}
        return replace(self, **changed, home=function(self.home), shapes=self.shapes.map(function))


__all__ = [
    "ACTUATOR_PARAMETERS",
    "BODY_PARAMETERS",
    "JOINT_PARAMETERS",
    "PARAMETERS",
    "Actuator",
    "Joint",
    "JointKind",
    "Model",
]
