"""Building a model body by body; what reads robot files builds with it too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gradpath.bodies import MeshFile, Skin
from gradpath.errors import InputError
from gradpath.meshes import TriangleMesh
from gradpath.sim.assembly import UNIT_POSE, Attached, Body, Parts, assemble
from gradpath.sim.model import JOINT_PARAMETERS, JointKind, Model
from gradpath.sim.shapes import ShapeKind

Numbers: TypeAlias = "float | Sequence[float] | Sequence[Sequence[float]] | np.ndarray | Tensor"

_SIZES = (1, 3, 2, 2, 0, 3, 3, 3)  # how many of a shape's three sizes it uses, by kind
_ON_AXIS = set(JOINT_PARAMETERS) - {"armature", "damping", "dry_friction"}  # need a position along an axis


class ModelBuilder:
    """Collects bodies, joints, shapes and actuators, and builds a `Model` of them.

    ```python
    builder = sim.ModelBuilder("pendulum")
    builder.add_body("rod", joint="hinge", axis=(0, 1, 0), mass=1.0, com=(0, 0, -0.5), inertia=(0.1, 0.1, 0.01))
    builder.add_motor("rod", limit=5.0)
    model = builder.build()
    ```

    Args:
        name: Name of the model.
        gravity: Acceleration in the world [m/s^2].
        source: What errors name, such as a file; the name by default.
    """

    def __init__(self, name: str, gravity: Sequence[float] = (0.0, 0.0, -9.81), *, source: str | None = None):
        self._parts = Parts(name, source or name, _tensor(gravity))
        self._source = source or name

    def add_body(
        self,
        name: str,
        parent: str | None = None,
        *,
        joint: str | JointKind = "fixed",
        joint_name: str | None = None,
        placement: Numbers = UNIT_POSE,
        axis: Numbers = (0.0, 0.0, 1.0),
        anchor: Numbers = (0.0, 0.0, 0.0),
        mass: float = 0.0,
        com: Numbers = (0.0, 0.0, 0.0),
        inertia: Numbers = (0.0, 0.0, 0.0),
        mimics: str | None = None,
        ratio: float = 1.0,
        offset: float = 0.0,
        home: Numbers | None = None,
        **dofs: float,
    ) -> str:
        """Add a body and the joint that moves it.

        Args:
            name: Name of the body, unlike any other.
            parent: Name of a body added before; None for the world.
            joint: "fixed", "hinge", "slide", "ball" or "free".
            joint_name: Name of the joint; that of the body by default.
            placement: Pose of the joint frame in the parent, or its position alone [m].
            axis: Axis of a hinge or slide, of any length but zero.
            anchor: Point of the body that a hinge or ball turns about [m].
            mass: [kg].
            com: Centre of mass in the frame of the body [m].
            inertia: About the centre of mass, diagonal or 3 x 3 [kg m^2].
            mimics: Name of a hinge or slide whose position this one follows as `ratio * q + offset`.
            ratio: See `mimics`; without it, a factor on how the position of the joint is counted.
            offset: See `mimics`; without it, where that count begins.
            home: Coordinates at rest; zero by default.
            **dofs: Numbers for each freedom of the joint: `armature`, `damping`, `dry_friction`, and for a hinge or
                slide `stiffness`, `rest`, `lower`, `upper`, `limit_stiffness`, `limit_dissipation`, `limit_width`.
        Returns:
            The name of the body.
        Raises:
            InputError: a name that is taken or unknown, or a number that no body has.
        """
        parts = self._parts
        kind = self._kind(name, joint)
        if name in parts.bodies:
            raise InputError(f"{self._source}: there is a body {name!r} already; rename one of them")
        self._check_known(parent, f"body {name!r} hangs on")
        about = _tensor(inertia)
        body = Body(
            name=name,
            parent=parent,
            kind=kind,
            joint=joint_name or name,
            placement=_pose(placement),
            axis=_tensor(axis),
            anchor=_tensor(anchor),
            inertia=(float(mass), _tensor(com), about if about.ndim == 2 else torch.diag(about)),
            mimics=mimics,
            ratio=float(ratio),
            offset=float(offset),
            dofs={key: float(value) for key, value in dofs.items()},
            home=_home(kind) if home is None else _tensor(home).reshape(-1),
        )
        self._check_body(body)
        parts.bodies[name] = body
        (parts.roots if parent is None else parts.bodies[parent].children).append(name)
        return name

    def add_shape(
        self,
        body: str | None,
        kind: ShapeKind,
        size: Numbers = (1.0, 1.0, 1.0),
        *,
        pose: Numbers = UNIT_POSE,
        friction: float = 1.0,
        mesh: MeshFile | TriangleMesh | None = None,
        heights: Tensor | None = None,
        group: int = 1,
        mask: int = 1,
        margin: float = 0.0,
        name: str = "",
    ) -> None:
        """Fix a collision shape to a body, or to the world for None; see `ShapeKind` and `Shapes`.

        Raises:
            InputError: no such body, a shape without the mesh or the heights it needs, a size that is not positive.
        """
        where = f"{self._source}: shape {name!r} of {body!r}"
        sizes = _tensor(size).reshape(-1)
        sizes = torch.nn.functional.pad(sizes, (0, 3 - len(sizes)))
        mirrored = sizes.abs() if mesh is not None else sizes  # a mesh may have a negative scale
        if not bool((mirrored[: _SIZES[kind]] > 0).all() & torch.isfinite(sizes).all()):
            raise InputError(f"{where} has the size {sizes.tolist()}; sizes are finite and positive")
        if (kind in (ShapeKind.MESH, ShapeKind.CONVEX)) != (mesh is not None):
            raise InputError(f"{where} is a {kind.name}; a mesh belongs to MESH and CONVEX, and to no other")
        if (kind == ShapeKind.HEIGHT_FIELD) != (heights is not None):
            raise InputError(f"{where} is a {kind.name}; heights belong to HEIGHT_FIELD, and to no other")
        if not 0 <= margin < math.inf:
            raise InputError(f"{where} has the margin {margin}; it is zero or more, in metres")
        made = (name, ShapeKind(kind), mesh, heights, group, mask, sizes, float(friction), float(margin))
        self._parts.shapes.append(self._attach(body, pose, made))

    def add_visual(
        self,
        body: str | None,
        mesh: MeshFile | TriangleMesh,
        *,
        pose: Numbers = UNIT_POSE,
        scale: Numbers = (1.0, 1.0, 1.0),
        colour: Sequence[float] | None = (0.7, 0.7, 0.7, 1.0),
        skin: Skin | None = None,
        name: str = "",
    ) -> None:
        """Fix a mesh that is drawn to a body, or to the world for None; see `Visual`.

        Raises:
            InputError: no such body, or a colour that is none.
        """
        where = f"{self._source}: visual {name!r} of {body!r}"
        if colour is not None:
            if len(colour) != 4 or not all(0.0 <= value <= 1.0 for value in colour):
                raise InputError(
                    f"{where} has the colour {colour}; give red, green, blue and alpha in [0, 1]"
                )
            colour = tuple(map(float, colour))
        self._parts.visuals.append(self._attach(body, pose, (name, mesh, _tensor(scale), colour, skin)))

    def add_frame(self, name: str, body: str | None, pose: Numbers = UNIT_POSE) -> None:
        """Name a frame that is fixed in a body, or in the world for None."""
        self._parts.frames[name] = self._attach(body, pose, None)

    def exclude(self, first: str, second: str) -> None:
        """Let two bodies never touch; parent and child never do."""
        self._check_known(first, "exclude names")
        self._check_known(second, "exclude names")
        self._parts.exclude.add((first, second))

    def add_actuator(
        self,
        joint: str,
        *,
        name: str | None = None,
        freedom: int = 0,
        gear: float = 1.0,
        gain: float = 1.0,
        bias: Sequence[float] = (0.0, 0.0, 0.0),
        control_range: Sequence[float] = (-math.inf, math.inf),
        force_range: Sequence[float] = (-math.inf, math.inf),
    ) -> None:
        """Add an actuator: its force is gain * control + bias, limited to its range, and acts times gear.

        Args:
            joint: Name of the joint.
            name: Name of the actuator; that of the joint by default.
            freedom: Which freedom of the joint it acts on.
            gear: Torque or force on the joint per force of the actuator.
            gain: Force per control.
            bias: Force without control, per joint position and per joint velocity (both times gear).
            control_range: Least and largest control.
            force_range: Least and largest force.
        """
        self._parts.actuators.append(
            {
                "name": name or joint, "joint": joint, "freedom": freedom, "gear": gear, "gain": gain,
                "bias": tuple(bias), "control_range": tuple(control_range), "force_range": tuple(force_range),
            }
        )  # fmt: skip

    def add_motor(self, joint: str, *, limit: float = math.inf, name: str | None = None) -> None:
        """Add an actuator whose control is the torque [N m] or force [N] itself, up to `limit`."""
        self.add_actuator(joint, name=name, force_range=(-limit, limit))

    def add_servo(
        self,
        joint: str,
        *,
        stiffness: float,
        damping: float,
        limit: float = math.inf,
        name: str | None = None,
    ) -> None:
        """Add a position servo: stiffness * (control - q) - damping * qd, up to `limit`."""
        self.add_actuator(
            joint, name=name, gain=stiffness, bias=(0.0, -stiffness, -damping), force_range=(-limit, limit)
        )

    def build(self, *, merge_fixed: bool = True) -> Model:
        """Return the model, bodies depth first and children as they were added.

        Args:
            merge_fixed: Make bodies behind fixed joints part of their parents, which is quicker; they stay as frames.
                Otherwise they are bodies, and their masses may have gradients of their own.
        Raises:
            InputError: names the body or joint whose inertia lets it accelerate without bound, or a joint that mimics
                what is not there.
        """
        return assemble(self._parts, merge_fixed)

    def _kind(self, body: str, joint: str | JointKind) -> JointKind:
        if isinstance(joint, JointKind):
            return joint
        if joint.upper() not in JointKind.__members__:
            known = ", ".join(kind.name.lower() for kind in JointKind)
            raise InputError(
                f"{self._source}: body {body!r} has a joint {joint!r}; the known ones are {known}"
            )
        return JointKind[joint.upper()]

    def _attach(self, body: str | None, pose: Numbers, made: Any) -> Attached:
        self._check_known(body, "something is fixed to")
        return Attached(body, _pose(pose), made)

    def _check_known(self, body: str | None, what: str) -> None:
        if body is not None and body not in self._parts.bodies:
            raise InputError(f"{self._source}: {what} {body!r}, which is no body; add it first")

    def _check_body(self, body: Body) -> None:
        where = f"{self._source}: body {body.name!r}"
        mass, com, inertia = body.inertia
        shapes = (
            (body.axis, (3,)),
            (body.anchor, (3,)),
            (com, (3,)),
            (inertia, (3, 3)),
            (body.placement, (7,)),
        )
        wrong = [value for value, shape in shapes if value.shape != shape]
        if wrong or body.home.shape != (body.kind.coordinates,):
            got = tuple((wrong or [body.home])[0].shape)
            raise InputError(f"{where}: a value has shape {got}; see the arguments of add_body")
        values = torch.cat([value.flatten() for value, _ in shapes] + [torch.tensor([mass], dtype=com.dtype)])
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"{where}: a number is not finite; mass {mass}, com {com.tolist()}")
        if mass < 0:
            raise InputError(f"{where} has the mass {mass}; it is zero or more")
        moves_on_axis = body.kind in (JointKind.HINGE, JointKind.SLIDE)
        if moves_on_axis and not float(body.axis.norm()) > 0:
            raise InputError(f"{where}: the axis of joint {body.joint!r} is zero; give it a direction")
        if abs(float(body.placement[3:].norm()) - 1) > 1e-3:
            raise InputError(
                f"{where}: its placement {body.placement.tolist()} is no pose; the quaternion needs norm 1"
            )
        for name, value in body.dofs.items():
            if name not in JOINT_PARAMETERS:
                raise InputError(f"{where}: a joint has no {name!r}; it has {', '.join(JOINT_PARAMETERS)}")
            if name in _ON_AXIS and not moves_on_axis:
                raise InputError(f"{where}: {name} is for hinges and slides, joint {body.joint!r} is none")
            if math.isnan(value) or (value < 0 and name not in ("rest", "lower", "upper")):
                raise InputError(f"{where}: {name} of joint {body.joint!r} is {value}; it is zero or more")
        if body.dofs.get("lower", -math.inf) > body.dofs.get("upper", math.inf):
            raise InputError(
                f"{where}: joint {body.joint!r} has its lower limit above its upper one; swap them"
            )


def _tensor(values: Numbers) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().to(device="cpu", dtype=torch.float64).clone()
    return torch.tensor(np.array(values, dtype=np.float64))


def _pose(values: Numbers) -> Tensor:
    place = _tensor(values)
    return place if place.shape != (3,) else torch.cat([place, _tensor(UNIT_POSE[3:])])


def _home(kind: JointKind) -> Tensor:
    home = torch.zeros(kind.coordinates, dtype=torch.float64)
    if kind in (JointKind.BALL, JointKind.FREE):
        home[-1] = 1.0
    return home
