"""Poses and twists of the bodies in the world, and the drift of coordinates along velocities, with their adjoints."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.sim.spatial import make_memory, make_spatial
from gradpath.sim.tree import SCRATCH_OFFSETS, Trees
from gradpath.sim.tree_adjoints import GRAD_TWIST, VIRTUAL, make_joint_adjoints
from gradpath.sim.tree_functions import (
    AXIS,
    BALL,
    BODY,
    FREE,
    HINGE,
    OFFSET,
    ROTATION,
    SCRATCH,
    SLIDE,
    TURNED,
    TWIST,
    make_joints,
)
from gradpath.warp_geometry import make_quat_exp

ORIENTATION = wp.constant(SCRATCH_OFFSETS["orientation"])
POSITION = wp.constant(SCRATCH_OFFSETS["position"])


@functools.cache
def make_kinematics(scalar):
    """Return the functions that give poses and twists in the world, and their adjoint, as attributes."""
    vec6 = wp.types.vector(6, scalar)
    floats = wp.array2d(dtype=scalar)
    space, memory, joints = make_spatial(scalar), make_memory(scalar), make_joints(scalar)
    adjoints = make_joint_adjoints(scalar)

    @wp.func
    def joint_quat(tree: Trees, params: floats, row: int, work: floats, slot: int, i: int, q_at: int):
        """Rotation of the body in its parent."""
        kind = tree[0].kind[i]
        placed = wp.normalize(memory.read_quat(params, row, i * BODY + TURNED))
        if kind == HINGE:
            angle = joints.position(tree, params, row, work, slot, i, q_at)
            return placed * wp.quat_from_axis_angle(
                wp.normalize(memory.read_vec3(params, row, i * BODY + AXIS)), angle
            )
        if kind == BALL:
            return placed * wp.normalize(memory.read_quat(work, slot, q_at + tree[0].q_start[i]))
        if kind == FREE:
            return placed * wp.normalize(memory.read_quat(work, slot, q_at + tree[0].q_start[i] + 3))
        return placed

    @wp.func(inline=False)
    def locate_bodies(
        tree: Trees, params: floats, row: int, work: floats, slot: int, q_at: int, v_at: int, moving: int
    ):
        """Write position and orientation of every body in the world, and its twist in its own frame."""
        for i in range(tree[0].bodies):
            at = i * SCRATCH
            position = memory.read_vec3(work, slot, at + OFFSET)
            orientation = joint_quat(tree, params, row, work, slot, i, q_at)
            parent = tree[0].parent[i] * SCRATCH
            if parent >= 0:
                above = memory.read_quat(work, slot, parent + ORIENTATION)
                position = memory.read_vec3(work, slot, parent + POSITION) + wp.quat_rotate(above, position)
                orientation = above * orientation
            memory.write_vec3(work, slot, at + POSITION, position)
            memory.write_quat(work, slot, at + ORIENTATION, orientation)
            if moving == 1:
                v = joints.twist(tree, params, row, work, slot, i, v_at)
                if parent >= 0:
                    rotation, offset = (
                        memory.read_mat33(work, slot, at + ROTATION),
                        memory.read_vec3(work, slot, at + OFFSET),
                    )
                    v += space.twist_to_child(rotation, offset, memory.read_vec6(work, slot, parent + TWIST))
                memory.write_vec6(work, slot, at + TWIST, v)

    @wp.func(inline=False)
    def locate_bodies_adjoint(
        tree: Trees,
        params: floats,
        row: int,
        work: floats,
        slot: int,
        q_at: int,
        v_at: int,
        grad_q_at: int,
        grad_v_at: int,
        grad_pose: floats,
        grad_twist: floats,
        grad_params: floats,
        world: int,
    ):
        """Add the gradients of poses and twists; those of twists only where `grad_twist` has columns."""
        moving = grad_twist.shape[1] > 0
        for i in range(tree[0].bodies):
            memory.clear_row(work, slot, i * SCRATCH + VIRTUAL, 12)  # and the gradient of the twist behind it
        for reverse in range(tree[0].bodies):
            i = tree[0].bodies - 1 - reverse
            at = i * SCRATCH
            rotation, offset = (
                memory.read_mat33(work, slot, at + ROTATION),
                memory.read_vec3(work, slot, at + OFFSET),
            )
            orientation = memory.read_quat(work, slot, at + ORIENTATION)
            # What a small twist of the body in its own frame does to its pose and to all behind it.
            turn = space.quat_turn_gradient(orientation, memory.read_quat(grad_pose, world, 7 * i + 3))
            pull = wp.quat_rotate_inv(orientation, memory.read_vec3(grad_pose, world, 7 * i))
            v, s = vec6(), vec6()
            grad_v = vec6()
            if moving:
                v = memory.read_vec6(work, slot, at + TWIST)
                s = joints.twist(tree, params, row, work, slot, i, v_at)
                linear = wp.quat_rotate_inv(orientation, memory.read_vec3(grad_twist, world, 6 * i))
                angular = wp.quat_rotate_inv(orientation, memory.read_vec3(grad_twist, world, 6 * i + 3))
                turn += wp.cross(space.linear(v), linear) + wp.cross(space.angular(v), angular)
                grad_v = memory.read_vec6(work, slot, at + GRAD_TWIST) + space.join(linear, angular)
            whole = memory.read_vec6(work, slot, at + VIRTUAL) + space.join(pull, turn)
            twist = whole - space.cross_force(v - s, grad_v)
            adjoints.coordinate(tree, params, row, work, slot, i, q_at, grad_q_at, twist)
            kind = tree[0].kind[i]
            if moving:
                for k in range(joints.freedoms(kind)):
                    dof = grad_v_at + tree[0].v_start[i] + k
                    work[slot, dof] = work[slot, dof] + joints.force(params, row, kind, i, k, grad_v)
            if tree[0].parent[i] >= 0:
                parent = tree[0].parent[i] * SCRATCH
                memory.add_vec6(work, slot, parent + VIRTUAL, space.wrench_to_parent(rotation, offset, whole))
                memory.add_vec6(
                    work, slot, parent + GRAD_TWIST, space.wrench_to_parent(rotation, offset, grad_v)
                )
            if grad_params.shape[0] > 0:
                adjoints.placement(tree, params, row, work, slot, i, q_at, twist, grad_params, world)
                if moving:
                    adjoints.column(tree, params, row, work, slot, i, v_at, grad_v, grad_params, world)

    return SimpleNamespace(locate=locate_bodies, locate_adjoint=locate_bodies_adjoint)


@functools.cache
def make_drift(scalar):
    """Return the functions that move coordinates along velocities, and its adjoint, as attributes."""
    vec3, quat = wp.types.vector(3, scalar), wp.types.quaternion(scalar)
    floats = wp.array2d(dtype=scalar)
    space, memory = make_spatial(scalar), make_memory(scalar)
    quat_exp = make_quat_exp(scalar)

    @wp.func(inline=False)
    def drift(tree: Trees, work: floats, slot: int, q_at: int, v_at: int, time: scalar, out_at: int):
        """Write the coordinates after moving with constant velocities; a free joint translates at its mean attitude."""
        for i in range(tree[0].bodies):
            kind = tree[0].kind[i]
            q, v, out = q_at + tree[0].q_start[i], v_at + tree[0].v_start[i], out_at + tree[0].q_start[i]
            if tree[0].own[i] == 1:
                if kind == HINGE or kind == SLIDE:
                    work[slot, out] = work[slot, q] + time * work[slot, v]
                elif kind == BALL:
                    turn = time * memory.read_vec3(work, slot, v)
                    memory.write_quat(
                        work, slot, out, wp.normalize(memory.read_quat(work, slot, q) * quat_exp(turn))
                    )
                elif kind == FREE:
                    attitude = wp.normalize(memory.read_quat(work, slot, q + 3))
                    turn = time * memory.read_vec3(work, slot, v + 3)
                    middle = attitude * quat_exp(scalar(0.5) * turn)
                    moved = memory.read_vec3(work, slot, q) + time * wp.quat_rotate(
                        middle, memory.read_vec3(work, slot, v)
                    )
                    memory.write_vec3(work, slot, out, moved)
                    memory.write_quat(work, slot, out + 3, wp.normalize(attitude * quat_exp(turn)))

    @wp.func
    def turned_gradient(q: quat, turn: vec3):
        return space.quat_turned(wp.normalize(q), turn) * (scalar(2.0) / wp.length(q))

    @wp.func(inline=False)
    def drift_adjoint(
        tree: Trees,
        work: floats,
        slot: int,
        q_at: int,
        v_at: int,
        time: scalar,
        grad_out_at: int,
        grad_q_at: int,
        grad_v_at: int,
    ):
        """Add the gradients of `drift` with respect to coordinates and velocities."""
        for i in range(tree[0].bodies):
            kind = tree[0].kind[i]
            q, v = q_at + tree[0].q_start[i], v_at + tree[0].v_start[i]
            out, grad_q = grad_out_at + tree[0].q_start[i], grad_q_at + tree[0].q_start[i]
            grad_v = grad_v_at + tree[0].v_start[i]
            if tree[0].own[i] == 1:
                if kind == HINGE or kind == SLIDE:
                    work[slot, grad_q] = work[slot, grad_q] + work[slot, out]
                    work[slot, grad_v] = work[slot, grad_v] + time * work[slot, out]
                elif kind == BALL:
                    start = memory.read_quat(work, slot, q)
                    turn = time * memory.read_vec3(work, slot, v)
                    end = wp.normalize(start) * quat_exp(turn)
                    gradient = space.quat_turn_gradient(end, memory.read_quat(work, slot, out))
                    memory.add_quat(
                        work, slot, grad_q, turned_gradient(start, wp.quat_rotate(quat_exp(turn), gradient))
                    )
                    memory.add_vec3(work, slot, grad_v, time * space.turn_jacobian_transpose(turn, gradient))
                elif kind == FREE:
                    start = memory.read_quat(work, slot, q + 3)
                    turn = time * memory.read_vec3(work, slot, v + 3)
                    half = scalar(0.5) * turn
                    end, middle = wp.normalize(start) * quat_exp(turn), wp.normalize(start) * quat_exp(half)
                    gradient = space.quat_turn_gradient(end, memory.read_quat(work, slot, out + 3))
                    pull = memory.read_vec3(work, slot, out)
                    in_middle = time * wp.quat_rotate_inv(middle, pull)
                    by_middle = wp.cross(memory.read_vec3(work, slot, v), in_middle)
                    at_start = wp.quat_rotate(quat_exp(turn), gradient) + wp.quat_rotate(
                        quat_exp(half), by_middle
                    )
                    memory.add_vec3(work, slot, grad_q, pull)
                    memory.add_quat(work, slot, grad_q + 3, turned_gradient(start, at_start))
                    memory.add_vec3(work, slot, grad_v, in_middle)
                    along = space.turn_jacobian_transpose(turn, gradient)
                    along += scalar(0.5) * space.turn_jacobian_transpose(half, by_middle)
                    memory.add_vec3(work, slot, grad_v + 3, time * along)

    return SimpleNamespace(drift=drift, drift_adjoint=drift_adjoint)
