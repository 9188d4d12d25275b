"""From the bodies that a builder has collected to a model: order, merged bodies, inertias that can move."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradpath import geometry
from gradpath.bodies import WORLD, Frame, Visual
from gradpath.errors import InputError
from gradpath.sim.inertias import Inertia, combine, effective_inertias, joint_pose, moved
from gradpath.sim.model import (
    ACTUATOR_PARAMETERS,
    JOINT_PARAMETERS,
    Actuator,
    Joint,
    JointKind,
    Model,
)
from gradpath.sim.shapes import Shapes

STOP_RATE = 100.0  # [rad/s] of the oscillation in a stop, with the inertia that the joint has at rest
F64 = torch.float64
UNIT_POSE = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


@dataclass
class Body:
    """A body as it was added to a builder."""

    name: str
    parent: str | None
    kind: JointKind
    joint: str
    placement: Tensor
    axis: Tensor
    anchor: Tensor
    inertia: Inertia
    mimics: str | None
    ratio: float
    offset: float
    dofs: dict[str, float]  # the same for each freedom of the joint
    home: Tensor
    children: list[str] = field(default_factory=list)


@dataclass
class Attached:
    """A shape, visual or frame on a body that may yet be merged away; `made` is what it is."""

    body: str | None
    pose: Tensor
    made: Any = None


@dataclass
class Parts:
    """All that a builder has collected."""

    name: str
    source: str  # what errors name: the file, where there is one
    gravity: Tensor
    bodies: dict[str, Body] = field(default_factory=dict)
    roots: list[str] = field(default_factory=list)
    shapes: list[Attached] = field(default_factory=list)
    visuals: list[Attached] = field(default_factory=list)
    frames: dict[str, Attached] = field(default_factory=dict)
    actuators: list[dict[str, Any]] = field(default_factory=list)
    exclude: set[tuple[str, str]] = field(default_factory=set)


@dataclass
class _Host:
    """Where a body went: the index of what moves it, and its pose there."""

    index: int
    pose: Tensor


def _depth_first(parts: Parts) -> list[Body]:
    order, stack = [], list(reversed(parts.roots))
    while stack:
        body = parts.bodies[stack.pop()]
        order.append(body)
        stack += reversed(body.children)
    return order


def assemble(parts: Parts, merge_fixed: bool) -> Model:
    """Make the model; see `ModelBuilder.build`."""
    unit = torch.tensor(UNIT_POSE, dtype=F64)
    hosts: dict[str | None, _Host] = {None: _Host(WORLD, unit)}
    kept: list[Body] = []
    inertias: list[Inertia] = []
    placements: list[Tensor] = []
    for body in _depth_first(parts):
        above = hosts[body.parent]
        place = geometry.pose_compose(above.pose, body.placement)
        if merge_fixed and body.kind == JointKind.FIXED:
            hosts[body.name] = _Host(above.index, place)
            if above.index != WORLD:
                inertias[above.index] = combine(inertias[above.index], moved(body.inertia, place))
        else:
            hosts[body.name] = _Host(len(kept), unit)
            kept.append(body)
            inertias.append(body.inertia)
            placements.append(place)
    joints, ratios, offsets = _join(parts, kept, hosts)
    axes = torch.stack([b.axis for b in kept]) if kept else torch.zeros(0, 3, dtype=F64)
    anchors = torch.stack([b.anchor for b in kept]) if kept else torch.zeros(0, 3, dtype=F64)
    own = [i for i, joint in enumerate(joints) if joint.mimics is None]
    home = torch.cat([torch.zeros(0, dtype=F64), *(kept[i].home for i in own)])
    poses = []
    for i, joint in enumerate(joints):
        position = home[joint.q_start : joint.q_start + joint.kind.coordinates]
        if joint.kind in (JointKind.HINGE, JointKind.SLIDE):
            position = ratios[i] * position + offsets[i]
        moved_by = joint_pose(joint.kind, axes[i], anchors[i], position)
        poses.append(geometry.pose_compose(placements[i], moved_by))
    moving = effective_inertias(joints, poses, inertias, axes, anchors)
    _check_inertias(parts, kept, joints, moving)
    frames = {
        body.name: Frame(hosts[body.name].index, hosts[body.name].pose)
        for body in parts.bodies.values()
        if merge_fixed and body.kind == JointKind.FIXED
    }
    for name, attached in parts.frames.items():
        frames[name] = Frame(*_located(attached, hosts))
    actuators, actuator_values = _actuate(parts, joints)
    return Model(
        name=parts.name,
        body_names=tuple(body.name for body in kept),
        joints=tuple(joints),
        actuators=actuators,
        frames=frames,
        visuals=tuple(Visual(made[0], *_placed(a, made, hosts)) for a in parts.visuals for made in [a.made]),
        home=home,
        placement=torch.stack(placements) if kept else torch.zeros(0, 7, dtype=F64),
        axis=axes,
        anchor=anchors,
        mass=torch.tensor([inertia[0] for inertia in inertias], dtype=F64),
        com=torch.stack([inertia[1] for inertia in inertias]) if kept else torch.zeros(0, 3, dtype=F64),
        inertia=torch.stack([inertia[2] for inertia in inertias])
        if kept
        else torch.zeros(0, 3, 3, dtype=F64),
        ratio=torch.tensor(ratios, dtype=F64),
        offset=torch.tensor(offsets, dtype=F64),
        gravity=parts.gravity,
        shapes=_shape(parts, hosts, joints),
        **_dof_values([kept[i] for i in own], [moving[i] for i in own]),
        **actuator_values,
    )


def _join(
    parts: Parts, kept: list[Body], hosts: Mapping[str | None, _Host]
) -> tuple[list[Joint], list[float], list[float]]:
    """Number the coordinates, and resolve which joint each follows in the end."""
    by_joint = {body.joint: body for body in kept}
    starts: dict[str, tuple[int, int]] = {}
    nq = nv = 0
    for body in kept:
        if body.mimics is None:
            starts[body.joint] = (nq, nv)
            nq, nv = nq + body.kind.coordinates, nv + body.kind.freedoms
    joints, ratios, offsets = [], [], []
    for body in kept:
        ratio, offset, leader, passed = body.ratio, body.offset, body, {body.joint}
        while leader.mimics is not None:
            if leader.mimics not in by_joint or leader.mimics in passed:
                what = (
                    "itself"
                    if leader.mimics in passed
                    else f"{leader.mimics!r}, which is no joint that moves"
                )
                raise InputError(
                    f"{parts.source}: joint {leader.joint!r} mimics {what}; name a hinge or slide of the tree"
                )
            leader = by_joint[leader.mimics]
            passed.add(leader.joint)
            if leader.kind not in (JointKind.HINGE, JointKind.SLIDE):
                raise InputError(
                    f"{parts.source}: joint {body.joint!r} mimics {leader.joint!r}, which is {leader.kind.name}; "
                    "only hinges and slides can be followed"
                )
            if leader.mimics is not None:
                ratio, offset = ratio * leader.ratio, ratio * leader.offset + offset
        parent = hosts[body.parent].index
        followed = None if leader is body else leader.joint
        joints.append(Joint(body.joint, body.kind, parent, *starts[leader.joint], followed))
        ratios.append(ratio)
        offsets.append(offset)
    return joints, ratios, offsets


def _check_inertias(parts: Parts, kept: list[Body], joints: list[Joint], moving: list[list[float]]) -> None:
    total: dict[int, float] = {}  # per velocity, with what follows it
    for joint, body, values in zip(joints, kept, moving, strict=True):
        for k, value in enumerate(values):
            dof = joint.v_start + k
            total[dof] = total.get(dof, 0.0) + value + body.dofs.get("armature", 0.0)
    for joint, body in zip(joints, kept, strict=True):
        for k in range(joint.kind.freedoms):
            if not total[joint.v_start + k] > 0.0:
                raise InputError(
                    f"{parts.source}: joint {joint.name!r} moves body {body.name!r}, which with all behind it has no "
                    "inertia that the joint could move; give one of them mass and inertia, or the joint an armature"
                )


def _dof_values(own: list[Body], moving: list[list[float]]) -> dict[str, Tensor]:
    values: dict[str, list[float]] = {name: [] for name in JOINT_PARAMETERS}
    for body, inertias in zip(own, moving, strict=True):
        for inertia in inertias:
            stop = STOP_RATE**2 * (inertia + body.dofs.get("armature", 0.0))
            defaults = {
                "lower": -math.inf,
                "upper": math.inf,
                "limit_stiffness": stop,
                "limit_dissipation": 1.0,
                "limit_width": 0.001 if body.kind == JointKind.SLIDE else 0.01,
            }
            for name, column in values.items():
                column.append(body.dofs.get(name, defaults.get(name, 0.0)))
    return {name: torch.tensor(column, dtype=F64) for name, column in values.items()}


def _actuate(parts: Parts, joints: list[Joint]) -> tuple[tuple[Actuator, ...], dict[str, Tensor]]:
    by_name = {joint.name: joint for joint in joints}
    actuators = []
    for given in parts.actuators:
        joint = by_name.get(given["joint"])
        if joint is None or not 0 <= given["freedom"] < joint.kind.freedoms or joint.mimics is not None:
            raise InputError(
                f"{parts.source}: actuator {given['name']!r} acts on freedom {given['freedom']} of joint "
                f"{given['joint']!r}, which has none of its own; name a joint that moves and follows no other"
            )
        actuators.append(Actuator(given["name"], joint.name, joint.v_start + given["freedom"]))
    values = {}
    for name, axes in ACTUATOR_PARAMETERS.items():
        shape = (len(actuators), *(axis for axis in axes if isinstance(axis, int)))
        values[name] = torch.tensor([given[name] for given in parts.actuators], dtype=F64).reshape(shape)
    return tuple(actuators), values


def _located(attached: Attached, hosts: Mapping[str | None, _Host]) -> tuple[int, Tensor]:
    host = hosts[attached.body]
    return host.index, geometry.pose_compose(host.pose, attached.pose)


def _placed(attached: Attached, made: Any, hosts: Mapping[str | None, _Host]) -> tuple[Any, ...]:
    index, pose = _located(attached, hosts)
    _, mesh, scale, colour, skin = made
    return index, mesh, pose, scale, colour, skin


def _shape(parts: Parts, hosts: Mapping[str | None, _Host], joints: list[Joint]) -> Shapes:
    located = [_located(attached, hosts) for attached in parts.shapes]
    made = [attached.made for attached in parts.shapes]
    pairs = {(hosts[a].index, hosts[b].index) for a, b in parts.exclude}
    pairs |= {(joint.parent, i) for i, joint in enumerate(joints) if joint.parent != WORLD}
    columns: list[Any] = list(zip(*made, strict=True)) or [()] * 9
    names, kinds, meshes, heights, groups, masks, sizes, frictions, margins = columns
    return Shapes(
        names=tuple(names),
        kind=tuple(kinds),
        body=tuple(index for index, _ in located),
        mesh=tuple(meshes),
        heights=tuple(heights),
        group=tuple(groups),
        mask=tuple(masks),
        exclude=frozenset((min(pair), max(pair)) for pair in pairs),
        pose=torch.stack([pose for _, pose in located]) if located else torch.zeros(0, 7, dtype=F64),
        size=torch.stack(sizes) if sizes else torch.zeros(0, 3, dtype=F64),
        friction=torch.tensor(frictions, dtype=F64),
        margin=tuple(margins),
    )
