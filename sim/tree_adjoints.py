"""Adjoints of the recursions in `gradpath.sim.tree_functions`, by hand.

The gradient with respect to the transform of a joint is kept as a wrench: it multiplies a small twist of the body in
its own frame. So no rotation matrix is differentiated by its elements, and coordinates, axes, anchors and placements
get their gradients from one spatial vector per body.

With the twists v, the accelerations a and the wrenches F of inverse dynamics, and a seed on the joint forces, the
virtual twists u that the seed alone would cause carry the gradient: of the wrench of a body it is u, of its
acceleration the sum of I u over the body and all behind it.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.sim.spatial import make_memory, make_spatial
from gradpath.sim.tree import SCRATCH_OFFSETS, Trees
from gradpath.sim.tree_functions import (
    ACCELERATION,
    ANCHOR,
    ATTITUDE,
    AXIS,
    BALL,
    BODY,
    COM,
    FREE,
    HINGE,
    INERTIA,
    LOAD,
    MASS,
    OFFSET,
    PLACEMENT,
    RATIO,
    ROTATION,
    SCRATCH,
    SHIFT,
    SLIDE,
    TURNED,
    TWIST,
    WRENCH,
    make_joints,
)

VIRTUAL = wp.constant(SCRATCH_OFFSETS["virtual"])
GRAD_TWIST = wp.constant(SCRATCH_OFFSETS["grad_twist"])
GRAD_ACCELERATION = wp.constant(SCRATCH_OFFSETS["grad_acceleration"])
GRAD_TURN = wp.constant(SCRATCH_OFFSETS["grad_turn"])


@functools.cache
def make_joint_adjoints(scalar):
    """Return the adjoints of single joints and bodies, as attributes."""
    vec3, vec6 = wp.types.vector(3, scalar), wp.types.vector(6, scalar)
    quat = wp.types.quaternion(scalar)
    floats = wp.array2d(dtype=scalar)
    space, memory, joints = make_spatial(scalar), make_memory(scalar), make_joints(scalar)

    @wp.func
    def quat_gradient(q: quat, turn: vec3):
        """Gradient with respect to q, of any norm, from that with respect to a small turn in its own frame."""
        return space.quat_turned(wp.normalize(q), turn) * (scalar(2.0) / wp.length(q))

    @wp.func
    def direction_gradient(axis: vec3, gradient: vec3):
        """Gradient with respect to an axis of any length from that with respect to its direction."""
        unit = wp.normalize(axis)
        return (gradient - unit * wp.dot(unit, gradient)) / wp.length(axis)

    @wp.func
    def add_coordinate_gradient(
        tree: Trees,
        params: floats,
        row: int,
        work: floats,
        slot: int,
        i: int,
        q_at: int,
        grad_q_at: int,
        twist: vec6,
    ):
        """Add the gradient with respect to the coordinates, from that with respect to a twist of the body."""
        kind = tree[0].kind[i]
        at = i * BODY
        q, grad = q_at + tree[0].q_start[i], grad_q_at + tree[0].q_start[i]
        turn = space.angular(twist) + wp.cross(
            space.linear(twist), memory.read_vec3(params, row, at + ANCHOR)
        )
        if kind == HINGE:
            axis = wp.normalize(memory.read_vec3(params, row, at + AXIS))
            work[slot, grad] = work[slot, grad] + params[row, at + RATIO] * wp.dot(axis, turn)
        elif kind == SLIDE:
            axis = wp.normalize(memory.read_vec3(params, row, at + AXIS))
            work[slot, grad] = work[slot, grad] + params[row, at + RATIO] * wp.dot(axis, space.linear(twist))
        elif kind == BALL:
            memory.add_quat(work, slot, grad, quat_gradient(memory.read_quat(work, slot, q), turn))
        elif kind == FREE:
            value = memory.read_quat(work, slot, q + 3)
            memory.add_vec3(work, slot, grad, wp.quat_rotate(wp.normalize(value), space.linear(twist)))
            memory.add_quat(work, slot, grad + 3, quat_gradient(value, space.angular(twist)))

    @wp.func(inline=False)
    def add_placement_gradient(
        tree: Trees,
        params: floats,
        row: int,
        work: floats,
        slot: int,
        i: int,
        q_at: int,
        twist: vec6,
        grad_params: floats,
        world: int,
    ):
        """Add the gradients of all that places the body in its parent, from that of a twist of the body."""
        kind = tree[0].kind[i]
        at = i * BODY
        rotation, offset = joints.motion(tree, params, row, work, slot, i, q_at)
        placed = space.wrench_to_parent(rotation, offset, twist)
        turned = memory.read_quat(params, row, at + TURNED)
        memory.add_vec3(
            grad_params, world, at + PLACEMENT, wp.quat_rotate(wp.normalize(turned), space.linear(placed))
        )
        memory.add_quat(grad_params, world, at + TURNED, quat_gradient(turned, space.angular(placed)))
        linear = space.linear(twist)
        anchor, axis = memory.read_vec3(params, row, at + ANCHOR), memory.read_vec3(params, row, at + AXIS)
        if kind == HINGE or kind == BALL:
            memory.add_vec3(grad_params, world, at + ANCHOR, rotation * linear - linear)
        if kind == HINGE:
            unit = wp.normalize(axis)
            turn = space.angular(twist) + wp.cross(linear, anchor)
            angle = joints.position(tree, params, row, work, slot, i, q_at)
            # A change d of the axis turns the body by sin(angle) d - (1 - cos(angle)) axis x d in its own frame.
            grad_unit = wp.sin(angle) * turn - (scalar(1.0) - wp.cos(angle)) * wp.cross(turn, unit)
            memory.add_vec3(grad_params, world, at + AXIS, direction_gradient(axis, grad_unit))
            along = wp.dot(unit, turn)
            coordinate = work[slot, q_at + tree[0].q_start[i]]
            grad_params[world, at + RATIO] = grad_params[world, at + RATIO] + along * coordinate
            grad_params[world, at + SHIFT] = grad_params[world, at + SHIFT] + along
        if kind == SLIDE:
            position = joints.position(tree, params, row, work, slot, i, q_at)
            memory.add_vec3(grad_params, world, at + AXIS, direction_gradient(axis, position * linear))
            along = wp.dot(wp.normalize(axis), linear)
            coordinate = work[slot, q_at + tree[0].q_start[i]]
            grad_params[world, at + RATIO] = grad_params[world, at + RATIO] + along * coordinate
            grad_params[world, at + SHIFT] = grad_params[world, at + SHIFT] + along

    @wp.func(inline=False)
    def add_column_gradient(
        tree: Trees,
        params: floats,
        row: int,
        work: floats,
        slot: int,
        i: int,
        v_at: int,
        gradient: vec6,
        grad_params: floats,
        world: int,
    ):
        """Add the gradients of axis, anchor and ratio for a joint twist that has this gradient."""
        kind = tree[0].kind[i]
        at = i * BODY
        v = v_at + tree[0].v_start[i]
        linear, angular = space.linear(gradient), space.angular(gradient)
        anchor, axis = memory.read_vec3(params, row, at + ANCHOR), memory.read_vec3(params, row, at + AXIS)
        unit = wp.normalize(axis)
        if kind == HINGE:
            rate = params[row, at + RATIO] * work[slot, v]
            turn = angular + wp.cross(linear, anchor)
            memory.add_vec3(grad_params, world, at + AXIS, direction_gradient(axis, rate * turn))
            memory.add_vec3(grad_params, world, at + ANCHOR, rate * wp.cross(unit, linear))
            grad_params[world, at + RATIO] = (
                grad_params[world, at + RATIO] + wp.dot(unit, turn) * work[slot, v]
            )
        if kind == SLIDE:
            rate = params[row, at + RATIO] * work[slot, v]
            memory.add_vec3(grad_params, world, at + AXIS, direction_gradient(axis, rate * linear))
            grad_params[world, at + RATIO] = (
                grad_params[world, at + RATIO] + wp.dot(unit, linear) * work[slot, v]
            )
        if kind == BALL:
            memory.add_vec3(
                grad_params, world, at + ANCHOR, wp.cross(memory.read_vec3(work, slot, v), linear)
            )

    @wp.func(inline=False)
    def add_inertia_gradient(
        params: floats, row: int, i: int, v: vec6, gradient: vec6, grad_params: floats, world: int
    ):
        """Add the gradients of mass, centre of mass and inertia for a momentum I v that has this gradient."""
        at = i * BODY
        mass, com = params[row, at + MASS], memory.read_vec3(params, row, at + COM)
        w, turn = space.angular(v), space.angular(gradient)
        velocity = space.linear(v) + wp.cross(w, com)  # of the centre of mass
        pull = space.linear(gradient) + wp.cross(turn, com)
        grad_params[world, at + MASS] = grad_params[world, at + MASS] + wp.dot(pull, velocity)
        memory.add_vec3(grad_params, world, at + COM, mass * (wp.cross(pull, w) + wp.cross(velocity, turn)))
        mixed = scalar(0.5) * (wp.outer(turn, w) + wp.outer(w, turn))
        memory.add_mat33(grad_params, world, at + INERTIA, mixed)

    return SimpleNamespace(
        coordinate=add_coordinate_gradient,
        placement=add_placement_gradient,
        column=add_column_gradient,
        inertia=add_inertia_gradient,
    )


@functools.cache
def make_adjoints(scalar):
    """Return the adjoints of the recursions, as attributes."""
    vec3, vec6 = wp.types.vector(3, scalar), wp.types.vector(6, scalar)
    floats = wp.array2d(dtype=scalar)
    space, memory, joints = make_spatial(scalar), make_memory(scalar), make_joints(scalar)
    adjoints = make_joint_adjoints(scalar)

    @wp.func
    def virtual_twists(tree: Trees, params: floats, row: int, work: floats, slot: int, seed_at: int):
        """Write the twists that joint velocities equal to the seed would cause, and clear the sums over children."""
        for i in range(tree[0].bodies):
            at = i * SCRATCH
            u = joints.twist(tree, params, row, work, slot, i, seed_at)
            if tree[0].parent[i] >= 0:
                rotation, offset = (
                    memory.read_mat33(work, slot, at + ROTATION),
                    memory.read_vec3(work, slot, at + OFFSET),
                )
                u += space.twist_to_child(
                    rotation, offset, memory.read_vec6(work, slot, tree[0].parent[i] * SCRATCH + VIRTUAL)
                )
            memory.write_vec6(work, slot, at + VIRTUAL, u)
            memory.clear_row(work, slot, at + GRAD_TWIST, 15)

    @wp.func(inline=False)
    def load_gradient(
        tree: Trees, work: floats, slot: int, i: int, u: vec6, grad_wrench: floats, world: int, first: int
    ):
        """Add the gradient of a wrench from outside; return that of a turn of the body in its own frame."""
        at = i * SCRATCH
        load = memory.read_vec6(work, slot, at + LOAD)
        attitude = memory.read_mat33(work, slot, at + ATTITUDE)
        if grad_wrench.shape[1] > 0:
            memory.add_vec3(grad_wrench, world, first + 6 * i, -(attitude * space.linear(u)))
            memory.add_vec3(grad_wrench, world, first + 6 * i + 3, -(attitude * space.angular(u)))
        turn = memory.read_vec3(work, slot, at + GRAD_TURN)
        turn += wp.cross(space.linear(load), space.linear(u))
        turn += wp.cross(space.angular(load), space.angular(u))
        if tree[0].parent[i] >= 0:
            above = memory.read_mat33(work, slot, at + ROTATION) * turn
            memory.add_vec3(work, slot, tree[0].parent[i] * SCRATCH + GRAD_TURN, above)
        return turn

    @wp.func(inline=False)
    def newton_euler_adjoint(
        tree: Trees,
        params: floats,
        row: int,
        work: floats,
        slot: int,
        q_at: int,
        v_at: int,
        a_at: int,
        seed_at: int,
        grad_q_at: int,
        grad_v_at: int,
        grad_a_at: int,
        grad_params: floats,
        grad_wrench: floats,
        world: int,
        loaded: int,
        first: int,
    ):
        """Add the gradients of `newton_euler`, whose scratch must be that of the same motion.

        Those of the accelerations are left out where `grad_a_at` is negative, those of the parameters where
        `grad_params` has no rows.
        """
        virtual_twists(tree, params, row, work, slot, seed_at)
        for reverse in range(tree[0].bodies):
            i = tree[0].bodies - 1 - reverse
            at = i * SCRATCH
            rotation, offset = (
                memory.read_mat33(work, slot, at + ROTATION),
                memory.read_vec3(work, slot, at + OFFSET),
            )
            v, a = memory.read_vec6(work, slot, at + TWIST), memory.read_vec6(work, slot, at + ACCELERATION)
            f, u = memory.read_vec6(work, slot, at + WRENCH), memory.read_vec6(work, slot, at + VIRTUAL)
            s = joints.twist(tree, params, row, work, slot, i, v_at)
            t = joints.twist(tree, params, row, work, slot, i, a_at)
            push = joints.twist(tree, params, row, work, slot, i, seed_at)
            # Of the body's wrench I a + v x* I v - load, whose gradient is u; then of a = X a + t + v x s, v = X v + s.
            spin = space.cross_motion(u, v)
            grad_a = memory.read_vec6(work, slot, at + GRAD_ACCELERATION) + joints.momentum(params, row, i, u)
            momentum = joints.momentum(params, row, i, v)
            grad_v = memory.read_vec6(work, slot, at + GRAD_TWIST) + joints.momentum(params, row, i, spin)
            grad_v += space.cross_force(s, grad_a) - space.cross_force(u, momentum)
            grad_s = grad_v - space.cross_force(v, grad_a)
            twist = -space.cross_force(v - s, grad_v) - space.cross_force(
                a - t - space.cross_motion(v, s), grad_a
            )
            twist -= space.cross_force(u - push, f)
            if loaded == 1:
                turn = load_gradient(tree, work, slot, i, u, grad_wrench, world, first)
                twist += space.join(vec3(), turn)
            adjoints.coordinate(tree, params, row, work, slot, i, q_at, grad_q_at, twist)
            kind = tree[0].kind[i]
            for k in range(joints.freedoms(kind)):
                dof = tree[0].v_start[i] + k
                work[slot, grad_v_at + dof] = work[slot, grad_v_at + dof] + joints.force(
                    params, row, kind, i, k, grad_s
                )
                if grad_a_at >= 0:
                    value = joints.force(params, row, kind, i, k, grad_a)
                    work[slot, grad_a_at + dof] = work[slot, grad_a_at + dof] + value
            if tree[0].parent[i] >= 0:
                parent = tree[0].parent[i] * SCRATCH
                memory.add_vec6(
                    work, slot, parent + GRAD_TWIST, space.wrench_to_parent(rotation, offset, grad_v)
                )
                memory.add_vec6(
                    work, slot, parent + GRAD_ACCELERATION, space.wrench_to_parent(rotation, offset, grad_a)
                )
            if grad_params.shape[0] > 0:
                adjoints.inertia(params, row, i, a, u, grad_params, world)
                adjoints.inertia(params, row, i, v, spin, grad_params, world)
                adjoints.placement(tree, params, row, work, slot, i, q_at, twist, grad_params, world)
                adjoints.column(tree, params, row, work, slot, i, v_at, grad_s, grad_params, world)
                adjoints.column(tree, params, row, work, slot, i, a_at, grad_a, grad_params, world)
                adjoints.column(tree, params, row, work, slot, i, seed_at, f, grad_params, world)
                if tree[0].parent[i] < 0:
                    memory.add_vec3(grad_params, world, tree[0].gravity, -(rotation * space.linear(grad_a)))

    return SimpleNamespace(newton_euler=newton_euler_adjoint)
