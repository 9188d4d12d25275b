"""How a model lies in memory for kernels: its topology, its packed parameters, and the scratch of one world."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import warp as wp
from torch import Tensor

from gradpath.bodies import WORLD
from gradpath.sim.model import (
    ACTUATOR_PARAMETERS,
    BODY_PARAMETERS,
    JOINT_PARAMETERS,
    JointKind,
    Model,
)


def _offsets(groups: dict[str, tuple[str | int, ...]]) -> tuple[dict[str, int], int]:
    """Return the offset of each parameter within the numbers of one body, joint or actuator, and their count."""
    offsets, at = {}, 0
    for name, axes in groups.items():
        offsets[name] = at
        at += int(np.prod([axis for axis in axes if isinstance(axis, int)], initial=1))
    return offsets, at


BODY_OFFSETS, BODY_NUMBERS = _offsets(BODY_PARAMETERS)
JOINT_OFFSETS, JOINT_NUMBERS = _offsets(JOINT_PARAMETERS)
ACTUATOR_OFFSETS, ACTUATOR_NUMBERS = _offsets(ACTUATOR_PARAMETERS)

# Scratch of one body, and how many numbers each takes.
_BODY_SCRATCH = {
    "rotation": 9,  # of the body in its parent
    "offset": 3,
    "attitude": 9,  # rotation of the body in the world
    "twist": 6,  # all spatial vectors in the frame of the body
    "acceleration": 6,  # of the body, less gravity
    "wrench": 6,  # that its joint carries
    "load": 6,  # wrench from outside
    "composite": 13,  # mass, first moment and inertia about the origin, of the body and all behind it
    "virtual": 6,  # twist that multiplies the wrench in the adjoint
    "grad_twist": 6,
    "grad_acceleration": 6,
    "grad_turn": 3,
    "orientation": 4,  # quaternion of the body in the world
    "position": 3,
}
SCRATCH_OFFSETS: dict[str, int] = {}
SCRATCH_NUMBERS = 0
for _name, _count in _BODY_SCRATCH.items():
    SCRATCH_OFFSETS[_name] = SCRATCH_NUMBERS
    SCRATCH_NUMBERS += _count

# Scratch vectors of one world: length in coordinates ("q") or velocities ("v").
_VECTORS = {
    "q": "q",
    "qd": "v",
    "qdd": "v",
    "tau": "v",  # what the equations of motion need
    "force": "v",  # what the joints get
    "seed": "v",
    "q_middle": "q",
    "qd_middle": "v",
    "qdd_middle": "v",
    "qd_end": "v",
    "grad_q": "q",
    "grad_qd": "v",
    "grad_qdd": "v",
    "grad_q_middle": "q",
    "grad_qd_middle": "v",
    "grad_qd_end": "v",
}


@wp.struct
class Tree:
    """Topology and layout of a model; holds no numbers that could have a gradient."""

    sequential: int  # 1 where worlds run one after the other and share their scratch
    stages: int  # of an integration step: 2, not written into a loop, which the compiler would unroll
    bodies: int
    coordinates: int
    freedoms: int
    actuators: int
    parent: wp.array(dtype=wp.int32)  # type: ignore[valid-type]  # (N,)
    kind: wp.array(dtype=wp.int32)  # type: ignore[valid-type]  # (N,)
    own: wp.array(dtype=wp.int32)  # type: ignore[valid-type]  # (N,) 1 where the joint follows no other
    q_start: wp.array(dtype=wp.int32)  # type: ignore[valid-type]  # (N,)
    v_start: wp.array(dtype=wp.int32)  # type: ignore[valid-type]  # (N,)
    dof_parent: wp.array(dtype=wp.int32)  # type: ignore[valid-type]  # (nv,) next in the factorization, or -1
    dof_coordinate: wp.array(dtype=wp.int32)  # type: ignore[valid-type]  # (nv,) its number in q, -1 without
    actuator_dof: wp.array(dtype=wp.int32)  # type: ignore[valid-type]  # (A,)
    joint_parameters: int  # where these begin in the packed parameters
    actuator_parameters: int
    gravity: int
    matrix: int  # where these begin in the scratch of a world
    q: int
    qd: int
    qdd: int
    tau: int
    force: int
    seed: int
    q_middle: int
    qd_middle: int
    qdd_middle: int
    qd_end: int
    grad_q: int
    grad_qd: int
    grad_qdd: int
    grad_q_middle: int
    grad_qd_middle: int
    grad_qd_end: int
    history: int  # of the substeps; last, because it grows with their number


Trees: Any = wp.array(
    dtype=Tree
)  # of one tree: functions of a kernel get their arguments copied, and a tree is large


@dataclass(frozen=True)
class Layout:
    """A tree on a device, with the sizes that its arrays have.

    Attributes:
        tree: The topology.
        trees: What kernels get, an array of that one.
        parameters: Length P of the packed parameters.
        scratch: Numbers of scratch for one world, without history.
    """

    tree: Any
    trees: Any
    parameters: int
    scratch: int

    @property
    def arguments(self) -> list[Any]:
        """What kernels get before the packed parameters."""
        return [self.trees]


def lay_out(model: Model, device: torch.device) -> Layout:
    """Return the layout of a model on a device; made once for all models of the same joints."""
    kinds = tuple(
        (joint.kind, joint.parent, joint.q_start, joint.v_start, joint.mimics is None)
        for joint in model.joints
    )
    return lay_out_joints(kinds, tuple(actuator.dof for actuator in model.actuators), device)


@functools.lru_cache(maxsize=256)
def lay_out_joints(joints: tuple[Any, ...], actuator_dofs: tuple[int, ...], device: torch.device) -> Layout:
    """Return the layout of joints: kind, parent, first coordinate and velocity, and whether these are its own."""
    wp.init()
    kind = [JointKind(joint[0]) for joint in joints]
    own = [joint[4] for joint in joints]
    nq = sum(k.coordinates for k, o in zip(kind, own, strict=True) if o)
    nv = sum(k.freedoms for k, o in zip(kind, own, strict=True) if o)

    def ints(values: Any) -> wp.array:
        return wp.array(
            np.asarray(values, dtype=np.int32).reshape(-1),
            dtype=wp.int32,
            device=wp.device_from_torch(device),
        )

    tree = Tree()
    tree.stages = 2
    tree.sequential = int(device.type == "cpu")
    tree.bodies, tree.coordinates, tree.freedoms, tree.actuators = len(joints), nq, nv, len(actuator_dofs)
    tree.parent, tree.kind, tree.own = ints([j[1] for j in joints]), ints(kind), ints(own)
    tree.q_start, tree.v_start = ints([j[2] for j in joints]), ints([j[3] for j in joints])
    tree.dof_parent, tree.dof_coordinate = ints(_dof_parents(joints, nv)), ints(_dof_coordinates(joints, nv))
    tree.actuator_dof = ints(actuator_dofs)
    tree.joint_parameters = len(joints) * BODY_NUMBERS
    tree.actuator_parameters = tree.joint_parameters + nv * JOINT_NUMBERS
    tree.gravity = tree.actuator_parameters + len(actuator_dofs) * ACTUATOR_NUMBERS
    at = len(joints) * SCRATCH_NUMBERS
    tree.matrix = at
    at += nv * nv
    for name, length in _VECTORS.items():
        setattr(tree, name, at)
        at += nq if length == "q" else nv
    tree.history = at
    trees: Any = wp.array([tree], dtype=Tree, device=wp.device_from_torch(device))
    return Layout(tree, trees, tree.gravity + 3, at)


def _dof_parents(joints: tuple[Any, ...], nv: int) -> list[int]:
    """For each velocity, the next one towards the root that the mass matrix couples it to.

    Eliminating along these fills in nothing (Featherstone 2008, section 6.5). A joint that mimics another couples
    across branches, so then the matrix is taken as dense.
    """
    if not all(own for *_, own in joints):
        return [dof - 1 for dof in range(nv)]
    last: list[int] = []  # last velocity of each body, or of the nearest body above that has one
    parents = [-1] * nv
    for kind, parent, _, start, _ in joints:
        above = -1 if parent == WORLD else last[parent]
        for dof in range(start, start + JointKind(kind).freedoms):
            parents[dof], above = above, dof
        last.append(above)
    return parents


def _dof_coordinates(joints: tuple[Any, ...], nv: int) -> list[int]:
    places = [-1] * nv
    for kind, _, q_start, v_start, own in joints:
        if own and kind in (JointKind.HINGE, JointKind.SLIDE):
            places[v_start] = q_start
    return places


def pack(model: Model, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return all parameters of a model as one tensor, shape (1, P), or (B, P) where one has a row per world.

    Gradients: with respect to each parameter. A model without any gets the same tensor again while nothing changes.
    """
    groups = (BODY_PARAMETERS, JOINT_PARAMETERS, ACTUATOR_PARAMETERS)
    values = [getattr(model, name) for group in groups for name in group] + [model.gravity]
    if any(value.requires_grad for value in values):
        return _pack(groups, values, dtype, device)
    key = (dtype, device, *((id(value), value._version) for value in values))
    cached = model.__dict__.get("_packed")
    if cached is None or cached[0] != key:
        cached = (key, _pack(groups, values, dtype, device))
        model.__dict__["_packed"] = cached
    return cached[1]


def _pack(groups: Any, values: list[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    axes = [a for group in groups for a in group.values()] + [(3,)]
    batch = max((len(v) for v, a in zip(values, axes, strict=True) if v.ndim > len(a)), default=1)
    values = [v.to(device=device, dtype=dtype) for v in values]
    values = [v.expand(batch, *v.shape[-len(a) :]) for v, a in zip(values, axes, strict=True)]
    packed, first = [], 0
    for group in groups:  # one row of numbers for each body, joint or actuator: their parameters side by side
        columns = [v.flatten(2) if v.ndim > 2 else v.unsqueeze(2) for v in values[first : first + len(group)]]
        packed.append(torch.cat(columns, 2).flatten(1))
        first += len(group)
    return torch.cat([*packed, values[-1]], 1)
