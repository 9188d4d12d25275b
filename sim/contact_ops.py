"""Steps in contact as torch operations."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
import warp as wp
from torch import Tensor

from gradpath import geometry, kernels
from gradpath.sim import contact_articulated, contact_bodies
from gradpath.sim.contact import Contact, ContactPoints, relative_velocity
from gradpath.sim.contact_rows import Touch, count_scratch
from gradpath.sim.model import JointKind
from gradpath.sim.tree import Layout, lay_out_joints
from gradpath.sim.tree_op import TreeOp

middle_op = TreeOp(
    forward=contact_articulated.make_middle,
    adjoint=contact_articulated.make_middle_adjoint,
    inputs=("state",),
    outputs=("pose",),
    adjoint_takes=("state",),
    widths=lambda layout, *_: (7 * layout.tree.bodies,),
)
touch_op = TreeOp(
    forward=contact_articulated.make_touch,
    adjoint=contact_articulated.make_touch_adjoint,
    inputs=("state", "control", "wrench", "pose", "contacts"),
    outputs=("after",),
    adjoint_takes=("state", "control", "wrench", "pose", "contacts", "after"),
    widths=lambda layout, widths, _: (widths["state"],),
)
settle_op = TreeOp(
    forward=contact_bodies.make_settle,
    adjoint=contact_bodies.make_settle_adjoint,
    inputs=("velocity", "free", "pose", "contacts"),
    outputs=("after",),
    adjoint_takes=("velocity", "free", "pose", "contacts", "after"),
    widths=lambda layout, widths, _: (widths["free"],),
)


@dataclass(frozen=True)
class TouchLayout:
    """The layout of a tree with the scratch of its contacts behind that of its own.

    Attributes:
        layout: Of the tree.
        touch: What kernels get.
    """

    layout: Layout
    touch: Any


def lay_out_touch(layout: Layout, contacts: int) -> TouchLayout:
    """Return the layout for at most so many contacts of a world; made once."""
    return _lay_out_touch(layout, contacts)


@functools.lru_cache(maxsize=256)
def _lay_out_touch(layout: Layout, contacts: int) -> TouchLayout:
    tree = layout.tree
    parents, kinds = tree.parent.numpy(), tree.kind.numpy()
    longest: list[int] = []  # entries of the Jacobian of a point of each body
    for parent, kind in zip(parents, kinds, strict=True):
        above = longest[parent] if parent >= 0 else 0
        longest.append(above + JointKind(kind).freedoms)
    entries = 2 * max(longest, default=0)
    touch, end = count_scratch(
        tree.bodies, tree.freedoms, tree.coordinates, contacts, entries, layout.scratch
    )
    touches: Any = wp.array([touch], dtype=Touch, device=tree.parent.device)
    return TouchLayout(replace(layout, scratch=end), touches)


def lay_out_bodies(count: int, contacts: int, device: torch.device) -> TouchLayout:
    """Return the layout of free bodies, whose parameters are mass and inertia of each."""
    joints = tuple((JointKind.FREE, -1, 7 * i, 6 * i, True) for i in range(count))
    layout = lay_out_joints(joints, (), device)
    return lay_out_touch(replace(layout, parameters=10 * count), contacts)


def join_contacts(points: ContactPoints, law: Tensor) -> Tensor:
    """Return contacts and their laws (B, C, 3) as rows of numbers, shape (B, C * 11)."""
    numbers = [points.point, points.normal, points.depth[..., None], points.weight[..., None], law]
    return torch.cat(numbers, -1).flatten(1)


def settle(
    contact: Contact,
    pose: Tensor,
    velocity: Tensor,
    free: Tensor,
    mass: Tensor,
    inertia: Tensor,
    time: float,
    slow: float | None = None,
) -> Tensor:
    """Return the velocities of free bodies after a step in contact, shape (B, N, 6).

    Args:
        contact: What touches.
        pose: In the middle of the step, shape (B, N, 7), differentiable.
        velocity: Before it, in world axes: linear [m/s] of the centres of mass, then angular [rad/s], shape (B, N, 6),
            differentiable.
        free: After it, without contact, shape (B, N, 6), differentiable.
        mass: [kg], shape (B, N), differentiable.
        inertia: In the axes of the bodies [kg m^2], shape (B, N, 3, 3), differentiable.
        time: Of the step [s].
        slow: Leaves out contacts whose surfaces approach or part faster [m/s]; smoothly.
    Gradients: exact in all, and in everything of the contact.
    """
    geometry.check_poses(pose, "contact")
    points = contact.points(pose)
    if slow is not None:
        speed = (points.normal * relative_velocity(points, pose, velocity)).sum(-1) / slow
        points = replace(points, weight=points.weight * (1 - speed * speed).clamp(min=0.0) ** 3)
    contacts = join_contacts(points, contact.law_of(points, pose))
    worlds, count = pose.shape[:2]
    whole = lay_out_bodies(count, points.depth.shape[1], pose.device)
    params = torch.cat([mass[..., None], inertia.flatten(2)], -1).flatten(1)
    (after,) = settle_op(
        whole.layout, params, velocity.flatten(1), free.flatten(1), pose.flatten(1), contacts,
        bodies=describe_bodies(points.bodies), touch=whole.touch, time=time, width=contact.width,
        scale=contact.slip_speed,
    )  # fmt: skip
    return after.reshape(worlds, count, 6)


def describe_bodies(bodies: Tensor) -> Any:
    """The bodies of contacts (1 or B, C, 2), int32, as kernels get them."""
    return kernels.array(bodies.contiguous(), wp.int32)
