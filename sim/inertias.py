"""Inertias of bodies that move as one, in plain float64: for merging bodies and for refusing impossible ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gradpath import geometry
from gradpath.bodies import WORLD
from gradpath.sim.model import Joint, JointKind

Inertia = tuple[float, Tensor, Tensor]  # mass [kg], centre of mass (3,) [m], inertia about it (3, 3) [kg m^2]


def shifted(mass: float, inertia: Tensor, offset: Tensor) -> Tensor:
    """Return a rotational inertia about a point at `offset` from the centre of mass (Steiner)."""
    return inertia + mass * (
        offset.dot(offset) * torch.eye(3, dtype=offset.dtype) - torch.outer(offset, offset)
    )


def moved(inertia: Inertia, pose: Tensor) -> Inertia:
    """Return an inertia in the parent of the frame that it is given in."""
    mass, com, about = inertia
    rotation = geometry.quat_to_matrix(pose[3:])
    return mass, geometry.pose_apply(pose, com), rotation @ about @ rotation.T


def combine(a: Inertia, b: Inertia) -> Inertia:
    """Return the inertia of two bodies that move as one, both given in the same frame."""
    mass = a[0] + b[0]
    if mass == 0.0:
        return 0.0, torch.zeros_like(a[1]), a[2] + b[2]
    com = (a[0] * a[1] + b[0] * b[1]) / mass
    return mass, com, shifted(a[0], a[2], a[1] - com) + shifted(b[0], b[2], b[1] - com)


def joint_pose(kind: JointKind, axis: Tensor, anchor: Tensor, position: Tensor) -> Tensor:
    """Return the pose of a body in its joint frame; `position` are its coordinates, ratio and offset applied."""
    unit = geometry.quat_identity(dtype=axis.dtype)
    if kind == JointKind.FREE:
        return position
    if kind == JointKind.SLIDE:
        return geometry.pose(axis / axis.norm() * position, unit)
    turn = unit
    if kind == JointKind.HINGE:
        turn = geometry.quat_from_axis_angle(axis / axis.norm(), position[0])
    elif kind == JointKind.BALL:
        turn = position
    return geometry.pose(anchor - geometry.quat_rotate(turn, anchor), turn)


def effective_inertias(
    joints: Sequence[Joint],
    poses: Sequence[Tensor],
    inertias: Sequence[Inertia],
    axes: Tensor,
    anchors: Tensor,
) -> list[list[float]]:
    """Return what each freedom of each joint alone would accelerate, all other joints held.

    Args:
        joints: Joint of each body.
        poses: Pose of each body in its parent.
        inertias: Of each body in its own frame.
        axes: Shape (N, 3).
        anchors: Shape (N, 3).
    """
    behind = list(inertias)
    result: list[list[float]] = [[] for _ in joints]
    for i in reversed(range(len(joints))):
        kind = joints[i].kind
        mass, com, about = behind[i]
        at_anchor = shifted(mass, about, com - anchors[i])
        unit = axes[i] / axes[i].norm()
        if kind == JointKind.HINGE:
            result[i] = [float(unit @ at_anchor @ unit)]
        elif kind == JointKind.SLIDE:
            result[i] = [mass]
        elif kind == JointKind.BALL:
            result[i] = at_anchor.diagonal().tolist()
        elif kind == JointKind.FREE:
            result[i] = [mass] * 3 + torch.linalg.eigvalsh(about).tolist()
        if joints[i].parent != WORLD:
            behind[joints[i].parent] = combine(behind[joints[i].parent], moved(behind[i], poses[i]))
    return result
